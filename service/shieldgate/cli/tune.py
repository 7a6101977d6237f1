"""`shieldgate tune`: a scorer for one's own policies, from labelled rows."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer

from shieldgate.cli.options import DATA, AdapterFlag, LabelFlag, MapFlag
from shieldgate.errors import needed
from shieldgate.policy import load_book, policy_files
from shieldgate.prompt import find_template
from shieldgate.telemetry import configure_logging

_RUN = "Training"


def tune(
    *,
    base: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="What to start from: google/shieldgemma-2b (-9b, -27b), the path of a "
            "checkpoint, 'starter' or 'small'.",
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
        # Here, because they import torch, which most commands do without.
        from shieldgate.cli.tune_run import run  # noqa: PLC0415
        from shieldgate.evaluation.adapters import choose_adapter  # noqa: PLC0415
        from shieldgate.evaluation.labels import parse_labels  # noqa: PLC0415
        from shieldgate.tuning.prepare import RowReader, kept_policies, prepare  # noqa: PLC0415
        from shieldgate.tuning.tune import TuningTask  # noqa: PLC0415
    configure_logging("warning", as_json=False)
    reader = RowReader(
        choose_adapter(adapter, map_ or ()),
        parse_labels(label or ()),
        lambda sentence: typer.echo(f"Note: {sentence}", err=True),
    )
    tuned, splits = prepare(reader, data, test, load_book(policies), policy or (), seed=seed)
    changes = {"steps": steps, "rate": rate, "keep": keep, "tokens": batch_tokens}
    run(
        TuningTask(
            base=base,
            out=out,
            template=find_template(template),
            policies=tuned,
            kept=kept_policies(tuned),
            splits=splits,
            seed=seed,
            revision=revision,
            device=device,
            method=None if method == "auto" else method,
            changes={name: value for name, value in changes.items() if value is not None},
        )
    )
    book = f" --policies {shlex.quote(str(policies))}" if policies else ""
    words = "" if template == "chat" else f" --template {shlex.quote(template)}"
    model = f"--model {shlex.quote(str(out))}{words}{book}"
    read = [test or "fresh.jsonl"]
    read += [f"--adapter={adapter}"] if adapter else []
    read += [f"--map={pair}" for pair in map_ or ()]
    read += [f"--label={pair}" for pair in label or ()]
    read += [f"--policy={id}" for id in tuned]
    runs = shlex.quote(f"runs/{out.name}")
    serve = f"  shieldgate serve {model}"
    measure = (
        f"  shieldgate evaluate {shlex.join(read)} {model} --out {runs}\n"
        f"  shieldgate calibrate {runs}/scores.jsonl --target fpr=0.01{book}"
        f"{_written(policies, tuned)}"
    )
    if test:
        typer.echo(f"Next:\n{measure}\n{serve}")
    else:
        typer.echo(f"Next:\n{serve}")
        typer.echo(
            f"With labelled rows in fresh.jsonl that it has not seen, calibrate it:\n{measure}"
        )


def _written(policies: Path | None, tuned: Iterable[str]) -> str:
    """Write the flag by which `calibrate` fills the file that has the tuned policies."""
    from shieldgate.evaluation.writeback import policies_in  # noqa: PLC0415 - imports numpy

    for file in policy_files(policies) if policies else ():
        if policies_in(file).issuperset(tuned):
            return f" --write {shlex.quote(str(file))}"
    return ""
