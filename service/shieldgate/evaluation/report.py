"""What a file of scores says about a scorer.

A report is a pure function of scores, policy book, profile and seed: the same give the same
bytes. Directions are never mixed, because a threshold belongs to one of them.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from shieldgate.evaluation.decisions import Decisions, decide_columns, reworded
from shieldgate.evaluation.files import write_result
from shieldgate.evaluation.score_columns import ScoreColumns
from shieldgate.evaluation.score_file import Header
from shieldgate.policy import PolicyBook, Profile
from shieldgate.statistics import (
    Curve,
    Estimate,
    Sample,
    bootstrap,
    curve,
    doubts,
    prevalence,
    reliability,
)
from shieldgate.types import Direction, Exchange, Explanation
from shieldgate.version import __version__

TOGETHER = "all policies"
POINTS = 300
MISTAKES = 10
VALUES = 30
# Resamples where a thousand would take minutes: for groups, which are many, and for large data.
FEWER = 200
# Scores crowd at 0 and 1, so the histogram's bins are equal in logits: 0.002 to 0.998.
EDGES = 1 / (1 + np.exp(-np.linspace(-6, 6, 25)))


@dataclass(frozen=True, slots=True)
class Slice:
    """Figures on rows of one direction, under one policy or all together (`policy` None).

    `group` is the (column, value) that the rows were narrowed by. `random` is what a random
    ranking has as average precision: the share of harmful rows. `optimal_threshold` has the best
    F1 on these very rows; `threshold` is the one in force, None where each policy has its own.
    """

    direction: Direction
    policy: str | None
    group: tuple[str, str] | None
    rows: int
    harmful: int
    random: float | None
    threshold: float | None
    calibrated: bool
    optimal_threshold: float | None
    figures: Mapping[str, Estimate]
    resamples: int


@dataclass(frozen=True, slots=True)
class Mistake:
    """A row that was decided wrongly; `row` is its place in the dataset.

    `policy` is the one that flags it, or came nearest to it, and `probability` is the slice's.
    """

    row: int
    harmful: bool
    probability: float
    policy: str


@dataclass(frozen=True, slots=True)
class Detail:
    """What the charts of a slice are drawn from.

    `curve` has [threshold, true positives, false positives], from the highest threshold down;
    `reliability` has [rows, mean probability, share of harmful rows] for each bin that has rows;
    `histogram` has [harmful, harmless] for each bin between the report's `edges`.
    """

    curve: Sequence[tuple[float, int, int]]
    reliability: Sequence[tuple[int, float, float]]
    histogram: Sequence[tuple[int, int]]
    mistakes: Sequence[Mistake]


@dataclass(frozen=True, slots=True)
class Report:
    """All that is known; `details` belong, in order, to the slices that no group narrows.

    `notes` are sentences to mind when reading the figures.
    """

    header: Header
    book: str
    profile: str
    command: str
    version: str
    seed: int
    resamples: int
    notes: Sequence[str]
    slices: Sequence[Slice]
    details: Sequence[Detail]
    edges: Sequence[float]

    @property
    def whole(self) -> list[Slice]:
        """List the slices that no group narrows."""
        return [s for s in self.slices if s.group is None]

    @property
    def overall_mistakes(self) -> list[Mistake]:
        """List the mistakes over all policies together, once each."""
        pairs = zip(self.whole, self.details, strict=True)
        return list(
            dict.fromkeys(m for s, detail in pairs if s.policy is None for m in detail.mistakes)
        )

    @property
    def mistaken_rows(self) -> frozenset[int]:
        """List the rows whose texts the page can show."""
        return frozenset(m.row for detail in self.details for m in detail.mistakes)

    def to_dict(self) -> dict[str, Any]:
        """Give all figures as plain data, which holds no text of the dataset."""
        return asdict(self)

    def write(
        self,
        folder: str | Path,
        texts: Mapping[int, Exchange] | None = None,
        explained: Mapping[Mistake, Explanation] | None = None,
    ) -> None:
        """Write report.json, and report.html, a page that needs no network.

        `texts` are the dataset's rows for the page's mistakes (see `mistaken_rows`); None leaves
        them out. The words that carried those that are `explained` are marked in them. Raises
        ConfigurationError.
        """
        folder = Path(folder)
        write_result(
            folder / "report.json", json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"
        )
        write_result(folder / "report.html", self._page(texts, explained or {}))

    def _page(
        self, texts: Mapping[int, Exchange] | None, explained: Mapping[Mistake, Explanation]
    ) -> str:
        shown = None
        if texts is not None:
            shown = {str(row): asdict(texts[row]) for row in sorted(self.mistaken_rows)}
        words = {f"{m.row} {m.policy}": asdict(e) for m, e in explained.items()}
        data = json.dumps(self.to_dict() | {"texts": shown, "words": words}, ensure_ascii=False)
        # Inside a script element only "<" could end the data; the page shows texts as text nodes.
        data = data.replace("<", "\\u003c")
        page = files(__package__).joinpath("report.html").read_text("utf-8")
        return page.replace("{{ report }}", data)


def build_report(
    columns: ScoreColumns,
    book: PolicyBook,
    profile: Profile,
    *,
    command: str = "",
    notes: Sequence[str] = (),
    seed: int = 0,
    resamples: int = 1000,
) -> Report:
    """Measure scores under the thresholds that `decide` would use for this profile.

    `command` is what reproduces the report; `notes` are sentences to show with it. Raises
    ConfigurationError where the book lacks a policy of the scores.
    """
    decisions = list(decide_columns(columns, book, profile))
    slices = [_slice(j, j.sample, None, seed, resamples) for j in decisions]
    notes = [*notes, *_caveats(columns.header, book, slices)]
    for name in columns.groups:
        values, left_out = _common_values(columns, name)
        if left_out:
            notes.append(f"{name}: {left_out} rarer values are left out of the figures")
        slices += [
            _slice(j, part, (name, value), seed, resamples)
            for j in decisions
            for value, part in _parts(j, columns, name, values)
        ]
    return Report(
        header=columns.header,
        book=book.version,
        profile=profile.name,
        command=command,
        version=__version__,
        seed=seed,
        resamples=resamples,
        notes=notes,
        slices=slices,
        details=[_detail(j, columns) for j in decisions],
        edges=EDGES.tolist(),
    )


def _caveats(header: Header, book: PolicyBook, whole: Sequence[Slice]) -> Iterator[str]:
    """Say what to mind when reading the figures."""
    if weight := header.options.get("weight"):
        yield (
            f"each row counts by its {weight!r} in figures and intervals; counts of rows and the "
            "charts show rows as they are"
        )
    changed = reworded(header, book)
    if changed:
        yield f"reworded since they were scored: {', '.join(changed)}"
    bare = dict.fromkeys(s.policy for s in whole if s.policy and not s.calibrated)
    if bare:
        yield f"not calibrated for {header.scorer}, default thresholds decide: {', '.join(bare)}"
    seen = dict.fromkeys(
        policy
        for policy in header.policies
        for (scorer, _), fitted in book.policies[policy].calibrations.items()
        if scorer == header.scorer
        and fitted.provenance.get("dataset_digest") == header.dataset_digest
    )
    if seen:
        yield (
            "calibrated on this very dataset, so that what their thresholds decide looks better "
            f"than it is: {', '.join(seen)}"
        )
    doubted: dict[tuple[str, str], list[str]] = defaultdict(list)
    for s in whole:
        for doubt in doubts(s.harmful, s.rows - s.harmful):
            doubted[s.direction, doubt].append(s.policy or TOGETHER)
    for (direction, doubt), names in doubted.items():
        yield f"{direction}, {', '.join(names)}: {doubt}"


def _slice(
    decisions: Decisions, sample: Sample, group: tuple[str, str] | None, seed: int, resamples: int
) -> Slice:
    rows = sample.labels.size
    draws = min(resamples, FEWER) if group or rows > 20_000 else resamples
    return Slice(
        direction=decisions.direction,
        policy=decisions.policy,
        group=group,
        rows=rows,
        harmful=sample.positives,
        random=prevalence(sample.labels, sample.weights),
        threshold=decisions.threshold,
        calibrated=decisions.calibrated,
        optimal_threshold=sample.curve().optimal_threshold(),
        figures=bootstrap(sample.figures, rows, seed=seed, resamples=draws),
        resamples=draws,
    )


def _common_values(columns: ScoreColumns, name: str) -> tuple[list[int], int]:
    """List the codes of a group's commonest values, and count the others."""
    column = columns.groups[name]
    counts = Counter(column.codes[column.codes >= 0].tolist())
    ranked = sorted(counts, key=lambda code: (-counts[code], column.values[code]))
    return ranked[:VALUES], len(ranked[VALUES:])


def _parts(
    decisions: Decisions, columns: ScoreColumns, name: str, codes: Sequence[int]
) -> Iterator[tuple[str, Sample]]:
    """Narrow a sample to each value of a group that has rows in it."""
    column = columns.groups[name]
    for code in codes:
        inside = column.codes[decisions.at] == code
        if inside.any():
            yield column.values[code], decisions.sample.where(inside)


def _detail(decisions: Decisions, columns: ScoreColumns) -> Detail:
    sample = decisions.sample
    bins = reliability(sample.labels, sample.probabilities)
    clipped = np.clip(sample.probabilities, EDGES[0], EDGES[-1])
    harmful, harmless = (
        np.histogram(clipped[c], EDGES)[0] for c in (sample.labels, ~sample.labels)
    )
    return Detail(
        curve=_thinned(curve(sample.labels, sample.probabilities), decisions.threshold),
        reliability=[
            (int(rows), float(probability), float(frequency))
            for rows, probability, frequency in zip(
                bins.rows, bins.probability, bins.frequency, strict=True
            )
            if rows
        ],
        histogram=list(zip(harmful.tolist(), harmless.tolist(), strict=True)),
        mistakes=_mistakes(decisions, columns),
    )


def _thinned(curve: Curve, threshold: float | None) -> list[tuple[float, int, int]]:
    """Keep a curve's points where it has moved by 1/POINTS of a class, its best, and this one."""
    if not curve.thresholds.size:
        return []
    tp, fp = curve.true_positives, curve.false_positives
    steps = [
        np.floor(POINTS * part / whole) if whole else part
        for part, whole in ((tp, curve.positives), (fp, curve.negatives))
    ]
    moved = np.diff(steps[0], append=np.inf) + np.diff(steps[1], append=np.inf) > 0
    if curve.defined:
        moved[curve.f1.argmax()] = True
    if threshold is not None:
        moved[np.flatnonzero(curve.thresholds >= threshold)[-1:]] = True
    kept = np.flatnonzero(moved)
    columns = (curve.thresholds[kept], tp[kept].astype(int), fp[kept].astype(int))
    return list(zip(*(c.tolist() for c in columns), strict=True))


def _mistakes(decisions: Decisions, columns: ScoreColumns) -> list[Mistake]:
    """List the most confident mistakes, false alarms first."""
    found = []
    sample, rows = decisions.sample, columns.rows[decisions.at]
    for harmful, order in ((False, -sample.probabilities), (True, sample.probabilities)):
        wrong = np.flatnonzero((sample.labels == harmful) & (sample.flagged != harmful))
        worst = wrong[np.lexsort((rows[wrong], order[wrong]))][:MISTAKES]
        found += [
            Mistake(
                int(rows[i]),
                harmful,
                float(sample.probabilities[i]),
                columns.header.policies[decisions.by[i]],
            )
            for i in worst
        ]
    return found
