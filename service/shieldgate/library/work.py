"""What a scorer that is open is asked for: verdicts, and evaluations of data."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar

from shieldgate.errors import ConfigurationError, needed
from shieldgate.policy import Policy, PolicyBook, Profile, Rules
from shieldgate.scoring import Scorer
from shieldgate.types import Exchange, Verdict

if TYPE_CHECKING:
    from shieldgate.evaluation.report import Report
    from shieldgate.evaluation.session import EvaluationOptions

T = TypeVar("T")

Rows = str | Path | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Opened:
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


def judging(
    texts: Iterable[str | Exchange], profile: str | None, policies: Iterable[str | Policy]
) -> Callable[[Opened], Awaitable[list[Verdict]]]:
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


def evaluation(
    data: Rows,
    profile: str,
    policies: Iterable[str | Policy],
    options: "EvaluationOptions | None",
    out: str | Path | None,
) -> Callable[[Opened], Awaitable["Report"]]:
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
    opened: Opened,
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
    opened: Opened,
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
