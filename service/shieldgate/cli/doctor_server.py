"""What `shieldgate doctor URL` does: examines a server as it is before it scores."""

import asyncio
import json
import sys

import typer
from rich.console import Console
from rich.text import Text

from shieldgate.cli.options import asking
from shieldgate.errors import ModelError, ScorerUnavailable
from shieldgate.scoring.factory import open_scorer
from shieldgate.settings import ScoringSettings
from shieldgate.telemetry import configure_logging


def examine(url: str, settings: ScoringSettings, *, as_json: bool) -> int:
    """Print whether a server reads prompts as they are sent, and give the exit code.

    Raises ConfigurationError where a setting is wrong or it is no engine; exits with 1 where it
    isn't there.
    """
    configure_logging("warning", as_json=False)
    asked = asking(settings, url).model_copy(update={"cascade": None})
    wrong = name = None
    try:
        name = asyncio.run(_name(asked))
    except ModelError as fault:
        wrong = str(fault)
    except ScorerUnavailable as failure:
        typer.echo(f"Error: {failure}", err=True)
        sys.exit(1)
    if as_json:
        told = {"source": url, "kind": "a server", "differs": bool(wrong), "why": wrong}
        typer.echo(json.dumps({**told, "scorer": name}, indent=1, ensure_ascii=False))
    else:
        good = (
            f" serves {name}. It reads prompts as they are sent and to their ends, knows both "
            "answers, and gives the same scores when it is asked again."
        )
        console = Console()
        console.print(Text.assemble((url, "bold"), f": {wrong}" if wrong else good))
        verdict = ("1 difference", "bold red") if wrong else ("no difference", "bold green")
        console.print(Text(*verdict))
    return 1 if wrong else 0


async def _name(settings: ScoringSettings) -> str:
    """Open the scorer, which is examined by that; raise as it does."""
    async with open_scorer(settings, max_batch_tokens=1, max_waiting=1) as scorer:
        return scorer.identity.name
