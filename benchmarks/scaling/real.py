"""The real thing on this machine: gateways and scorers as processes, and who asks them."""

import asyncio
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from subprocess import Popen

import aiohttp

from benchmarks.load.servers import free_port, server
from benchmarks.scaling.load import Request
from benchmarks.scaling.scorer import Limits
from benchmarks.scaling.simulation import Answer

STARTER = Path(__file__).parents[2] / "service" / "shieldgate" / "starter"
WORDS = ["time", "people", "way", "day", "man", "thing", "life", "child", "world", "school"]
MOST_AT_ONCE = 2000  # requests of the client
LONGEST_WAIT = 60.0  # seconds


@dataclass(frozen=True)
class Running:
    """What runs: addresses, and all processes."""

    gateways: list[str]
    scorers: list[str]
    gateway_ids: list[int]
    scorer_ids: list[int]


@contextmanager
def running(gateways: int, scorers: int, limits: Limits) -> Iterator[Running]:
    """Start real gateways, each before all scorers, and wait until they are ready."""
    with ExitStack() as stack:

        def start(url: str, *command: str) -> int:
            process: Popen[bytes] = stack.enter_context(
                server([sys.executable, "-m", *command], url)
            )
            return process.pid

        urls, scorer_ids, addresses, gateway_ids = [], [], [], []
        for _ in range(scorers):
            url = f"http://127.0.0.1:{(port := free_port())}"
            urls.append(f"{url}/v1")
            command = ["benchmarks.scaling.engine", "--port", str(port)]
            command += ["--max-waiting", str(limits.max_waiting)]
            command += ["--max-batch-tokens", str(limits.max_batch_tokens)]
            scorer_ids.append(start(f"{url}/v1/models", *command))
        for _ in range(gateways):
            url = f"http://127.0.0.1:{(port := free_port())}"
            addresses.append(url)
            command = ["shieldgate", "serve", "--port", str(port), "--log-level", "error"]
            command += ["--model", ",".join(urls), "--tokenizer", str(STARTER)]
            command += ["--max-waiting", str(limits.max_waiting), "--max-inputs", "1"]
            command += ["--model-texts", str(limits.model_texts)]
            command += ["--guard-seconds", str(limits.guard_seconds)]
            # What a server does is waited for as long as the guard, which then says so.
            command += ["--model-seconds", str(limits.guard_seconds)]
            gateway_ids.append(start(f"{url}/readyz", *command))
        yield Running(addresses, urls, gateway_ids, scorer_ids)


def processor_seconds(processes: Sequence[int]) -> float:
    """Give what processes have worked."""
    # The id of a process's clock, as clock_getcpuclockid(3) makes it.
    return sum(time.clock_gettime((~process << 3) | 2) for process in processes)


def others_seconds(processes: Sequence[int]) -> float:
    """Give what this machine's cores have worked for others than these processes."""
    first = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0]
    user, nice, system, _, _, interrupts, soft, stolen = map(int, first.split()[1:9])
    ticks = user + nice + system + interrupts + soft + stolen
    return ticks / os.sysconf("SC_CLK_TCK") - processor_seconds(processes)


def text(number: int, tokens: int) -> str:
    """Write a text of so many of the starter's tokens, more or less one, that no other is."""
    draw = random.Random(number)
    return " ".join(draw.choices(WORDS, k=tokens))


class Client:
    """Asks gateways in turn; an async context manager."""

    def __init__(self, gateways: Sequence[str]) -> None:
        self._turns = cycle(gateways)

    async def __aenter__(self) -> "Client":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=LONGEST_WAIT),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, words: str) -> int:
        """Have a text judged; gives the status, or 0 where there was no answer in time."""
        url = f"{next(self._turns)}/v1/moderations"
        try:
            async with self._session.post(url, json={"input": words}) as reply:
                await reply.read()
                return reply.status
        except (aiohttp.ClientError, TimeoutError):
            return 0

    async def ask_all(self, requests: Sequence[Request]) -> list[Answer]:
        """Ask at the requests' times, however the answers come (an open loop).

        Seconds count from when a request was to be sent. What is beyond the client's own bound is
        not sent, and ends the program: the figures would be wrong.
        """
        answers: list[Answer] = []
        asking: set[asyncio.Task[None]] = set()
        texts = [text(request.text, request.tokens) for request in requests]
        began = time.perf_counter()

        async def ask(request: Request, words: str) -> None:
            status = await self.ask(words)
            seconds = time.perf_counter() - began - request.at
            outcome = {200: "scored", 429: "full", 503: "late"}.get(status)
            if outcome is None:
                raise SystemExit(
                    f"A gateway answered with status {status}."
                    if status
                    else f"A gateway did not answer within {LONGEST_WAIT:g} s."
                )
            answers.append(Answer(request.at, seconds, outcome))  # type: ignore[arg-type]

        for request, words in zip(requests, texts, strict=True):
            await asyncio.sleep(max(0.0, request.at - (time.perf_counter() - began)))
            if len(asking) >= MOST_AT_ONCE:
                raise SystemExit(f"More than {MOST_AT_ONCE} requests wait: lower the rate.")
            task = asyncio.create_task(ask(request, words))
            asking.add(task)
            task.add_done_callback(asking.discard)
        await asyncio.gather(*asking)
        return answers
