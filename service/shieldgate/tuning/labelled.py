"""Labelled rows as training sees them, dealt out to what is learnt from and what is measured on."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shieldgate.errors import ConfigurationError
from shieldgate.types import Exchange

# So that training, validation and test each see a few violations and a few harmless rows.
LEAST = 5
# One row in five chooses when to stop, and one in five says what was reached.
PARTS = 5


@dataclass(frozen=True, slots=True)
class Labelled:
    """An exchange, and by policy id whether it violates; a policy that is absent is unknown."""

    exchange: Exchange
    labels: Mapping[str, bool]

    @property
    def key(self) -> str:
        """Identify what the labels describe, whatever its case and spacing."""
        return " ".join(self.exchange.judged.casefold().split())


@dataclass(frozen=True, slots=True)
class Splits:
    """Rows to learn from, to choose the best state by, and to measure before and after on."""

    train: Sequence[Labelled]
    validation: Sequence[Labelled]
    test: Sequence[Labelled]


def split_rows(rows: Sequence[Labelled], test: Sequence[Labelled] = (), *, seed: int = 0) -> Splits:
    """Deal rows out, each kind of row evenly; rows with the same text stay together.

    A fifth becomes the validation part and, unless `test` rows are given, a fifth the test part.
    What stands in `test` is left out of the others. Raises ConfigurationError where a policy has
    too few rows of a class.
    """
    tested = {row.key for row in test}
    together: dict[str, list[Labelled]] = defaultdict(list)
    for row in rows:
        if row.key not in tested:
            together[row.key].append(row)
    _refuse_few([row for group in together.values() for row in group])
    order = sorted(together, key=lambda key: (_kind(together[key]), _shuffled(key, seed)))
    parts: list[list[Labelled]] = [[] for _ in range(PARTS)]
    for place, key in enumerate(order):
        parts[place % PARTS] += together[key]
    validation, held_out, *rest = parts
    if test:
        rest.append(held_out)
    return Splits([row for part in rest for row in part], validation, test or held_out)


def counts(rows: Iterable[Labelled]) -> dict[str, Counter[bool]]:
    """Count violations and harmless rows by policy."""
    found: dict[str, Counter[bool]] = defaultdict(Counter)
    for row in rows:
        for policy, violated in row.labels.items():
            found[policy][violated] += 1
    return dict(sorted(found.items()))


def _refuse_few(rows: Sequence[Labelled]) -> None:
    for policy, found in counts(rows).items():
        for violated in (True, False):
            if found[violated] < LEAST:
                kind = "violate it" if violated else "don't"
                raise ConfigurationError(
                    f"{policy}: {found[violated]} rows {kind}, and at least {LEAST} must, besides "
                    "those of --test. Label more rows (50 are a start), or leave the policy out "
                    "with --policy."
                )


def _kind(rows: Sequence[Labelled]) -> str:
    return repr(sorted((row.exchange.direction, sorted(row.labels.items())) for row in rows))


def _shuffled(key: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()
