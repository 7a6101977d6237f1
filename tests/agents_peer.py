"""Runs an agent of openai-agents at its default, against a URL; writes what its user sees.

A program of its own, for the Python that has that library.
"""

import asyncio
import json
import sys
from typing import Any

from agents import (
    Agent,
    Runner,
    function_tool,
    set_default_openai_client,
    set_tracing_disabled,
)
from openai import AsyncOpenAI


@function_tool
def look_up(q: str) -> str:
    """Look something up."""
    return f"{q} is baked"


async def seen(agent: Agent, prompt: str, *, stream: bool) -> Any:
    try:
        if not stream:
            return (await Runner.run(agent, prompt)).final_output
        run = Runner.run_streamed(agent, prompt)
        async for _ in run.stream_events():
            pass
        return run.final_output
    except Exception as raised:
        return [type(raised).__name__, str(raised)]


async def main(url: str, *prompts: str) -> None:
    set_tracing_disabled(True)
    set_default_openai_client(AsyncOpenAI(base_url=url, api_key="caller", max_retries=0))
    agent = Agent(name="baker", instructions="Be brief.", tools=[look_up], model="m")
    for prompt in prompts:
        found = [await seen(agent, prompt, stream=stream) for stream in (False, True)]
        sys.stdout.write(f"{json.dumps(found)}\n")


asyncio.run(main(*sys.argv[1:]))
