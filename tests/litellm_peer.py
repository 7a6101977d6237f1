"""Asks by LiteLLM's library; a program for the Python that has it."""

from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import litellm
from what_is_seen import Ask, run

PARAMETERS = {"type": "object", "properties": {"q": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": PARAMETERS}}


async def whole(asked: Mapping[str, Any], prompt: str) -> AsyncIterator[Any]:
    said: list[Any] = [{"role": "user", "content": prompt}]
    reply = await litellm.acompletion(messages=said, **asked)
    while _used(reply, said):
        reply = await litellm.acompletion(messages=said, **asked)
    [choice] = reply.choices
    yield choice.message.content
    yield {"finish": choice.finish_reason, "refusal": getattr(choice.message, "refusal", None)}


async def streamed(asked: Mapping[str, Any], prompt: str) -> AsyncIterator[Any]:
    said: list[Any] = [{"role": "user", "content": prompt}]
    while True:
        chunks = []
        async for chunk in await litellm.acompletion(messages=said, stream=True, **asked):
            [choice] = chunk.choices
            yield choice.delta.content
            yield {"finish": choice.finish_reason}
            chunks.append(chunk)
        if not _used(litellm.stream_chunk_builder(chunks), said):
            break


def _used(reply: Any, said: list[Any]) -> bool:
    message = reply.choices[0].message
    for call in message.tool_calls or ():
        result = {"role": "tool", "tool_call_id": call.id, "content": "bread is baked"}
        said += [message.model_dump(), result]
    return bool(message.tool_calls)


def ways(url: str) -> Mapping[str, Ask]:
    asked = {"model": "openai/m", "api_base": url, "api_key": "caller", "tools": [TOOL]}
    return {"chat": partial(whole, asked), "chat, streamed": partial(streamed, asked)}


litellm.suppress_debug_info = True
run(ways)
