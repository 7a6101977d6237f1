"""How good the starter is: beside a baseline, at its thresholds, and at reading its guideline.

    python -m benchmarks.quality --data DATA --out runs/quality [--held-out CHECKPOINT=sexual]

`shieldgate evaluate` scores the files, so a run that was stopped goes on where it was. Intervals
are 95 %, by bootstrap; the difference from the baseline is paired, on the same rows.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.baseline import Baseline
from recipes.starter.contrast import contrast_rows
from recipes.starter.rows import Row, read_rows
from shieldgate.evaluation.decisions import decide_columns, probabilities
from shieldgate.evaluation.score_columns import UNKNOWN, ScoreColumns, read_columns
from shieldgate.policy import Calibration, PolicyBook, load_book
from shieldgate.statistics import Estimate, Figures, Ranking, Scores, Weights, bootstrap

PARAPHRASES = Path(__file__).parent / "paraphrases"
HARMS = ("dangerous", "harassment", "hate", "sexual", "violence", "profanity")
# Files with rows of both classes, and the policies whose maximum is held against the label.
FILES = {
    "openai_mod": HARMS,
    "xstest": HARMS,
    "hatecheck": ("hate",),
    "harmbench_response": HARMS,
    "jbb_artifacts_response": HARMS,
    "edos_test": ("hate",),
}


@dataclass(frozen=True)
class Run:
    """Where the data are, where scores go, and what is scored."""

    data: Path
    out: Path
    model: str

    def rows(self, name: str) -> list[Row]:
        """Read a file of labelled rows."""
        folder = self.data if name == "dev" else self.data / "eval"
        return list(read_rows(folder / f"{name}.jsonl.gz"))

    def scores(self, name: str, *options: str, model: str | None = None) -> ScoreColumns:
        """Score a file as a user would, and read its margins."""
        folder = self.data if name == "dev" else self.data / "eval"
        kind = options[-1] if options else "held-out" if model else "official"
        out = self.out / f"{name}-{kind}"
        command = [
            *(sys.executable, "-m", "shieldgate", "evaluate", str(folder / f"{name}.jsonl.gz")),
            *("--model", model or self.model, "--out", str(out), "--no-examples", *options),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(done.stdout + f"failed: {' '.join(command)}")
        return read_columns(out / "scores.jsonl")


def main() -> None:
    """Measure what the arguments ask for, and print tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with dev and eval/")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--model", default="starter")
    parser.add_argument(
        "--held-out", metavar="CHECKPOINT=HARM", help="a starter that never saw this harm"
    )
    arguments = parser.parse_args()
    run = Run(arguments.data, arguments.out, arguments.model)
    console = Console(highlight=False, width=200)
    book = load_book()
    _refuse_leaks(run)
    console.print(_against_baseline(run, book))
    console.print(_at_thresholds(run, book))
    console.print(_calibration(run, book))
    for table in _reading(run):
        console.print(table)
    if arguments.held_out:
        console.print(_held_out(run, *arguments.held_out.rsplit("=", 1)))


def _refuse_leaks(run: Run) -> None:
    """Stop if a written-out training sentence is one that is measured with."""
    written = {_normal(row.prompt) for row in contrast_rows()}
    for name in (*FILES, "simplesafetytests", "harmbench"):
        if leaks := [row.id for row in run.rows(name) if _normal(row.prompt) in written]:
            sys.exit(f"{name}: in recipes.starter.contrast, too: {', '.join(leaks)}")


def _normal(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()


def _against_baseline(run: Run, book: PolicyBook) -> Table:
    table = _table("AU-PRC", "file", "rows", "random", "baseline", "starter", "starter - baseline")
    baseline = _Baseline(run)
    both = []
    for name, harms in FILES.items():
        columns = run.scores(name)
        rows = run.rows(name)
        ours = _highest([_probabilities(columns, book, harm) for harm in harms])
        theirs = _highest([baseline.of(name, rows)[harm] for harm in harms])
        labels = np.array([bool(row.harmful) for row in rows])
        found = _paired(Ranking(labels, theirs), Ranking(labels, ours), labels.size)
        both.append([found["baseline"].value, found["starter"].value])
        table.add_row(
            name, f"{labels.size:,}", f"{labels.mean():.3f}", *map(_shown, found.values())
        )
    mean = np.mean(both, axis=0)
    table.add_row("mean", "", "", *(f"{m:.3f}" for m in mean), f"{mean[1] - mean[0]:+.3f}")
    return table


class _Baseline:
    """The baseline's probabilities, kept in a file, since its training takes minutes."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._trained: Baseline | None = None

    def of(self, name: str, rows: Sequence[Row]) -> dict[str, Scores]:
        kept = self._run.out / f"{name}.baseline.npz"
        if not kept.exists():
            np.savez_compressed(kept, **self._baseline().probabilities(rows))  # type: ignore[arg-type]
        return dict(np.load(kept))

    def _baseline(self) -> Baseline:
        if self._trained is None:
            data = self._run.data
            train = [row for f in ("train", "benign") for row in read_rows(data / f"{f}.jsonl.gz")]
            print("training the baseline", file=sys.stderr)
            self._trained = Baseline.trained(
                [*train, *contrast_rows()], self._run.rows("dev"), HARMS
            )
        return self._trained


def _at_thresholds(run: Run, book: PolicyBook) -> Table:
    table = _table("At the shipped thresholds, default profile", "file", "recall", "FPR")
    profile = book.profile("default")
    for name in ("dev", *FILES, "simplesafetytests", "harmbench"):
        columns = run.scores(name)
        flagged = np.zeros(columns.rows.size, np.bool_)
        for direction in columns.directions():
            here = columns.of(direction)
            for policy in map(book.policies.__getitem__, profile.policies):
                p = _probabilities(columns, book, policy.id.split("/")[1])
                threshold = profile.threshold(policy, direction, columns.header.scorer)
                flagged |= here & (p >= threshold)
        harmful = columns.harmful == 1
        shares = (flagged[harmful], flagged[~harmful])
        table.add_row(name, *(f"{s.mean():.1%}" if s.size else "-" for s in shares))
    return table


def _calibration(run: Run, book: PolicyBook) -> Table:
    table = _table("Calibration on dev", "policy", "rows", "calibration error", "Brier skill")
    for judged in decide_columns(run.scores("dev"), book, book.profile("default")):
        if judged.policy and judged.sample.positives and judged.sample.negatives:
            figures = judged.sample.figures()
            table.add_row(
                f"{judged.policy} ({judged.direction})",
                f"{judged.at.size:,}",
                *(f"{figures[name]:.3f}" for name in ("calibration_error", "brier_skill")),
            )
    return table


def _reading(run: Run) -> Iterable[Table]:
    """Ask each guideline, in words that training never saw, and measure each label by it."""
    options = ("--policies", str(PARAPHRASES))
    for family in ("plain", "formal"):
        columns = run.scores("dev", *options, "--family", family)
        table = _table(
            f"{family} words: guideline asked (rows) x label measured (columns), AU-PRC on dev",
            "asked", *HARMS, "diagonal apart",
        )  # fmt: skip
        for asked in HARMS:
            scores = probabilities(columns.margins[f"{family}/{asked}"], Calibration(0.5))
            found = {h: _measured(columns.labels[f"{family}/{h}"], scores) for h in HARMS}
            others = [e.high or 0.0 for h, e in found.items() if h != asked]
            apart = (found[asked].low or 0.0) > max(others)
            table.add_row(asked, *map(_shown, found.values()), "yes" if apart else "no")
        yield table


def _held_out(run: Run, checkpoint: str, harm: str) -> Table:
    table = _table(f"A starter that never saw {harm}: AU-PRC on dev", "asked", "random", "AU-PRC")
    columns = run.scores("dev", model=checkpoint)
    labels = columns.labels[f"shieldgemma/{harm}"]
    scores = probabilities(columns.margins[f"shieldgemma/{harm}"], Calibration(0.5))
    share = (labels == 1).sum() / (labels != UNKNOWN).sum()
    table.add_row(harm, f"{share:.3f}", _shown(_measured(labels, scores)))
    return table


def _probabilities(columns: ScoreColumns, book: PolicyBook, harm: str) -> Scores:
    """Turn margins into probabilities as serving does, in either direction."""
    policy = book.policies[f"shieldgemma/{harm}"]
    found = np.zeros(columns.rows.size)
    for direction in columns.directions():
        here = columns.of(direction)
        fitted = policy.calibration(columns.header.scorer, direction) or Calibration(0.5)
        found[here] = probabilities(columns.margins[policy.id], fitted)[here]
    return found


def _measured(labels: NDArray[np.int8], scores: Scores) -> Estimate:
    known = labels != UNKNOWN
    ranking = Ranking(labels[known] == 1, scores[known])

    def figures(weights: Weights | None) -> Figures:
        return {"AP": ranking.curve(weights).average_precision()}

    return bootstrap(figures, int(known.sum()))["AP"]


def _paired(baseline: Ranking, starter: Ranking, rows: int) -> dict[str, Estimate]:
    def figures(weights: Weights | None) -> Figures:
        before, after = (r.curve(weights).average_precision() for r in (baseline, starter))
        gap = None if before is None or after is None else after - before
        return {"baseline": before, "starter": after, "gap": gap}

    return bootstrap(figures, rows)


def _highest(scores: Sequence[Scores]) -> Scores:
    return np.max(scores, axis=0)


def _shown(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None:
        return "-"
    return f"{estimate.value:.3f} ({estimate.low:.2f} to {estimate.high:.2f})"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.MARKDOWN)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


if __name__ == "__main__":
    main()
