"""What is said of a difference: its kind, its places, why it matters and how to mend it."""

from collections.abc import Sequence
from dataclasses import dataclass

from shieldgate.doctor.kinds import KINDS
from shieldgate.doctor.prompts import Word, joined

# How many characters around a difference are shown, and of it.
_AROUND = 28
_MOST = 56

# Offsets [start, end) in a list of words, or in a line.
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a prompt something differs, from 1, and both texts there.

    The two texts are one line each, with what can't be seen shown; what differs is at [start, end)
    of each, and begins below each other.
    """

    line: int
    column: int
    published: str
    theirs: str
    differs: tuple[Span, Span]

    @classmethod
    def of(
        cls, text: str, ours: Sequence[Word], theirs: Sequence[Word], pair: tuple[Span, Span]
    ) -> "Place":
        """Show a pair of words that differ, with what is around them; `text` is all of theirs."""
        mine, other = pair
        at = theirs[other[0]].at if other[0] < len(theirs) else len(text)
        before, changed, after = zip(_around(ours, mine), _around(theirs, other), strict=True)
        width = max(map(len, before))
        return cls(
            line=text.count("\n", 0, at) + 1,
            column=at - text.rfind("\n", 0, at),
            published=before[0].rjust(width) + changed[0] + after[0],
            theirs=before[1].rjust(width) + changed[1] + after[1],
            differs=((width, width + len(changed[0])), (width, width + len(changed[1]))),
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference of a kind of `KINDS`, or, where not `certain`, what a file alone can't tell.

    `places` are in the prompt; `line` is that of a setting in its file.
    """

    kind: str
    what: str
    why: str
    mend: str
    places: Sequence[Place] = ()
    line: int | None = None
    certain: bool = True

    @classmethod
    def of(
        cls,
        kind: str,
        places: Sequence[Place] = (),
        *,
        line: int | None = None,
        certain: bool = True,
        **said: object,
    ) -> "Finding":
        """Say what a kind says, with `said` filled in."""
        what, why, mend = (text.format_map(said) for text in KINDS[kind])
        return cls(kind, what, why, mend, tuple(places), line, certain)


def _around(side: Sequence[Word], span: Span) -> tuple[str, str, str]:
    """Give what is before a span, in it and after it, for people."""
    start, end = span
    changed = joined(side[start:end])
    blank = not any(map(str.isalnum, changed))
    return (
        _visible(joined(side[:start]))[-_AROUND:],
        _visible(changed, spaces=blank)[:_MOST],
        _visible(joined(side[end : end + _AROUND]))[:_AROUND],
    )


def _visible(text: str, *, spaces: bool = False) -> str:
    """Show what can't be seen: line ends, tabs, no-break spaces and, if wanted, spaces."""
    shown = text.translate(
        {
            ord(a): b
            for a, b in zip("\n\r\t\u00a0\ufeff", ("⏎", "␍", "⇥", "⍽", "⟨BOM⟩"), strict=True)
        }
    )
    return shown.replace(" ", "·") if spaces else shown
