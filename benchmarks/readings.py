"""What it costs to see through disguises: the time to read texts, and judgements beyond the first.

Judgements are those of the default profile under a scorer that needs no passages: a text's
readings, and what the JSON or code in it says. Ordinary text and code are this repository's own;
`--data` adds texts of a file, a line each.
"""

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.timing import fastest
from shieldgate.moderation import score_ways
from shieldgate.normalise import readings
from shieldgate.policy import Policy, load_book
from shieldgate.scoring import Identity
from shieldgate.types import Exchange, Score

ROOT = Path(__file__).parent.parent
FOREIGN = (
    "Können Sie mir bitte sagen, wie spät es ist? Ich möchte für übermorgen zwei Plätze.",
    "Je voudrais réserver une table pour quatre personnes samedi soir, s'il vous plaît.",
    "¿Cómo está usted? Mañana iré al médico con mi niño pequeño y después al mercado.",
    "Tôi muốn đặt bàn cho bốn người vào tối thứ Bảy, cảm ơn bạn rất nhiều.",
    "Vorrei sapere a che ora parte il treno per Milano e quanto costa il biglietto.",
    "Dzień dobry, chciałbym kupić bilet do Łodzi na jutro rano.",
)
OTHER_SCRIPTS = (
    "Ёлка стоит в зале, дети ждут подарков и поют песни.",
    "אני עובד עם Microsoft Excel ועם Google Docs כל יום.",
    "मैं हर दिन सुबह योग करता हूँ और फिर चाय पीता हूँ।",
    "今日はとても天気がいいので、公園へ散歩に行きましょう。",
    "ฉันชอบกินข้าวผัดกับไข่ดาวทุกเช้าก่อนไปทำงาน",
    "أريد أن أحجز طاولة لأربعة أشخاص مساء السبت من فضلك.",
)
LINES = 40


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readings", description=__doc__)
    parser.add_argument("--data", type=Path, help="texts, a line each")
    arguments = parser.parse_args()
    kinds = ordinary()
    if arguments.data:
        kinds[arguments.data.name] = arguments.data.read_text("utf-8").splitlines()
    Console().print(table(kinds))


def ordinary() -> dict[str, Sequence[str]]:
    """Give texts of each kind."""
    pages = [page.read_text("utf-8") for page in sorted(ROOT.glob("docs/*.md"))]
    paragraphs = [each for page in pages for each in page.split("\n\n")]
    files = [file.read_text("utf-8") for file in sorted(ROOT.glob("service/**/*.py"))]
    return {
        "English prose": [each for each in paragraphs if each[:1].isalpha()],
        "Markdown, a page each": pages,
        f"Python, {LINES} lines each": [
            "".join(lines[start : start + LINES])
            for lines in (file.splitlines(keepends=True) for file in files)
            for start in range(0, len(lines), LINES)
        ],
        "Latin letters with marks": FOREIGN,
        "other scripts": OTHER_SCRIPTS,
    }


class Unmoved:
    """A scorer that finds nothing in any text, and computes nothing."""

    identity = Identity("shieldgemma-2b", "", "float32", "", "")

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        """Score an exchange as harmless."""
        return [Score(-1.0)] * len(policies)


async def judgements(texts: Sequence[str]) -> list[int]:
    """Count in how many ways each text is judged."""
    book = load_book(None)
    rules = book.rules(book.profile("default"))
    return [len(await score_ways(Unmoved(), Exchange(text), rules)) for text in texts]


def table(kinds: Mapping[str, Sequence[str]]) -> Table:
    """Read all texts of each kind."""
    report = Table(title="Readings")
    for column in ("text", "texts", "ms per 1,000 characters", "judged again", "judgements"):
        report.add_column(column, justify="left" if column == "text" else "right")
    for kind, texts in kinds.items():
        ways = asyncio.run(judgements(texts))
        seconds = fastest({kind: lambda texts=texts: [*map(readings, texts)]}, 1, time.process_time)
        report.add_row(
            kind,
            f"{len(texts):,}",
            f"{1e6 * seconds[kind] / sum(map(len, texts)):.2f}",
            f"{sum(way > 1 for way in ways) / len(texts):.1%}",
            f"{sum(ways) / len(texts):.2f}",
        )
    return report


if __name__ == "__main__":
    main()
