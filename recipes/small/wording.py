"""The guidelines of the small scorer: the starter's, with more words, harms and topics."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import NamedTuple

from ruamel.yaml import YAML

from recipes.starter.wording import Wordings, Words
from shieldgate.types import Direction


class Asked(NamedTuple):
    """What guidelines are put together from; `topics` by the source of the rows they fit."""

    wordings: Wordings
    topics: Mapping[str, Words]


def shipped() -> Asked:
    """Read the starter's words and ours, joined."""
    text = files(__package__).joinpath("wordings.yaml").read_text(encoding="utf-8")
    ours = YAML(typ="safe").load(text)
    theirs = Wordings.shipped()
    harms = dict(theirs.harms)
    for harm, words in ours["harms"].items():
        harms[harm] = _joined(harms.get(harm, Words((), (), ())), Words(**words))
    topics = {source: Words(**words) for source, words in ours["topics"].items()}
    harms |= {f"topic:{source}": words for source, words in topics.items()}
    openings: Mapping[Direction, Sequence[str]] = {
        direction: [*known, *ours["openings"][direction]]
        for direction, known in theirs.openings.items()
    }
    return Asked(theirs._replace(harms=harms, openings=openings), topics)


def _joined(a: Words, b: Words) -> Words:
    return Words(*([*x, *y] for x, y in zip(a, b, strict=True)))
