"""From labelled data and a scorer to a report: scores into a file, figures from the file."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter

from shieldgate.errors import ConfigurationError, UnknownName
from shieldgate.evaluation.adapters import OURS, choose_adapter
from shieldgate.evaluation.datasets import Dataset, Row, Survey
from shieldgate.evaluation.labels import Labelling
from shieldgate.evaluation.protocols import PROTOCOLS, HeadlineFigures, Protocol
from shieldgate.evaluation.report import Report, build_report
from shieldgate.evaluation.row_scoring import RowScorer, ScoringTask, sampled, score_rows
from shieldgate.evaluation.score_columns import read_columns
from shieldgate.evaluation.score_file import Header, ScoreFile, Timing, wording_digest
from shieldgate.evaluation.sources import Source
from shieldgate.policy import Policy, PolicyBook, Profile
from shieldgate.prompt import template_name
from shieldgate.scoring import Identity
from shieldgate.version import __version__

SCORES = "scores.jsonl"


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """How labelled data is read, which of its rows are scored, and under which policies.

    - `adapter` names a published layout (default: our own); `columns` are pairs `field=column`
      for columns of one's own, or a YAML file of them; `groups` are columns by whose values
      figures are split, and `weight` is one that says for how many rows each one stands.
    - `labels` are policies by label, where a label speaks for others than those of its name.
      `unknown_is_negative` counts what is unknown as harmless.
    - `strict` stops at the first bad row; `limit` reads only so many good rows; `sample` scores so
      many, drawn by `seed`, which draws the intervals, too.
    - `policies` are ids; without any, the protocol's count, or else all of the `family`.
    - `protocol` measures as the ShieldGemma paper did: openai-mod or toxicchat.
    - `max_batch_tokens` bounds a forward pass, and so decides what shares one.
    """

    adapter: str | None = None
    columns: Sequence[str] = ()
    groups: Sequence[str] = ()
    weight: str | None = None
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    unknown_is_negative: bool = False
    strict: bool = False
    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    family: str = "shieldgemma"
    policies: Sequence[str] = ()
    protocol: str | None = None
    max_batch_tokens: int = 4096

    def __post_init__(self) -> None:
        """Raise TypeError for a str where several are meant."""
        several = {"columns": self.columns, "groups": self.groups, "policies": self.policies}
        for name, values in (*several.items(), *self.labels.items()):
            if isinstance(values, str):
                raise TypeError(f"{name!r} takes a list of str: write [{values!r}].")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Labelled data that was surveyed, to be scored by any number of scorers."""

    options: EvaluationOptions
    protocol: Protocol | None
    dataset: Dataset
    survey: Survey

    @classmethod
    def of(cls, source: Source, options: EvaluationOptions) -> "Evaluation":
        """Read the data once; raise ConfigurationError."""
        protocol = None
        if options.protocol is not None:
            if options.protocol not in PROTOCOLS:
                known = ", ".join(PROTOCOLS)
                raise ConfigurationError(f"--protocol {options.protocol}: known are {known}.")
            protocol = PROTOCOLS[options.protocol]
        dataset = Dataset(
            source,
            choose_adapter(
                options.adapter, options.columns, protocol.adapter if protocol else OURS.name
            ),
            tuple(options.groups),
            options.limit,
            as_response=protocol is not None and protocol.as_response,
            weight=options.weight,
        )
        return cls(options, protocol, dataset, dataset.survey(strict=options.strict))

    @property
    def row_count(self) -> int:
        """Count the rows that are scored."""
        return min(self.survey.rows, self.options.sample or self.survey.rows)

    def under(self, book: PolicyBook, profile: Profile) -> "EvaluationRun":
        """Choose the policies and match the labels with them; raise ConfigurationError."""
        wanted = self.options.policies or (self.protocol.policies if self.protocol else ())
        policies = choose_policies(book, wanted, self.options.family)
        labelling = Labelling.of(
            self.survey.labels,
            policies,
            chosen=self.options.labels,
            unknown_is_negative=self.options.unknown_is_negative,
        )
        return EvaluationRun(self, book, profile, ScoringTask(policies, labelling))

    def scored_rows(self) -> Iterable[Row]:
        """Read the rows that are scored."""
        rows = self.dataset.rows()
        if self.row_count == self.survey.rows:
            return rows
        return sampled(rows, self.row_count, self.survey.rows, self.options.seed)


def choose_policies(book: PolicyBook, wanted: Sequence[str], family: str) -> Sequence[Policy]:
    """Choose those that were named, else all of a family; raise ConfigurationError."""
    of_family = [id for id in book.policies if id.startswith(f"{family}/")]
    if not (wanted or of_family):
        families = sorted({id.partition("/")[0] for id in book.policies})
        raise ConfigurationError(
            f"--family {family}: the policy book has none of it. It has: {', '.join(families)}."
        )
    try:
        return book.find(wanted or of_family, of_family)
    except UnknownName as unknown:
        raise ConfigurationError(str(unknown)) from None


@dataclass(frozen=True, slots=True)
class EvaluationRun:
    """An evaluation under one policy book, and the profile whose thresholds decide."""

    evaluation: Evaluation
    book: PolicyBook
    profile: Profile
    task: ScoringTask

    async def score(
        self,
        scorer: RowScorer,
        folder: Path,
        *,
        progress: Callable[[int], None] = lambda rows: None,
    ) -> Path:
        """Score the rows that the folder's file of margins lacks, and give its path.

        `progress` hears how many rows the file has. Raises ConfigurationError or ScoringError;
        what was scored before is saved.
        """
        with ScoreFile(folder / SCORES, self._header(scorer.identity)) as file:
            rows = self.evaluation.scored_rows()
            before, began = len(file), perf_counter()
            await score_rows(scorer, rows, self.task, file, progress=progress)
            if len(file) > before:
                Timing(len(file) - before, perf_counter() - began).write(folder)
        return file.path

    def report(self, scores: Path, *, command: str = "") -> Report:
        """Report what the margins of a file say, with the `command` that reproduces it.

        Raises ConfigurationError.
        """
        evaluation = self.evaluation
        columns = read_columns(scores)
        report = build_report(
            columns,
            self.book,
            self.profile,
            command=command,
            notes=self._notes(),
            seed=evaluation.options.seed,
        )
        if evaluation.protocol is None:
            return report
        whole = evaluation.options.limit is None and evaluation.row_count == evaluation.survey.rows
        beside = evaluation.protocol.beside(
            columns.header.scorer, evaluation.survey, whole, _overall(report)
        )
        return replace(report, notes=(*report.notes, *beside))

    def _header(self, identity: Identity) -> Header:
        evaluation, options, task = self.evaluation, self.evaluation.options, self.task
        return Header(
            dataset=evaluation.dataset.source.name,
            dataset_digest=evaluation.survey.digest,
            scorer=identity.name,
            identity=identity.key,
            template=template_name(identity.template),
            book=self.book.version,
            guidelines={policy.id: wording_digest(policy) for policy in task.policies},
            policies=tuple(policy.id for policy in task.policies),
            protocol=options.protocol,
            options={
                "adapter": evaluation.dataset.adapter.name,
                "columns": list(options.columns),
                "groups": list(options.groups),
                "labels": {name: list(ids) for name, ids in task.labelling.policies.items()},
                "unknown_is_negative": options.unknown_is_negative,
                "limit": options.limit,
                "sample": options.sample,
                "seed": options.seed if options.sample else None,
                "max_batch_tokens": options.max_batch_tokens,
                **({"weight": options.weight} if options.weight else {}),
            },
            version=__version__,
        )

    def _notes(self) -> list[str]:
        notes = self.evaluation.survey.notes()
        if self.evaluation.options.weight is None and self.evaluation.dataset.is_reviewed():
            notes.append(
                "its rows were chosen for review, and stand for others: without --weight weight "
                "the figures are of these rows alone"
            )
        labelling = self.task.labelling
        renamed = [
            f"{name} as {', '.join(ids)}"
            for name, ids in labelling.policies.items()
            if any(id.rpartition("/")[2] != name for id in ids)
        ]
        if renamed:
            notes.append(f"labels were read so: {'; '.join(renamed)}")
        if labelling.unmatched:
            names = ", ".join(labelling.unmatched)
            notes.append(
                f"labels that match no policy, and count in no figure of one: {names} "
                "(--label NAME=POLICY says which it is)"
            )
        if labelling.unknown_is_negative:
            notes.append("what is unknown was counted as harmless")
        return notes


def _overall(report: Report) -> HeadlineFigures | None:
    """Find the figures over all policies; a protocol judges in one direction."""
    figures = next(s.figures for s in report.whole if s.policy is None)
    f1, area = figures["optimal_f1"].value, figures["average_precision"].value
    return None if f1 is None or area is None else HeadlineFigures(f1, area)
