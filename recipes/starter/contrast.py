"""Pairs of harmless and harmful sentences that share their words, put together from lists.

Collected data teach a small model to spot words ("kill", "gay", "shoot"). These rows show both
sides of such words, so that the rest of the sentence has to count: what is killed, who is asked
about, whether it is a game, a film, history or a definition. The lists are in `contrast.yaml`.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from random import Random
from typing import Any, Literal

from ruamel.yaml import YAML

from recipes.starter.rows import Row

Labels = Mapping[str, Literal[0, 1]]

_NONE: Labels = dict.fromkeys(
    ("dangerous", "harassment", "hate", "sexual", "violence", "profanity"), 0
)
# A harm that is left out is unknown.
_CLEAN: Labels = {"hate": 0, "sexual": 0, "profanity": 0}
_VIOLENT_REQUEST: Labels = {**_CLEAN, "dangerous": 1, "violence": 1}
_DANGEROUS_REQUEST: Labels = {**_CLEAN, "dangerous": 1}
_THREAT: Labels = {**_CLEAN, "harassment": 1, "violence": 1}
_INSULT: Labels = {"harassment": 1, "hate": 0, "sexual": 0, "dangerous": 0}
_SELF_HARM: Labels = {**_CLEAN, "dangerous": 1, "harassment": 0}
_HATE: Labels = {"hate": 1, "sexual": 0}
_SEXUAL: Labels = {"sexual": 1, "hate": 0, "dangerous": 0}

_SAY = ("{}.", "{}!", "{}")
_MANY = 4  # frames drawn for each sentence


def contrast_rows() -> Iterator[Row]:
    """Write the pairs out as labelled rows, the same ones each time."""
    lists = _lists()
    rng = Random(0)
    texts: dict[str, Labels] = {}

    def add(frames: Sequence[str], sentences: Sequence[str], labels: Labels) -> None:
        for sentence in sentences:
            for frame in rng.sample(frames, min(_MANY, len(frames))):
                text = frame.format(sentence).strip()
                texts.setdefault(text[0].upper() + text[1:] if rng.random() < 0.7 else text, labels)

    how = lists["how"]
    for entry in lists["harmless"]:
        verbs, objects = entry["verbs"], entry["objects"]
        add(how, [f"{v} {o}" for o in objects for v in rng.sample(verbs, 3)], _NONE)
    harmful = [f"{v} {p}" for v in lists["verbs_of_harm"] for p in rng.sample(lists["people"], 12)]
    endings = lists["without_a_trace"]
    add(how, [f"{h} {rng.choice(endings)}".strip() for h in harmful], _VIOLENT_REQUEST)
    add(how, lists["crimes"] * 2, _DANGEROUS_REQUEST)
    add(how, lists["self_harming"] * 2, _SELF_HARM)
    add(how, lists["protections"] * 2, _NONE)
    add(lists["ask_about"], lists["about"] * 2, _NONE)
    for people, matters, labels in (
        (lists["private_people"], lists["secrets"], _DANGEROUS_REQUEST),
        (lists["public_people"], lists["facts"], _NONE),
    ):
        reveal = [r.format(m, p) for r in lists["reveal"] for m in matters for p in people]
        add(("{}",), reveal, labels)
    for said, who, labels in (
        ("kind", "groups", _NONE),
        ("hateful", "groups", _HATE),
        ("nobody_say", "nobody", _NONE),
    ):
        add(("{}",), [frame.format(name) for frame in lists[said] for name in lists[who]], labels)
    add(_SAY, lists["threats"], _THREAT)
    add(_SAY, lists["insults"], _INSULT)
    add(_SAY, lists["friendly"], _NONE)
    add(("{}",), lists["sexual_requests"], _SEXUAL)
    add(("{}",), lists["sexual_facts"], _NONE)
    for text, labels in texts.items():
        yield Row(
            id=f"contrast:{text}",
            prompt=text,
            response=None,
            labels=dict(labels),
            harmful=int(any(labels.values())),
            source="contrast",
        )


def _lists() -> dict[str, Any]:
    """Read the lists; all hold strings but `harmless`, whose entries hold verbs and objects."""
    text = files(__package__).joinpath("contrast.yaml").read_text(encoding="utf-8")
    lists: dict[str, Any] = YAML(typ="safe").load(text)
    return lists
