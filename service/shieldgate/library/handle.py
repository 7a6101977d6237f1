"""The scorer that `open_scorer` names, with its methods."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from shieldgate.errors import ConfigurationError
from shieldgate.given_settings import load
from shieldgate.library.background import Background
from shieldgate.library.work import Opened, Rows, evaluation, judging
from shieldgate.moderation import judge
from shieldgate.policy import Policy, PolicyBook, load_book
from shieldgate.scoring import Identity, factory
from shieldgate.scoring.gateway_client import GatewayScorer, open_gateway
from shieldgate.settings import ScoringSettings
from shieldgate.telemetry import log_as_library
from shieldgate.types import Exchange, Verdict

if TYPE_CHECKING:
    from shieldgate.evaluation.report import Report
    from shieldgate.evaluation.session import EvaluationOptions


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

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[Opened]]) -> None:
        self._background = Background(opening)

    @property
    def identity(self) -> Identity:
        """Say what the scores depend on."""
        return self._background.open().scorer.identity

    @property
    def book(self) -> PolicyBook:
        """Give the policies and profiles to choose from."""
        return self._background.open().book

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
        return self._background.run(judging(texts, profile, policies))

    async def judge_all_async(
        self,
        texts: Iterable[str | Exchange],
        *,
        profile: str | None = "default",
        policies: Sequence[str | Policy] = (),
    ) -> list[Verdict]:
        """Judge prompts and exchanges; the verdicts are in their order."""
        return await self._background.run_async(judging(texts, profile, policies))

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
        return self._background.run(evaluation(data, profile, policies, options, out))

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
        return await self._background.run_async(evaluation(data, profile, policies, options, out))

    def close(self) -> None:
        """Free what was loaded; a later use loads it again."""
        self._background.close()

    def __enter__(self) -> Self:
        """Load the scorer; raise ConfigurationError or ScoringError."""
        self._background.open()
        return self

    def __exit__(self, *_: object) -> None:
        """Free what was loaded."""
        self.close()

    async def __aenter__(self) -> Self:
        """Load the scorer; raise ConfigurationError or ScoringError."""
        await asyncio.to_thread(self._background.open)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Free what was loaded."""
        await asyncio.to_thread(self.close)


@asynccontextmanager
async def _local(
    settings: ScoringSettings, book: PolicyBook, max_batch_tokens: int
) -> AsyncIterator[Opened]:
    # Who waits is bounded by `concurrency` for each call.
    async with factory.open_scorer(
        settings, max_batch_tokens=max_batch_tokens, max_waiting=sys.maxsize
    ) as scorer:
        yield Opened(scorer, book, partial(judge, scorer), concurrency=64)


@asynccontextmanager
async def _gateway(client: GatewayScorer) -> AsyncIterator[Opened]:
    async with client as scorer:
        book = await scorer.book()
        yield Opened(scorer, book, scorer.judge, concurrency=8, fixed_policies=True)
