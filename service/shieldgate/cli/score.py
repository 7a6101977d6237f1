"""Judges texts and prints the verdicts."""

import asyncio
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Literal

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shieldgate.cli.explained import show_explanation
from shieldgate.cli.options import chosen_profile
from shieldgate.errors import ConfigurationError, ScoringError, UnknownName
from shieldgate.explanations.explain import Gradients, explain
from shieldgate.moderation import judge
from shieldgate.plural import counted
from shieldgate.policy import Rules, load_book
from shieldgate.schemas import ExchangeResult, Explained, ScorerInfo, ScreenReply
from shieldgate.scoring import Identity, Scorer
from shieldgate.scoring.factory import open_scorer
from shieldgate.settings import ScoringSettings
from shieldgate.telemetry import configure_logging
from shieldgate.types import Exchange

Explaining = Literal["leaving out", "gradient"]


def read_exchanges(
    given: str | None,
    *,
    text: str | None,
    file: str | None,
    lines: str | None,
    response: str | None,
) -> list[Exchange]:
    """Read what is to be judged from the one place that is named; raise ConfigurationError."""
    if sum(place is not None for place in (given, text, file, lines)) != 1:
        raise ConfigurationError("Give one thing to judge: a text, --text, --file or --lines.")
    if response is not None and lines is not None:
        raise ConfigurationError("--response answers one prompt, so it can't go with --lines.")
    if response == "-" and "-" in (given, file):
        raise ConfigurationError("Standard input can't be both the prompt and the response.")
    if lines is not None:
        found = [Exchange(line.rstrip("\r")) for line in _read(lines).split("\n") if line.strip()]
        if not found:
            raise ConfigurationError(f"--lines {lines}: there is no line with text in it.")
        return found
    prompt = text if text is not None else _read(file) if file is not None else _take(given or "")
    if text is None and not prompt.strip():
        # Of a pipe that broke or a variable that isn't set nobody should read "allowed".
        raise ConfigurationError(
            "There is no text to judge: what was given is empty. --text '' judges it all the same."
        )
    return [Exchange(prompt, None if response is None else _take(response))]


def run(
    settings: ScoringSettings,
    exchanges: Sequence[Exchange],
    *,
    policies: Sequence[str],
    explained: Explaining | None,
    as_json: bool,
) -> bool:
    """Print the verdicts, `explained` in a way or not, and tell whether one stops its text.

    Raises ConfigurationError; exits with 1 when no score could be had.
    """
    configure_logging("warning", as_json=False)
    book = load_book(settings.policies)
    profile = chosen_profile(book, settings)
    try:
        rules = book.rules(profile, policies)
    except UnknownName as unknown:
        raise ConfigurationError(f"--policy: {unknown}") from None
    try:
        results, identity = asyncio.run(_judge(settings, exchanges, rules, explained))
    except ScoringError as failure:
        typer.echo(f"Error: {failure}", err=True)
        sys.exit(1)
    reply = ScreenReply(
        scorer=ScorerInfo.of(identity),
        policy_book=book.version,
        profile=profile.name,
        results=results,
        milliseconds=round(sum(result.milliseconds for result in results), 3),
    )
    if as_json:
        typer.echo(reply.model_dump_json(indent=2))
    elif len(results) == 1:
        _show(reply, exchanges[0], Console())
    else:
        _show_all(reply, exchanges, Console())
    return any(result.action.stops for result in results)


# No blank, and a slash or an ending that begins with a letter; "3.14" and "Stop." are texts. Or
# the ending of a text file.
_LIKE_A_PATH = re.compile(
    r"\S*[/\\]\S*|\S+\.[A-Za-z][A-Za-z0-9]{0,7}|.+\.(txt|md|jsonl?|csv|log|html?)", re.IGNORECASE
)


def _take(given: str) -> str:
    """Take standard input, the file of that name, or else the text; raise ConfigurationError.

    What looks like the name of a file is not taken for a text, because a misspelt name would pass.
    """
    if given == "-" or os.path.exists(given):  # noqa: PTH110 - Path raises where it is no path
        return _read(given)
    if _LIKE_A_PATH.fullmatch(given):
        raise ConfigurationError(
            f"{given}: there is no such file. If it is the text itself, give it as --text, or on "
            "standard input with -."
        )
    return given


def _read(file: str) -> str:
    return read_text(file, " If it is the text itself, give it as --text.")


def read_text(file: str, otherwise: str = "") -> str:
    """Read a file, or standard input for `-`; raise ConfigurationError, which ends `otherwise`."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except (OSError, ValueError) as refused:
        reason = getattr(refused, "strerror", None) or "it is no path"
        raise ConfigurationError(f"{file}: can't be read: {reason}.{otherwise}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        raise ConfigurationError(
            f"{'Standard input' if file == '-' else file} is not UTF-8 text "
            f"(at byte {wrong.start}). Convert it first, for example with iconv."
        ) from None


async def _judge(
    settings: ScoringSettings,
    exchanges: Sequence[Exchange],
    rules: Rules,
    explained: Explaining | None,
) -> tuple[list[ExchangeResult], Identity]:
    """Judge one exchange after another; the seconds are those of judging, without loading."""
    results = []
    with Console(stderr=True).status(f"loading {settings.model}") as status:
        async with open_scorer(settings, max_batch_tokens=1, max_waiting=sys.maxsize) as scorer:
            for number, exchange in enumerate(exchanges, start=1):
                status.update(f"judging {number:,} of {counted(len(exchanges), 'text')}")
                started = perf_counter()
                verdict = await judge(scorer, exchange, rules)
                seconds = perf_counter() - started
                explanation = None
                if explained:
                    status.update("weighing words")
                    by = _gradients(scorer) if explained == "gradient" else None
                    found = await explain(scorer, exchange, rules, verdict.judgements, by)
                    explanation = Explained(policies=found)
                results.append(ExchangeResult.of(verdict, seconds, explanation=explanation))
            return results, scorer.identity


def _gradients(scorer: Scorer) -> Gradients:
    gradients: Gradients | None = getattr(getattr(scorer, "engine", None), "gradients", None)
    if gradients is None:
        raise ConfigurationError(
            "--gradient is for one model in this process. Explain this scorer without it."
        )
    return gradients


def _show_all(reply: ScreenReply, exchanges: Sequence[Exchange], console: Console) -> None:
    # The text gets what is left of the line, and is cut there.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), expand=True)
    table.add_column("", no_wrap=True)
    table.add_column("highest", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("text", no_wrap=True, ratio=1)
    for exchange, result in zip(exchanges, reply.results, strict=True):
        # None where the profile refuses the language.
        ranked = sorted(result.policies.items(), key=lambda found: -found[1].probability)
        highest = [(policy, f"{judged.probability:.3f}") for policy, judged in ranked] or [("", "")]
        table.add_row(f"{_verdict(result)}{_mark(result)}", *highest[0], escape(exchange.prompt))
    console.print(table)
    if languages := {r.unsupported_language for r in reply.results if r.unsupported_language}:
        console.print(_warning(reply, ", ".join(sorted(languages))), style="yellow")


def _mark(result: ExchangeResult) -> str:
    return f" [yellow]({result.unsupported_language}?)[/]" if result.unsupported_language else ""


def _warning(reply: ScreenReply, languages: str) -> str:
    known = ", ".join(reply.scorer.languages or ()) if reply.scorer else ""
    return (
        f"Language: {languages}? The scorer is said to know {known}, so that nothing found is no "
        "sign of a harmless text."
    )


def _verdict(result: ExchangeResult) -> str:
    colour = "red" if result.violated or result.action.stops else "green"
    return f"[bold {colour}]{result.action.value.replace('_', ' ').upper()}[/]"


def _show(reply: ScreenReply, exchange: Exchange, console: Console) -> None:
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
    console.print(f"{_verdict(result)} ({result.direction}, profile {reply.profile})")
    if result.policies:
        console.print(table)
    if result.unsupported_language:
        console.print(_warning(reply, result.unsupported_language), style="yellow")
    notes = [f"{result.milliseconds:.0f} ms"]
    if reply.scorer:
        notes.insert(0, f"scorer {reply.scorer.name}")
    windows = max((p.windows for p in result.policies.values()), default=0)
    if windows > 1:
        notes.append(f"judged in {windows} windows")
    omitted = max((p.prompt_omitted for p in result.policies.values()), default=0)
    if omitted:
        notes.append(f"{omitted} characters of the prompt not shown beside the response")
    if not all(p.calibrated for p in result.policies.values()):
        notes.append("default thresholds: not calibrated for this scorer")
    console.print(", ".join(notes), style="dim", highlight=False)
    for policy, explanation in result.explanation.policies.items() if result.explanation else ():
        show_explanation(policy, explanation, exchange, console)
