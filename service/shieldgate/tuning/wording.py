"""The guidelines that the starter is trained on: the official ones, and others of the same meaning.

A scorer that only ever saw one wording for each harm learns to know the wording by heart. So most
questions are put together anew, from a title, an opening, a definition and a few examples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from shieldgate.policy import Policy
from shieldgate.types import Direction

# How a guideline may begin; the official opening comes from the policy file.
_OPENINGS: Mapping[Direction, tuple[str, ...]] = {
    "prompt": (
        "The prompt shall not contain or seek generation of content that ",
        "The user must not ask for or write content that ",
        "A prompt is refused if it has content that ",
        "Users may not send anything that ",
        "We do not accept a message that ",
        "The human question should not be one that ",
    ),
    "response": (
        "The chatbot shall not generate content that ",
        "The assistant must not write content that ",
        "An answer is refused if it has content that ",
        "The reply may not say anything that ",
        "We do not publish an answer that ",
        "The model should not produce text that ",
    ),
}


class _Harm(NamedTuple):
    titles: tuple[str, ...]
    definitions: tuple[str, ...]
    examples: tuple[str, ...]


# Every harm at once: the only label that some rows have.
ANY = "any"

_HARMS: Mapping[str, _Harm] = {
    "dangerous": _Harm(
        ("Dangerous Content", "Dangerous Acts", "Instructions for Harm", "Crime and Weapons"),
        (
            "helps someone to hurt themselves or others",
            "gives or seeks instructions for crimes, weapons, fraud, terrorism or self-harm",
            "explains how to injure, kill, poison, steal or break in",
            "could lead to physical harm or illegal activity if it were followed",
            "facilitates wrongdoing that puts people, property or oneself at risk",
            "assists with illegal or life-threatening acts",
            "encourages or plans harm to oneself or to other people",
        ),
        (
            "how to build a bomb", "buying guns without a licence", "making drugs at home",
            "hacking into accounts", "writing malware", "credit card fraud", "planning an attack",
            "ways to end one's life", "recruiting for terrorists", "burglary and theft",
            "poisoning somebody", "identity theft", "eating disorders and cutting",
        ),
    ),
    "harassment": _Harm(
        ("Harassment", "Bullying", "Personal Attacks", "Abuse"),
        (
            "insults, threatens, bullies, mocks or abuses a person",
            "attacks another individual with intimidation or cruel words",
            "is abusive or malicious towards somebody",
            "is meant to intimidate, demean or torment a particular person",
            "treats someone with contempt, hostility or scorn",
            "is rude and aggressive to the person it speaks to or about",
            "belittles or humiliates an individual",
        ),
        (
            "name-calling", "telling someone to die", "a threat to hurt somebody",
            "ridicule of a person's looks", "calling someone stupid", "stalking",
            "shaming a victim", "cruel jokes about a person", "swearing at someone",
            "wishing harm on somebody",
        ),
    ),
    "hate": _Harm(
        ("Hate Speech", "Hate", "Discrimination", "Attacks on Groups"),
        (
            "attacks, demeans or dehumanizes people because of who they are",
            "uses slurs or spreads stereotypes about a protected group",
            "expresses hatred or contempt for a group of people",
            "promotes discrimination or prejudice on the basis of identity",
            "says that people of some origin, faith or gender are worth less than others",
            "calls for the exclusion of, or violence against, a group with a common identity",
            "is racist, sexist, homophobic or otherwise bigoted",
        ),
        (
            "racial slurs", "contempt for women", "hostility to immigrants", "antisemitism",
            "hatred of Muslims", "insults to gay or transgender people", "mocking the disabled",
            "claims that a race is inferior", "comparing a people to animals",
            "denying rights to a minority",
        ),
    ),
    "sexual": _Harm(
        ("Sexual Content", "Pornography", "Sexually Explicit Material", "Lewd Content"),
        (
            "describes sexual acts or nudity, or is meant to arouse",
            "is pornographic, lewd or erotic",
            "refers to sexual acts, genitals or fantasies in a graphic way",
            "contains or asks for sex, pornography or prostitution",
            "speaks of sexual desire or intercourse in explicit terms",
            "is an obscene or erotic story, joke or proposal",
            "solicits or depicts sexual activity",
        ),
        (
            "a description of intercourse", "an erotic story", "naked bodies", "sexting",
            "paid sex", "fetishes", "unwanted sexual advances", "porn", "crude talk of genitals",
        ),
    ),
    "violence": _Harm(
        ("Violence", "Gore", "Violent Content", "Threats of Violence"),
        (
            "describes, threatens or glorifies violence, killing, torture or injury",
            "is gratuitously violent or bloody",
            "calls for, praises or graphically depicts physical violence",
            "threatens to kill, beat or hurt people, or celebrates that they suffer",
            "wishes death or injury on somebody",
            "dwells on wounds, blood and cruelty",
            "incites people to attack others",
        ),
        (
            "a death threat", "a beating", "a stabbing or shooting", "torture", "mutilated bodies",
            "cruelty to animals", "a call to kill", "praise for a massacre", "rape",
            "fantasies of murder",
        ),
    ),
    "profanity": _Harm(
        ("Profanity", "Swearing", "Obscene Language", "Bad Words"),
        (
            "contains swear words or obscene language",
            "uses curse words, vulgar slang or obscenities",
            "is vulgar or foul-mouthed",
            "has profane or offensive words in it",
            "is not clean language",
            "would be bleeped out on television",
            "has crude four-letter words",
        ),
        (
            "curses", "vulgar words for body parts", "obscene insults", "the f-word",
            "abbreviated or masked swear words", "filthy slang",
        ),
    ),
    ANY: _Harm(
        ("Harmful Content", "Unsafe Content", "Toxicity"),
        (
            "is harmful, toxic or unsafe in any way",
            "could hurt, offend or endanger people",
            "is abusive, hateful, violent, sexual or dangerous",
            "a moderator would remove",
        ),
        (
            "insults", "hate", "threats", "crime", "swearing", "sexual content", "violence",
            "dangerous advice",
        ),
    ),
}  # fmt: skip

HARMS = tuple(_HARMS)

_MENTIONS = ("mentions {}", "is about {}", "contains the words {}", "speaks of {}")


@dataclass(frozen=True)
class Guidelines:
    """Draws a guideline for a harm: the official one, where there is one, in a share of draws."""

    policies: Mapping[str, Policy]
    official: float = 0.4

    def draw(self, harm: str, direction: Direction, rng: Random) -> str:
        """Choose a wording; `policies` has one Policy for each harm with official words."""
        if harm in self.policies and rng.random() < self.official:
            return self.policies[harm].guidelines[direction]
        words = _HARMS[harm]
        text = rng.choice(_OPENINGS[direction]) + rng.choice(words.definitions)
        if rng.random() < 0.6:
            examples = rng.sample(words.examples, rng.randint(2, 4))
            text += rng.choice((" (e.g., {}).", ", such as {}.", ", for example {}.")).format(
                ", ".join(examples)
            )
        else:
            text += "."
        return f'"{rng.choice(("No ", "No ", ""))}{rng.choice(words.titles)}": {text}'

    def mention(self, words: Sequence[str], direction: Direction, rng: Random) -> str:
        """Ask whether one of some words occurs: to answer, a guideline has to be read."""
        listed = " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
        about = rng.choice(_MENTIONS).format(listed)
        return f'"No {words[0].capitalize()}": {rng.choice(_OPENINGS[direction])}{about}.'

    def openings(self) -> list[str]:
        """List how the official guidelines go on after their titles."""
        return [f" {openings[0].strip()}" for openings in _OPENINGS.values()]

    def every(self) -> Iterator[str]:
        """Give all words that guidelines are made of, for the tokenizer to learn."""
        for policy in self.policies.values():
            yield from policy.guidelines.values()
        for openings in _OPENINGS.values():
            yield from openings
        for words in _HARMS.values():
            yield from (f'"No {title}": ' for title in words.titles)
            yield from words.definitions
            yield ", ".join(words.examples)
