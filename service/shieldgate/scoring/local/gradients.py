"""What each token carried of a margin: a pass forward, and for each policy one back.

Gradient times input (Shrikumar et al., arXiv 1605.01713): to first order what a margin would lose
were a token's embedding zero.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shieldgate.scoring.local import decoder
from shieldgate.scoring.local.packing import Layout
from shieldgate.scoring.pack import Pack


def gradient_times_input(
    model: PreTrainedModel, item: Pack, answers: Tensor | Sequence[int]
) -> list[list[float]]:
    """Give what each token of each prompt carried, in logits: [policies][tokens of the prompt].

    `answers` are as in `decoder.margins`. The model must be neither compiled nor quantised.
    """
    layout = Layout.of([item], decoder.sliding_window(model), model.device)
    embed: Any = model.get_input_embeddings()
    with torch.enable_grad():
        given = embed(layout.ids[None]).detach().requires_grad_()
        margins = decoder.margins(model, decoder.read_states(model, layout, given), answers)
        carried = []
        for margin in margins:
            (gradient,) = torch.autograd.grad(margin, given, retain_graph=True)
            carried.append((gradient.float() * given.detach().float()).sum(-1)[0].tolist())
    found, start = [], len(item.trunk)
    for tokens, branch in zip(carried, item.branches, strict=True):
        found.append(tokens[: len(item.trunk)] + tokens[start : start + len(branch)])
        start += len(branch)
    return found
