"""The residual stream of a decoder, to be looked at and changed while it scores."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


@contextmanager
def residual_stream(
    model: PreTrainedModel, layer: int, visit: Callable[[Tensor], Tensor | None]
) -> Iterator[None]:
    """Show `visit` the states after a layer in each forward pass inside, [tokens, hidden].

    What it gives in their place goes on, unless it is None. Layers count from 0: after layer N
    stands what transformers calls `hidden_states[N + 1]`, but after the last layer, whose states
    are seen here before the final norm. Not for an engine that was warmed: what is compiled calls
    no one. Of one thread at a time.
    """
    layers: Any = model.base_model.layers

    def hook(module: Any, given: Any, states: Tensor) -> Tensor | None:
        changed = visit(states[0])
        return None if changed is None else changed[None]

    handle = layers[layer].register_forward_hook(hook)
    try:
        # Without gradients a LastLayer computes the rows that are read, and no others.
        with torch.set_grad_enabled(layer + 1 == len(layers)):
            yield
    finally:
        handle.remove()
