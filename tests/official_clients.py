"""Asks by the official clients, of OpenAI and Anthropic, at their defaults."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from what_is_seen import Ask

TOOL = {
    "name": "look_up",
    "description": "Look something up.",
    "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
}
BAKED = "bread is baked"


def user(prompt: str) -> dict[str, Any]:
    return {"role": "user", "content": prompt}


async def chat(api: AsyncOpenAI, prompt: str) -> AsyncIterator[Any]:
    said: list[Any] = [user(prompt)]
    asked: Any = {"model": "m", "tools": [{"type": "function", "function": TOOL}]}
    [choice] = (await api.chat.completions.create(messages=said, **asked)).choices
    for call in choice.message.tool_calls or ():
        said += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": BAKED}]
        [choice] = (await api.chat.completions.create(messages=said, **asked)).choices
    yield choice.message.content
    yield {"refusal": choice.message.refusal, "finish": choice.finish_reason}


async def chat_streamed(api: AsyncOpenAI, prompt: str) -> AsyncIterator[Any]:
    said: list[Any] = [user(prompt)]
    asked: Any = {"model": "m", "tools": [{"type": "function", "function": TOOL}], "stream": True}
    call: Any = None
    async for chunk in await api.chat.completions.create(messages=said, **asked):
        for choice in chunk.choices:
            yield choice.delta.content
            yield {"refusal": choice.delta.refusal, "finish": choice.finish_reason}
            call = call or (choice.delta.tool_calls or [None])[0]
    if call:
        function = {"name": call.function.name, "arguments": '{"q": "bread"}'}
        calls = [{"id": call.id, "type": "function", "function": function}]
        said.append({"role": "assistant", "content": None, "tool_calls": calls})
        said.append({"role": "tool", "tool_call_id": call.id, "content": BAKED})
        async for chunk in await api.chat.completions.create(messages=said, **asked):
            yield chunk.choices[0].delta.content


async def respond(api: AsyncOpenAI, prompt: str) -> AsyncIterator[Any]:
    said: list[Any] = [user(prompt)]
    asked: Any = {"model": "m", "tools": [{"type": "function", **TOOL}]}
    response = await api.responses.create(input=said, **asked)
    for call in [item for item in response.output if item.type == "function_call"]:
        output = {"type": "function_call_output", "call_id": call.call_id, "output": BAKED}
        said += [call.to_dict(), output]
        response = await api.responses.create(input=said, **asked)
    yield response.output_text
    yield _told(response)


async def respond_streamed(api: AsyncOpenAI, prompt: str) -> AsyncIterator[Any]:
    said: list[Any] = [user(prompt)]
    asked: Any = {"model": "m", "tools": [{"type": "function", **TOOL}], "stream": True}
    while True:
        calls = []
        async for event in await api.responses.create(input=said, **asked):
            if event.type == "response.output_text.delta":
                yield event.delta
            elif event.type in ("response.completed", "response.incomplete"):
                yield _told(event.response)
                calls = [i for i in event.response.output if i.type == "function_call"]
        if not calls:
            break
        for call in calls:
            output = {"type": "function_call_output", "call_id": call.call_id, "output": BAKED}
            said += [call.to_dict(), output]


def _told(response: Any) -> Mapping[str, Any]:
    parts = [p for i in response.output if i.type == "message" for p in i.content]
    refusals = [part.refusal for part in parts if part.type == "refusal"]
    why = response.incomplete_details
    return {"refusal": "".join(refusals), "finish": why and why.reason, "status": response.status}


async def message(api: AsyncAnthropic, prompt: str) -> AsyncIterator[Any]:
    said: list[Any] = [user(prompt)]
    reply = await api.messages.create(messages=said, **_ASKED)
    while used := _used(reply):
        said += used
        reply = await api.messages.create(messages=said, **_ASKED)
    yield "".join(block.text for block in reply.content if block.type == "text")
    yield {"finish": reply.stop_reason, "details": str(reply.stop_details or "")}


async def message_streamed(api: AsyncAnthropic, prompt: str) -> AsyncIterator[Any]:
    said: list[Any] = [user(prompt)]
    while True:
        async with api.messages.stream(messages=said, **_ASKED) as stream:
            async for text in stream.text_stream:
                yield text
            reply = await stream.get_final_message()
        yield {"finish": reply.stop_reason, "details": str(reply.stop_details or "")}
        if not (used := _used(reply)):
            break
        said += used


_SCHEMA = {"name": TOOL["name"], "input_schema": TOOL["parameters"]}
_ASKED: dict[str, Any] = {"model": "m", "max_tokens": 100, "tools": [_SCHEMA]}


def _used(reply: Any) -> list[Any]:
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": BAKED}
        for block in reply.content
        if block.type == "tool_use"
    ]
    if not results:
        return []
    said = {"role": "assistant", "content": [block.to_dict() for block in reply.content]}
    return [said, {"role": "user", "content": results}]


async def decide(api: AsyncOpenAI, prompt: str) -> AsyncIterator[Any]:
    asked: Any = [{"type": "predicate", "name": "test/threat", "instructions": ""}]
    reply = await api.decisions.create(model="m", input=prompt, questions=asked)
    yield f"{reply.answers[0].probability:.2f}"  # type: ignore[union-attr]


async def embed(api: AsyncOpenAI, prompt: str) -> AsyncIterator[Any]:
    reply = await api.embeddings.create(model="m", input=prompt, encoding_format="float")
    yield str(reply.data[0].embedding)


@asynccontextmanager
async def ways(url: str) -> AsyncIterator[Mapping[str, Ask]]:
    """Open the clients; their ways to ask are named after the routes."""
    async with (
        AsyncOpenAI(base_url=f"{url}/v1", api_key="caller") as openai,
        AsyncAnthropic(base_url=url, api_key="caller") as anthropic,
    ):
        yield {
            "chat": partial(chat, openai),
            "chat, streamed": partial(chat_streamed, openai),
            "responses": partial(respond, openai),
            "responses, streamed": partial(respond_streamed, openai),
            "messages": partial(message, anthropic),
            "messages, streamed": partial(message_streamed, anthropic),
            "decisions": partial(decide, openai),
            "embeddings": partial(embed, openai),
        }
