"""What `shieldgate features` does: has texts scored, and shows what fired meanwhile."""

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shieldgate.cli.options import chosen_profile
from shieldgate.errors import ConfigurationError, ScoringError, UnknownName
from shieldgate.features.ablation import CONTROLS, Ablation
from shieldgate.features.autoencoder import load_autoencoder
from shieldgate.features.inspection import ActiveFeature, Fit, Inspection, Inspector
from shieldgate.features.labels import load_labels
from shieldgate.moderation import judge
from shieldgate.plural import counted
from shieldgate.policy import Rules, load_book
from shieldgate.review.shown import plain
from shieldgate.scoring.batched import Batched
from shieldgate.scoring.factory import open_engine
from shieldgate.scoring.local import PackedEngine
from shieldgate.settings import ScoringSettings
from shieldgate.telemetry import configure_logging
from shieldgate.types import Exchange

# By how much another reading's margin must be higher to be worth a word, in logits.
_HIGHER = 0.05
# The fraction of variance from which on features say little of a scorer.
_MUCH = 0.5


@dataclass(frozen=True, slots=True)
class FeaturesTask:
    """What to look at, and with what."""

    settings: ScoringSettings
    sae: Path
    layer: int | None
    labels: Path | None
    policies: Sequence[str]
    top: int


@dataclass(frozen=True, slots=True)
class _Found:
    """What fired on a text; `verdict` has the margin that its verdict rests on, by policy."""

    inspection: Inspection
    verdict: Mapping[str, float]


def run(task: FeaturesTask, exchanges: Sequence[Exchange], *, tokens: bool, as_json: bool) -> None:
    """Print what fires on each text.

    Raises ConfigurationError; exits with 1 when no score could be had.
    """
    configure_logging("warning", as_json=False)
    settings = task.settings
    autoencoder = load_autoencoder(task.sae, layer=task.layer)
    labels = (
        load_labels(task.labels, layer=autoencoder.layer, features=autoencoder.features)
        if task.labels
        else {}
    )
    book = load_book(settings.policies)
    try:
        rules = book.rules(chosen_profile(book, settings), task.policies)
    except UnknownName as unknown:
        raise ConfigurationError(f"--policy: {unknown}") from None
    found = []
    with Console(stderr=True).status(f"loading {settings.model}") as status:
        engine = open_engine(settings)
        inspector = Inspector.of(engine, autoencoder, top=task.top)
        try:
            for number, exchange in enumerate(exchanges, start=1):
                status.update(f"looking at {number:,} of {counted(len(exchanges), 'text')}")
                inspection = inspector.inspect(exchange, rules.policies)
                found.append(_Found(inspection, asyncio.run(_verdict(engine, exchange, rules))))
        except (ScoringError, FloatingPointError) as failure:
            typer.echo(f"Error: {failure}", err=True)
            sys.exit(1)
    head = {
        "scorer": engine.identity.name,
        "autoencoder": {
            "file": str(task.sae),
            "sha256": autoencoder.digest,
            "layer": autoencoder.layer,
            "features": autoencoder.features,
        },
    }
    if as_json:
        texts = [
            _object(one, exchange, labels) for one, exchange in zip(found, exchanges, strict=True)
        ]
        typer.echo(json.dumps({**head, "texts": texts}, indent=1, ensure_ascii=False))
        return
    console = Console()
    console.print(
        f"{engine.identity.name}, states after layer {autoencoder.layer}, {task.sae} "
        f"({autoencoder.features:,} features)",
        style="dim",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    for one, exchange in zip(found, exchanges, strict=True):
        _show(one, exchange, labels, console, tokens=tokens)
    console.print(
        f"moves: the margin changes more than without any of {CONTROLS} others that fire there, "
        "scaled to its size; about 1 feature in 20 does so. associated: it fires, and no more is "
        "known.",
        style="dim",
        highlight=False,
    )


async def _verdict(engine: PackedEngine, exchange: Exchange, rules: Rules) -> dict[str, float]:
    """Give the margins that the verdict of `shieldgate score` rests on."""
    async with Batched(engine, max_batch_tokens=1, max_waiting=sys.maxsize) as scorer:
        verdict = await judge(scorer, exchange, rules)
    return {j.policy: j.score.margin for j in verdict.judgements}


def _object(found: _Found, exchange: Exchange, labels: Mapping[int, str]) -> dict[str, Any]:
    shown = found.inspection

    def fit(of: Fit) -> dict[str, float]:
        return {"fvu": _round(of.fvu), "l0": _round(of.l0)}

    def feature(active: ActiveFeature) -> dict[str, Any]:
        return {
            "index": active.index,
            "label": labels.get(active.index),
            "activation": _round(active.activation),
            "tokens": active.tokens,
            "span": active.span,
            "ablation": {
                policy: {
                    "change": _round(ablation.change),
                    "others": [_round(other) for other in ablation.others],
                    "evidence": _evidence(ablation),
                }
                for policy, ablation in active.ablations.items()
            },
        }

    return {
        "direction": exchange.direction,
        "window": shown.window,
        "windows": shown.windows,
        "text": shown.text,
        "prompt": fit(shown.prompt),
        "content": fit(shown.content) if shown.content else None,
        "policies": {
            id: {
                "margin": _round(of.margin),
                "verdict_margin": _round(found.verdict[id]),
                "rebuilt_margin": _round(of.rebuilt),
                **fit(of.fit),
                "features": [feature(active) for active in of.features],
            }
            for id, of in shown.policies.items()
        },
        "features": [feature(active) for active in shown.features],
        "tokens": [
            {
                "start": token.start,
                "end": token.end,
                "features": [
                    {"index": index, "label": labels.get(index), "activation": _round(value)}
                    for index, value in token.features.items()
                ],
            }
            for token in shown.tokens
        ],
    }


def _round(number: float) -> float:
    return float(f"{number:.6g}")


def _evidence(ablation: Ablation) -> str:
    return "moves" if ablation.moves else "associated"


def _show(
    found: _Found,
    exchange: Exchange,
    labels: Mapping[int, str],
    console: Console,
    *,
    tokens: bool,
) -> None:
    shown = found.inspection
    console.print()
    console.print(Text(plain(shown.text)[:200], style="bold", no_wrap=True, overflow="ellipsis"))
    window = f"window {shown.window} of {shown.windows}, the one that scored highest; "
    left = f"{shown.prompt.fvu:.1%} of the variance of the prompts' states"
    left += f", {shown.content.fvu:.1%} on the text" if shown.content else ""
    console.print(
        f"{exchange.direction}; {window if shown.windows > 1 else ''}unexplained: {left}",
        highlight=False,
    )
    for id, of in shown.policies.items():
        _head(
            f"{id}, where it is answered: margin {of.margin:+.2f}, rebuilt {of.rebuilt:+.2f}, "
            f"unexplained {of.fit.fvu:.1%}",
            console,
        )
        listed = [("", active, active.ablations[id]) for active in of.features]
        console.print(_table(listed, labels))
    if shown.features:
        highest = max(shown.policies, key=lambda id: shown.policies[id].margin)
        _head(f"On the text, for {highest}", console)
        listed = [
            (_where(shown, active), active, active.ablations[highest]) for active in shown.features
        ]
        console.print(_table(listed, labels))
    if tokens:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("token", no_wrap=True)
        table.add_column("features, by activation")
        for token in shown.tokens:
            fires = (
                f"{index} {value:.2f}" + (f" {plain(labels[index])}" if index in labels else "")
                for index, value in token.features.items()
            )
            table.add_row(
                Text(repr(plain(shown.text[token.start : token.end]))), Text("; ".join(fires))
            )
        console.print(table)
    for remark in _remarks(found):
        console.print(f"• {remark}.", style="dim", highlight=False, markup=False)


def _remarks(found: _Found) -> Iterator[str]:
    shown = found.inspection
    if max(fit.fvu for fit in (shown.prompt, shown.content) if fit) > _MUCH:
        yield (
            f"more than {_MUCH:.0%} is unexplained: most of what the scorer goes by is in no "
            "feature here"
        )
    for id, of in shown.policies.items():
        if found.verdict[id] > of.margin + _HIGHER:
            yield (
                f"{id}: the verdict rests on another reading, window or passage of the text, with "
                f"a margin of {found.verdict[id]:+.2f}; give that alone to look at it"
            )


def _head(title: str, console: Console) -> None:
    console.print(Text(title, style="bold"), highlight=False, soft_wrap=True)


def _where(shown: Inspection, active: ActiveFeature) -> str:
    start, end = active.span or (0, 0)
    more = f" and {active.tokens - 1} more" if active.tokens > 1 else ""
    return f" at {plain(shown.text[start:end])!r}{more}"


def _table(
    listed: Sequence[tuple[str, ActiveFeature, Ablation]], labels: Mapping[int, str]
) -> Table:
    """Tabulate features: where they fire, how much, and what one ablation of each did."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("feature", no_wrap=True)
    for name in ("activation", "without it", "others, up to"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    if labels:
        table.add_column("label")
    for where, active, ablation in listed:
        others = max(map(abs, ablation.others), default=None)
        table.add_row(
            Text(f"{active.index}{where}"),
            f"{active.activation:.2f}",
            f"{ablation.change:+.2f}",
            "none" if others is None else f"{others:.2f}",
            Text(_evidence(ablation), style="bold" if ablation.moves else "dim"),
            *([Text(plain(labels.get(active.index, "")))] if labels else ()),
        )
    return table
