"""`shieldgate features` and `train-features`: what fires in a scorer while it judges."""

from pathlib import Path
from typing import Annotated

import typer

from shieldgate.cli.options import (
    AdapterFlag,
    BesideFlag,
    FileFlag,
    LimitFlag,
    LinesFlag,
    MapFlag,
    ResponseFlag,
    TextArgument,
    TextFlag,
    with_settings,
)
from shieldgate.errors import ConfigurationError, needed
from shieldgate.settings import ScoringSettings

_RUN = "Training"


@with_settings
def features(
    settings: ScoringSettings,
    given: TextArgument = None,
    *,
    sae: Annotated[
        Path,
        typer.Option(
            metavar="FILE|DIR",
            help="A sparse autoencoder of the residual stream after a layer: Gemma Scope's "
            "params.npz, Gemma Scope 2's params.safetensors, or what `train-features` wrote.",
        ),
    ],
    layer: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="The layer, counted from 0, after which it reads. Default: what its folder "
            "(layer_12/…) or its config.json says.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='What features stand for: {"index": "text"}, or explanations exported from '
            "Neuronpedia (JSON, or JSON lines, also .gz).",
        ),
    ] = None,
    text: TextFlag = None,
    file: FileFlag = None,
    lines: LinesFlag = None,
    response: ResponseFlag = None,
    policy: BesideFlag = None,
    top: Annotated[
        int,
        typer.Option(
            min=1,
            help="How many features to list of each policy and of the text; each is taken out, and "
            "19 others for it, which takes 20 prompts.",
        ),
    ] = 5,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="List the tokens of the text, too.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write all that was found as JSON, for programs.")
    ] = False,
) -> None:
    """Show which features of a sparse autoencoder fire while a text is judged.

    They are shown where each policy is answered, and on the text. With them stands the fraction of
    the states' variance that the features leave unexplained, and what each margin does when a
    feature is taken out, beside 19 others that fire there, scaled to its size. A feature that moves
    a margin more than any of those is marked "moves"; all others are "associated" with the verdict,
    and no cause of it.

    The exit code is 0 when it is done, 1 when the scorer failed, 2 when a setting or file is wrong.

    For example:

    - `shieldgate features "Go away" --sae my-features/layer_1/width_2k/average_l0_32`

    - `shieldgate features prompt.txt --model google/shieldgemma-2b --sae
    layer_12/width_16k/average_l0_82/params.npz --labels explanations.jsonl.gz`

    - `git log -1 --format=%B | shieldgate features - --sae params.npz --layer 12 --json`
    """
    _check(settings)
    with needed("Looking at features", "local"):
        # Here, because they import torch, which most commands do without.
        from shieldgate.cli.features_run import FeaturesTask, run  # noqa: PLC0415
    from shieldgate.cli.score import read_exchanges  # noqa: PLC0415

    exchanges = read_exchanges(given, text=text, file=file, lines=lines, response=response)
    task = FeaturesTask(settings, sae, layer, labels, tuple(policy or ()), top)
    run(task, exchanges, tokens=tokens, as_json=as_json)


@with_settings
def train_features(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="Texts, in rows as `shieldgate evaluate` reads them: {prompt, response}. Labels "
            "aren't used.",
        ),
    ],
    settings: ScoringSettings,
    *,
    layer: Annotated[
        int, typer.Option(min=0, help="The layer, counted from 0, after which it reads.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the autoencoder and its report go.")
    ],
    adapter: AdapterFlag = None,
    map_: MapFlag = None,
    limit: LimitFlag = None,
    width: Annotated[
        int | None,
        typer.Option(
            "--features",
            min=2,
            help="How many features it has. Default: eight to each number of a state.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    l0: Annotated[
        int,
        typer.Option(
            "--l0",
            min=1,
            help="How many of them fire on a token, on average.",
            rich_help_panel=_RUN,
        ),
    ] = 32,
    steps: Annotated[
        int,
        typer.Option(min=1, help="How many steps, of 16 texts each.", rich_help_panel=_RUN),
    ] = 2000,
    rate: Annotated[
        float, typer.Option(min=0, help="The learning rate.", rich_help_panel=_RUN)
    ] = 1e-3,
    seed: Annotated[
        int, typer.Option(help="Deals the texts out, and draws all else.", rich_help_panel=_RUN)
    ] = 0,
) -> None:
    """Train a sparse autoencoder on the states of a scorer while it judges your texts.

    It is written as Gemma Scope has it, DIR/layer_N/width_W/average_l0_L/params.npz, and measured
    on texts held out: what it leaves unexplained, how many features fire, how many never do, and
    how much of the margins is kept where all states are rebuilt from features. Beside it goes
    labels.json: of each feature, the tokens of those texts on which it fires most. Given again,
    the same command goes on where it was stopped.

    The exit code is 0 when it is done, 1 when training failed, 2 when a setting or the data is
    wrong, 130 after Ctrl-C.

    For example:

    - `shieldgate train-features rows.jsonl --layer 1 --out my-features`

    - `shieldgate train-features rows.csv --map prompt=text --model google/shieldgemma-2b
    --layer 12 --features 16384 --l0 80 --out my-features`
    """
    _check(settings)
    with needed("Training features", "tune"):
        from shieldgate.cli.features_train import run  # noqa: PLC0415
        from shieldgate.evaluation.adapters import choose_adapter  # noqa: PLC0415
        from shieldgate.evaluation.datasets import Dataset  # noqa: PLC0415
        from shieldgate.evaluation.sources import open_source  # noqa: PLC0415
    dataset = Dataset(open_source(data), choose_adapter(adapter, map_ or ()), limit=limit)
    # What is there twice could be learnt from and measured on.
    exchanges = list(dict.fromkeys(row.example.exchange for row in dataset.rows()))
    if not exchanges:
        raise ConfigurationError(f"{data}: it holds no texts. Name your column: --map prompt=text.")
    changes = {"l0": l0, "steps": steps, "rate": rate, "seed": seed}
    run(settings, exchanges, out, layer=layer, features=width, **changes)


def _check(settings: ScoringSettings) -> None:
    """Refuse scorers whose states can't be seen; raise ConfigurationError."""
    if settings.servers or settings.cascade:
        raise ConfigurationError(
            "Features are of the states of a model in this process, and of one: give a checkpoint "
            "as --model, and no --cascade."
        )
