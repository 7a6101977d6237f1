"""Scores labelled data, here or at a gateway, into a file of margins."""

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as ProgressTask
from rich.text import Text

from shieldgate import __version__
from shieldgate.cli.labels import chosen_adapter, chosen_labels
from shieldgate.cli.options import chosen_profile
from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.adapters import OURS
from shieldgate.evaluation.datasets import Dataset, Row, Survey
from shieldgate.evaluation.labels import Labelling
from shieldgate.evaluation.protocols import PROTOCOLS, Protocol
from shieldgate.evaluation.remote import RemoteGateway, score_rows_remotely
from shieldgate.evaluation.run import Task, sampled, score_rows
from shieldgate.evaluation.scores import Header, ScoreFile, wording_digest
from shieldgate.evaluation.sources import open_source
from shieldgate.policy import Policy, PolicyBook, Profile, load_book
from shieldgate.prompt import template_name
from shieldgate.scoring import Identity
from shieldgate.scoring.factory import open_engine
from shieldgate.settings import ScoringSettings

if TYPE_CHECKING:
    from shieldgate.cli.evaluate import Request


@dataclass(frozen=True, slots=True)
class Side:
    """What scores: an engine in this process as the settings say, or the gateway at `url`."""

    settings: ScoringSettings
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """A file of margins, and the policies and profile whose thresholds it is read under."""

    path: Path
    book: PolicyBook
    profile: Profile
    notes: Sequence[str]


@dataclass(frozen=True, slots=True)
class Scoring:
    """One request, and the data that it names."""

    request: "Request"
    protocol: Protocol | None
    dataset: Dataset
    survey: Survey

    @classmethod
    def of(cls, request: "Request") -> "Scoring":
        """Open and survey the data; raise ConfigurationError."""
        protocol = None
        if request.protocol is not None:
            if request.protocol not in PROTOCOLS:
                known = ", ".join(PROTOCOLS)
                raise ConfigurationError(f"--protocol {request.protocol}: known are {known}.")
            protocol = PROTOCOLS[request.protocol]
        dataset = Dataset(
            open_source(request.data),
            chosen_adapter(
                request.adapter, request.columns, protocol.adapter if protocol else OURS.name
            ),
            request.groups,
            request.limit,
            as_response=protocol is not None and protocol.as_response,
        )
        survey = dataset.survey(strict=request.strict)
        for note in (*survey.notes(), *survey.one_sided()):
            typer.echo(f"Note: {note}", err=True)
        return cls(request, protocol, dataset, survey)

    @property
    def whole(self) -> bool:
        """Tell whether all rows are scored."""
        return self.request.limit is None and self._total == self.survey.rows

    @property
    def _total(self) -> int:
        return min(self.survey.rows, self.request.sample or self.survey.rows)

    def score(self, side: Side, out: Path | None) -> Scored:
        """Score the rows that the file in `out` lacks.

        Raises ConfigurationError or ScoringError; what was scored before is saved.
        """
        if side.url is not None:
            return asyncio.run(self._score_there(side.url, out))
        settings = side.settings
        if self.protocol is not None and "template" not in settings.model_fields_set:
            settings = settings.model_copy(update={"template": self.protocol.template})
        book = load_book(settings.policies)
        profile = chosen_profile(book, settings)
        task = self._task(book)
        engine = open_engine(settings)
        header = self._header(engine.identity, engine.template.name, book, task)
        with self._file(header, out) as file, self._progress(file) as advance:
            score_rows(
                engine,
                self._rows(),
                task,
                file,
                max_batch_tokens=self.request.max_batch_tokens,
                advance=advance,
            )
        return Scored(file.path, book, profile, self._notes(task))

    async def _score_there(self, url: str, out: Path | None) -> Scored:
        async with RemoteGateway(url) as gateway:
            book = await gateway.book()
            task = self._task(book)
            identity = await gateway.identity()
            header = self._header(identity, template_name(identity.template), book, task)
            with self._file(header, out) as file, self._progress(file) as advance:
                await score_rows_remotely(
                    gateway,
                    identity,
                    self._rows(),
                    task,
                    file,
                    concurrency=self.request.concurrency,
                    advance=advance,
                )
        note = "a gateway does not tell its calibrations: its policies' default thresholds count"
        return Scored(file.path, book, book.profile("default"), [*self._notes(task), note])

    def _rows(self) -> Iterable[Row]:
        rows = self.dataset.rows()
        if self._total == self.survey.rows:
            return rows
        return sampled(rows, self._total, self.survey.rows, self.request.seed)

    def _task(self, book: PolicyBook) -> Task:
        policies = _policies(book, self.request, self.protocol)
        labelling = Labelling.of(
            self.survey.labels,
            policies,
            chosen=chosen_labels(self.request.labels),
            unknown_is_negative=self.request.unknown_is_negative,
        )
        return Task(policies, labelling)

    def _header(self, identity: Identity, template: str, book: PolicyBook, task: Task) -> Header:
        request = self.request
        return Header(
            dataset=self.dataset.source.name,
            dataset_digest=self.survey.digest,
            scorer=identity.name,
            identity=identity.key,
            template=template,
            book=book.version,
            guidelines={policy.id: wording_digest(policy) for policy in task.policies},
            policies=tuple(policy.id for policy in task.policies),
            protocol=request.protocol,
            options={
                "adapter": self.dataset.adapter.name,
                "columns": list(request.columns),
                "groups": list(request.groups),
                "labels": {name: list(ids) for name, ids in task.labelling.policies.items()},
                "unknown_is_negative": request.unknown_is_negative,
                "limit": request.limit,
                "sample": request.sample,
                "seed": request.seed if request.sample else None,
                "max_batch_tokens": request.max_batch_tokens,
            },
            version=__version__,
        )

    def _file(self, header: Header, out: Path | None) -> ScoreFile:
        default = run_folder(self.dataset, self.request.protocol or "", header.scorer)
        return ScoreFile((out or default) / "scores.jsonl", header)

    def _notes(self, task: Task) -> list[str]:
        notes = self.survey.notes()
        renamed = [
            f"{name} as {', '.join(ids)}"
            for name, ids in task.labelling.policies.items()
            if any(id.rpartition("/")[2] != name for id in ids)
        ]
        if renamed:
            notes.append(f"labels were read so: {'; '.join(renamed)}")
        if task.labelling.unmatched:
            names = ", ".join(task.labelling.unmatched)
            notes.append(
                f"labels that match no policy, and count in no figure of one: {names} "
                "(--label NAME=POLICY says which it is)"
            )
        if self.request.unknown_is_negative:
            notes.append("what is unknown was counted as harmless")
        return notes

    @contextmanager
    def _progress(self, file: ScoreFile) -> Iterator[Callable[[int], None]]:
        """Show how far it is, on standard error; gives what is to be told of each step."""
        with Progress(
            TextColumn("scoring"),
            BarColumn(),
            MofNCompleteColumn(),
            _Speed(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        ) as progress:
            task = progress.add_task("", total=self._total, completed=len(file))
            yield lambda rows: progress.advance(task, rows)


class _Speed(ProgressColumn):
    """Rows a second, lately."""

    def render(self, task: ProgressTask) -> Text:
        return Text(f"{task.speed:.1f} rows/s" if task.speed else "")


def _policies(book: PolicyBook, request: "Request", protocol: Protocol | None) -> list[Policy]:
    """Choose what is evaluated: policies that were named, else the protocol's, else a family's."""
    wanted = request.policies or (protocol.policies if protocol else ())
    if not wanted:
        wanted = [id for id in book.policies if id.startswith(f"{request.family}/")]
    if not wanted:
        families = sorted({id.partition("/")[0] for id in book.policies})
        raise ConfigurationError(
            f"--family {request.family}: the policy book has none of it. "
            f"It has: {', '.join(families)}."
        )
    missing = [id for id in wanted if id not in book.policies]
    if missing:
        raise ConfigurationError(
            f"There is no policy named {missing[0]!r}. Known: {', '.join(sorted(book.policies))}."
        )
    return [book.policies[id] for id in dict.fromkeys(wanted)]


def run_folder(dataset: Dataset, *names: str) -> Path:
    """Name the folder of a run for which no other was given."""
    stem = re.sub(r"(\.(jsonl|csv|parquet|gz))+$", "", dataset.source.name).removeprefix("hf://")
    slugs = [re.sub(r"[^\w.@-]+", "-", name).strip("-.") for name in (stem, *names)]
    return Path("runs") / "-".join(slug for slug in slugs if slug)
