"""Forward passes of a scorer, in which the states after a layer are seen and changed."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from shieldgate.errors import ConfigurationError
from shieldgate.policy import Policy
from shieldgate.scoring.local import PackedEngine, decoder
from shieldgate.scoring.local.packing import Layout
from shieldgate.scoring.local.residual import residual_stream
from shieldgate.scoring.pack import Pack
from shieldgate.types import Exchange


def windows(
    engine: PackedEngine, exchange: Exchange, policies: Sequence[Policy]
) -> list[tuple[Exchange, Pack]]:
    """Give what the engine scores of an exchange, a pack for each window of its content."""
    work = engine.prepare(exchange, policies).work
    shown = (exchange,) if len(work) == 1 else engine.prompts.split(exchange, policies)[0]
    return list(zip(shown, work, strict=True))


@torch.no_grad()
def forward(
    engine: PackedEngine,
    layer: int,
    packs: Sequence[Pack],
    visit: Callable[[Tensor], Tensor | None],
) -> Tensor:
    """Compute the margins of packs, fp32 [branches], as `residual_stream` lets `visit` have it."""
    layout = Layout.of(packs, decoder.sliding_window(engine.model), engine.model.device)
    with residual_stream(engine.model, layer, visit):
        return engine.margins(layout).detach()


def check_layer(engine: PackedEngine, layer: int, mend: str = "") -> None:
    """Raise ConfigurationError where there is no such layer; `mend` says what to give instead."""
    layers = engine.model.config.num_hidden_layers
    if layer >= layers:
        why = f"There is no layer {layer}: {engine.identity.name} has layers 0 to {layers - 1}."
        raise ConfigurationError(f"{why} {mend}".rstrip())


def states(engine: PackedEngine, layer: int, packs: Sequence[Pack]) -> tuple[Tensor, Tensor]:
    """Compute the states after a layer, fp32 [tokens, hidden], and the margins, fp32 [branches]."""
    seen: list[Tensor] = []
    margins = forward(engine, layer, packs, lambda rows: seen.append(rows.float()))
    return seen[0].to(engine.model.device), margins


def starts(item: Pack) -> list[int]:
    """Give the rows at which the branches of a pack start, and where the last one ends."""
    return list(accumulate(map(len, item.branches), initial=len(item.trunk)))


def judged(packs: Sequence[Pack]) -> Tensor:
    """Tell the rows whose states count, bool [tokens]: all but the first token of each prompt.

    In most models its state is of another size and says nothing of the text; Gemma Scope leaves it
    out, too.
    """
    rows = torch.ones(sum(item.tokens for item in packs), dtype=torch.bool)
    begun = 0
    for item in packs:
        rows[[begun] if item.trunk else [begun + row for row in starts(item)[:-1]]] = False
        begun += item.tokens
    return rows


def content(
    engine: PackedEngine, item: Pack, exchange: Exchange, policies: Sequence[Policy]
) -> list[list[tuple[int, int, int]]]:
    """Find the rows of the text under judgement in the prompt of each policy of a pack.

    Each is a row, and the characters [start, end) of the text that it stands for.
    """
    trunk = len(item.trunk)
    return [
        [
            (at if at < trunk else at - trunk + start, a, b)
            for at, a, b in engine.prompts.content(exchange, policy.guidelines[exchange.direction])
        ]
        for policy, start in zip(policies, starts(item)[:-1], strict=True)
    ]
