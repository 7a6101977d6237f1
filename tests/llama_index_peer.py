"""Asks by LlamaIndex; a program for the Python that has it."""

from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAIResponses
from llama_index.llms.openai_like import OpenAILike
from what_is_seen import Ask, run


def look_up(q: str) -> str:
    """Look something up."""
    return f"{q} is baked"


TOOL = FunctionTool.from_defaults(look_up)


async def whole(model: Any, prompt: str) -> AsyncIterator[Any]:
    said = [ChatMessage(prompt)]
    while True:
        reply = await model.achat_with_tools([TOOL], chat_history=said)
        if not await _used(model, reply, said):
            break
    yield reply.message.content
    yield _told(reply)


async def streamed(model: Any, prompt: str) -> AsyncIterator[Any]:
    said = [ChatMessage(prompt)]
    while True:
        reply = None
        async for reply in await model.astream_chat_with_tools([TOOL], chat_history=said):
            yield reply.delta
        if reply is None or not await _used(model, reply, said):
            break
    if reply is not None:
        yield _told(reply)


async def _used(model: Any, reply: Any, said: list[ChatMessage]) -> bool:
    calls = model.get_tool_calls_from_response(reply, error_on_no_tool_call=False)
    if calls:
        said.append(reply.message)
    for call in calls:
        result = await TOOL.acall(**call.tool_kwargs)
        about = {"tool_call_id": call.tool_id}
        said.append(ChatMessage(str(result), role="tool", additional_kwargs=about))
    return bool(calls)


def _told(reply: Any) -> Mapping[str, Any]:
    choices = getattr(reply.raw, "choices", None) or []
    return {
        "finish": choices[0].finish_reason if choices else None,
        "beside": {k: str(v) for k, v in reply.message.additional_kwargs.items() if v},
    }


def ways(url: str) -> Mapping[str, Ask]:
    asked = {"model": "m", "api_base": url, "api_key": "caller"}
    kind = {"is_chat_model": True, "is_function_calling_model": True}
    chat = OpenAILike(**asked, **kind)
    once = OpenAILike(**asked, **kind, max_retries=0)
    responses = OpenAIResponses(model="gpt-4o", api_base=url, api_key="caller")
    return {
        "chat": partial(whole, chat),
        "chat, streamed": partial(streamed, chat),
        "chat, max_retries=0": partial(whole, once),
        "responses": partial(whole, responses),
        "responses, streamed": partial(streamed, responses),
    }


run(ways)
