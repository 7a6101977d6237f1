"""Chat messages in, Gemma 2's prompt out; pure."""

from collections.abc import Iterable
from itertools import groupby

from shieldgate.prompt import Control, Segment

_ROLES = {"assistant": "model"}


def gemma_prompt(messages: Iterable[tuple[str, str]]) -> tuple[Segment, ...]:
    """Write (role, text) messages as Gemma 2's chat template does, up to where the model answers.

    Gemma 2 has users and models only. So what system and developer messages say becomes part of
    the user turn beside them, and neighbours of one role become one turn, parted by a blank line.
    Source: the chat template in the tokenizer of google/gemma-2-2b-it.
    """
    turns = ((_ROLES.get(role, "user"), text.strip()) for role, text in messages)
    segments: list[Segment] = [Control("<bos>")]
    for role, group in groupby(turns, key=lambda turn: turn[0]):
        said = "\n\n".join(text for _, text in group)
        segments += (
            Control("<start_of_turn>"),
            f"{role}\n{said}",
            Control("<end_of_turn>"),
            "\n",
        )
    return (*segments, Control("<start_of_turn>"), "model\n")
