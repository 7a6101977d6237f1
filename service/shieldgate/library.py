"""shieldgate in notebooks and scripts: judge texts and evaluate data without a server."""

import asyncio
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from anyio.from_thread import BlockingPortal

from shieldgate.errors import ConfigurationError, needed
from shieldgate.given_settings import load
from shieldgate.moderation import judge
from shieldgate.policy import Policy, PolicyBook, Profile, Rules, load_book
from shieldgate.scoring import Identity, Scorer, factory
from shieldgate.scoring.gateway_client import GatewayScorer, open_gateway
from shieldgate.settings import ScoringSettings
from shieldgate.telemetry import log_as_library
from shieldgate.types import Exchange, Verdict

if TYPE_CHECKING:
    from shieldgate.evaluation.report import Report
    from shieldgate.evaluation.session import EvaluationOptions

T = TypeVar("T")

Rows = str | Path | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Opened:
    """A scorer that is there, the policies to choose from, and who judges by them.

    It scores `concurrency` texts of a call at a time. With `fixed_policies` it knows its own alone.
    """

    scorer: Scorer
    book: PolicyBook
    judge: Callable[[Exchange, Rules], Awaitable[Verdict]]
    concurrency: int
    fixed_policies: bool = False

    def chosen(self, policies: Sequence[str | Policy]) -> tuple[PolicyBook, list[str]]:
        """Put one's own policies into the book; gives it with the ids of all."""
        own = {p.id: p for p in policies if isinstance(p, Policy)}
        if own and self.fixed_policies:
            raise ConfigurationError("A gateway judges by its own policies: name them by id.")
        book = replace(self.book, policies={**self.book.policies, **own})
        return book, [p.id if isinstance(p, Policy) else p for p in policies]


def open_scorer(
    name: str | Path | None = None,
    *,
    key: str | None = None,
    tokenizer: str | Path | None = None,
    policies: str | Path | PolicyBook | None = None,
    template: str | None = None,
    cascade: str | Path | None = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    max_batch_tokens: int = 16_384,
) -> "ScorerHandle":
    """Name a scorer and the policies it is asked about; it is loaded when it is first needed.

    `name` is 'starter', 'small', a model of the hub, the path of a checkpoint, or a URL: of a
    running gateway, which brings its own policies, or, with a `tokenizer` or an ending /v1, of an
    engine that serves a model. Either may want an API `key`. `policies` are a file or
    directory of them, or a book; without any, the shipped ones. What is not given is what the
    environment variables of the settings say, as for the commands. A `cascade` is the file of a
    cheaper scorer, which decides where it is sure. `max_batch_tokens` bounds a
    forward pass.

    Raises ConfigurationError where a setting or a policy file is wrong.
    """
    log_as_library()
    name = None if name is None else os.fspath(name)
    is_url = name is not None and name.startswith(("http://", "https://"))
    if name and is_url and not (tokenizer or name.rstrip("/").endswith("/v1")):
        if policies is not None or template or cascade or revision or device or dtype or quantize:
            raise ConfigurationError(
                f"{name} is a gateway, which has a model and policies of its own; give no others."
            )
        return ScorerHandle(partial(_gateway, open_gateway(name, key)))
    if key is not None and not is_url:
        raise ConfigurationError(
            "A key is for a gateway or an engine: give its URL, such as http://localhost:8000."
        )
    book = policies if isinstance(policies, PolicyBook) else None
    given = {
        "model": name,
        "model_key": key,
        "tokenizer": None if tokenizer is None else os.fspath(tokenizer),
        "policies": None if book else policies,
        "template": template,
        "cascade": cascade,
        "revision": revision,
        "device": device,
        "dtype": dtype,
        "quantize": quantize,
    }
    settings = load(ScoringSettings, {k: v for k, v in given.items() if v is not None})
    book = book or load_book(settings.policies)
    return ScorerHandle(partial(_local, settings, book, max_batch_tokens))


class ScorerHandle:
    """A scorer to be used from anywhere: `open_scorer` makes one.

    It loads at its first use, or on entering `with` or `async with`, which closes it at the end.
    It computes in threads of its own, so that each method works where an event loop is running,
    as in a notebook, and has a twin to be awaited. It may be shared between threads and tasks;
    texts that wait at the same time share forward passes.

    `policies` are judged beside those of the `profile`: ids of the book, or policies of your own.
    Without a profile (None) they alone are. Methods raise ScoringError when no score could be
    had, UnknownName for a name that the book lacks, ConfigurationError, also in a process that was
    forked from one where it is open, and TypeError. Who stops waiting, as with Ctrl-C, stops the
    work.
    """

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[_Opened]]) -> None:
        self._opening = opening
        self._lock = threading.Lock()
        self._state: tuple[BlockingPortal, _Opened] | None = None
        self._process: int | None = None
        self._unclosed: weakref.finalize[[ExitStack, int], ScorerHandle] | None = None

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
        return self._run(_judging(texts, profile, policies))

    async def judge_all_async(
        self,
        texts: Iterable[str | Exchange],
        *,
        profile: str | None = "default",
        policies: Sequence[str | Policy] = (),
    ) -> list[Verdict]:
        """Judge prompts and exchanges; the verdicts are in their order."""
        return await self._run_async(_judging(texts, profile, policies))

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
        return self._run(_evaluation(data, profile, policies, options, out))

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
        return await self._run_async(_evaluation(data, profile, policies, options, out))

    def close(self) -> None:
        """Free what was loaded; a later use loads it again."""
        if self._is_forked():
            return
        with self._lock:
            self._state = self._process = None
            if self._unclosed and (unclosed := self._unclosed.detach()):
                resources, _ = unclosed[2]
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
        result, ended = self._start(*self._open(), work)
        try:
            return result.result()
        except BaseException:
            result.cancel()
            ended.result()
            raise

    async def _run_async(self, work: Callable[[_Opened], Awaitable[T]]) -> T:
        result, ended = self._start(*await asyncio.to_thread(self._open), work)
        try:
            return await asyncio.wrap_future(result)
        except BaseException:
            result.cancel()
            await asyncio.shield(asyncio.wrap_future(ended))
            raise

    @staticmethod
    def _start(
        portal: BlockingPortal, opened: _Opened, work: Callable[[_Opened], Awaitable[T]]
    ) -> tuple[Future[T], Future[None]]:
        """Give what becomes the result, and what is done when the work, cancelled or not, is."""
        ended: Future[None] = Future()

        async def whole() -> T:
            try:
                return await work(opened)
            finally:
                ended.set_result(None)

        return portal.start_task_soon(whole), ended

    def _open(self) -> tuple[BlockingPortal, _Opened]:
        if self._is_forked():
            raise ConfigurationError(
                "This scorer was opened before the process was forked, and its threads stayed "
                "behind: open one in each process, or start processes by 'spawn'."
            )
        with self._lock:
            if self._state is None:
                self._process = os.getpid()
                resources = ExitStack()
                try:
                    portal = _start_portal(resources)
                    opening = portal.wrap_async_context_manager(self._opening())
                    self._state = portal, resources.enter_context(opening)
                except BaseException:
                    self._process = None
                    resources.close()
                    raise
                self._unclosed = weakref.finalize(self, _close_forgotten, resources, self._process)
            return self._state

    def _is_forked(self) -> bool:
        """Tell whether it was open, or being opened, when this process was forked."""
        return self._process not in (None, os.getpid())


def _start_portal(resources: ExitStack) -> BlockingPortal:
    """Run an event loop in a thread until `resources` are closed.

    anyio's own way is a generator, which a forked process would close, to wait there for ever.
    """
    started: Future[BlockingPortal] = Future()

    async def serve() -> None:
        async with BlockingPortal() as portal:
            started.set_result(portal)
            await portal.sleep_until_stopped()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="shieldgate", daemon=True)
    thread.start()
    resources.callback(thread.join)
    portal = started.result()
    resources.callback(lambda: portal.call(portal.stop))
    return portal


def _close_forgotten(resources: ExitStack, process: int) -> None:
    """Close what nobody closed, when its handle is gone or the program ends."""
    if process != os.getpid():
        return
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
        yield _Opened(scorer, book, partial(judge, scorer), concurrency=64)


@asynccontextmanager
async def _gateway(client: GatewayScorer) -> AsyncIterator[_Opened]:
    async with client as scorer:
        book = await scorer.book()
        yield _Opened(scorer, book, scorer.judge, concurrency=8, fixed_policies=True)


def _judging(
    texts: Iterable[str | Exchange], profile: str | None, policies: Iterable[str | Policy]
) -> Callable[[_Opened], Awaitable[list[Verdict]]]:
    """Check what is to be judged, before anything is opened for it; raise TypeError."""
    exchanges = [
        text if isinstance(text, Exchange) else Exchange(text)
        for text in _several("texts", texts, str | Exchange)
    ]
    for exchange in exchanges:
        for text in (exchange.prompt, "" if exchange.response is None else exchange.response):
            if not isinstance(text, str):
                raise TypeError(f"What is judged must be a str, not {type(text).__name__}.")
    return partial(
        _judge_all,
        exchanges=exchanges,
        profile=profile,
        policies=_several("policies", policies, str | Policy),
    )


def _evaluation(
    data: Rows,
    profile: str,
    policies: Iterable[str | Policy],
    options: "EvaluationOptions | None",
    out: str | Path | None,
) -> Callable[[_Opened], Awaitable["Report"]]:
    """Check what is to be evaluated, before anything is opened for it; raise TypeError."""
    if not isinstance(data, str | Path):
        data = _several("data", data, Mapping)
    return partial(
        _evaluate,
        data=data,
        profile=profile,
        policies=_several("policies", policies, str | Policy),
        options=options,
        out=out,
    )


def _several(name: str, values: Iterable[T], kind: type | UnionType) -> list[T]:
    """List values of which each must be of a kind; raise TypeError."""
    if isinstance(values, str | bytes | Policy | Exchange):
        raise TypeError(f"{name}: several are meant; put the {type(values).__name__} into a list.")
    listed = list(values)
    for number, value in enumerate(listed):
        if not isinstance(value, kind):
            wanted = getattr(kind, "__name__", kind)
            raise TypeError(f"{name}[{number}] is a {type(value).__name__}, no {wanted}.")
    return listed


async def _judge_all(
    opened: _Opened,
    *,
    exchanges: Sequence[Exchange],
    profile: str | None,
    policies: Sequence[str | Policy],
) -> list[Verdict]:
    book, ids = opened.chosen(policies)
    chosen = Profile("none", ()) if profile is None else book.profile(profile)
    rules = book.rules(chosen, ids)
    verdicts: dict[int, Verdict] = {}
    waiting = iter(enumerate(exchanges))

    async def work_off() -> None:
        for number, exchange in waiting:
            verdicts[number] = await opened.judge(exchange, rules)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(opened.concurrency, len(exchanges))):
                group.create_task(work_off())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [verdicts[number] for number in range(len(exchanges))]


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
