"""Race shieldgate's packed scoring against what transformers offers, on one model."""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

import torch
import transformers
from rich.console import Console

from benchmarks import dtypes, memory, streaming
from benchmarks.contestants import decision_pipeline, packed, snippet
from benchmarks.counting import Counter
from benchmarks.report import MATMUL, OURS, PIPELINE, SNIPPET, Cost, Race, Report
from benchmarks.subject import FULL, QUICK, Plan, Subject
from benchmarks.timing import fastest
from shieldgate.types import Exchange

# All compute the same fp32 model; the order of additions is all that differs.
AGREEMENT = 1e-5


def main() -> None:
    """Run everything, print the report, and write it to a file if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model: shows that the bench works, not speed"
    )
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    arguments = parser.parse_args()
    report = run(QUICK if arguments.quick else FULL)
    report.print(Console())
    if arguments.out:
        with arguments.out.open("w", encoding="utf-8") as file:
            report.print(Console(file=file))


def run(plan: Plan) -> Report:
    """Measure all that the plan names; end the program where the contestants disagree."""
    load = os.getloadavg()[0]
    _say("making the model")
    subject = Subject(plan)
    report = Report(_setting(subject, plan, load), plan)
    for text in plan.texts:
        _say(f"a text of {text} tokens")
        report.races.append(_race(subject, plan, text))
    _say("the dtypes")
    report.dtypes += dtypes.measure(subject, plan)
    _say("more policies")
    report.costs += _costs(subject, plan)
    _say(f"an answer of {plan.answer} tokens that grows")
    report.streams += streaming.measure(subject, plan)
    _say(f"the memory of a text of {plan.long_text} tokens")
    report.memory = memory.measure(plan)
    return report


def _race(subject: Subject, plan: Plan, tokens: int) -> Race:
    text, policies = subject.text(tokens), subject.policies[:4]
    contestants = {
        OURS: packed(subject),
        SNIPPET: snippet(subject),
        PIPELINE: decision_pipeline(subject),
    }
    found = [score(text, policies) for score in contestants.values()]
    difference = max(max(same) - min(same) for same in zip(*found, strict=True))
    if not difference <= AGREEMENT:
        raise SystemExit(f"The three compute different scores, {difference:.1e} apart: {found}")

    (work,) = subject.scorer.prepare(Exchange(text), policies).work
    lengths = [len(work.trunk) + len(branch) for branch in work.branches]
    counter = Counter.of(subject.plain)
    remembered = subject.remembered(work)
    operations = {
        OURS: counter.packed(work, remembered),
        SNIPPET: counter.prompts(lengths, full_logits=True),
        PIPELINE: counter.prompts(lengths, full_logits=False),
    }
    # As many matmuls as make up our operations, so that both are timed for equally long.
    rows = torch.randn(work.tokens - remembered, plan.shape["hidden_size"])
    matrix = torch.randn(plan.shape["hidden_size"], plan.shape["intermediate_size"])
    once = rows.shape[0] * matrix.numel()
    times = max(1, round(operations[OURS] / once))
    operations[MATMUL] = times * once

    def matmuls() -> None:
        for _ in range(times):
            rows @ matrix

    runs = {name: partial(score, text, policies) for name, score in contestants.items()}
    seconds = fastest(runs | {MATMUL: matmuls}, plan.seconds)
    return Race(tokens, sum(lengths), work.tokens - remembered, operations, seconds, difference)


def _costs(subject: Subject, plan: Plan) -> list[Cost]:
    text, score = subject.text(plan.policies_text), packed(subject)
    chosen = {str(n): subject.policies[:n] for n in plan.policies}
    seconds = fastest({n: partial(score, text, p) for n, p in chosen.items()}, plan.seconds)
    return [
        Cost(
            len(policies),
            sum(
                w.tokens - subject.remembered(w)
                for w in subject.scorer.prepare(Exchange(text), policies).work
            ),
            seconds[name],
        )
        for name, policies in chosen.items()
    ]


def _setting(subject: Subject, plan: Plan, load: float) -> str:
    shape = "\n".join(f"  {name} {size:,}" for name, size in plan.shape.items())
    (work,) = subject.scorer.prepare(Exchange(""), subject.policies[:4]).work
    branches = ", ".join(str(len(branch)) for branch in work.branches)
    return (
        f"Gemma 2 with random weights, fp32 on CPU:\n{shape}\n"
        f"Four policies: a trunk of {len(work.trunk)} tokens and the text, "
        f"branches of {branches}.\n"
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{torch.get_num_threads()} threads; load before the run {load:.1f}.\n"
    )


def _say(what: str) -> None:
    print(f"measuring: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
