"""The same pass in fp32, bf16 and int8, beside what the processor multiplies at, and beside vLLM.

vLLM runs in a Python of its own, which the variable SHIELDGATE_VLLM names. Both get both cores;
while one works, the other is stopped, because its idle threads spin. Each round has a new text, or
vLLM's prefix cache would answer.
"""

import json
import math
import os
import random
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.counting import Counter
from benchmarks.subject import SENTENCE, Plan, Subject
from benchmarks.timing import fastest
from shieldgate.errors import ModelError
from shieldgate.scoring.local import PackedEngine
from shieldgate.scoring.pack import Pack
from shieldgate.types import Exchange

FP32, BF16, INT8, MATMUL = "fp32", "bf16", "int8", "bf16 matmul"
BESIDE, VLLM = "bf16, in turns", "vLLM"
PEER = Path(__file__).with_name("vllm_peer.py")


@dataclass
class DtypeRace:
    """One length of text: seconds by name, and our multiply-adds."""

    text: int
    operations: int
    seconds: dict[str, float] = field(default_factory=dict)
    apart: float = 0.0
    """How far P(Yes) of vLLM is from ours in the same dtype, at most."""

    def rate(self, name: str) -> float:
        """Give floating-point operations per second, two a multiply-add."""
        return 2 * self.operations / self.seconds[name]


def measure(subject: Subject, plan: Plan) -> list[DtypeRace]:
    """Race the dtypes that this machine has, on each text of the plan."""
    engines = {FP32: subject.scorer}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        engines[BF16] = subject.in_bf16()
        try:
            engines[INT8] = subject.in_bf16("int8")
        except ModelError as lacking:
            print(lacking)
    races = [_race(subject, plan, engines, text) for text in plan.texts]
    python = os.environ.get("SHIELDGATE_VLLM")
    if python and BF16 in engines:
        with _peer(subject, python) as peer:
            for race in races:
                _race_vllm(subject, engines[BF16], peer, race, plan.seconds)
    return races


def _race(subject: Subject, plan: Plan, engines: dict[str, PackedEngine], tokens: int) -> DtypeRace:
    exchange, policies = Exchange(subject.text(tokens)), subject.policies[:4]
    (work,) = subject.scorer.prepare(exchange, policies).work
    remembered = subject.remembered(work)
    race = DtypeRace(tokens, Counter.of(subject.plain).packed(work, remembered))

    def scored(engine: PackedEngine) -> object:
        return engine.forward(engine.prepare(exchange, policies).work)

    runs = {name: partial(scored, engine) for name, engine in engines.items()}
    if BF16 in engines:
        width, inner = plan.shape["hidden_size"], plan.shape["intermediate_size"]
        rows = torch.randn(work.tokens - remembered, width).bfloat16()
        packed = torch.ops.mkldnn._reorder_linear_weight(torch.randn(inner, width).bfloat16())
        times = max(1, round(race.operations / (rows.numel() * inner)))

        def matmuls() -> None:
            for _ in range(times):
                torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")

        runs[MATMUL] = matmuls
    race.seconds = fastest(runs, plan.seconds / 2)
    if MATMUL in race.seconds:  # as long as it takes to do our operations
        race.seconds[MATMUL] *= race.operations / (times * rows.numel() * inner)
    return race


class Peer:
    """vLLM in a process of its own, stopped unless it is asked."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        if process.stdin is None or process.stdout is None:
            raise ValueError("The process has no pipes.")
        self._process, self._in, self._out = process, process.stdin, process.stdout
        self.dtype = self._read()  # it says its dtype when it is loaded
        self._signal(signal.SIGSTOP)

    def score(self, prompts: Sequence[Sequence[Sequence[int]]]) -> tuple[float, list[float]]:
        """Give the seconds that groups of prompts took, one after the other, and each P(Yes)."""
        self._signal(signal.SIGCONT)
        self._in.write(json.dumps(prompts) + "\n")
        self._in.flush()
        answer = self._read()
        self._signal(signal.SIGSTOP)
        return answer["seconds"], [1 / (1 + math.exp(no - yes)) for yes, no in answer["found"]]

    def _read(self) -> Any:
        line = self._out.readline()
        if not line:
            raise SystemExit("vLLM ended; what it said stands above.")
        return json.loads(line)

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)  # its engine is a process of its own, too


@contextmanager
def _peer(subject: Subject, python: str) -> Iterator[Peer]:
    yes, no = subject.tokenizer.convert_tokens_to_ids(["Yes", "No"])
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{torch.get_num_threads() - 1}",  # else it leaves one core
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        subject.bf16.save_pretrained(folder)
        process = subprocess.Popen(
            [python, PEER, folder, str(yes), str(no), "2048"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | environment,
            start_new_session=True,
        )
        try:
            yield Peer(process)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _race_vllm(
    subject: Subject, engine: PackedEngine, peer: Peer, race: DtypeRace, seconds: float
) -> None:
    """Take turns with new texts; of its two ways, all at once or the first alone, the faster."""
    ours, theirs = [], []
    end = perf_counter() + seconds
    dice = random.Random(race.text)
    while len(ours) < 6 or perf_counter() < end:
        text = " ".join(dice.choices(SENTENCE.split(), k=race.text))
        for alone in (False, True):
            text = " ".join(dice.sample(text.split(), race.text))
            start = perf_counter()
            work = engine.prepare(Exchange(text), subject.policies[:4]).work
            (margins,) = engine.forward(work)
            ours.append(perf_counter() - start)
            prompts = _prompts(work[0])
            took, found = peer.score([prompts[:1], prompts[1:]] if alone else [prompts])
            theirs.append(took)
            if len(theirs) > 2:  # the first ones warm its shapes
                same = zip(margins, found, strict=True)
                race.apart = max(race.apart, *(abs(1 / (1 + math.exp(-m)) - p) for m, p in same))
    race.seconds[BESIDE] = min(ours[2:])
    race.seconds[VLLM] = min(theirs[2:])


def _prompts(pack: Pack) -> list[list[int]]:
    return [[*pack.trunk, *branch] for branch in pack.branches]
