"""Scores labelled data, and reports what the scores say."""

import asyncio
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
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
from shieldgate.cli.scorer import chosen_profile, open_engine
from shieldgate.errors import ConfigurationError, ScoringError
from shieldgate.evaluation.adapters import OURS
from shieldgate.evaluation.columns import read_columns
from shieldgate.evaluation.compare import compare
from shieldgate.evaluation.datasets import Dataset, Row, Survey
from shieldgate.evaluation.labels import Labelling
from shieldgate.evaluation.protocols import PROTOCOLS, Figures, Protocol
from shieldgate.evaluation.remote import RemoteGateway, score_rows_remotely
from shieldgate.evaluation.report import (
    Report,
    build_report,
    wanted_rows,
    write_html,
    write_json,
)
from shieldgate.evaluation.run import Task, sampled, score_rows
from shieldgate.evaluation.scores import Header, ScoreFile, wording_digest
from shieldgate.evaluation.sources import open_source
from shieldgate.evaluation.tables import show, show_comparison
from shieldgate.policy import Policy, PolicyBook, Profile, load_book
from shieldgate.prompt import TEMPLATES
from shieldgate.scoring import Identity
from shieldgate.settings import ScoringSettings
from shieldgate.telemetry import configure_logging

if TYPE_CHECKING:
    from shieldgate.cli.evaluate import Request

INTERRUPTED = 130


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


def run(settings: ScoringSettings, request: "Request") -> None:
    """Score, report and print; raise ConfigurationError.

    Exits with 1 when no score could be had, with 130 when it was interrupted.
    """
    configure_logging("warning", as_json=False)
    evaluation = Evaluation.of(request)
    try:
        if request.compare is None:
            evaluation.measure(evaluation.side(settings, request.url), request.out)
        else:
            evaluation.compare(settings, *request.compare)
    except ScoringError as failure:
        typer.echo(f"Error: {failure} What was scored is saved.", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("Stopped. What was scored is saved: give the same command to go on.", err=True)
        sys.exit(INTERRUPTED)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One request, and the data that it names."""

    request: "Request"
    protocol: Protocol | None
    dataset: Dataset
    survey: Survey

    @classmethod
    def of(cls, request: "Request") -> "Evaluation":
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

    def side(self, settings: ScoringSettings, url: str | None = None) -> Side:
        """Take the protocol's template where none was chosen."""
        if self.protocol is not None and "template" not in settings.model_fields_set:
            settings = settings.model_copy(update={"template": self.protocol.template})
        return Side(settings, url)

    def measure(self, side: Side, out: Path | None) -> Scored:
        """Score with one side, write its report and print it."""
        scored = self._score(side, out)
        columns = read_columns(scored.path)
        report = build_report(
            columns,
            scored.book,
            scored.profile,
            command=self.request.command,
            notes=scored.notes,
            seed=self.request.seed,
        )
        if self.protocol is not None:
            beside = self.protocol.beside(
                columns.header.scorer, self.survey, self._whole, _overall(report)
            )
            report = replace(report, notes=(*report.notes, *beside))
        console = Console()
        show(report, console)
        folder = scored.path.parent
        write_json(report, folder / "report.json")
        texts = self.dataset.texts(wanted_rows(report)) if self.request.examples else None
        write_html(report, folder / "report.html", texts)
        console.print(f"Wrote scores.jsonl, report.json and report.html to {folder}")
        return scored

    def compare(self, settings: ScoringSettings, a: str, b: str) -> None:
        """Measure two sides, then compare them on the rows that both scored."""
        out = self.request.out or Path("runs") / "-".join(
            (_slug(_stem(self.dataset)), _slug(a), "vs", _slug(b))
        )
        scored = [
            self.measure(self.side(*_variant(settings, self.request, given)), out / name)
            for name, given in (("a", a), ("b", b))
        ]
        left, right = (read_columns(one.path) for one in scored)
        books = (scored[0].book, scored[1].book)
        comparison = compare(left, right, books, scored[0].profile.name, seed=self.request.seed)
        console = Console()
        show_comparison(comparison, console)
        file = out / "comparison.json"
        file.write_bytes(orjson.dumps(comparison, option=orjson.OPT_INDENT_2) + b"\n")
        console.print(f"Wrote {file}")

    @property
    def _whole(self) -> bool:
        return self.request.limit is None and self._total == self.survey.rows

    @property
    def _total(self) -> int:
        return min(self.survey.rows, self.request.sample or self.survey.rows)

    def _score(self, side: Side, out: Path | None) -> Scored:
        if side.url is not None:
            return asyncio.run(self._score_there(side.url, out))
        book = load_book(side.settings.policies)
        profile = chosen_profile(book, side.settings)
        task = self._task(book)
        engine = open_engine(side.settings)
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
            names = {template.digest: name for name, template in TEMPLATES.items()}
            template = names.get(identity.template, identity.template)
            header = self._header(identity, template, book, task)
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
        parts = [_stem(self.dataset), self.request.protocol or "", header.scorer]
        default = Path("runs") / "-".join(_slug(part) for part in parts if part)
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


def _variant(
    settings: ScoringSettings, request: "Request", given: str
) -> tuple[ScoringSettings, str | None]:
    """Tell what one side of a comparison is: a gateway, policy files, or a model."""
    if given.startswith(("http://", "https://")):
        return settings, given
    path = Path(given).expanduser()
    is_model = not path.exists() or (path / "config.json").is_file()
    field, value = ("model", given) if is_model else ("policies", path)
    return settings.model_copy(update={field: value}), request.url


def _overall(report: Report) -> Figures | None:
    """Find the figures over all policies; a protocol judges in one direction."""
    figures = next(s.figures for s in report.whole if s.policy is None)
    f1, area = figures["optimal_f1"].value, figures["average_precision"].value
    return None if f1 is None or area is None else Figures(f1, area)


def _stem(dataset: Dataset) -> str:
    return re.sub(r"(\.(jsonl|csv|parquet|gz))+$", "", dataset.source.name).removeprefix("hf://")


def _slug(text: str) -> str:
    return re.sub(r"[^\w.@-]+", "-", text).strip("-.")
