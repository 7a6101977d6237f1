"""Labelled rows in, questions as token ids out: what is asked, of which text, in which words.

    python -m recipes.small.prepare --data DATA --out questions.npz

Everything is drawn by the seed. What each row is asked is put into the words of the shipped
scorer's template, with its tokenizer.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import track

from recipes.small.answers import answer_rows
from recipes.small.disguise import disguised
from recipes.small.questions import Questions
from recipes.small.wording import Asked, shipped
from recipes.starter.contrast import contrast_rows
from recipes.starter.rows import Row, read_rows
from recipes.starter.sampling import Example, Mix, Pool
from recipes.starter.soft_labels import soft_labels
from recipes.starter.wording import ANY, HARMS, Guidelines
from shieldgate.policy import Policy, load_book
from shieldgate.prompt import Template, find_template
from shieldgate.scoring.encoding import PromptEncoder
from shieldgate.scoring.tokenizer_files import load_tokenizer
from shieldgate.types import DIRECTIONS, Direction, Exchange

SELF_HARM = "self-harm"
_SHARES = {
    "dangerous": 0.19,
    "harassment": 0.18,
    "hate": 0.20,
    "sexual": 0.13,
    "violence": 0.13,
    "profanity": 0.06,
    ANY: 0.07,
    SELF_HARM: 0.04,
}
# Templates and word lists count less than their size; answers and hard harmless rows more.
_SOURCES = {
    "train_madlibs": 0.3,
    "train_davidson": 0.6,
    "train_implicit_hate": 0.7,
    "train_redditbias": 0.5,
    "train_gptfuzz_response": 1.5,
    "benign_caia_response": 1.3,
    "benign_mitre_frr": 1.5,
    "contrast": 1.3,
}
_OPENAI = ("hate", "harassment", "sexual", "violence", SELF_HARM)
_SUICIDE = re.compile(
    r"suicid|self.?harm|(kill|hang|cut|hurt|harm|poison|starve|drown|injure|shoot|burn)(ing)? "
    r"(myself|yourself|themsel|himself|herself|oneself)|(end|take|ending|taking) (my|your|their|"
    r"one's|his|her) (own )?li[fv]e|overdos|anorexi|bulimi|want to die|slit(ting)? (my|your)",
    re.I,
)
_QUESTIONS = 4
_WORDINGS = 400  # drawn for each harm and direction, beside the official one
_BLANK = "\u2983"
_STEP = 1000


@dataclass(frozen=True)
class Encoded:
    """Cuts prompts into trunk and branch where a template turns from the text to the guideline."""

    template: Template
    encoder: PromptEncoder

    def trunks(self, exchanges: Sequence[Exchange]) -> list[list[int]]:
        """Encode prompts up to the guideline."""
        return self.encoder.encode(
            [self.template.segments(e, _BLANK)[: self._cut[e.direction]] for e in exchanges]
        )

    def branch(self, guideline: str, direction: Direction) -> list[int]:
        """Encode a prompt from the guideline on."""
        empty = Exchange("", None if direction == "prompt" else "")
        segments = self.template.segments(empty, guideline)
        return self.encoder.encode([segments[self._cut[direction] :]])[0]

    @cached_property
    def _cut(self) -> Mapping[Direction, int]:
        found: dict[Direction, int] = {}
        for direction in DIRECTIONS:
            empty = Exchange("", None if direction == "prompt" else "")
            segments = self.template.segments(empty, _BLANK)
            # From the end: an empty text is no segment.
            found[direction] = next(i for i, s in enumerate(segments) if _BLANK in str(s)) - len(
                segments
            )
        return found


class Writer:
    """Collects questions; a branch that is asked twice is kept once."""

    def __init__(self, encoded: Encoded) -> None:
        self._encoded = encoded
        self._branches: dict[tuple[str, Direction], int] = {}
        self._ids: list[list[int]] = []
        self._trunks: list[np.ndarray[Any, np.dtype[np.uint16]]] = []
        self._asked: list[list[tuple[int, float, float]]] = []

    def add(
        self, exchanges: Sequence[Exchange], asked: Sequence[Sequence[tuple[str, float, float]]]
    ) -> None:
        """Add texts with (guideline, how probably it is violated, what that counts) of each."""
        self._trunks += [np.array(t, np.uint16) for t in self._encoded.trunks(exchanges)]
        for exchange, questions in zip(exchanges, asked, strict=True):
            self._asked.append(
                [(self._branch(g, exchange.direction), y, w) for g, y, w in questions]
            )

    def questions(self) -> Questions:
        """Give all that was added."""
        flat = [question for asked in self._asked for question in asked]
        return Questions(
            trunks=np.concatenate(self._trunks),
            trunk_starts=_starts(map(len, self._trunks)),
            branches=np.array([i for ids in self._ids for i in ids], np.uint16),
            branch_starts=_starts(map(len, self._ids)),
            asked=np.array([number for number, _, _ in flat], np.int32),
            asked_starts=_starts(map(len, self._asked)),
            target=np.array([round(255 * y) for _, y, _ in flat], np.uint8),
            weight=np.array([round(255 * w) for _, _, w in flat], np.uint8),
        )

    def _branch(self, guideline: str, direction: Direction) -> int:
        key = guideline, direction
        if key not in self._branches:
            self._branches[key] = len(self._ids)
            self._ids.append(self._encoded.branch(guideline, direction))
        return self._branches[key]


def _starts(sizes: Iterable[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.concatenate([[0], np.cumsum(np.fromiter(sizes, np.int64))]).astype(np.int32)


class Interviewer:
    """Decides what is asked of a row, and in which words."""

    def __init__(self, words: Asked, seed: int) -> None:
        self._topics = list(words.topics)
        book = load_book().policies
        official = {h: book[f"shieldgemma/{h}"] for h in HARMS if h != ANY}
        official[SELF_HARM] = book["openai/self-harm"]
        self._openai: Mapping[str, Policy] = {h: book[f"openai/{h}"] for h in _OPENAI}
        self._guidelines = Guidelines(official, official=0.0, wordings=words.wordings)
        self._official = official
        rng = Random(f"{seed}/wordings")
        self._drawn = {
            (harm, direction): [
                self._guidelines.draw(harm, direction, rng) for _ in range(_WORDINGS)
            ]
            for harm in words.wordings.harms
            for direction in DIRECTIONS
        }

    def questions(
        self, example: Example, row: Row, rng: Random
    ) -> Iterator[tuple[str, float, float]]:
        """Draw the questions about an example of a row."""
        direction = example.exchange.direction
        for label in example.labels[:_QUESTIONS]:
            yield self.wording(label.harm, direction, rng), label.violated, label.trust
        if example.mention:
            words = example.mention.words
            guideline = self._guidelines.mention(words, direction, rng)
            yield guideline, float(example.mention.present), 0.5
        own = row.source.removeprefix("benign_")
        if rng.random() < (0.3 if own in self._topics else 0.04):
            asked = own if own in self._topics and rng.random() < 0.5 else rng.choice(self._topics)
            yield self.wording(f"topic:{asked}", direction, rng), float(asked == own), 0.5

    def wording(self, harm: str, direction: Direction, rng: Random) -> str:
        """Choose words for a harm: in three of ten ShieldGemma's, in one OpenAI's."""
        dice = rng.random()
        if dice < 0.3 and harm in self._official:
            return self._official[harm].guidelines[direction]
        if dice < 0.4 and harm in self._openai:
            return self._openai[harm].guidelines[direction]
        return rng.choice(self._drawn[harm, direction])


def training_questions(
    rows: Sequence[Row],
    soft: Mapping[str, Sequence[float]],
    encoded: Encoded,
    *,
    texts: int,
    seed: int,
) -> Iterator[Writer]:
    """Draw so many texts and what is asked of them; yields the writer after each thousand."""
    rows = [_with_self_harm(row) for row in rows]
    mix = Mix(
        _SHARES, longest=1500, embedded=0.08, thinned=0.06, misspelt=0.1, recased=0.12,
        mentions=0.12, tempered=0.15, sources=_SOURCES,
    )  # fmt: skip
    pool = Pool(rows, mix, soft)
    harmless = [
        row.text for row in rows if not row.harmful and row.source.startswith("benign_")
    ]  # fmt: skip
    interviewer = Interviewer(shipped(), seed)
    writer = Writer(encoded)
    for step in range(texts // _STEP):
        rng = Random(f"{seed}/ask/{step}")
        examples = [_changed(e, harmless, rng) for e in pool.draw(seed, step, _STEP)]
        examples = [e for e in examples if e.labels]
        asked = [list(interviewer.questions(e, rows[e.place], rng)) for e in examples]
        writer.add([e.exchange for e in examples], asked)
        yield writer


def _with_self_harm(row: Row) -> Row:
    """Derive the label of self-harm: it is part of danger, and tells by its words."""
    if "dangerous" not in row.labels:
        return row
    there = bool(row.labels["dangerous"] and _SUICIDE.search(f"{row.prompt} {row.response or ''}"))
    return row.model_copy(
        update={
            "labels": {**row.labels, SELF_HARM: int(there)},
            "label_src": {**row.label_src, SELF_HARM: "derived"},
        }
    )


def _changed(example: Example, harmless: Sequence[str], rng: Random) -> Example:
    """Pad one text in five by up to 1,800 harmless characters, and disguise one in 25."""
    exchange, dice = example.exchange, rng.random()
    text = exchange.judged
    if dice < 0.2:
        text = _padded(text, harmless, rng)
    elif dice < 0.24 and not example.mention:
        text = disguised(text, rng)
    if exchange.response is None:
        return replace(example, exchange=Exchange(text))
    return replace(example, exchange=Exchange(exchange.prompt, text))


def _padded(text: str, harmless: Sequence[str], rng: Random) -> str:
    room = rng.randint(100, 1800)
    padding: list[str] = []
    while room > 0:
        padding.append(rng.choice(harmless)[: max(40, room)])
        room -= len(padding[-1])
    at = rng.choice((0, len(padding), rng.randint(0, len(padding))))
    return rng.choice(("\n\n", " ", "\n")).join([*padding[:at], text, *padding[at:]])


def measured_questions(
    rows: Iterable[Row], policies: Sequence[Policy], encoded: Encoded
) -> Questions:
    """Ask every policy of every row, in order."""
    writer = Writer(encoded)
    rows = list(rows)
    for at in range(0, len(rows), 1000):
        exchanges = [row.exchange for row in rows[at : at + 1000]]
        writer.add(
            exchanges,
            [[(p.guidelines[e.direction], 0.0, 1.0) for p in policies] for e in exchanges],
        )
    return writer.questions()


def beliefs(rows: Sequence[Row], answers: Sequence[Row], kept: Path) -> dict[str, list[float]]:
    """Let a linear model say what is not labelled; an answer of ours is believed as written."""
    harms = [harm for harm in HARMS if harm != ANY]
    no_embedding = torch.zeros(len(rows), 1)
    soft = soft_labels(rows, no_embedding, harms, kept, lambda _: None)
    return {h: [*soft[h], *(float(row.labels.get(h, 0.5)) for row in answers)] for h in harms}


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with train.jsonl.gz and benign.jsonl.gz.")],
    out: Annotated[Path, typer.Option(help="The .npz file to write.")],
    measure: Annotated[
        list[Path],
        typer.Option(help="Files of rows to write beside it, for --measure of training."),
    ] = [],  # noqa: B006 - typer's way
    texts: Annotated[int, typer.Option(help="Texts to draw, with replacement.")] = 300_000,
    answers: Annotated[int, typer.Option(help="Answers of each kind to write.")] = 2_500,
    seed: int = 0,
) -> None:
    """Draw the training questions."""
    encoded = Encoded(*load_tokenizer("small").encoder(find_template("chat")))
    for path in measure:
        official = [load_book().policies[f"shieldgemma/{h}"] for h in HARMS if h != ANY]
        name = path.name.split(".")[0]
        measured_questions(read_rows(path), official, encoded).save(out.with_name(f"{name}.npz"))
    rows = [
        *read_rows(data / "train.jsonl.gz"),
        *read_rows(data / "benign.jsonl.gz"),
        *contrast_rows(),
    ]
    written = list(answer_rows(rows, answers, seed))
    soft = beliefs(rows, written, out.parent / "beliefs.npy")
    drawn = training_questions([*rows, *written], soft, encoded, texts=texts, seed=seed)
    *_, writer = track(drawn, "texts", total=texts // _STEP)
    writer.questions().save(out)


if __name__ == "__main__":
    typer.run(main)
