"""Text in the order in which it is displayed, where controls of direction change it; pure."""

import re
import unicodedata
from dataclasses import dataclass, field

_STRONG = re.compile(r"[^\W\d_]")
_CLUSTER = re.compile("[\\s\\S][\u0300-\u036f\u20d0-\u20ff]*")
_CONTROLS = re.compile("([\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069])")
_LINES = re.compile("([\n\r\x1c-\x1e\x85\u2029])")
_OPENING = {
    "\u202a": (False, False, False),
    "\u202b": (True, False, False),
    "\u202d": (False, True, False),
    "\u202e": (True, True, False),
    "\u2066": (False, False, True),
    "\u2067": (True, False, True),
    "\u2068": (False, False, True),
}


def displayed(text: str) -> str:
    """Put a text into the order in which it is displayed and read (Unicode's UAX #9, in part).

    Only controls of direction change it; letters that run leftwards by nature stay in their order.
    """
    if not _CONTROLS.search(text):
        return text
    return "".join(map(_line, _LINES.split(text)))


def _line(line: str) -> str:
    base = _Scope(leftwards=line.startswith(("\u200f", "\u061c")))
    open_scopes, isolates = [base], 0
    for item in filter(None, _CONTROLS.split(line)):
        if item in _OPENING:
            scope = _Scope(*_OPENING[item])
            open_scopes[-1].items.append(scope)
            open_scopes.append(scope)
            isolates += scope.isolate
        elif item == "\u202c":
            if len(open_scopes) > 1 and not open_scopes[-1].isolate:
                open_scopes.pop()
        elif item == "\u2069":
            if isolates:
                while not open_scopes.pop().isolate:
                    pass
                isolates -= 1
        else:
            open_scopes[-1].items.append(item)
    shown: list[str] = []
    ahead: list[str | _Scope] = [base]
    while ahead:
        if isinstance(first := ahead.pop(), str):
            shown.append(first)
        else:
            ahead += first.ordered()[::-1]
    return "".join(shown)


@dataclass
class _Scope:
    """What stands between a control of direction and its end."""

    leftwards: bool = False
    override: bool = False
    isolate: bool = False
    items: list["str | _Scope"] = field(default_factory=list)

    def ordered(self) -> list["str | _Scope"]:
        """Give the items in the order in which a reader of their letters meets them."""
        texts = (item for item in self.items if isinstance(item, str))
        strong = next(filter(None, map(_STRONG.search, texts)), None)
        natural = strong is not None and unicodedata.bidirectional(strong.group()) in ("R", "AL")
        if self.leftwards == natural or not (self.leftwards or self.override):
            return self.items
        if not self.override:
            return [_turned(item) if isinstance(item, str) else item for item in self.items[::-1]]
        return [
            "".join(_CLUSTER.findall(item)[::-1]) if isinstance(item, str) else item
            for item in reversed(self.items)
        ]


def _turned(text: str) -> str:
    """Change places of the blanks around a text."""
    core = text.strip()
    ends = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return ends[1] + core + ends[0] if core else text
