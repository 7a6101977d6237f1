"""How well the language of a text is guessed, and what that costs beside scoring it.

    python -m benchmarks.languages [--english FILE ...]

Warnings on texts in other languages are right, those on English are wrong, for a scorer that knows
English. FILE is more English, a JSON object with `prompt` a line, .gz or not: its texts that were
warned of are printed with --show, because some are in another language after all.
"""

import argparse
import gzip
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import process_time

from rich import box
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML

from shieldgate import language
from shieldgate.moderation import unsupported_language
from shieldgate.policy import Policy, load_book
from shieldgate.scoring.local import PackedEngine, load_engine
from shieldgate.telemetry import configure_logging
from shieldgate.types import Exchange

TEXTS = Path(__file__).with_name("texts.yaml")
KNOWN = ("en",)
LENGTHS = (40, 400, 4_000, 40_000)


def main() -> None:
    """Print what is warned of, and the time that a guess takes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.languages",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--english", nargs="*", default=(), type=Path, help="files of English")
    parser.add_argument("--show", action="store_true", help="print what is warned of in them")
    parser.add_argument("--model", default="starter", help="the scorer beside which time is told")
    arguments = parser.parse_args()
    configure_logging("warning", as_json=False)
    console = Console(highlight=False, soft_wrap=True)
    texts = YAML(typ="safe").load(TEXTS.read_text("utf-8"))
    table = Table("texts", "warned of", "of", box=box.SIMPLE_HEAD)
    for kind in ("languages", "english"):
        for name, of_kind in texts[kind].items():
            table.add_row(f"{kind}: {name}", str(len(warned(of_kind))), str(len(of_kind)))
    for file in arguments.english:
        of_file = prompts(file)
        found = warned(of_file)
        table.add_row(file.name, str(len(found)), f"{len(of_file):,}")
        if arguments.show:
            for text, code in found.items():
                console.print(f"{code} {text[:100]!r}", style="dim", markup=False)
    console.print(table)
    engine, book = load_engine(arguments.model, device="cpu"), load_book()
    policies = book.select(book.profile("default"))
    table = Table("characters", "guess, ms", "scoring, ms", "share", box=box.SIMPLE_HEAD)
    for length in LENGTHS:
        text = " ".join(texts["english"]["sentences"] * (length // 600 + 1))[:length]
        guess = timed(partial(guessed, text))
        score = timed(partial(scored, engine, text, policies))
        table.add_row(
            f"{length:,}", f"{guess * 1e3:.2f}", f"{score * 1e3:.1f}", f"{guess / score:.1%}"
        )
    console.print(table)
    console.print(f"processor time on one core; {arguments.model}, the default profile's policies")


def guessed(text: str) -> str | None:
    return unsupported_language(Exchange(text), KNOWN)


def warned(texts: list[str]) -> dict[str, str]:
    found = ((text, guessed(text)) for text in texts)
    return {text: code for text, code in found if code}


def prompts(file: Path) -> list[str]:
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["prompt"] for line in lines]


def scored(engine: PackedEngine, text: str, policies: Sequence[Policy]) -> None:
    for work in engine.prepare(Exchange(text), policies).work:
        engine.forward([work])


def timed(work: Callable[[], object], seconds: float = 1.0) -> float:
    """Give the processor time of one call, the mean of as many as take so long."""
    work()
    began, calls = process_time(), 0
    while process_time() - began < seconds:
        work()
        calls += 1
    return (process_time() - began) / calls


if __name__ == "__main__":
    language.load()
    main()
