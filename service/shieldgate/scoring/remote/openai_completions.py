"""Engines that are asked by OpenAI's completions: vLLM's in its own best way, others by words."""

from collections.abc import Mapping, Sequence
from typing import Any

from shieldgate.scoring.remote.connection import Connection
from shieldgate.scoring.remote.engine import (
    Labels,
    Prompt,
    Reading,
    Served,
    check_counted,
    first_alone,
    reading,
    shaped,
)

_PATH = "/v1/completions"
# One token, drawn from the whole distribution as it is, whatever the server's defaults are.
_NEUTRAL = {"max_tokens": 1, "temperature": 1, "top_p": 1}
_NEUTRAL_VLLM = {
    **_NEUTRAL,
    "top_k": 0,
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}


class Vllm:
    """Asks for `logprob_token_ids`: log-probabilities over the whole vocabulary, by token id."""

    warning = None

    def __init__(self, served: Served, labels: Labels) -> None:
        self.served = served
        self._labels = labels
        self._ids = [f"token_id:{i}" for i in labels.ids]

    def turns(self, prompts: Sequence[Prompt], trunk: int) -> Sequence[Sequence[Prompt]]:
        """Send all in one request: vLLM computes what they share once, in one step as in two."""
        return [prompts]

    async def read(self, connection: Connection, prompts: Sequence[Prompt]) -> list[Reading]:
        """Ask for several prompts in one request."""
        found = await self._top(connection, prompts, by_id=True)
        return [reading(connection.name, top, self._ids, whole=True) for top in found]

    async def words(self, connection: Connection, prompt: Prompt) -> tuple[str, ...]:
        """Have the tokenizer of the server write the labels."""
        (top,) = await self._top(connection, [prompt], by_id=False)
        return tuple(top)

    async def again(self, connection: Connection, prompt: Prompt) -> float | None:
        """Have both answers in place, as part of prompts, where nothing is sampled."""
        body = {
            **_NEUTRAL,
            "model": self.served.model,
            "prompt": [[*prompt, label] for label in self._labels.ids],
            "prompt_logprobs": 0,
        }
        reply = await connection.post(_PATH, body)
        with shaped(connection.name):
            positive, negative = (
                float(choice["prompt_logprobs"][-1][str(label)]["logprob"])
                for choice, label in zip(_in_order(reply, 2), self._labels.ids, strict=True)
            )
        return positive - negative

    async def _top(
        self, connection: Connection, prompts: Sequence[Prompt], *, by_id: bool
    ) -> list[dict[str, float]]:
        body = {
            **_NEUTRAL_VLLM,
            "model": self.served.model,
            "prompt": list(prompts),
            "logprobs": 1,
            "logprob_token_ids": list(self._labels.ids),
            "return_tokens_as_token_ids": by_id,
        }
        return _top(connection, await connection.post(_PATH, body), prompts)


class OpenAICompletions:
    """Asks for the few likeliest tokens, both labels made likely, and finds them by their words."""

    def __init__(self, served: Served, labels: Labels, name: str) -> None:
        """Take what people call the engine as its `name`."""
        self.served = served
        self._labels = labels
        self.warning = (
            f"{name} names tokens by their words and tells of the likeliest few only: a "
            "text of whose answers one is not among them gets no score, and two tokens that are "
            "written alike can't be told apart"
        )

    def turns(self, prompts: Sequence[Prompt], trunk: int) -> Sequence[Sequence[Prompt]]:
        """Let the first compute a long trunk, and send all others in one request."""
        return first_alone(prompts, trunk)

    async def read(self, connection: Connection, prompts: Sequence[Prompt]) -> list[Reading]:
        """Ask for several prompts in one request."""
        found = await self._top(connection, prompts)
        return [reading(connection.name, top, self._labels.words, whole=False) for top in found]

    async def words(self, connection: Connection, prompt: Prompt) -> tuple[str, ...]:
        """Find both labels among the words that come, or raise WrongReply."""
        await self.read(connection, [prompt])
        return self._labels.words

    async def again(self, connection: Connection, prompt: Prompt) -> float | None:
        """There is no second way."""
        return None

    async def _top(
        self, connection: Connection, prompts: Sequence[Prompt]
    ) -> list[dict[str, float]]:
        body = {
            **_NEUTRAL,
            "model": self.served.model,
            "prompt": list(prompts),
            "logprobs": 5,  # OpenAI's most
            # The same for both, so it doesn't change their difference, before or after it counts.
            "logit_bias": {str(label): 100 for label in self._labels.ids},
        }
        return _top(connection, await connection.post(_PATH, body), prompts)


def _top(connection: Connection, reply: Any, prompts: Sequence[Prompt]) -> list[dict[str, float]]:
    """Give each prompt's tokens with their log-probabilities, in the order of the prompts."""
    with shaped(connection.name):
        check_counted(connection.name, reply["usage"]["prompt_tokens"], prompts)
        return [
            dict(choice["logprobs"]["top_logprobs"][0]) for choice in _in_order(reply, len(prompts))
        ]


def _in_order(reply: Any, count: int) -> list[Mapping[str, Any]]:
    """Give the choices by their index, one for each prompt."""
    by_index = {choice["index"]: choice for choice in reply["choices"]}
    return [by_index[index] for index in range(count)]
