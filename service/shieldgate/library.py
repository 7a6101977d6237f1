"""shieldgate in notebooks and scripts: judge texts and evaluate data without a server."""

import asyncio
import sys
import tempfile
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from shieldgate.errors import ConfigurationError, needed
from shieldgate.moderation import judge
from shieldgate.policy import Policy, PolicyBook, Profile, load_book
from shieldgate.scoring import Identity, Scorer, factory
from shieldgate.scoring.gateway_client import GatewayScorer
from shieldgate.settings import ScoringSettings, load
from shieldgate.telemetry import log_as_library
from shieldgate.types import Exchange, Verdict

if TYPE_CHECKING:
    from shieldgate.evaluation.report import Report
    from shieldgate.evaluation.session import EvaluationOptions

T = TypeVar("T")

Rows = str | Path | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Opened:
    """A scorer that is there, and the policies to choose from.

    It scores `concurrency` texts of a call at a time. With `fixed_policies` it knows its own alone.
    """

    scorer: Scorer
    book: PolicyBook
    concurrency: int
    fixed_policies: bool = False

    def chosen(self, policies: Iterable[str | Policy]) -> tuple[PolicyBook, list[str]]:
        """Put one's own policies into the book; gives it with the ids of all."""
        own = {p.id: p for p in policies if isinstance(p, Policy)}
        if own and self.fixed_policies:
            raise ConfigurationError("A gateway judges by its own policies: name them by id.")
        book = replace(self.book, policies={**self.book.policies, **own})
        return book, [p.id if isinstance(p, Policy) else p for p in policies]


def open_scorer(
    name: str | None = None,
    *,
    policies: str | Path | PolicyBook | None = None,
    template: str | None = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    max_batch_tokens: int = 16_384,
) -> "ScorerHandle":
    """Name a scorer and the policies it is asked about; it is loaded when it is first needed.

    `name` is 'starter', a model of the hub, the path of a checkpoint, or the URL of a running
    gateway, which brings its own policies. `policies` are a file or directory of them, or a book;
    without any, the shipped ones. What is not given is what the environment variables of the
    settings say, as for the commands. `max_batch_tokens` bounds a forward pass.

    Raises ConfigurationError where a setting or a policy file is wrong.
    """
    log_as_library()
    if name is not None and name.startswith(("http://", "https://")):
        if policies is not None or template or revision or device or dtype:
            raise ConfigurationError(
                f"{name} is a gateway, which has a model and policies of its own; give no others."
            )
        return ScorerHandle(partial(_gateway, name))
    book = policies if isinstance(policies, PolicyBook) else None
    given = {
        "model": name,
        "policies": None if book else policies,
        "template": template,
        "revision": revision,
        "device": device,
        "dtype": dtype,
    }
    settings = load(ScoringSettings, {k: v for k, v in given.items() if v is not None})
    book = book or load_book(settings.policies)
    return ScorerHandle(partial(_local, settings, book, max_batch_tokens))


def define_policy(
    id: str, guideline: str, *, response: str | None = None, threshold: float = 0.5
) -> Policy:
    """Make a policy of a guideline, such as '"No Spam": The prompt shall not advertise.'.

    `response` words it for answers of a model, where it reads differently. `threshold` is the
    probability in 0..1 from which on the policy is violated.
    """
    return Policy(
        id,
        id,
        {"prompt": guideline, "response": response or guideline},
        {"prompt": threshold, "response": threshold},
    )


class ScorerHandle:
    """A scorer to be used from anywhere: `open_scorer` makes one.

    It loads at its first use, or on entering `with` or `async with`, which closes it at the end.
    It computes in threads of its own, so that each method works where an event loop is running,
    as in a notebook, and has a twin to be awaited. It may be shared between threads and tasks;
    texts that wait at the same time share forward passes.

    `policies` are judged beside those of the `profile`: ids of the book, or policies of your own.
    Without a profile (None) they alone are. Methods raise ScoringError when no score could be
    had, UnknownName for a name that the book lacks, and ConfigurationError.
    """

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[_Opened]]) -> None:
        self._opening = opening
        self._lock = threading.Lock()
        self._state: tuple[BlockingPortal, _Opened] | None = None
        self._unclosed: weakref.finalize[[ExitStack], ScorerHandle] | None = None

    @property
    def identity(self) -> Identity:
        """Say what the scores depend on."""
        return self._open()[1].scorer.identity

    @property
    def book(self) -> PolicyBook:
        """Give the policies and profiles to choose from."""
        return self._open()[1].book

    def judge(
        self,
        prompt: str,
        response: str | None = None,
        *,
        profile: str | None = "default",
        policies: Sequence[str | Policy] = (),
    ) -> Verdict:
        """Judge a prompt, or a response together with its prompt."""
        [verdict] = self.judge_all([Exchange(prompt, response)], profile=profile, policies=policies)
        return verdict

    async def judge_async(
        self,
        prompt: str,
        response: str | None = None,
        *,
        profile: str | None = "default",
        policies: Sequence[str | Policy] = (),
    ) -> Verdict:
        """Judge a prompt, or a response together with its prompt."""
        [verdict] = await self.judge_all_async(
            [Exchange(prompt, response)], profile=profile, policies=policies
        )
        return verdict

    def judge_all(
        self,
        texts: Iterable[str | Exchange],
        *,
        profile: str | None = "default",
        policies: Sequence[str | Policy] = (),
    ) -> list[Verdict]:
        """Judge prompts and exchanges; the verdicts are in their order."""
        return self._run(partial(_judge_all, texts=list(texts), profile=profile, policies=policies))

    async def judge_all_async(
        self,
        texts: Iterable[str | Exchange],
        *,
        profile: str | None = "default",
        policies: Sequence[str | Policy] = (),
    ) -> list[Verdict]:
        """Judge prompts and exchanges; the verdicts are in their order."""
        return await self._run_async(
            partial(_judge_all, texts=list(texts), profile=profile, policies=policies)
        )

    def evaluate(
        self,
        data: Rows,
        *,
        profile: str = "default",
        policies: Sequence[str | Policy] = (),
        options: "EvaluationOptions | None" = None,
        out: str | Path | None = None,
    ) -> "Report":
        """Score labelled data and report how good the scores are, under `policies` alone.

        `data` is what `shieldgate evaluate` reads, or rows as dicts. The profile's thresholds
        decide. Without `policies`, those of `options` are evaluated. The margins are kept in the
        folder `out`, from which the same call goes on where an earlier one was stopped.
        """
        return self._run(
            partial(
                _evaluate, data=data, profile=profile, policies=policies, options=options, out=out
            )
        )

    async def evaluate_async(
        self,
        data: Rows,
        *,
        profile: str = "default",
        policies: Sequence[str | Policy] = (),
        options: "EvaluationOptions | None" = None,
        out: str | Path | None = None,
    ) -> "Report":
        """Score labelled data and report how good the scores are; see `evaluate`."""
        return await self._run_async(
            partial(
                _evaluate, data=data, profile=profile, policies=policies, options=options, out=out
            )
        )

    def close(self) -> None:
        """Free what was loaded; a later use loads it again."""
        with self._lock:
            self._state = None
            if self._unclosed and (unclosed := self._unclosed.detach()):
                [resources] = unclosed[2]
                resources.close()

    def __enter__(self) -> Self:
        """Load the scorer; raise ConfigurationError or ScoringError."""
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        """Free what was loaded."""
        self.close()

    async def __aenter__(self) -> Self:
        """Load the scorer; raise ConfigurationError or ScoringError."""
        await asyncio.to_thread(self._open)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Free what was loaded."""
        await asyncio.to_thread(self.close)

    def _run(self, work: Callable[[_Opened], Awaitable[T]]) -> T:
        portal, opened = self._open()
        return portal.call(work, opened)

    async def _run_async(self, work: Callable[[_Opened], Awaitable[T]]) -> T:
        portal, opened = await asyncio.to_thread(self._open)
        return await asyncio.wrap_future(portal.start_task_soon(work, opened))

    def _open(self) -> tuple[BlockingPortal, _Opened]:
        with self._lock:
            if self._state is None:
                resources = ExitStack()
                try:
                    portal = resources.enter_context(start_blocking_portal(name="shieldgate"))
                    opening = portal.wrap_async_context_manager(self._opening())
                    self._state = portal, resources.enter_context(opening)
                except BaseException:
                    resources.close()
                    raise
                self._unclosed = weakref.finalize(self, _close_forgotten, resources)
            return self._state


def _close_forgotten(resources: ExitStack) -> None:
    """Close what nobody closed, when its handle is gone or the program ends."""
    # At the end of a program some of it can't be closed any more, and need not be.
    with suppress(RuntimeError):
        resources.close()


@asynccontextmanager
async def _local(
    settings: ScoringSettings, book: PolicyBook, max_batch_tokens: int
) -> AsyncIterator[_Opened]:
    # Who waits is bounded by `concurrency` for each call.
    async with factory.open_scorer(
        settings, max_batch_tokens=max_batch_tokens, max_waiting=sys.maxsize
    ) as scorer:
        yield _Opened(scorer, book, concurrency=64)


@asynccontextmanager
async def _gateway(url: str) -> AsyncIterator[_Opened]:
    async with GatewayScorer(url) as scorer:
        yield _Opened(scorer, await scorer.book(), concurrency=8, fixed_policies=True)


async def _judge_all(
    opened: _Opened,
    *,
    texts: Sequence[str | Exchange],
    profile: str | None,
    policies: Sequence[str | Policy],
) -> list[Verdict]:
    book, ids = opened.chosen(policies)
    chosen = Profile("none", ()) if profile is None else book.profile(profile)
    rules = book.rules(chosen, ids)
    limit = asyncio.Semaphore(opened.concurrency)

    async def one(text: str | Exchange) -> Verdict:
        async with limit:
            exchange = text if isinstance(text, Exchange) else Exchange(text)
            return await judge(opened.scorer, exchange, rules)

    tasks = [asyncio.create_task(one(text)) for text in texts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _evaluate(
    opened: _Opened,
    *,
    data: Rows,
    profile: str,
    policies: Sequence[str | Policy],
    options: "EvaluationOptions | None",
    out: str | Path | None,
) -> "Report":
    with needed("Evaluating", "eval"):
        # Here, because they import numpy, which judging at a gateway does without.
        from shieldgate.evaluation.row_scoring import row_scorer  # noqa: PLC0415
        from shieldgate.evaluation.session import (  # noqa: PLC0415
            Evaluation,
            EvaluationOptions,
        )
        from shieldgate.evaluation.sources import Records, open_source  # noqa: PLC0415
    book, ids = opened.chosen(policies)
    options = options or EvaluationOptions()
    options = replace(options, policies=ids or options.policies)
    source = open_source(str(data)) if isinstance(data, str | Path) else Records(data)
    evaluation = await asyncio.to_thread(Evaluation.of, source, options)
    run = evaluation.under(book, book.profile(profile))
    scorer = row_scorer(
        opened.scorer,
        max_batch_tokens=options.max_batch_tokens,
        concurrency=opened.concurrency,
    )
    with tempfile.TemporaryDirectory() as folder:
        scores = await run.score(scorer, Path(out or folder))
        return await asyncio.to_thread(run.report, scores)
