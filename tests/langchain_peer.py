"""Asks by LangChain's ChatOpenAI; a program for the Python that has it."""

from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from what_is_seen import Ask, run


class Loaf(BaseModel):
    """A loaf of bread."""

    kind: str


@tool
def look_up(q: str) -> str:
    """Look something up."""
    return f"{q} is baked"


async def whole(model: Any, prompt: str) -> AsyncIterator[Any]:
    said: list[AnyMessage] = [HumanMessage(prompt)]
    message = await model.ainvoke(said)
    while message.tool_calls:
        said += [message, *[await look_up.ainvoke(call) for call in message.tool_calls]]
        message = await model.ainvoke(said)
    yield message.text
    yield _told(message)


async def streamed(model: Any, prompt: str) -> AsyncIterator[Any]:
    said: list[AnyMessage] = [HumanMessage(prompt)]
    while True:
        message = None
        async for chunk in model.astream(said):
            yield chunk.text
            message = chunk if message is None else message + chunk
        if not (message and message.tool_calls):
            break
        said += [message, *[await look_up.ainvoke(call) for call in message.tool_calls]]
    yield _told(message)


async def structured(model: Any, prompt: str) -> AsyncIterator[Any]:
    yield (await model.with_structured_output(Loaf).ainvoke(prompt)).kind


def _told(message: Any) -> Mapping[str, Any]:
    metadata = message.response_metadata
    return {
        "finish": metadata.get("finish_reason") or metadata.get("incomplete_details"),
        "refusal": message.additional_kwargs.get("refusal"),
        "blocks": [b for b in message.content_blocks if b["type"] not in ("text", "tool_call")],
    }


def ways(url: str) -> Mapping[str, Ask]:
    found: dict[str, Ask] = {}
    for api in ("chat", "responses"):
        model = ChatOpenAI(
            base_url=url, api_key="caller", model="m", use_responses_api=api == "responses"
        )
        tools = model.bind_tools([look_up])
        found[api] = partial(whole, tools)
        found[f"{api}, streamed"] = partial(streamed, tools)
        found[f"{api}, structured"] = partial(structured, model)
    return found


run(ways)
