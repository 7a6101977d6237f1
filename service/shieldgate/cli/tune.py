"""`shieldgate tune`: a scorer for one's own policies, from labelled rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from shieldgate.cli.options import DATA, AdapterFlag, LabelFlag, MapFlag
from shieldgate.errors import needed

_RUN = "Training"


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for; None leaves a choice to the recipe."""

    base: str
    data: str
    out: Path
    policies: Path | None
    test: str | None
    chosen: Sequence[str]
    adapter: str | None
    columns: Sequence[str]
    labels: Sequence[str]
    revision: str | None
    template: str
    device: str
    method: Literal["full", "lora"] | None
    seed: int
    steps: int | None
    rate: float | None
    keep: float | None
    tokens: int | None


def tune(
    *,
    base: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="What to start from: google/shieldgemma-2b (-9b, -27b), the path of a "
            "checkpoint, or 'starter'.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="DATASET",
            help="Labelled rows, as `shieldgate evaluate` reads them: {prompt, response, labels: "
            "{policy: 0|1}}. A label that is missing is unknown, and teaches nothing.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the checkpoint and its report go.")
    ],
    policies: Annotated[
        Path | None,
        typer.Option(
            envvar="SHIELDGATE_POLICIES",
            help="Policy file, or directory of them, that the labels name. Default: those that "
            "are shipped.",
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET",
            help="Rows to measure before and after on. Default: a fifth of the rows, held out.",
            rich_help_panel=DATA,
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="Tune this policy only. May be repeated. Default: all that rows label.",
            rich_help_panel=DATA,
        ),
    ] = None,
    adapter: AdapterFlag = None,
    map_: MapFlag = None,
    label: LabelFlag = None,
    method: Annotated[
        Literal["auto", "full", "lora"],
        typer.Option(
            help="Train all weights, or low-rank adapters that are merged at the end (needs "
            "peft). auto: adapters from half a billion parameters on.",
            rich_help_panel=_RUN,
        ),
    ] = "auto",
    seed: Annotated[
        int, typer.Option(help="Deals the rows out, and draws all else.", rich_help_panel=_RUN)
    ] = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most steps of 8 rows; it stops when the validation rows are ranked no better. "
            "Default: by the number of rows.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="The learning rate. Default: by the method and the number of rows.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    keep: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="How much staying with the base on the shipped ShieldGemma policies counts "
            "against a label; 0 lets it forget them. Default: 0.5.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most tokens in one pass, unless one text alone has more: less takes less "
            "memory. Default: 4096.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    template: Annotated[
        str,
        typer.Option(
            help="The prompt format to train and serve with: chat, paper or notebook, or a YAML "
            "file.",
            rich_help_panel=_RUN,
        ),
    ] = "chat",
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit of a base from the hub.", rich_help_panel=_RUN),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"],
        typer.Option(help="Where the model computes.", rich_help_panel=_RUN),
    ] = "auto",
) -> None:
    """Train a scorer on labelled rows of your own policies.

    Write the policy first, then label some rows: 50 are a start, a few hundred are better. A
    fifth of them chooses when to stop, a fifth says what was reached (or give --test). The result
    is a checkpoint that serve, score and evaluate load, and DIR/tuning/report.json with the
    figures before and after. Given again, the same command goes on where it was stopped.

    The exit code is 0 when it is done, 1 when training failed, 2 when a setting or the data is
    wrong, 130 after Ctrl-C.

    For example:

    - `shieldgate tune --base starter --data rows.jsonl --policies my.yaml --out my-scorer`

    - `shieldgate tune --base google/shieldgemma-2b --data rows.csv --map prompt=text
    --map label:acme/banking=is_banking --policies my.yaml --out my-scorer`

    - `shieldgate tune --base starter --data rows.jsonl --test fresh.jsonl --policies my.yaml
    --policy acme/banking --out my-scorer`
    """
    with needed("Tuning", "tune"):
        # Here, because it imports torch, which most commands do without.
        from shieldgate.cli.tuning import run  # noqa: PLC0415
    run(
        Request(
            base=base,
            data=data,
            out=out,
            policies=policies,
            test=test,
            chosen=policy or (),
            adapter=adapter,
            columns=map_ or (),
            labels=label or (),
            revision=revision,
            template=template,
            device=device,
            method=None if method == "auto" else method,
            seed=seed,
            steps=steps,
            rate=rate,
            keep=keep,
            tokens=batch_tokens,
        )
    )
