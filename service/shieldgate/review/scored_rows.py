"""Rows that were scored by `evaluate` or `batch`, as judged texts."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from shieldgate.batch.manifest import MANIFEST, Manifest
from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.adapters import OURS, choose_adapter
from shieldgate.evaluation.datasets import Dataset
from shieldgate.evaluation.examples import Example
from shieldgate.evaluation.labels import Labelling
from shieldgate.evaluation.protocols import PROTOCOLS
from shieldgate.evaluation.row_scoring import Batch
from shieldgate.evaluation.score_file import read_scores
from shieldgate.evaluation.sources import Source
from shieldgate.evaluation.storage import Folder, is_uri
from shieldgate.policy import Policy, PolicyBook, Profile, decide
from shieldgate.review.candidates import Candidate, JudgedText, Key
from shieldgate.review.rows import writable
from shieldgate.types import Direction, Judgement, Label, Score


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """A row's place, its id, its judgements, and the labels that it has."""

    number: int
    id: str
    judgements: tuple[Judgement, ...]
    labels: Mapping[str, Label]


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """The scores of a dataset: a scores.jsonl, or the folder that `batch` wrote."""

    dataset: Dataset
    place: str
    scorer: str
    policies: tuple[Policy, ...]
    profile: Profile
    rows: "ScoreFileRows | BatchRows"

    @classmethod
    def open(
        cls,
        source: Source,
        place: str,
        book: PolicyBook,
        profile: Profile,
        *,
        adapter: str | None = None,
        columns: Sequence[str] = (),
    ) -> Self:
        """Find scores of a dataset, and read it as it was read then; raise ConfigurationError.

        `adapter` and `columns` say otherwise how it is read.
        """
        path = Path(place)
        if not (is_uri(place) or path.exists()):
            raise ConfigurationError(
                f"{place}: there is no such file or folder. Give the scores.jsonl that 'shieldgate "
                "evaluate' wrote, or the folder of 'shieldgate batch'."
            )
        rows = ScoreFileRows.of(path) if path.is_file() else BatchRows.of(place)
        known = [id for id in rows.policies if id in book.policies]
        if not known:
            raise ConfigurationError(
                f"{place}: its scores are of {', '.join(rows.policies)}, and the policy book has "
                "none of them. Give the book that they were scored with as --policies."
            )
        then = rows.options
        if adapter or columns:
            chosen = choose_adapter(adapter, columns)
        elif then.get("columns"):
            chosen = choose_adapter(None, then["columns"])
        else:
            chosen = choose_adapter(then.get("adapter", OURS.name))
        as_response = rows.protocol is not None and PROTOCOLS[rows.protocol].as_response
        dataset = Dataset(source, chosen, as_response=as_response)
        digest = source.digest()
        if rows.digest is not None and digest is not None and rows.digest != digest:
            raise ConfigurationError(
                f"{place}: its scores are of other data than {source.name} as it is now. Give the "
                "file that was scored, or score again."
            )
        return cls(dataset, place, rows.scorer, book.find(known), profile, rows)

    def judged(self, against: "ScoredRows | None" = None) -> Iterator[JudgedText]:
        """Judge row after row by the book; the texts are looked up by `with_texts`.

        With `against`, each row is told what those scores say of it. Raises ConfigurationError.
        """
        others = None
        if against is not None:
            others = {row.number: violations(row) for row in against.judged_rows()}
        for row in self.judged_rows():
            yield JudgedText(
                Key(self.dataset.source.name, row.id, row.number),
                row.judgements,
                labels=row.labels,
                others=None if others is None else others.get(row.number),
                about={"scorer": self.scorer},
            )

    def judged_rows(self) -> Iterator[JudgedRow]:
        """Judge row after row."""
        return self.rows.judged(self)

    def judge(self, direction: Direction, margins: Mapping[str, float]) -> tuple[Judgement, ...]:
        """Judge a row by its margins."""
        pairs = [(p, Score(margins[p.id])) for p in self.policies if p.id in margins]
        return decide(self.profile, pairs, direction, self.scorer).judgements

    def with_texts(
        self, candidates: Sequence[Candidate], labelled: Callable[[Key], Mapping[str, Any] | None]
    ) -> list[Candidate]:
        """Look texts up by reading the data again.

        Raises ConfigurationError where it is other data than was scored, or than was `labelled`.
        """
        wanted = {candidate.text.key.row: candidate for candidate in candidates}
        found: dict[int | None, Candidate] = {}
        name = self.dataset.source.name
        for row in self.dataset.rows():
            before = labelled(Key(name, row.id, row.number))
            if before and before["prompt"] != writable(row.example.exchange.prompt):
                raise ConfigurationError(
                    f"{name}: row {row.number} is of another text than was labelled under that "
                    "name. Choose another --out."
                )
            if (candidate := wanted.get(row.number)) is None:
                continue
            if candidate.text.key.id != row.id:
                break
            text = replace(candidate.text, exchange=row.example.exchange)
            found[row.number] = replace(candidate, text=text)
        if len(found) < len(wanted):
            raise ConfigurationError(
                f"{self.place}: a row of it is no row of {name}. Give the data "
                "that was scored, with the same --adapter or --map."
            )
        return [found[candidate.text.key.row] for candidate in candidates]


@dataclass(frozen=True, slots=True)
class ScoreFileRows:
    """The rows of a scores.jsonl."""

    path: Path
    scorer: str
    policies: Sequence[str]
    options: Mapping[str, Any]
    protocol: str | None
    digest: str | None

    @classmethod
    def of(cls, path: Path) -> Self:
        """Read its header; raise ConfigurationError."""
        header, _ = read_scores(path)
        return cls(
            path,
            header.scorer,
            header.policies,
            header.options,
            header.protocol,
            header.dataset_digest,
        )

    def judged(self, scores: ScoredRows) -> Iterator[JudgedRow]:
        """Judge row after row."""
        for row in read_scores(self.path)[1]:
            yield JudgedRow(row.row, row.id, scores.judge(row.direction, row.margins), row.labels)


@dataclass(frozen=True, slots=True)
class BatchRows:
    """The rows of a folder that `shieldgate batch` wrote."""

    place: str
    scorer: str
    policies: Sequence[str]
    options: Mapping[str, Any]
    protocol: None = None
    digest: None = None  # each row is compared by its texts

    @classmethod
    def of(cls, place: str) -> Self:
        """Read its manifest; raise ConfigurationError where it isn't scored to the end."""
        manifest = Manifest.read(Folder.at(place))
        if manifest.identity is None:
            raise ConfigurationError(f"{place}: nothing is scored yet, {MANIFEST} says.")
        return cls(place, manifest.identity.name, manifest.policies, manifest.options)

    def judged(self, scores: ScoredRows) -> Iterator[JudgedRow]:
        """Judge row after row."""
        # Here, because it imports pyarrow, and what makes such folders Ray.
        from shieldgate.batch.recorded import Recorded  # noqa: PLC0415

        recorded = Recorded(self.place)
        recorded.check(scores.policies)
        rows = recorded.score(scores.dataset.rows(), scores.policies, lambda number: False)
        for batch in _awaited(rows):
            for row, found in batch:
                margins = {p.id: s.margin for p, s in zip(scores.policies, found, strict=True)}
                yield JudgedRow(
                    row.number,
                    row.id,
                    scores.judge(row.example.exchange.direction, margins),
                    _labels(row.example, scores.policies),
                )


def violations(row: JudgedRow) -> Mapping[str, bool]:
    """Say which policies a row was found to violate."""
    return {j.policy: j.violated for j in row.judgements}


def _labels(example: Example, policies: Sequence[Policy]) -> Mapping[str, Label]:
    """Read labels, which rows may lack, as `evaluate` does where nothing else is said."""
    return Labelling.of(example.labels, policies).labels(example) if example.labels else {}


def _awaited(batches: AsyncGenerator[Batch]) -> Iterator[Batch]:
    with asyncio.Runner() as runner:
        try:
            while True:
                yield runner.run(anext(batches))
        except StopAsyncIteration:
            return
