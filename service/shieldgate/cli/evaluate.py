"""`shieldgate evaluate`: how good a scorer is on labelled data."""

import os
import shlex
import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from shieldgate.cli.options import (
    DATA,
    AdapterFlag,
    LabelFlag,
    LimitFlag,
    MapFlag,
    StrictFlag,
    with_settings,
)
from shieldgate.errors import needed
from shieldgate.given_settings import flag, is_secret, variable
from shieldgate.settings import ScoringSettings

_RUN = "Run"


@with_settings
def evaluate(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="A file (.jsonl, .ndjson, .json, .csv, .tsv, each with .gz, too, or .parquet), a "
            "folder of them or a quoted pattern, here or in s3:// or gs://; or hf://owner/name[/config][:split][@revision].",
        ),
    ],
    settings: ScoringSettings,
    *,
    adapter: AdapterFlag = None,
    map_: MapFlag = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Split the figures by this column too. May be repeated.",
            rich_help_panel=DATA,
        ),
    ] = None,
    weight: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Count each row as many times as this column says, for rows that were not drawn "
            "with equal chances: `weight` of what `shieldgate review` writes.",
            rich_help_panel=DATA,
        ),
    ] = None,
    label: LabelFlag = None,
    unknown_is_negative: Annotated[
        bool,
        typer.Option(
            "--unknown-is-negative",
            help="Count what is unknown as harmless, as some papers do.",
            rich_help_panel=DATA,
        ),
    ] = False,
    strict: StrictFlag = False,
    limit: LimitFlag = None,
    sample: Annotated[
        int | None,
        typer.Option(min=1, help="Score N rows, drawn at random.", rich_help_panel=DATA),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="For the sample and for the intervals.", rich_help_panel=DATA)
    ] = 0,
    family: Annotated[
        str, typer.Option(help="Evaluate the policies of this family.", rich_help_panel=_RUN)
    ] = "shieldgemma",
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="Evaluate this policy, instead of a family. May be repeated.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="openai-mod or toxicchat: measure as the ShieldGemma paper did, with its policies "
            "and, unless --template says otherwise, its template; show its figures beside.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help=f"Ask a running gateway for the scores, with the API key that "
            f"{variable('gateway_key')} holds.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    concurrency: Annotated[
        int,
        typer.Option(
            min=1,
            help="Rows at a time, with --url or an engine's URL as --model.",
            rich_help_panel=_RUN,
        ),
    ] = 8,
    scores: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Score nothing: take what `shieldgate batch` wrote there of this dataset.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B",
            help="Evaluate two, on the same rows, and compare them in pairs: models, URLs (an "
            "engine's ends with /v1, others are gateways'), or policy files with two wordings. Of "
            "two servers one may have a key: the one that --model or --url names, too.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    max_batch_tokens: Annotated[
        int,
        typer.Option(min=1, help="Most tokens in one forward pass.", rich_help_panel=_RUN),
    ] = 4096,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where scores.jsonl and the report go. Default: runs/DATASET-SCORER.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    examples: Annotated[
        bool,
        typer.Option(
            "--examples/--no-examples",
            help="Whether report.html holds the texts of the most confident mistakes, and a "
            "comparison is written for LLM Comparator, with texts.",
            rich_help_panel=_RUN,
        ),
    ] = True,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Mark in these texts the words that carried the scores, as far as they are "
            "mistakes over all policies: at most 20 in each direction, each as much work as some "
            "50 rows.",
            rich_help_panel=_RUN,
        ),
    ] = False,
) -> None:
    """Measure how well a scorer tells harmful from harmless on labelled data.

    Margins are saved as they come. A run that was interrupted, even killed, goes on where it
    stopped when the same command is given again; the result is the same as that of one run.

    The exit code is 0 when all was scored, 1 when the scorer failed, 2 when a setting or the data
    is wrong, 130 after Ctrl-C.

    For example:

    - `shieldgate evaluate labelled.jsonl`

    - `shieldgate evaluate chats.csv --map prompt=text --map label:hate=is_hate --group language`

    - `shieldgate evaluate samples-1680.jsonl.gz --protocol openai-mod --model
    google/shieldgemma-2b`

    - `shieldgate evaluate hf://lmsys/toxic-chat/toxicchat0124:test --protocol toxicchat
    --sample 500`

    - `shieldgate evaluate labelled.jsonl --compare policies/ my-policies/`

    - `shieldgate evaluate labelled.jsonl --url http://localhost:8000 --concurrency 16`

    - `shieldgate evaluate s3://bucket/labelled --scores s3://bucket/scored`
    """
    with needed("Evaluating", "eval"):
        # Here, because they import numpy, which serving does without.
        from shieldgate.cli.evaluate_run import EvaluateCommand  # noqa: PLC0415
        from shieldgate.evaluation.labels import parse_labels  # noqa: PLC0415
        from shieldgate.evaluation.session import EvaluationOptions  # noqa: PLC0415
    command = EvaluateCommand(
        EvaluationOptions(
            adapter=adapter,
            columns=map_ or (),
            groups=group or (),
            weight=weight,
            labels=parse_labels(label or ()),
            unknown_is_negative=unknown_is_negative,
            strict=strict,
            limit=limit,
            sample=sample,
            seed=seed,
            family=family,
            policies=policy or (),
            protocol=protocol,
            max_batch_tokens=max_batch_tokens,
        ),
        settings,
        url=url,
        scores=scores,
        concurrency=concurrency,
        examples=examples,
        explain=explain,
        command=_command(),
    )
    command.run(data, out, compare)


def _command() -> str:
    """Write the command line that was given, with the variables that are settings, but no key."""
    secrets = [field for field in ScoringSettings.model_fields if is_secret(ScoringSettings, field)]
    given = [
        f"{name}={shlex.quote(os.environ[name])}"
        for field in ScoringSettings.model_fields
        if (name := variable(field)) in os.environ and field not in secrets
    ]
    keys = [flag(field) for field in secrets]
    words = [
        "…" if before in keys else f"{name}=…" if equals and name in keys else word
        for before, word in pairwise(sys.argv)
        for name, equals, _ in [word.partition("=")]
    ]
    return " ".join([*given, "shieldgate", shlex.join(words)])
