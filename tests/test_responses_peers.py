"""Clients and servers that we didn't write, at their defaults."""

import asyncio
import json
from pathlib import Path
from typing import Any

from fakes import FakeScorer
from responding import Respond, call, message, responding, response, streamed
from upstream import Script

from shieldgate.errors import ScorerUnavailable

AGENT = Path(__file__).with_name("agents_peer.py")


class Baker(Script):
    """A model that calls a tool where it is asked to, and answers as it is asked to."""

    def reply(self, request: dict[str, Any] | None) -> Any:
        assert request
        said = json.dumps(request["input"])
        item = message("a kind answer")
        if "function_call_output" in said:
            item = message("it is baked")
        elif "tool" in said:
            item = call('{"q": "bread"}')
        elif "badly" in said:
            item = message("well, this gets so crude and on")
        return streamed(item) if request.get("stream") else response(item)


async def asked(program: str, front: Respond, *prompts: str) -> list[Any]:
    """Ask by an agent, whole and streamed; what its user sees of each prompt."""
    process = await asyncio.create_subprocess_exec(
        program, AGENT, f"{front.gateway.url}/v1", *prompts, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return [json.loads(line) for line in out.splitlines()]


async def test_openai_agents_at_its_default(scorer: FakeScorer, openai_agents: str) -> None:
    async with responding(scorer, script=Baker()) as front:
        good, tool, blocked_in, blocked_out = await asked(
            openai_agents, front, "hello", "use the tool", "so crude", "answer badly"
        )
        assert good == ["a kind answer"] * 2
        assert tool == ["it is baked"] * 2
        assert front.script.requests[-1]["path"] == "/v1/responses"
        for name, said in blocked_in:
            assert name == "BadRequestError"
            assert "The prompt was blocked" in said
        for name, said in blocked_out:
            assert name == "ModelBehaviorError"
            assert "content_filter" in said
        scorer.failure = ScorerUnavailable("The scorer failed.")
        [failed] = await asked(openai_agents, front, "another")
        for name, said in failed:
            assert (name, "503" in said) == ("InternalServerError", True)
