"""Evaluate labelled data packed, and by a plain loop of one forward pass per policy.

Then show that the memory of a run doesn't grow with the data. The ratio of the first part is
measured on the data's own lengths, beside the one that counting tokens predicts.
"""

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.subject import FULL, QUICK, TEMPLATE, Subject
from benchmarks.timing import fastest
from shieldgate.evaluation.adapters import ADAPTERS, OURS
from shieldgate.evaluation.datasets import Dataset, Row
from shieldgate.evaluation.labels import Labelling
from shieldgate.evaluation.row_scoring import (
    ReproduciblePacking,
    ScoringTask,
    sampled,
    score_rows,
)
from shieldgate.evaluation.score_file import Header, ScoreFile, read_scores
from shieldgate.evaluation.sources import open_source
from shieldgate.policy import Policy
from shieldgate.prompt import Segment, render
from shieldgate.version import __version__

OF_PREDICTED = 0.90
BATCH_TOKENS = 4096
HEAT = 4  # rows
SIZES = (10_000, 200_000)

# Large enough that matmuls outweigh the calls around them, small enough for many rows.
MIDDLE = {
    **FULL.shape,
    "vocab_size": 4096,
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "head_dim": 128,
    "intermediate_size": 4096,
    "query_pre_attn_scalar": 128,
}
# As small as a Gemma 2 can be: the memory of the model should not hide that of the run.
TINY = {
    **FULL.shape,
    "vocab_size": 1024,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 16,
}


def main() -> None:
    """Run what the arguments ask for, and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    parser.add_argument("data", nargs="?", help="labelled rows; without them the race is skipped")
    parser.add_argument("--adapter", choices=ADAPTERS, default=OURS.name)
    parser.add_argument("--rows", type=int, default=24, help="rows to race on, drawn at random")
    parser.add_argument("--seconds", type=float, default=60.0, help="time for the race's rounds")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="rows, for the memory")
    arguments = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    if arguments.data:
        dataset = Dataset(open_source(arguments.data), ADAPTERS[arguments.adapter])
        console.print(_race(dataset, arguments.rows, arguments.seconds))
    else:
        console.print("Race against a plain loop: skipped, because no labelled data was given.")
    for rows in arguments.sizes:
        peak, seconds = _in_fresh_process(rows)
        console.print(
            f"Scoring {rows:,} rows: peak resident memory {peak / 2**20:,.0f} MiB, "
            f"{rows / seconds:,.0f} rows/s on the smallest possible model."
        )


def _race(dataset: Dataset, count: int, seconds: float) -> str:
    survey = dataset.survey()
    subject = Subject(replace(FULL, shape=MIDDLE))
    policies = [p for p in subject.policies if p.id.startswith("shieldgemma/")]
    task = ScoringTask(policies, Labelling.of(survey.labels, policies))
    rows = list(sampled(dataset.rows(), min(count, survey.rows), survey.rows, seed=0))
    packed, plain = _packed(subject, rows, task), _plain(subject, rows, policies)
    difference = max(
        abs(a - b)
        for row in rows
        for a, b in zip(packed[row.number], plain[row.number], strict=True)
    )
    work = [w for r in rows for w in subject.scorer.prepare(r.example.exchange, policies).work]
    held = sum(w.tokens for w in work)
    alone = sum(len(w.trunk) + len(branch) for w in work for branch in w.branches)
    # In short heats, because a busy machine disturbs each long one.
    heats = [rows[start : start + HEAT] for start in range(0, len(rows), HEAT)]
    found = [
        fastest(
            {
                "packed": partial(_packed, subject, heat, task),
                "plain": partial(_plain, subject, heat, policies),
            },
            seconds / len(heats),
        )
        for heat in heats
    ]
    best = {name: sum(times[name] for times in found) for name in ("packed", "plain")}
    measured, predicted = best["plain"] / best["packed"], alone / held
    met = "met" if measured >= OF_PREDICTED * predicted else "not met"
    return (
        f"{len(rows)} rows of {dataset.source.name}, {len(policies)} policies, fp32 on CPU, "
        f"{torch.get_num_threads()} threads; margins differ by at most {difference:.1e}.\n"
        f"Tokens: {held:,} packed, {alone:,} in prompts of their own.\n"
        f"Rows a second: {len(rows) / best['packed']:.2f} packed, "
        f"{len(rows) / best['plain']:.2f} by a plain loop of one forward pass per policy.\n"
        f"Ratio: {measured:.2f}x measured, {predicted:.2f}x by counting tokens, "
        f"{measured / predicted:.0%} of it (target {OF_PREDICTED:.0%}: {met})."
    )


def _packed(subject: Subject, rows: Sequence[Row], task: ScoringTask) -> dict[int, list[float]]:
    """Score as `shieldgate evaluate` does, from rows to a file; gives margins by row."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.jsonl"
        _score(subject, rows, task, path)
        return {row.row: list(row.margins.values()) for row in read_scores(path)[1]}


def _plain(
    subject: Subject, rows: Sequence[Row], policies: Sequence[Policy]
) -> dict[int, list[float]]:
    """Score by the model as transformers has it, with logits at the last token only."""
    vocabulary = subject.tokenizer.get_vocab()
    found = {}
    for row in rows:
        exchange = row.example.exchange
        found[row.number] = [
            _margin(
                subject, vocabulary, TEMPLATE.segments(exchange, p.guidelines[exchange.direction])
            )
            for p in policies
        ]
    return found


def _margin(subject: Subject, vocabulary: dict[str, int], segments: tuple[Segment, ...]) -> float:
    inputs = subject.tokenizer(render(segments), add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        logits = subject.plain(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1]
    return float(logits[vocabulary["Yes"]] - logits[vocabulary["No"]])


def _score(subject: Subject, rows: Iterable[Row], task: ScoringTask, path: Path) -> None:
    identity = subject.scorer.identity
    header = Header(
        dataset="bench",
        dataset_digest="",
        scorer=identity.name,
        identity=identity.key,
        template=TEMPLATE.name,
        book="",
        guidelines={},
        policies=tuple(p.id for p in task.policies),
        protocol=None,
        options={},
        version=__version__,
    )
    with ScoreFile(path, header) as file:
        asyncio.run(score_rows(ReproduciblePacking(subject.scorer, BATCH_TOKENS), rows, task, file))


def _in_fresh_process(rows: int) -> tuple[int, float]:
    """Give the peak resident memory in bytes of a run over that many rows, and its seconds."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(_run_over, rows).result()


def _run_over(rows: int) -> tuple[int, float]:
    subject = Subject(replace(QUICK, shape=TINY))
    words = "No adverts."
    spam = Policy("bench/spam", "Spam", {"prompt": words, "response": words}, {})
    task = ScoringTask([spam], Labelling({"spam": (spam.id,)}))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        with data.open("w") as file:
            for number in range(rows):
                labels = {"spam": number % 2}
                row = {"id": f"row {number}", "prompt": f"loaf {number}", "labels": labels}
                file.write(json.dumps(row) + "\n")
        dataset = Dataset(open_source(str(data)), OURS)
        started = time.perf_counter()
        dataset.survey()
        _score(subject, dataset.rows(), task, Path(folder) / "scores.jsonl")
        seconds = time.perf_counter() - started
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, seconds


if __name__ == "__main__":
    main()
