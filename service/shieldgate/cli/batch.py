"""`shieldgate batch`: scores datasets on one machine or many, and writes Parquet."""

from typing import Annotated

import typer

from shieldgate.batch.pool import parse_pool
from shieldgate.cli.options import AdapterFlag, MapFlag, StrictFlag, with_settings
from shieldgate.errors import needed
from shieldgate.settings import ScoringSettings

_RUN = "Run"
_CLUSTER = "Cluster"


@with_settings
def batch(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="A file (.parquet; .jsonl, .ndjson, .json, .csv, .tsv, or these with .gz), a "
            "folder of them or a quoted pattern such as 'rows/*.parquet'; here, or in s3:// or gs://.",
        ),
    ],
    settings: ScoringSettings,
    *,
    out: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="Where part-00000.parquet and so on go; a folder, or one in s3:// or gs://.",
            rich_help_panel=_RUN,
        ),
    ],
    adapter: AdapterFlag = None,
    map_: MapFlag = None,
    strict: StrictFlag = False,
    family: Annotated[
        str, typer.Option(help="Score under the policies of this family.", rich_help_panel=_RUN)
    ] = "shieldgemma",
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="Score under this policy, instead of a family. May be repeated.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    max_batch_tokens: Annotated[
        int,
        typer.Option(min=1, help="Most tokens in one forward pass.", rich_help_panel=_RUN),
    ] = 4096,
    concurrency: Annotated[
        int,
        typer.Option(
            min=1,
            help="Rows that an actor asks a scorer elsewhere for at a time.",
            rich_help_panel=_RUN,
        ),
    ] = 8,
    part_rows: Annotated[
        int,
        typer.Option(
            min=1,
            help="Cut Parquet files into parts of at least so many rows, between row groups.",
            rich_help_panel=_RUN,
        ),
    ] = 10_000,
    address: Annotated[
        str | None,
        typer.Option(
            help="A Ray cluster that this machine is a node of, as HOST:6379; `local` starts one. "
            "Default: RAY_ADDRESS, or the cluster that runs here, or one that is started.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    actors: Annotated[
        str | None,
        typer.Option(
            metavar="N|LEAST:MOST",
            help="How many actors load the scorer; with two numbers they follow the load. Default: "
            "one a GPU, or one a node where there is none.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    actor_cpus: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Processors that an actor reserves, and computes on. Default: 1 with a GPU or a "
            "scorer elsewhere, else the actors of a node share all that it has.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    actor_gpus: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="GPUs that an actor reserves. Default: 1 where the cluster has any now; say 1 "
            "where GPU nodes come only when they are asked for.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
) -> None:
    """Score a dataset with Ray Data, and write margins and probabilities as Parquet.

    A file is a part, a large Parquet file several; each part is written when all of it is scored.
    The same command goes on after whatever stopped it, part by part, and refuses where the
    scorer, the policies or the data are others. An actor that dies is replaced, and its part
    scored anew. `shieldgate evaluate DATASET --scores DIR` says how good the scores are.

    The exit code is 0 when all was scored, 1 when the scorer or the cluster failed, 2 when a
    setting or the data is wrong, 130 after Ctrl-C.

    For example:

    - `shieldgate batch comments.parquet --map prompt=text --out scored`

    - `shieldgate batch 'chats/*.jsonl' --out scored --actors 2 --actor-cpus 4`

    - `shieldgate batch s3://bucket/chats --out s3://bucket/scored --model google/shieldgemma-2b
    --actors 1:16 --actor-gpus 1`
    """
    with needed("Scoring datasets", "ray"):
        # Here, because they import numpy, pyarrow and Ray.
        from shieldgate.batch.run import BatchOptions  # noqa: PLC0415
        from shieldgate.cli.batch_run import run  # noqa: PLC0415
    options = BatchOptions(
        adapter=adapter,
        columns=map_ or (),
        strict=strict,
        rows=part_rows,
        max_batch_tokens=max_batch_tokens,
        concurrency=concurrency,
    )
    pool = parse_pool(actors, cpus=actor_cpus, gpus=actor_gpus)
    run(
        data,
        out,
        settings,
        options,
        policies=policy or (),
        family=family,
        address=address,
        pool=pool,
    )
