"""Rules that make a label of a column: `verdict==unsafe` of words, `toxicity>=0.5` of numbers."""

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from shieldgate.types import Label

_RULE = re.compile(r"(?P<column>.+?)(?P<than>==|>=|<=|>|<)(?P<value>.+)")
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True, slots=True)
class Rule:
    """The label is 1 where the value of `column` compares so with `value`, else 0."""

    column: str
    than: str
    value: str

    @classmethod
    def parse(cls, written: str) -> Self | None:
        """Read a rule; None where it is a column's name alone. Raises ValueError."""
        found = _RULE.fullmatch(written)
        if found is None:
            return None
        rule = cls(*(part.strip() for part in found.groups()))
        if rule.than != "==" and number(rule.value) is None:
            raise ValueError(f"{rule.value!r} is no number; write {rule.column}{rule.than}0.5")
        return rule

    def label(self, value: Any) -> Label | None:
        """Give the label of a value, None where there is none; raise ValueError."""
        if value is None or value == "":
            return None
        if self.than == "==":
            return 1 if str(value) == self.value else 0
        given = number(value)
        if given is None:
            raise ValueError(f"{self.column!r} is no number")
        return 1 if _COMPARE[self.than](given, float(self.value)) else 0


def number(value: Any) -> float | None:
    """Read a number, or one that is written out; None where it is none."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return None if math.isnan(found) else found
