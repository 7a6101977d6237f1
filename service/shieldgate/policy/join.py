"""What one request asks to be judged beyond what its profile demands: arithmetic of profiles.

To be shown scores under other policies changes nothing else. To be blocked by another profile is
to get, in that direction, the stricter of the two in everything that stops text: policies,
thresholds, `on_failure`, `unscreenable`, `references`, `prompt_check`, what of the history is
judged, and how a stream is held. How a block looks stays the operator's word.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shieldgate.policy.book import PolicyBook, Rules
from shieldgate.policy.model import Passages, Profile, Streaming
from shieldgate.types import DIRECTIONS, Direction

ScreeningMode = Literal["score", "block"]

_HELD = ("async", "hold", "full")  # the stricter mode of a stream stands later


@dataclass(frozen=True, slots=True)
class AddedScreening:
    """What a caller asks for: a profile, and what becomes of what it finds in each direction.

    A name that is no profile's stands for the operator's own; a mode of None leaves a direction
    out.
    """

    profile: str
    modes: Mapping[Direction, ScreeningMode | None]


@dataclass(frozen=True, slots=True)
class ScreeningRules:
    """By what each direction of one request is judged.

    What is judged of the request is what any of `plans` says. `name` names the profiles.
    """

    rules: Mapping[Direction, Rules]
    plans: Sequence[Profile]
    name: str


def screening_rules(
    base: Profile, added: AddedScreening | None, book: PolicyBook, scorer: str
) -> ScreeningRules:
    """Join what the operator's profile demands and what the caller asks; raise UnknownName.

    `scorer` is the name under which calibrations are filed.
    """
    if added is None:
        return ScreeningRules({d: book.rules(base) for d in DIRECTIONS}, [base], base.name)
    found = book.meant(added.profile, scorer)
    named = found or base
    rules = {
        direction: book.rules(
            join_profiles(base, named, mode, book=book, direction=direction, scorer=scorer)
        )
        for direction, mode in added.modes.items()
    }
    plans = [base]
    if added.modes["prompt"] == "block" and found:
        plans.append(named)
    name = base.name if named is base else f"{base.name}+{named.name}"
    return ScreeningRules(rules, plans, name)


def join_profiles(
    base: Profile,
    named: Profile,
    mode: ScreeningMode | None,
    *,
    book: PolicyBook,
    direction: Direction,
    scorer: str,
) -> Profile:
    """Give a profile that judges as `named` does, too, and is nowhere weaker than `base`.

    `mode` says what becomes of what `named` finds; None leaves it out.
    """
    if mode is None:
        return base
    enforcing = [base] * (base.mode == "enforce") + [named] * (mode == "block")
    ids = tuple(dict.fromkeys((*base.policies, *named.policies)))
    enforced = {id for profile in enforcing for id in profile.policies}

    def threshold(id: str, direction: Direction) -> float:
        having = [p for p in enforcing if id in p.policies]
        having = having or [p for p in (base, named) if id in p.policies]
        return min(p.threshold(book.policies[id], direction, scorer) for p in having)

    joined = replace(
        base,
        policies=ids,
        mode="enforce" if enforcing else "monitor",
        monitored=frozenset(ids) - enforced,
        # Both directions, because older answers are judged among the prompts.
        thresholds={(id, way): threshold(id, way) for id in ids for way in DIRECTIONS},
        max_thresholds={},
    )
    return _stricter(joined, enforcing, direction) if mode == "block" else joined


def _stricter(joined: Profile, enforcing: Sequence[Profile], direction: Direction) -> Profile:
    """Take the strictest word of those who enforce; one who only monitors stops nothing."""
    closed = any(p.on_failure[direction] == "closed" for p in enforcing)
    return replace(
        joined,
        on_failure={**joined.on_failure, direction: "closed" if closed else "open"},
        unscreenable="refuse" if any(p.unscreenable == "refuse" for p in enforcing) else "pass",
        references="refuse" if any(p.references == "refuse" for p in enforcing) else "resolve",
        prompt_check="before" if any(p.prompt_check == "before" for p in enforcing) else "parallel",
        streaming=Streaming(
            max((p.streaming.mode for p in enforcing), key=_HELD.index),
            min(p.streaming.first for p in enforcing),
            min(p.streaming.growth for p in enforcing),
            min(p.streaming.most for p in enforcing),
        ),
        normalise=joined.normalise or any(p.normalise for p in enforcing),
        passages=_shortest([p.passages for p in (joined, *enforcing) if p.passages]),
        unsupported_language="refuse"
        if any(p.unsupported_language == "refuse" for p in enforcing)
        else "warn",
    )


def _shortest(rules: Sequence[Passages]) -> Passages | None:
    if not rules:
        return None
    return Passages(
        min(rule.size for rule in rules),
        min(rule.handicap for rule in rules),
        tuple(dict.fromkeys(pattern for rule in rules for pattern in rule.scorers)),
    )
