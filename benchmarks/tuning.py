"""How good a policy becomes that the base never saw: the curve from few labelled rows to many.

    python -m benchmarks.tuning --base starter --data rows.jsonl --policies my.yaml

For each number of rows, so many are drawn from the data, once for each seed, and tuned on as
`shieldgate tune` does. All are measured on the same rows, from which none is drawn. Beside it
stands a linear model of word and character TF-IDF, trained on the same rows.
"""

import argparse
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union

from shieldgate.evaluation.adapters import ADAPTERS, choose_adapter
from shieldgate.evaluation.datasets import Dataset
from shieldgate.evaluation.labels import Labelling
from shieldgate.evaluation.sources import open_source
from shieldgate.policy import Policy, load_book
from shieldgate.prompt import TEMPLATES
from shieldgate.statistics import curve
from shieldgate.telemetry import configure_logging
from shieldgate.tuning.labelled import Labelled, split_rows
from shieldgate.tuning.tune import TuningTask, tune


def main() -> None:
    """Draw the curve that the arguments ask for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base", default="starter", help="what to start from")
    parser.add_argument("--data", required=True, help="labelled rows, as evaluate reads them")
    parser.add_argument("--policies", type=Path, help="the policy book; default: the shipped one")
    parser.add_argument("--policy", help="the policy; default: the only one that rows label")
    parser.add_argument("--adapter", choices=ADAPTERS)
    parser.add_argument("--map", nargs="*", default=(), metavar="FIELD=COLUMN")
    parser.add_argument("--sizes", type=int, nargs="*", default=(50, 200, 1000), help="rows")
    parser.add_argument("--seeds", type=int, default=3, help="draws of each size")
    parser.add_argument("--held-out", type=int, default=800, help="rows to measure on")
    parser.add_argument("--method", choices=("full", "lora"), help="default: by size")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    configure_logging("warning", as_json=False)
    console = Console(highlight=False, soft_wrap=True)
    data = Dataset(open_source(arguments.data), choose_adapter(arguments.adapter, arguments.map))
    policy, rows = _read(data, load_book(arguments.policies).policies, arguments.policy)
    test, pool = _drawn(rows, arguments.held_out, "held out")
    share = mean(row.labels[policy.id] for row in test)
    console.print(
        f"{policy.id} in {data.source.name}, base {arguments.base}: AU-PRC on {len(test):,} rows "
        f"held out, of which {share:.1%} violate"
    )
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("rows", "base", "tuned", "TF-IDF", "drift elsewhere"):
        table.add_column(column, justify="right", no_wrap=True)
    for size in arguments.sizes:
        points = []
        for seed in range(arguments.seeds):
            drawn, _ = _drawn(pool, size, f"{size}/{seed}")
            points.append(_point(arguments, policy, drawn, test, seed))
            console.print(f"{size:,} rows, seed {seed}: {points[-1]}", style="dim")
        table.add_row(
            f"{size:,}",
            f"{points[0].base:.3f}",
            _spread([p.tuned for p in points]),
            _spread([p.linear for p in points]),
            _spread([p.drift for p in points]),
        )
    console.print(table)
    console.print(
        f"mean and range over {arguments.seeds} draws; a random ranking has {share:.3f}; drift "
        "elsewhere: how far the probability of the shipped ShieldGemma policies moved on these "
        "rows, on average"
    )


@dataclass(frozen=True, slots=True)
class Point:
    """Average precision on the rows held out, and how far other policies moved."""

    base: float
    tuned: float
    linear: float
    drift: float

    def __str__(self) -> str:
        """Write it on one line."""
        return f"base {self.base:.3f}, tuned {self.tuned:.3f}, TF-IDF {self.linear:.3f}"


def _point(
    arguments: argparse.Namespace,
    policy: Policy,
    rows: Sequence[Labelled],
    test: Sequence[Labelled],
    seed: int,
) -> Point:
    shipped = load_book().policies
    with tempfile.TemporaryDirectory() as folder:
        task = TuningTask(
            base=arguments.base,
            out=Path(folder) / "tuned",
            template=TEMPLATES["chat"],
            policies={policy.id: policy},
            kept=[p for id, p in shipped.items() if id.startswith("shieldgemma/") and p != policy],
            splits=split_rows(rows, test, seed=seed),
            seed=seed,
            device=arguments.device,
            method=arguments.method,
        )
        report = tune(task)
    [measured] = report.measured
    return Point(
        base=measured.before["average_precision"].value or 0.0,
        tuned=measured.after["average_precision"].value or 0.0,
        linear=_linear(policy, rows, test),
        drift=report.drift or 0.0,
    )


def _linear(policy: Policy, rows: Sequence[Labelled], test: Sequence[Labelled]) -> float:
    """Train what a simple and strong baseline would be, on all of the rows."""
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    model = make_pipeline(make_union(words, characters), LogisticRegression(C=10, max_iter=500))
    model.fit([row.key for row in rows], [row.labels[policy.id] for row in rows])
    scores = model.decision_function([row.key for row in test])
    labels = np.array([row.labels[policy.id] for row in test])
    return curve(labels, scores).average_precision() or 0.0


def _read(
    data: Dataset, policies: dict[str, Policy], wanted: str | None
) -> tuple[Policy, list[Labelled]]:
    """Read the rows of one direction that label the policy, each text once."""
    asked = [policies[wanted]] if wanted else list(policies.values())
    labelling = Labelling.of(data.survey().labels, asked)
    found = {id for ids in labelling.policies.values() for id in ids}
    if len(found) != 1:
        raise SystemExit(f"The rows label {sorted(found) or 'no policy'}: choose with --policy.")
    [id] = found
    rows = [
        Labelled(row.example.exchange, {id: bool(label)})
        for row in data.rows()
        if (label := labelling.labels(row.example).get(id)) is not None
    ]
    direction = rows[0].exchange.direction
    once = {row.key: row for row in rows if row.exchange.direction == direction}
    return policies[id], list(once.values())


def _drawn(rows: Sequence[Labelled], size: int, seed: str) -> tuple[list[Labelled], list[Labelled]]:
    """Draw rows, violating ones in the share that they have; gives the others too."""
    if size > len(rows) // 2:
        raise SystemExit(f"{size:,} rows are asked for, and only {len(rows):,} are there.")
    rng = random.Random(seed)
    shuffled = rng.sample(rows, len(rows))
    shuffled.sort(key=lambda row: list(row.labels.values()))
    chosen = set(_evenly(len(rows), size))
    return (
        [row for place, row in enumerate(shuffled) if place in chosen],
        [row for place, row in enumerate(shuffled) if place not in chosen],
    )


def _evenly(total: int, size: int) -> Iterator[int]:
    return (number * total // size for number in range(size))


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.3f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()
