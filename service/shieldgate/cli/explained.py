"""Shows which words carried a score: in shades of a colour, or in brackets where there is none."""

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from shieldgate.types import Exchange, Explanation

# How a word is shown, by how much it carries beside the one that carries most.
_SHADES = ((0.66, "bold reverse red"), (0.33, "bold red"), (0.1, "red"))
_LISTED = 5


def show_explanation(
    policy: str, explained: Explanation, exchange: Exchange, console: Console
) -> None:
    """Print what was explained with its words marked, and what the margin loses without them."""
    console.print(f"[bold]{policy}[/] {_about(explained, exchange)}", highlight=False)
    marked = _marked(explained, exchange, coloured=console.color_system is not None)
    console.print(Padding(marked, (0, 2), expand=False))
    console.print(Text(f"  {_tested(explained, exchange)}", style="dim"))


def _tested(explained: Explanation, exchange: Exchange) -> str:
    """Name the words that carried most, and say what is left without them."""
    if explained.margin_without is None or explained.margin_alone is None:
        return "No word alone lowers the margin."
    text = explained.reading or exchange.judged
    worst = sorted(explained.words, key=lambda word: word.lost, reverse=True)[:_LISTED]
    named = [f"{text[w.start : w.end]} {w.lost:.2f}" for w in worst if w.lost > 0]
    words, them = f"the {explained.tested} words that carry", "them"
    if explained.tested == 1:
        words, them = "the word that carries", "it"
    return (
        f"Carried most: {', '.join(named)}. The margin is {explained.margin:.2f}, "
        f"without {words} most {explained.margin_without:.2f}, "
        f"with nothing but {them} {explained.margin_alone:.2f}."
    )


def _about(explained: Explanation, exchange: Exchange) -> str:
    """Say what of the text was explained."""
    if explained.reading is not None:
        return "by another reading of the text, which scores worst:"
    if explained.end - explained.start < len(exchange.judged.strip()):
        at = f"{explained.start:,} to {explained.end:,}"
        return f"by characters {at}, the passage that scores worst:"
    return "by the whole text:"


def _marked(explained: Explanation, exchange: Exchange, *, coloured: bool) -> Text:
    text = explained.reading or exchange.judged
    most = max((word.lost for word in explained.words), default=0.0)
    shown, at = Text(), explained.start
    for word in explained.words:
        share = word.lost / most if most > 0 else 0.0
        style = next((style for least, style in _SHADES if share >= least), "")
        shown.append(text[at : word.start])
        said = text[word.start : word.end]
        shown.append(said if coloured or share < _SHADES[1][0] else f"[{said}]", style)
        at = word.end
    return shown.append(text[at : explained.end])
