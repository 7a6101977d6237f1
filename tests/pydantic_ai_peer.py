"""Asks by an agent of pydantic-ai; a program for the Python that has it."""

from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from what_is_seen import Ask, run


class Loaf(BaseModel):
    """A loaf of bread."""

    kind: str


def look_up(q: str) -> str:
    """Look something up."""
    return f"{q} is baked"


async def whole(agent: Agent[None, str], prompt: str) -> AsyncIterator[Any]:
    result = await agent.run(prompt)
    yield result.output
    yield _told(result.response)


async def streamed(agent: Agent[None, str], prompt: str) -> AsyncIterator[Any]:
    async with agent.run_stream(prompt) as result:
        # By default what comes within a tenth of a second comes together, or is lost to an error.
        async for text in result.stream_text(delta=True, debounce_by=None):
            yield text
        yield _told(result.response)


async def structured(agent: Agent[None, Loaf], prompt: str) -> AsyncIterator[Any]:
    yield (await agent.run(prompt)).output.kind


def _told(response: Any) -> Mapping[str, Any]:
    details = response.provider_details or {}
    return {"finish": response.finish_reason, "refusal": details.get("refusal")}


def ways(url: str) -> Mapping[str, Ask]:
    provider = OpenAIProvider(base_url=url, api_key="caller")
    models: dict[str, Any] = {
        "chat": OpenAIChatModel("m", provider=provider),
        "responses": OpenAIResponsesModel("m", provider=provider),
    }
    found: dict[str, Ask] = {}
    for api, model in models.items():
        agent = Agent(model, tools=[look_up])
        found[api] = partial(whole, agent)
        found[f"{api}, streamed"] = partial(streamed, agent)
        found[f"{api}, structured"] = partial(structured, Agent(model, output_type=Loaf))
    return found


run(ways)
