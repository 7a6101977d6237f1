"""SGLang, asked by its own `/generate`, which takes token ids for what it tells."""

from collections.abc import Sequence

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


class Sglang:
    """Asks for `token_ids_logprob`: log-probabilities over the whole vocabulary, by token id."""

    warning = None

    def __init__(self, served: Served, labels: Labels) -> None:
        self.served = served
        self._labels = labels

    def turns(self, prompts: Sequence[Prompt], trunk: int) -> Sequence[Sequence[Prompt]]:
        """Let the first compute a long trunk, and send all others in one request."""
        return first_alone(prompts, trunk)

    async def read(self, connection: Connection, prompts: Sequence[Prompt]) -> list[Reading]:
        """Ask for several prompts in one request."""
        found = await self._found(connection, prompts)
        by_id = [{entry[1]: entry[0] for entry in entries} for entries in found]
        return [reading(connection.name, one, self._labels.ids, whole=True) for one in by_id]

    async def words(self, connection: Connection, prompt: Prompt) -> tuple[str, ...]:
        """Have the tokenizer of the server write the labels."""
        (entries,) = await self._found(connection, [prompt])
        return tuple(str(entry[2]) for entry in entries)

    async def again(self, connection: Connection, prompt: Prompt) -> float | None:
        """There is no second way that is as plain."""
        return None

    async def _found(
        self, connection: Connection, prompts: Sequence[Prompt]
    ) -> list[list[tuple[float, int, str | None]]]:
        """Give each prompt's entries: a log-probability, its token id, and its word."""
        body = {
            "input_ids": list(prompts),
            "sampling_params": {"max_new_tokens": 1, "temperature": 1, "top_p": 1, "top_k": -1},
            "return_logprob": True,
            "logprob_start_len": -1,
            "token_ids_logprob": [list(self._labels.ids) for _ in prompts],
            "return_text_in_logprobs": True,
        }
        reply = await connection.post("/generate", body)
        with shaped(connection.name):
            metas = [one["meta_info"] for one in reply]
            check_counted(connection.name, sum(meta["prompt_tokens"] for meta in metas), prompts)
            found = [meta["output_token_ids_logprobs"][0] for meta in metas]
            return [[(entry[0], entry[1], entry[2]) for entry in entries] for entries in found]
