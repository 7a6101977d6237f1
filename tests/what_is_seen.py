"""What users of a client see: shared by programs for Pythons that have such clients.

A program gets the URLs of gateways, each with its prompts by their names, as JSON. It writes for
each URL, way to ask and prompt what was shown, what a program was told beside it, and what was
raised.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

Ask = Callable[[str], AsyncIterator[Any]]
"""Asks a prompt; gives text as it is shown, and mappings with what is told beside it."""


async def seen(ask: Ask, prompt: str) -> dict[str, Any]:
    found: dict[str, Any] = {"shown": ""}
    try:
        async for part in ask(prompt):
            if isinstance(part, Mapping):
                found |= {name: value for name, value in part.items() if value}
            else:
                found["shown"] += part or ""
    except Exception as raised:
        found["raised"] = f"{type(raised).__name__}: {raised}"
    return found


async def all_seen(ways: Mapping[str, Ask], prompts: Mapping[str, str]) -> dict[str, Any]:
    """Ask all prompts in all ways at once, because clients wait before they ask again."""
    asked = {
        (way, name): seen(ask, f"{prompt} ({way})")
        for way, ask in ways.items()
        for name, prompt in prompts.items()
    }
    answers = await asyncio.gather(*asked.values())
    found: dict[str, Any] = {way: {} for way in ways}
    for (way, name), answer in zip(asked, answers, strict=True):
        found[way][name] = answer
    return found


def run(ways: Callable[[str], Mapping[str, Ask]]) -> None:
    async def main() -> dict[str, Any]:
        asked = json.loads(sys.argv[-1])
        found = await asyncio.gather(*(all_seen(ways(url), asked[url]) for url in asked))
        return dict(zip(asked, found, strict=True))

    json.dump(asyncio.run(main()), sys.stdout)
