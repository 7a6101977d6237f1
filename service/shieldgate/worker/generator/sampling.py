"""From logits to tokens, and the acceptance of drafted tokens; pure but for the generator."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shieldgate.worker.generation import SamplingParams


def probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """Turn logits, fp32 [rows, vocabulary], into the probabilities that are drawn from.

    The likeliest token has all of it at temperature 0. Otherwise temperature, then top-k, then
    top-p: the fewest likeliest tokens that together reach `top_p`.
    """
    if params.temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, best, 1.0)
    logits = logits / params.temperature
    if 0 < params.top_k < logits.shape[-1]:
        least = logits.topk(params.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    probs = torch.softmax(logits, dim=-1)
    if params.top_p < 1:
        ranked, order = probs.sort(descending=True, stable=True)
        ranked[ranked.cumsum(-1) - ranked >= params.top_p] = 0
        # top_p 0 keeps the likeliest as well.
        ranked[:, 0].clamp_(min=torch.finfo(ranked.dtype).tiny)
        probs = torch.zeros_like(probs).scatter_(-1, order, ranked)
        probs /= probs.sum(-1, keepdim=True)
    return probs


def sample(probs: Tensor, rng: torch.Generator) -> int:
    """Sample a token from probabilities, [vocabulary], that need not sum to 1."""
    return int(torch.multinomial(probs, 1, generator=rng))


def accept(probs: Tensor, drafted: Sequence[int], draft: Tensor, rng: torch.Generator) -> list[int]:
    """Keep the drafted tokens that the large model would have drawn too, and sample one more.

    `probs`, [len(drafted) + 1, vocabulary], are the large model's probabilities, `draft`,
    [len(drafted), vocabulary], those that `drafted` was drawn from. What is returned is
    distributed as if drawn from `probs` alone (Leviathan et al., arXiv 2211.17192, algorithm 1);
    at temperature 0 it is the same tokens.
    """
    kept = 0
    if drafted:
        at = torch.arange(len(drafted), device=probs.device)
        tokens = torch.tensor(drafted, device=probs.device)
        odds = probs[at, tokens] / draft[at, tokens]
        lucky = torch.rand(len(drafted), generator=rng, device=probs.device) < odds
        kept = int(lucky.long().cumprod(0).sum())
    rest = probs[kept]
    if kept < len(drafted):
        over = (rest - draft[kept]).clamp(min=0)
        if over.any():  # rounding alone may leave nothing
            rest = over
    return [*drafted[:kept], sample(rest, rng)]
