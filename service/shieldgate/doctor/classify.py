"""Of which kind a difference between two prompts is."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shieldgate.doctor.findings import Span
from shieldgate.doctor.prompts import Word, joined

MARKERS = ("<start_of_turn>", "<end_of_turn>")
_ROLE = re.compile(r"\s*(user|model|system)\b")
_STRAIGHT = str.maketrans("‘’“”´`", "''\"\"''")  # noqa: RUF001 - what editors make of quotes


@dataclass(frozen=True, slots=True)
class Difference:
    """Words [start, end) of a published prompt, and those of another that stand for them."""

    ours: Sequence[Word]
    theirs: Sequence[Word]
    mine: Span
    other: Span

    @property
    def taken(self) -> str:
        """Give the published text."""
        return joined(self.ours[slice(*self.mine)])

    @property
    def given(self) -> str:
        """Give the text that stands for it."""
        return joined(self.theirs[slice(*self.other)])

    @property
    def kind(self) -> str:
        """Name the first kind whose rule holds."""
        return next(kind for kind, holds in _RULES if holds(self))

    @property
    def last(self) -> bool:
        """Tell whether it is the end of the prompt."""
        return self.other[1] == len(self.theirs)

    @property
    def blank(self) -> bool:
        """Tell whether only white space differs."""
        return not (self.taken + self.given).strip()

    @property
    def marked(self) -> bool:
        """Tell whether a marker of a turn differs."""
        return any(marker in self.taken + self.given for marker in MARKERS)

    @property
    def role(self) -> bool:
        """Tell whether theirs has a role after the marker of a turn."""
        inserted = re.search(rf"<start_of_turn>{_ROLE.pattern}", self.given)
        before = joined(self.theirs[: self.other[0]]).rstrip()
        after = before.endswith(MARKERS[0]) and _ROLE.fullmatch(self.given.rstrip())
        return bool(inserted or after)

    @property
    def lost_line(self) -> bool:
        """Tell whether theirs goes on in a line where the published prompt begins another."""
        beside = (*self.theirs[: self.other[0]][-1:], *self.theirs[self.other[1] :][:1])
        return "\n" in self.taken and "\n" not in self.given and "\n" not in joined(beside)

    def lacks(self, field: str) -> bool:
        """Tell whether a field is in the published words only."""
        return field in self.taken and field not in self.given

    def before(self, word: str) -> bool:
        """Tell whether a published word comes next."""
        return joined(self.ours[self.mine[1] :][:1]) == word

    def within(self) -> tuple[int, bool]:
        """Count the turns that began before it, and tell whether the question did."""
        words = [w.text for w in self.ours[: self.mine[0] + 1]]
        opened, closed = map(words.count, MARKERS)
        return (opened if opened > closed else -opened), "Does" in words


# In this order: the first that holds is the kind of a difference.
_RULES: Sequence[tuple[str, Callable[[Difference], bool]]] = (
    ("no-prompt", lambda d: d.lacks("{prompt}")),
    ("no-guideline", lambda d: d.lacks("{guideline}")),
    ("ends-in-space", lambda d: d.last and d.given.endswith((" ", "\t"))),
    ("model-turn", lambda d: d.last and MARKERS[0] in d.given),
    ("turn-role", lambda d: d.role),
    ("turn-missing", lambda d: d.marked and _markers(d.taken) > _markers(d.given)),
    ("turn-extra", lambda d: d.marked),
    ("ending", lambda d: d.blank and d.last),
    ("newline-before-end", lambda d: d.blank and d.lost_line and d.before(MARKERS[1])),
    ("joined", lambda d: d.blank and d.lost_line),
    ("wrapped", lambda d: d.blank and "\n" in d.given and d.taken != "" and "\n" not in d.taken),
    ("blank-lines", lambda d: d.blank and "\n" in d.taken + d.given),
    ("spaces", lambda d: d.blank),
    ("quotes", lambda d: d.taken.translate(_STRAIGHT) == d.given.translate(_STRAIGHT)),
    ("bullet", lambda d: d.taken.strip() == "*"),
    ("rule", lambda d: d.taken.strip() == "==="),
    ("after-question", lambda d: d.last and not d.taken.strip()),
    ("before-preamble", lambda d: d.mine == (0, 0)),
    ("preamble", lambda d: d.within()[0] == 0),
    ("heading-prompt", lambda d: d.within()[0] == 1),
    ("heading-response", lambda d: d.within()[0] > 1),
    ("question", lambda d: d.within()[1]),
    ("principle", lambda d: True),
)


def _markers(text: str) -> int:
    return sum(map(text.count, MARKERS))
