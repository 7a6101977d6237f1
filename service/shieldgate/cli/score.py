"""Judges one text and prints the verdict."""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from shieldgate.cli.options import chosen_profile
from shieldgate.errors import ConfigurationError, ScoringError, UnknownName
from shieldgate.moderation import judge
from shieldgate.policy import Rules, load_book
from shieldgate.schemas import ExchangeResult, ScorerInfo, ScreenReply
from shieldgate.scoring import Identity
from shieldgate.scoring.factory import open_scorer
from shieldgate.settings import ScoringSettings
from shieldgate.telemetry import configure_logging
from shieldgate.types import Exchange, Verdict


def run(
    settings: ScoringSettings,
    text: str,
    *,
    response: str | None,
    policies: Sequence[str],
    as_json: bool,
) -> bool:
    """Print the verdict on a text, and tell whether it stops the text.

    Raises ConfigurationError; exits with 1 when no score could be had.
    """
    configure_logging("warning", as_json=False)
    if text == response == "-":
        raise ConfigurationError("Standard input can't be both the prompt and the response.")
    exchange = Exchange(_read(text), None if response is None else _read(response))
    book = load_book(settings.policies)
    profile = chosen_profile(book, settings)
    try:
        rules = book.rules(profile, policies)
    except UnknownName as unknown:
        raise ConfigurationError(f"--policy: {unknown}") from None
    try:
        verdict, identity, seconds = asyncio.run(_judge(settings, exchange, rules))
    except ScoringError as failure:
        typer.echo(f"Error: {failure}", err=True)
        sys.exit(1)
    result = ExchangeResult.of(verdict, seconds)
    reply = ScreenReply(
        scorer=ScorerInfo.of(identity),
        policy_book=book.version,
        profile=profile.name,
        results=[result],
        milliseconds=result.milliseconds,
    )
    if as_json:
        typer.echo(reply.model_dump_json(indent=2))
    else:
        _show(reply, Console())
    return verdict.action.stops


def _read(given: str) -> str:
    """Take the text itself, the file of that name, or standard input; raise ConfigurationError."""
    if given == "-":
        data = sys.stdin.buffer.read()
    elif os.path.isfile(given):  # noqa: PTH113 - Path.is_file raises where a text is no path
        data = Path(given).read_bytes()
    else:
        return given
    try:
        return data.decode()
    except UnicodeDecodeError as wrong:
        raise ConfigurationError(
            f"{'Standard input' if given == '-' else given} is not UTF-8 text "
            f"(at byte {wrong.start}). Convert it first, for example with iconv."
        ) from None


async def _judge(
    settings: ScoringSettings, exchange: Exchange, rules: Rules
) -> tuple[Verdict, Identity, float]:
    """Judge one exchange; gives the seconds of judging, without those of loading."""
    async with open_scorer(settings, max_batch_tokens=1, max_waiting=1) as scorer:
        started = perf_counter()
        verdict = await judge(scorer, exchange, rules)
        return verdict, scorer.identity, perf_counter() - started


def _show(reply: ScreenReply, console: Console) -> None:
    [result] = reply.results
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("policy", no_wrap=True)
    table.add_column("probability", justify="right")
    table.add_column("threshold", justify="right")
    table.add_column("")
    for policy, found in result.policies.items():
        table.add_row(
            policy,
            f"{found.probability:.3f}",
            f"{found.threshold:g}",
            "[bold red]violated[/]" if found.violated else "",
        )
    verdict = result.action.value.replace("_", " ").upper()
    colour = "red" if result.violated else "green"
    console.print(f"[bold {colour}]{verdict}[/] ({result.direction}, profile {reply.profile})")
    console.print(table)
    notes = [f"{result.milliseconds:.0f} ms"]
    if reply.scorer:
        notes.insert(0, f"scorer {reply.scorer.name}")
    windows = max(p.windows for p in result.policies.values())
    if windows > 1:
        notes.append(f"judged in {windows} windows")
    omitted = max(p.prompt_omitted for p in result.policies.values())
    if omitted:
        notes.append(f"{omitted} characters of the prompt not shown beside the response")
    if not all(p.calibrated for p in result.policies.values()):
        notes.append("default thresholds: not calibrated for this scorer")
    console.print(", ".join(notes), style="dim", highlight=False)
