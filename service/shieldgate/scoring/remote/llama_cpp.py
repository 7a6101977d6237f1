"""llama.cpp's server, asked by its own `/completion`."""

import math
from collections.abc import Sequence
from typing import Any

from shieldgate.scoring.remote.connection import Connection
from shieldgate.scoring.remote.engine import (
    Labels,
    Prompt,
    Reading,
    Served,
    check_counted,
    reading,
    shaped,
)

# It makes both labels the likeliest tokens, so that the reply is short; the difference stays.
_BIAS = 100.0


class LlamaCpp:
    """Asks for the probabilities after a bias that lifts both labels above all other tokens."""

    warning = (
        "llama.cpp computes with its own kernels, mostly on rounded weights: calibrate on its own "
        "scores, and expect other probabilities than those of the checkpoint"
    )

    def __init__(self, served: Served, labels: Labels) -> None:
        self.served = served
        self._labels = labels

    def turns(self, prompts: Sequence[Prompt], trunk: int) -> Sequence[Sequence[Prompt]]:
        """One after the other: the slot that has just computed the trunk takes the next one."""
        return [[prompt] for prompt in prompts]

    async def read(self, connection: Connection, prompts: Sequence[Prompt]) -> list[Reading]:
        """Ask for one prompt after the other."""
        found = [await self._top(connection, prompt) for prompt in prompts]
        with shaped(connection.name):
            by_id = [{one["id"]: math.log(one["prob"]) for one in top} for top in found]
        return [reading(connection.name, one, self._labels.ids, whole=False) for one in by_id]

    async def words(self, connection: Connection, prompt: Prompt) -> tuple[str, ...]:
        """Have the tokenizer of the server write the labels."""
        return tuple(str(one["token"]) for one in await self._top(connection, prompt))

    async def again(self, connection: Connection, prompt: Prompt) -> float | None:
        """Look for both labels among the likeliest tokens before any sampling."""
        body = {"prompt": prompt, "n_predict": 1, "n_probs": 100, "post_sampling_probs": False}
        reply = await connection.post("/completion", body)
        with shaped(connection.name):
            top = reply["completion_probabilities"][0]["top_logprobs"]
            by_id = {one["id"]: float(one["logprob"]) for one in top}
        values = [by_id.get(label) for label in self._labels.ids]
        positive, negative = values
        return None if positive is None or negative is None else positive - negative

    async def _top(self, connection: Connection, prompt: Prompt) -> list[dict[str, Any]]:
        body = {
            "prompt": prompt,
            "n_predict": 1,
            "n_probs": 2,
            "post_sampling_probs": True,
            "samplers": ["temperature"],
            "temperature": 1.0,
            "logit_bias": [[label, _BIAS] for label in self._labels.ids],
            "cache_prompt": True,
        }
        reply = await connection.post("/completion", body)
        with shaped(connection.name):
            check_counted(connection.name, reply["tokens_evaluated"], [prompt])
            top: list[dict[str, Any]] = reply["completion_probabilities"][0]["top_probs"]
            return top
