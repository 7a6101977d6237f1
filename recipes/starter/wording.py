"""The guidelines that the starter is trained on: the official ones, and others of the same meaning.

A scorer that only ever saw one wording for each harm learns to know the wording by heart. So most
questions are put together anew, from a title, an opening, definitions and a few examples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from random import Random
from typing import NamedTuple

from ruamel.yaml import YAML

from shieldgate.policy import Policy
from shieldgate.types import Direction

# Every harm at once: the only label that some rows have.
ANY = "any"
HARMS = ("dangerous", "harassment", "hate", "sexual", "violence", "profanity", ANY)


class Words(NamedTuple):
    """What the guideline for one harm is put together from."""

    titles: Sequence[str]
    definitions: Sequence[str]
    examples: Sequence[str]


class Wordings(NamedTuple):
    """The words of `wordings.yaml`; `endings` and `mentions` have a place for what is filled in."""

    openings: Mapping[Direction, Sequence[str]]
    endings: Sequence[str]
    harms: Mapping[str, Words]
    mentions: Sequence[str]

    @classmethod
    def shipped(cls) -> "Wordings":
        """Read them from the package."""
        text = files(__package__).joinpath("wordings.yaml").read_text(encoding="utf-8")
        read = YAML(typ="safe").load(text)
        harms = {harm: Words(**words) for harm, words in read.pop("harms").items()}
        return cls(harms=harms, **read)


@dataclass(frozen=True)
class Guidelines:
    """Draws a guideline for a harm: the official one, where there is one, in a share of draws."""

    policies: Mapping[str, Policy]
    official: float = 0.3
    wordings: Wordings = field(default_factory=Wordings.shipped)

    def draw(self, harm: str, direction: Direction, rng: Random) -> str:
        """Choose a wording; `policies` has one Policy for each harm with official words."""
        if harm in self.policies and rng.random() < self.official:
            return self.policies[harm].guidelines[direction]
        words = self.wordings.harms[harm]
        definitions = rng.sample(words.definitions, rng.choice((0, 1, 1, 1, 2)))
        # Some guidelines are nothing but a list of examples.
        text = " or ".join(definitions or ["has one of these"])
        ending, *listing = self.wordings.endings
        if rng.random() < 0.6 or not definitions:
            examples = rng.sample(words.examples, rng.randint(2, 5))
            text = rng.choice(listing).format(text, ", ".join(examples))
        else:
            text = ending.format(text)
        title = rng.choice(("No ", "No ", "")) + rng.choice(words.titles)
        return f'"{title}": {rng.choice(self.wordings.openings[direction])}{text}'

    def mention(self, words: Sequence[str], direction: Direction, rng: Random) -> str:
        """Ask whether one of some words occurs: to answer, a guideline has to be read."""
        listed = " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
        about = rng.choice(self.wordings.mentions).format(listed)
        opening = rng.choice(self.wordings.openings[direction])
        return f'"No {words[0].capitalize()}": {opening}{about}.'

    def openings(self) -> list[str]:
        """List how the official guidelines go on after their titles."""
        return [f" {openings[0].strip()}" for openings in self.wordings.openings.values()]

    def every(self) -> Iterator[str]:
        """Give all words that guidelines are made of, for the tokenizer to learn."""
        for policy in self.policies.values():
            yield from policy.guidelines.values()
        for openings in self.wordings.openings.values():
            yield from openings
        for words in self.wordings.harms.values():
            yield from (f'"No {title}": ' for title in words.titles)
            yield from words.definitions
            yield ", ".join(words.examples)
