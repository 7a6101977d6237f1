"""What `shieldgate train-features` does: trains, shows how far it is, and how good it came out."""

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shieldgate.cli.options import chosen_profile
from shieldgate.errors import ConfigurationError, UnknownName
from shieldgate.features.quality import Quality
from shieldgate.features.training import Recipe, train_autoencoder
from shieldgate.plural import counted
from shieldgate.policy import load_book
from shieldgate.scoring.factory import open_engine
from shieldgate.settings import ScoringSettings
from shieldgate.telemetry import configure_logging
from shieldgate.types import Exchange


def run(
    settings: ScoringSettings,
    exchanges: Sequence[Exchange],
    out: Path,
    *,
    layer: int,
    features: int | None,
    **changes: Any,
) -> None:
    """Train and show what came out; raise ConfigurationError.

    Exits with 1 when training failed, with 130 when it was interrupted.
    """
    configure_logging("warning", as_json=False)
    book = load_book(settings.policies)
    try:
        policies = book.select(chosen_profile(book, settings))
    except UnknownName as unknown:
        raise ConfigurationError(str(unknown)) from None
    console = Console(stderr=True)
    with console.status(f"loading {settings.model}"):
        engine = open_engine(settings)
    width = features or 8 * engine.model.config.hidden_size
    recipe = Recipe(layer=layer, features=width, **changes)
    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
        console=console,
    )
    try:
        with bar:
            task = bar.add_task("", total=recipe.steps, loss="")
            trained = train_autoencoder(
                engine,
                exchanges,
                policies,
                recipe,
                out,
                on_step=lambda step, loss: bar.update(
                    task, completed=step + 1, loss=f"unexplained {loss:.3f}"
                ),
            )
    except FloatingPointError:
        _fail("training diverged: the loss is not finite. Try a lower --rate, and another --out.")
    except torch.OutOfMemoryError:
        _fail("the memory of the device is full. Ask for fewer --features, and another --out.")
    except KeyboardInterrupt:
        typer.echo("Stopped. Give the same command again to go on.", err=True)
        sys.exit(128 + signal.SIGINT)
    for line in described(trained.quality, recipe.features):
        typer.echo(line)
    typer.echo(
        f"Wrote {trained.file}, and beside it the tokens that features fire on. Next:\n"
        f"  shieldgate features TEXT --sae {shlex.quote(str(trained.file))} --labels "
        f"{shlex.quote(str(trained.file.with_name('labels.json')))}"
    )


def described(quality: Quality, features: int) -> list[str]:
    """Say in sentences how good an autoencoder is."""
    return [
        f"On {counted(quality.texts, 'text')} held out, {quality.rows:,} tokens of prompts:",
        f"  unexplained of the states' variance: {quality.fvu:.1%}, on the texts' own tokens "
        f"{quality.fvu_of_text:.1%}",
        f"  features that fire on a token: {quality.l0:.1f} of {features:,}; never: "
        f"{quality.dead:.1%}",
        f"  of the margins' variance kept by rebuilt states: {quality.margin_kept:.1%}; a margin "
        f"changes by {quality.margin_change:.2f} on average",
    ]


def _fail(why: str) -> NoReturn:
    typer.echo(f"Error: {why}", err=True)
    sys.exit(1)
