"""Asks for objects by instructor; a program for the Python that has it."""

from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import instructor
from openai import AsyncOpenAI
from pydantic import BaseModel
from what_is_seen import Ask, run


class Loaf(BaseModel):
    """A loaf of bread."""

    kind: str


def _asked(prompt: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": prompt}]}


async def whole(client: Any, prompt: str, **more: Any) -> AsyncIterator[Any]:
    loaf = await client.chat.completions.create(response_model=Loaf, **_asked(prompt), **more)
    yield loaf.kind


async def streamed(client: Any, prompt: str) -> AsyncIterator[Any]:
    before = ""
    async for loaf in client.chat.completions.create_partial(response_model=Loaf, **_asked(prompt)):
        said = loaf.kind or ""
        yield said.removeprefix(before)
        before = said


def ways(url: str) -> Mapping[str, Ask]:
    found: dict[str, Ask] = {}
    for name, mode in (("tools", instructor.Mode.TOOLS), ("json", instructor.Mode.JSON_SCHEMA)):
        client = instructor.from_openai(AsyncOpenAI(base_url=url, api_key="caller"), mode=mode)
        found[name] = partial(whole, client)
        found[f"{name}, streamed"] = partial(streamed, client)
        found[f"{name}, max_retries=0"] = partial(whole, client, max_retries=0)
    return found


run(ways)
