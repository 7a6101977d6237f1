"""Measure the scorer on a GPU in one command of a few minutes: right first, then how fast.

Each part is guarded, and written to a file as it is done. Weights are random; what is timed
depends on shapes alone. Nothing is downloaded.
"""

import argparse
import asyncio
import copy
import faulthandler
import itertools
import json
import math
import os
import platform
import random
import statistics
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.attention.flex_attention import flex_attention
from transformers import Gemma2Config, Gemma2ForCausalLM

from benchmarks.subject import SENTENCE, TEMPLATE, word_tokenizer
from shieldgate.policy import Policy, load_book
from shieldgate.prompt import render
from shieldgate.scoring.batched import Batched
from shieldgate.scoring.local import Checkpoint, PackedEngine
from shieldgate.scoring.local.attention import PACKED
from shieldgate.scoring.local.flex import BLOCK, Masks, Shape, Tables, lay_out, shape_of
from shieldgate.scoring.pack import Pack
from shieldgate.types import Exchange

SHAPES: dict[str, dict[str, Any]] = {
    "2b": {
        "vocab_size": 256_000,
        "hidden_size": 2304,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "intermediate_size": 9216,
        "query_pre_attn_scalar": 256,
    },
    "9b": {
        "vocab_size": 256_000,
        "hidden_size": 3584,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "intermediate_size": 14_336,
        "query_pre_attn_scalar": 256,
    },
    # Shows that the bench works, and nothing else.
    "tiny": {
        "vocab_size": 2048,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "query_pre_attn_scalar": 16,
    },
}
# Small and hot, with the 2B's attention: a wrong mask, cap or window shows in its scores.
HOT: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 1024,
    "query_pre_attn_scalar": 256,
    "sliding_window": 96,
    "initializer_range": 0.05,
}
MAX_TOKENS = 16_384
# Tiles of the attention kernel; the first is what inductor chooses by itself.
TILES: list[dict[str, Any]] = [
    {},
    {"BLOCK_M": 128, "BLOCK_N": 64, "num_stages": 2, "num_warps": 8},
    {"BLOCK_M": 64, "BLOCK_N": 64, "num_stages": 2, "num_warps": 4},
    {"BLOCK_M": 128, "BLOCK_N": 32, "num_stages": 3, "num_warps": 8},
    {"BLOCK_M": 64, "BLOCK_N": 64, "num_stages": 3, "num_warps": 4},
    {"BLOCK_M": 128, "BLOCK_N": 64, "num_stages": 2, "num_warps": 8, "USE_TMA": True},
]


class Bench:
    """What was found so far, and how much time is left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.gpu = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if self.gpu else torch.float32
        self.end = time.monotonic() + options.seconds
        self.found: dict[str, Any] = {}
        self.tiles: dict[str, Any] = dict(options.tiles)
        self.peak = math.nan
        """The rate of a large matrix product, in FLOP/s."""
        book = load_book()
        self.policies = sorted(
            book.policies.values(), key=lambda p: not p.id.startswith("shieldgemma/")
        )[:8]
        guidelines = (p.guidelines["prompt"] for p in self.policies)
        self.tokenizer = word_tokenizer([TEMPLATE.for_prompt, f" {SENTENCE}", *guidelines])

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def part(self, name: str, seconds: float, run: Callable[[], Any]) -> Any:
        """Run a part that takes about so many seconds, unless there is less time left."""
        if self.options.only and not any(name.startswith(o) for o in self.options.only.split(",")):
            return None
        if self.left < seconds:
            say(f"== {name}: left out, {self.left:.0f} s are left of the {seconds:.0f} it may take")
            return None
        say(f"== {name} ({self.left:.0f} s left)")
        began = time.monotonic()
        result: Any = None
        try:
            result = run()
            self.found[name] = result
        except Exception as failure:
            traceback.print_exc()
            self.found[name] = {"failed": f"{type(failure).__name__}: {str(failure)[:2000]}"}
        self.found.setdefault("seconds", {})[name] = round(time.monotonic() - began, 1)
        self.save()
        return result

    def save(self) -> None:
        path = self.options.out / "gpu.json"
        path.write_text(json.dumps(self.found, indent=1, default=str))

    def sync(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()

    def time(self, run: Callable[[], object], seconds: float, least: int = 5) -> list[float]:
        """Time a run, from call to result, at least so often; sorted seconds."""
        run()
        times = []
        end = time.monotonic() + seconds
        while len(times) < least or (time.monotonic() < end and len(times) < 200):
            self.sync()
            began = time.perf_counter()
            run()
            self.sync()
            times.append(time.perf_counter() - began)
        return sorted(times)

    def text(self, tokens: int, seed: int = 0) -> str:
        return " ".join(random.Random(f"{tokens} {seed}").choices(SENTENCE.split(), k=tokens))


def say(what: str) -> None:
    print(what, flush=True)


def ms(seconds: float) -> str:
    return f"{1000 * seconds:8.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=340, help="what all parts may take")
    parser.add_argument("--models", default="2b,9b")
    parser.add_argument("--only", help="parts to run, by the beginnings of their names")
    parser.add_argument("--quick", action="store_true", help="shorter timings, fewer cases")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: shows that it runs")
    parser.add_argument("--captured", type=int, default=4096, help="rows up to which to capture")
    parser.add_argument("--tiles", type=json.loads, default={}, help="kernel options, as JSON")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    options = parser.parse_args()
    # Whatever hangs is ended, with a word on where it hung.
    faulthandler.dump_traceback_later(options.seconds + 30, exit=True)
    if options.tiny:
        options.models = "tiny"
        options.quick = True
    bench = Bench(options)
    bench.part("environment", 0, lambda: environment(bench))
    bench.part("ceilings", 0, lambda: ceilings(bench))
    if bench.gpu:
        bench.part("tiles", 0, lambda: tiles(bench))
    bench.part("exactness", 0, lambda: exactness(bench, bench.dtype))
    for name, needed in zip(options.models.split(","), (60, 90), strict=False):
        bench.part(f"{name}", needed, lambda name=name: model(bench, name))
        torch._dynamo.reset()
        if bench.gpu:
            torch.cuda.empty_cache()
    if bench.gpu:
        bench.part("growing", 40, lambda: growing(bench))
        bench.part("exactness fp32", 60, lambda: exactness(bench, torch.float32))
    print_table(bench)
    faulthandler.cancel_dump_traceback_later()


def environment(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if bench.gpu:
        import triton  # noqa: PLC0415

        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "memory_gib": properties.total_memory / 2**30,
            "processors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "triton": triton.__version__,
        }
    for name in ("vllm", "flash_attn"):
        try:
            found[name] = __import__(name).__version__
        except ImportError:
            found[name] = None
    say(json.dumps(found))
    return found


def ceilings(bench: Bench) -> dict[str, float]:
    """The rate of large products, and of the 2B's own, and of copying."""
    size = 8192 if bench.gpu else 256
    found = {}
    shapes = {"square": (size, size, size)}
    if bench.gpu:
        shapes |= {
            "2b gate, 16k rows": (16_384, 2304, 9216),
            "2b down, 16k rows": (16_384, 9216, 2304),
            "2b gate+up, 16k rows": (16_384, 2304, 18_432),
            "2b qkv, 16k rows": (16_384, 2304, 4096),
            "2b gate, 896 rows": (896, 2304, 9216),
            "2b down, 896 rows": (896, 9216, 2304),
            "2b gate+up, 896 rows": (896, 2304, 18_432),
            "9b gate, 16k rows": (16_384, 3584, 14_336),
        }
    for name, (m, k, n) in shapes.items():
        a = torch.randn(m, k, device=bench.device, dtype=bench.dtype)
        b = torch.randn(n, k, device=bench.device, dtype=bench.dtype)

        def products(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            for _ in range(10):
                torch.nn.functional.linear(a, b)

        seconds = bench.time(products, 0.3)
        found[name] = 2 * m * k * n * 10 / statistics.median(seconds)
        say(f"  {name:24} {found[name] / 1e12:7.1f} TFLOP/s")
    bench.peak = found["square"]
    if bench.gpu:
        source = torch.empty(2**31, dtype=torch.uint8, device=bench.device)
        target = torch.empty_like(source)
        seconds = bench.time(lambda: target.copy_(source), 0.2)
        found["copy"] = 2 * source.numel() / statistics.median(seconds)
        say(f"  copy {found['copy'] / 1e12:.2f} TB/s")
    return found


def packs_of(bench: Bench, engine: PackedEngine, texts: int, policies: int = 4) -> list[Pack]:
    chosen = bench.policies[:policies]
    return [engine.prepare(Exchange(bench.text(300, n)), chosen).work[0] for n in range(texts)]


def engine_of(bench: Bench, model: Gemma2ForCausalLM) -> PackedEngine:
    checkpoint = Checkpoint("bench", "random", model, bench.tokenizer)
    return PackedEngine(checkpoint, TEMPLATE, prefix_bytes=0)


def random_model(bench: Bench, shape: dict[str, Any]) -> Gemma2ForCausalLM:
    config = Gemma2Config(**shape, pad_token_id=0, eos_token_id=1, bos_token_id=2)
    torch.manual_seed(0)
    with torch.device(bench.device):
        made = Gemma2ForCausalLM._from_config(config, dtype=bench.dtype, attn_implementation=PACKED)
    return made.eval().requires_grad_(False)


# -- the attention kernel ---------------------------------------------------------------------


def tiles(bench: Bench) -> list[dict[str, Any]]:
    """Time the attention kernel of the 2B with several tiles, on a full batch and on one text."""
    engine = engine_of(bench, random_model(bench, SHAPES["tiny"]))
    batches = {f"{n} texts": packs_of(bench, engine, n) for n in (20, 1)}
    rows: list[dict[str, Any]] = []
    first: dict[str, torch.Tensor] = {}
    end = time.monotonic() + 45
    for options in TILES[: 2 if bench.options.quick else None]:
        if time.monotonic() > end:
            break
        row: dict[str, Any] = {"options": options}
        for name, packs in batches.items():
            try:
                row[name] = tile(bench, packs, options, first.setdefault(name, torch.empty(0)))
            except Exception as failure:
                row[name] = {"failed": str(failure)[-300:]}
            first[name] = row[name].pop("out", first[name])
            say(f"  {json.dumps(options):72} {name:9} {row[name]}")
        rows.append(row)
    good = [r for r in rows if all("seconds" in r[n] for n in batches)]
    if good and not bench.options.tiles:
        # Fast for one text counts as much as fast for many.
        best = min(good, key=lambda r: math.prod(r[n]["seconds"] for n in batches))
        bench.tiles = best["options"]
    say(f"  tiles taken: {bench.tiles}")
    return rows


def tile(
    bench: Bench, packs: Sequence[Pack], options: dict[str, Any], first: torch.Tensor
) -> dict[str, Any]:
    """Time the attention of one layer; `first` is what other tiles found."""
    shape, window, known = SHAPES["2b"], 4096, [0] * len(packs)
    size = shape_of(packs, known, lambda n: -(-n // BLOCK) * BLOCK)
    host = Tables(Shape(MAX_TOKENS), torch.device("cpu"))
    lay_out(host, packs, known, size, window)
    tables = Tables(Shape(MAX_TOKENS), bench.device)
    tables.tensor.copy_(host.tensor)
    masks = Masks(tables, window)
    mask = masks.of(size)[1]
    torch.manual_seed(1)
    heads, groups = shape["num_attention_heads"], shape["num_key_value_heads"]
    q, k, v = (
        torch.randn(1, size.rows, n, shape["head_dim"], device=bench.device).to(bench.dtype)
        for n in (heads, groups, groups)
    )
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend() -> torch.Tensor:
        return compiled(  # type: ignore[no-any-return]
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            score_mod=masks.cap(50.0),
            block_mask=mask,
            scale=1 / 16,
            enable_gqa=True,
            kernel_options={"IS_DIVISIBLE": True} | options,
        )

    began = time.monotonic()
    with torch.inference_mode():
        out = attend()
        bench.sync()
        took = time.monotonic() - began
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(10):
                attend()
    seconds = statistics.median(bench.time(graph.replay, 0.15)) / 10
    flops = 4 * heads * shape["head_dim"] * visible_pairs(packs)
    return {
        "rows": size.rows,
        "seconds": seconds,
        "compile": round(took, 1),
        "useful_tflops": round(flops / seconds / 1e12, 1),
        "difference": float((out - first).abs().max()) if len(first) else 0.0,
        "out": out,
    }


def visible_pairs(packs: Sequence[Pack]) -> int:
    """Count the pairs of a row and a key that it sees, without a window."""

    def causal(n: int) -> int:
        return n * (n + 1) // 2

    return sum(
        causal(len(p.trunk)) + sum(causal(len(b)) + len(b) * len(p.trunk) for b in p.branches)
        for p in packs
    )


# -- exactness ---------------------------------------------------------------------------------


def exactness(bench: Bench, dtype: torch.dtype) -> dict[str, Any]:
    """How far ours and the plain model are from fp64, on a hot model."""
    torch.manual_seed(0)
    shape = HOT | ({"head_dim": 32} if not bench.gpu else {})
    config = Gemma2Config(**shape, pad_token_id=0, eos_token_id=1, bos_token_id=2)
    torch.manual_seed(0)
    exact = (
        Gemma2ForCausalLM._from_config(config, dtype=torch.float64, attn_implementation="eager")
        .eval()
        .requires_grad_(False)
    )
    yes, no = bench.tokenizer.convert_tokens_to_ids(["Yes", "No"])
    for layer in exact.model.layers:
        layer.self_attn.q_proj.weight.mul_(3)
        layer.self_attn.k_proj.weight.mul_(3)
    exact.model.norm.weight.add_(20)
    embedding = exact.model.embed_tokens.weight
    embedding[no] = embedding[yes] + 0.1 * embedding[no]
    rounded = exact.state_dict()
    rounded = {n: t.to(dtype) for n, t in rounded.items()}
    # The reference has the rounded weights, so that only the arithmetic differs.
    exact.load_state_dict({n: t.double() for n, t in rounded.items()})
    exact = exact.to(bench.device)

    def same(implementation: str) -> Gemma2ForCausalLM:
        made = Gemma2ForCausalLM._from_config(
            copy.deepcopy(config), dtype=dtype, attn_implementation=implementation
        )
        made.load_state_dict(rounded)
        return made.to(bench.device).eval().requires_grad_(False)

    plain, packed, ours = (
        same("eager"),
        engine_of(bench, same(PACKED)),
        engine_of(bench, same(PACKED)),
    )
    began = time.monotonic()
    way = warm(bench, ours)
    say(f"  warmed ({way}) in {time.monotonic() - began:.1f} s")
    cases = [
        (Exchange(bench.text(n, n)), bench.policies[:count])
        for n, count in ((1, 1), (20, 8), (150, 4), (400, 2), (900, 4), (300, 8))
    ]
    work = [engine.work[0] for engine in (ours.prepare(e, p) for e, p in cases)]
    singly = [ours.forward([w])[0] for w in work]
    together = ours.forward(work)
    before = [packed.forward([w])[0] for w in work]
    errors: dict[str, list[float]] = defaultdict(list)
    probability: dict[str, list[float]] = defaultdict(list)
    with torch.inference_mode():
        for i, w in enumerate(work):
            for j, branch in enumerate(w.branches):
                ids = torch.tensor([[*w.trunk, *branch]], device=bench.device)
                truth = margin(exact, ids, yes, no, config)
                found = {
                    "plain": margin(plain, ids, yes, no, config),
                    "ours": singly[i][j],
                    "ours, all in one batch": together[i][j],
                    "packed, uncompiled": before[i][j],
                }
                for name, value in found.items():
                    errors[name].append(abs(value - truth))
                    probability[name].append(abs(sigmoid(value) - sigmoid(truth)))
                errors["size of the margin"].append(abs(truth))
    result = {"recompiles": ours.recompiles, "dtype": str(dtype)}
    for name, found in errors.items():
        result[name] = {
            "margin mean": statistics.mean(found),
            "margin max": max(found),
            "probability max": max(probability[name], default=None),
        }
        say(
            f"  {name:24} margin off by {statistics.mean(found):.5f} on average, {max(found):.5f} "
            f"at most; probability by {max(probability[name], default=math.nan):.5f}"
        )
    say(f"  recompiles {ours.recompiles}")
    result["controls"] = controls(bench, exact, work[4], config)
    return result


def controls(bench: Bench, exact: Any, work: Pack, config: Any) -> dict[str, float]:
    """Would a wrong mask show? How far the plain model moves without its window, or its cap."""
    yes, no = bench.tokenizer.convert_tokens_to_ids(["Yes", "No"])
    ids = torch.tensor([[*work.trunk, *work.branches[0]]], device=bench.device)
    found = {}
    for name, value in (("sliding_window", 100_000), ("attn_logit_softcapping", None)):
        wrong = copy.deepcopy(config)
        setattr(wrong, name, value)
        other = Gemma2ForCausalLM._from_config(
            wrong, dtype=torch.float64, attn_implementation="eager"
        )
        other.load_state_dict(exact.state_dict())
        other = other.to(bench.device).eval()
        with torch.inference_mode():
            pair = [margin(m, ids, yes, no, config) for m in (exact, other)]
        found[name] = abs(pair[0] - pair[1])
        say(f"  control, without {name}: moves the margin by {found[name]:.3f}")
    return found


def growing(bench: Bench) -> dict[str, Any]:
    """An answer that grows, with what is remembered of it: ours against the packed pass."""
    shape = HOT | ({"head_dim": 32} if not bench.gpu else {})
    made = random_model(bench, shape)
    twin = copy.deepcopy(made, {id(p): p for p in made.parameters()})
    ours, other = (
        PackedEngine(Checkpoint("bench", "r", m, bench.tokenizer), TEMPLATE, prefix_bytes=2**30)
        for m in (made, twin)
    )
    warm(bench, ours)
    answer = bench.text(600).split()
    worst, seconds = 0.0, []
    for cut in range(50, 600, 50):
        exchange = Exchange("How long?", " ".join(answer[:cut]), growing=True)
        work = ours.prepare(exchange, bench.policies[:4]).work
        bench.sync()
        began = time.perf_counter()
        [found] = ours.forward(work)
        seconds.append(time.perf_counter() - began)
        [expected] = other.forward(work)
        worst = max(worst, *(abs(a - b) for a, b in zip(found, expected, strict=True)))
    result = {"worst": worst, "seconds": statistics.median(seconds), "recompiles": ours.recompiles}
    say(f"  {result}")
    return result


def margin(model: Any, ids: torch.Tensor, yes: int, no: int, config: Any) -> float:
    """Score one prompt by the plain model; the last hidden state is read in fp32 or better."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    logits = model.lm_head.weight[[yes, no]].to(wide) @ hidden.to(wide)
    cap = config.final_logit_softcapping
    logits = cap * torch.tanh(logits / cap)
    return float(logits[0] - logits[1])


def sigmoid(margin: float) -> float:
    return 1 / (1 + math.exp(-margin))


def warm(bench: Bench, engine: PackedEngine) -> str:
    """Compile and capture; where that fails, with less. Tells how it went."""
    captured = bench.options.captured
    ways = {
        "as asked": (captured, bench.tiles),
        "inductor's own tiles": (captured, {}),
        "no graphs": (0, {}),
    }
    for way, (rows, options) in ways.items():
        try:
            torch._dynamo.reset()
            engine.warm(
                MAX_TOKENS,
                compiled=bench.gpu,
                captured_rows=rows,
                options=options,
            )
        except Exception:
            traceback.print_exc()
        else:
            return way
    raise RuntimeError("nothing could be compiled")


# -- speed -------------------------------------------------------------------------------------


@dataclass
class Flops:
    """Floating-point operations of a pass: the linear layers', and what rows see of keys."""

    linear: int
    attention: int

    @classmethod
    def of(cls, model: Gemma2ForCausalLM) -> "Flops":
        body = (m for m in model.model.modules() if isinstance(m, torch.nn.Linear))
        config = model.config
        heads = config.num_attention_heads * config.head_dim
        return cls(2 * sum(m.weight.numel() for m in body), 4 * heads * config.num_hidden_layers)

    def pass_over(self, packs: Sequence[Pack]) -> int:
        return sum(p.tokens for p in packs) * self.linear + visible_pairs(packs) * self.attention


def model(bench: Bench, name: str) -> dict[str, Any]:
    """All that is measured of one model; its parts are guarded on their own."""
    began = time.monotonic()
    made = random_model(bench, SHAPES[name])
    plain = copy.deepcopy(made, {id(p): p for p in made.parameters()})
    plain.set_attn_implementation("eager")
    engine = engine_of(bench, made)
    before = engine_of(bench, copy.deepcopy(made, {id(p): p for p in made.parameters()}))
    bench.sync()
    say(f"  made in {time.monotonic() - began:.1f} s")
    flops = Flops.of(made)
    part, quick = bench.part, bench.options.quick
    part(f"{name} warm", 0, lambda: warming(bench, engine))
    part(f"{name} latency", 0, lambda: latency(bench, engine, flops, quick))
    part(f"{name} full batch", 0, lambda: full_batch(bench, engine, flops))
    part(f"{name} plain", 10, lambda: plain_latency(bench, plain, engine, quick))
    part(f"{name} throughput", 15, lambda: throughput(bench, engine, flops, quick))
    if bench.gpu:
        part(f"{name} kernels", 10, lambda: kernels(bench, engine))
    part(f"{name} packed, uncompiled", 10, lambda: packed_latency(bench, before))
    if bench.gpu and name == "2b":
        part(f"{name} plain, compiled", 150, lambda: plain_compiled(bench, plain, engine))
    return {"recompiles": engine.recompiles}


def warming(bench: Bench, engine: PackedEngine) -> dict[str, Any]:
    began = time.monotonic()
    way = warm(bench, engine)
    seconds = time.monotonic() - began
    graphs = len(engine._runner._graphs) if engine._runner else 0
    say(f"  warmed ({way}) in {seconds:.1f} s, {graphs} graphs captured")
    result = {"way": way, "seconds": seconds, "graphs": graphs}
    if bench.gpu:
        result["gib"] = torch.cuda.memory_reserved() / 2**30
    return result


def latency(bench: Bench, engine: PackedEngine, flops: Flops, quick: bool) -> list[dict[str, Any]]:
    """One text at a time, from text to scores."""
    rows = []
    for tokens in (20, 100, 300, 1000):
        for count in (1, 4, 8):
            if quick and (tokens, count) not in {(20, 1), (300, 4), (1000, 8)}:
                continue
            row = one_text(bench, engine, tokens, bench.policies[:count], flops)
            rows.append(row)
            say(
                f"  text {tokens:5} policies {count} packed {row['packed']:5}: "
                f"{ms(row['seconds'])} (worst {ms(row['worst'])}; prepare {ms(row['prepare'])}, "
                f"forward {ms(row['forward'])}, without graphs "
                f"{ms(row.get('without graphs', math.nan))}), {row['share']:.0%} of the matmul rate"
            )
    say(f"  recompiles {engine.recompiles}")
    return rows


def one_text(
    bench: Bench, engine: PackedEngine, tokens: int, policies: Sequence[Policy], flops: Flops
) -> dict[str, Any]:
    texts = [Exchange(bench.text(tokens, n)) for n in range(16)]
    turn = itertools.cycle(texts)
    work = engine.prepare(texts[0], policies).work

    def score() -> None:
        prepared = engine.prepare(next(turn), policies)
        prepared.scores(engine.forward(prepared.work))

    whole = bench.time(score, 0.3)
    prepare = bench.time(lambda: engine.prepare(texts[0], policies), 0.05)
    forward = bench.time(lambda: engine.forward(work), 0.2)
    row = {
        "tokens": tokens,
        "policies": len(policies),
        "packed": work[0].tokens,
        "seconds": statistics.median(whole),
        "worst": whole[-1],
        "prepare": statistics.median(prepare),
        "forward": statistics.median(forward),
        "share": flops.pass_over(work) / statistics.median(forward) / bench.peak,
    }
    if engine._runner and engine._runner._graphs:
        captured, engine._runner._graphs = engine._runner._graphs, {}
        row["without graphs"] = statistics.median(bench.time(lambda: engine.forward(work), 0.1))
        engine._runner._graphs = captured
    return row


def full_batch(bench: Bench, engine: PackedEngine, flops: Flops) -> list[dict[str, Any]]:
    """Batches of several sizes, one after the other, laid out while the one before computes."""
    rows = []
    one = packs_of(bench, engine, 1)[0].tokens
    for texts in sorted({1, 2, 4, 8, MAX_TOKENS // one}):
        packs = packs_of(bench, engine, texts if bench.gpu else min(texts, 2))
        seconds = statistics.median(bench.time(lambda packs=packs: engine.forward(packs), 0.6, 3))
        row = {
            "texts": len(packs),
            "tokens": sum(p.tokens for p in packs),
            "seconds": seconds,
            "share": flops.pass_over(packs) / seconds / bench.peak,
        }
        began = time.perf_counter()
        shape = engine._runner.shape(packs, None)
        tables = Tables(Shape(engine._runner.limit.rows), torch.device("cpu"))
        began = time.perf_counter()
        lay_out(tables, packs, [0] * len(packs), shape, 4096)
        row["layout"] = time.perf_counter() - began
        rows.append(row)
        say(
            f"  {len(packs):3} texts, {row['tokens']:6} tokens: {ms(seconds)}, "
            f"{row['share']:.0%} of the matmul rate (laying out {ms(row['layout'])})"
        )
    return rows


@torch.inference_mode()
def plain_latency(
    bench: Bench, plain: Gemma2ForCausalLM, engine: PackedEngine, quick: bool
) -> list[dict[str, Any]]:
    """transformers as it comes: the prompts of one text in a padded batch, last logits only."""
    rows = []
    tokenizer = bench.tokenizer
    tokenizer.padding_side = "left"
    yes, no = tokenizer.convert_tokens_to_ids(["Yes", "No"])
    for tokens in (20, 100, 300, 1000):
        for count in (1, 4, 8):
            if quick and (tokens, count) != (300, 4):
                continue
            if bench.left < 15:
                break
            text = Exchange(bench.text(tokens))
            policies = bench.policies[:count]

            def score(text=text, policies=policies) -> list[float]:
                prompts = [
                    render(TEMPLATE.segments(text, p.guidelines["prompt"])) for p in policies
                ]
                inputs = tokenizer(
                    prompts, add_special_tokens=False, return_tensors="pt", padding=True
                ).to(bench.device)
                logits = plain(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
                return (logits[:, yes].float() - logits[:, no].float()).tolist()

            times = bench.time(score, 0.4, 3)
            row = {"tokens": tokens, "policies": count, "seconds": statistics.median(times)}
            rows.append(row)
            say(f"  plain, text {tokens:5} policies {count}: {ms(row['seconds'])}")
    if bench.left > 15:
        texts = [Exchange(bench.text(300, n)) for n in range(16)]

        def many() -> None:
            prompts = [
                render(TEMPLATE.segments(t, p.guidelines["prompt"]))
                for t in texts
                for p in bench.policies[:4]
            ]
            inputs = tokenizer(
                prompts, add_special_tokens=False, return_tensors="pt", padding=True
            ).to(bench.device)
            plain(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].tolist()

        seconds = statistics.median(bench.time(many, 0.5, 2))
        rows.append({"texts": 16, "tokens": 300, "policies": 4, "seconds": seconds})
        say(f"  plain, 16 texts of 300 under 4 policies: {ms(seconds)}, {16 / seconds:.1f} texts/s")
    return rows


def plain_compiled(
    bench: Bench, plain: Gemma2ForCausalLM, engine: PackedEngine
) -> list[dict[str, Any]]:
    """The plain model with compiled layers, as its users could have it."""
    for layer in plain.model.layers:
        layer.compile(dynamic=True)
    return plain_latency(bench, plain, engine, quick=True)


def packed_latency(bench: Bench, engine: PackedEngine) -> list[dict[str, Any]]:
    """The packed pass without compiling, kernel by kernel: what there was before."""
    rows = []
    for texts in (1, 16):
        packs = packs_of(bench, engine, texts if bench.gpu else 1)
        seconds = statistics.median(bench.time(lambda packs=packs: engine.forward(packs), 0.3, 3))
        rows.append({"texts": texts, "seconds": seconds})
        say(f"  packed, uncompiled, {texts} texts of 300 under 4 policies: {ms(seconds)}")
    return rows


def throughput(
    bench: Bench, engine: PackedEngine, flops: Flops, quick: bool
) -> list[dict[str, Any]]:
    """Callers who each ask again as soon as they are answered, through the batcher."""
    rows = []
    each = 1.0 if quick else 2.5
    callers = (1, 3) if not bench.gpu else (1, 64) if quick else (1, 2, 4, 8, 16, 32, 64)
    one = packs_of(bench, engine, 1)
    cost = flops.pass_over(one)
    for count in callers:
        for passes in (1, 2) if count in (1, 8, 64) else (2,):
            if bench.left < 15:
                return rows
            try:
                done, took, waits, sizes = asyncio.run(
                    closed_loop(bench, engine, count, passes, each)
                )
            except Exception as failure:
                traceback.print_exc()
                rows.append({"callers": count, "passes": passes, "failed": str(failure)[:500]})
                continue
            rate = done / took
            row = {
                "callers": count,
                "passes": passes,
                "texts_per_second": rate,
                "p50": statistics.median(waits),
                "p99": sorted(waits)[int(len(waits) * 0.99)],
                "share": rate * cost / bench.peak,
                "batch": statistics.mean(sizes),
            }
            rows.append(row)
            say(
                f"  {count:3} callers, {passes} passes under way: {rate:7.1f} texts/s, half within "
                f"{ms(row['p50'])}, 99 of 100 within {ms(row['p99'])}, batches of "
                f"{row['batch']:.1f}, {row['share']:.0%} of the matmul rate"
            )
    say(f"  recompiles {engine.recompiles}")
    return rows


class Sizes:
    """Sees how many pieces each batch has."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def tokenised(self, tokens: int) -> None: ...
    def phase(self, phase: str, seconds: float) -> None: ...
    def queued(self, pieces: int) -> None: ...
    def forward(self, seconds: float, tokens: int, pieces: int) -> None:
        self.found.append(pieces)


async def closed_loop(
    bench: Bench, engine: PackedEngine, callers: int, passes: int, seconds: float
) -> tuple[int, float, list[float], list[int]]:
    policies: Sequence[Policy] = bench.policies[:4]
    texts = [bench.text(300, n) for n in range(512)]
    waits: list[float] = []
    sizes = Sizes()
    async with Batched(
        engine, max_batch_tokens=MAX_TOKENS, max_waiting=1000, passes=passes, observer=sizes
    ) as scorer:
        await scorer.score(Exchange(texts[0]), policies)
        began = time.perf_counter()
        end = began + seconds

        async def caller(number: int) -> None:
            turn = number
            while time.perf_counter() < end:
                start = time.perf_counter()
                await scorer.score(Exchange(texts[turn % len(texts)]), policies)
                waits.append(time.perf_counter() - start)
                turn += callers

        await asyncio.gather(*(caller(n) for n in range(callers)))
        took = time.perf_counter() - began
    return len(waits), took, waits, sizes.found


def kernels(bench: Bench, engine: PackedEngine) -> dict[str, Any]:
    """Count and time the kernels of a pass over one text, and over a full batch."""
    from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415

    result: dict[str, Any] = {}
    layers = engine.model.config.num_hidden_layers
    for texts in (1, 16):
        packs = packs_of(bench, engine, texts)
        engine.forward(packs)
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
            engine.forward(packs)
            bench.sync()
        spent: Counter[str] = Counter()
        times: Counter[str] = Counter()
        starts, ends = [], []
        for event in seen.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                spent[event.name] += event.time_range.elapsed_us()
                times[event.name] += 1
                starts.append(event.time_range.start)
                ends.append(event.time_range.end)
        span = max(ends) - min(starts)
        busy = sum(spent.values())
        result[f"{texts} texts"] = {
            "kernels": sum(times.values()),
            "kernels a layer": sum(times.values()) / layers,
            "span_us": span,
            "busy_us": busy,
            "most": [
                {"name": n[:120], "us": us, "times": times[n]} for n, us in spent.most_common(25)
            ],
        }
        say(
            f"  {texts} texts: {sum(times.values())} kernels "
            f"({sum(times.values()) / layers:.1f} a layer), {span / 1000:.2f} ms from the first to "
            f"the last, {busy / 1000:.2f} ms of them busy"
        )
        for n, us in spent.most_common(14):
            say(f"    {us / 1000:8.3f} ms {times[n]:5} x {n[:110]}")
    return result


def print_table(bench: Bench) -> None:
    """Say the most important figures once more, at the end."""
    say("== in short")
    say(json.dumps(bench.found.get("environment")))
    for name in bench.options.models.split(","):
        latencies = bench.found.get(f"{name} latency") or []
        plain = {
            (r["tokens"], r["policies"]): r["seconds"]
            for r in bench.found.get(f"{name} plain") or []
            if isinstance(r, dict) and "texts" not in r
        }
        for row in latencies if isinstance(latencies, list) else []:
            other = plain.get((row["tokens"], row["policies"]), math.nan)
            say(
                f"{name} text {row['tokens']:5} policies {row['policies']} ours "
                f"{ms(row['seconds'])} plain {ms(other)} = {other / row['seconds']:.1f} times"
            )
        rates = bench.found.get(f"{name} throughput")
        for row in rates if isinstance(rates, list) else []:
            if "share" in row:
                say(
                    f"{name} {row['callers']} callers, {row['passes']} passes: "
                    f"{row['texts_per_second']:.1f} texts/s, {row['share']:.0%}"
                )
    failed = [n for n, r in bench.found.items() if isinstance(r, dict) and "failed" in r]
    say(f"failed: {failed}; seconds: {bench.found.get('seconds')}")


if __name__ == "__main__":
    try:
        main()
    finally:
        sys.stdout.flush()
