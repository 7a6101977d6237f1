"""LiteLLM's proxy, which we didn't write, with its guardrail `decision_model` before us."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import FakeScorer
from serving import Gateway, gateway
from upstream import Script, serving, whole

from shieldgate.errors import ScorerUnavailable

# As docs/decisions.md has it, with the addresses of the test and a check that is only logged.
CONFIG = """
model_list:
  - model_name: chat
    litellm_params: {{model: openai/scripted, api_base: {upstream}, api_key: none}}
  - model_name: shieldgate
    litellm_params: {{model: {wire}/default, api_base: {guard}, api_key: none}}
guardrails:
  - guardrail_name: shieldgate
    litellm_params:
      guardrail: decision_model
      mode: [pre_call, post_call]
      default_on: true
      decision_model: shieldgate
      checks:
        - {{name: test/threat, instructions: as the policy says, threshold: 0.5}}
        - {{name: spam, instructions: as the policy says, threshold: 0.5, action: log}}
"""
MASTER_KEY = f"sk-{'7c' * 32}"
START_SECONDS = 90


@asynccontextmanager
async def proxied(
    program: str, folder: Path, wire: str, guard: Gateway, upstream: str
) -> AsyncIterator[httpx.AsyncClient]:
    """Run LiteLLM's proxy before a model, with our gateway as its guard."""
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(wire=wire, guard=guard.url, upstream=upstream))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    environment["LITELLM_MASTER_KEY"] = MASTER_KEY
    environment.pop("PYTHONPATH", None)
    process = await asyncio.create_subprocess_exec(
        *(program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)),
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    shown = {"authorization": f"Bearer {MASTER_KEY}"}
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers=shown, timeout=30
        ) as client:
            async with asyncio.timeout(START_SECONDS):
                while not await _answers(client):
                    assert process.returncode is None, "LiteLLM's proxy ended"
                    await asyncio.sleep(0.5)
            yield client
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health/liveliness")).status_code == 200
    except httpx.TransportError:
        return False


async def ask(proxy: httpx.AsyncClient, prompt: str, **more: Any) -> httpx.Response:
    body = {"model": "chat", "messages": [{"role": "user", "content": prompt}], **more}
    return await proxy.post("/v1/chat/completions", json=body)


class Model(Script):
    """Answers crudely where it is asked to."""

    def reply(self, request: dict[str, Any] | None) -> Any:
        said = request["messages"][-1]["content"] if request else ""
        return whole("such a crude answer" if "badly" in said else "a kind answer")


@pytest.mark.timeout(200)
@pytest.mark.parametrize("wire", ["openai", "hosted_vllm"])
async def test_its_guardrail_blocks_logs_and_fails_closed(
    scorer: FakeScorer, litellm_proxy: str, tmp_path: Path, wire: str
) -> None:
    script = Model()
    async with (
        serving(script) as upstream,
        gateway(scorer) as guard,
        proxied(litellm_proxy, tmp_path, wire, guard, upstream) as proxy,
    ):
        good = await ask(proxy, "bread")
        assert good.json()["choices"][0]["message"]["content"] == "a kind answer"
        assert {policies for _, policies in scorer.calls} == {("test/threat", "test/spam")}

        asked = len(script.requests)
        blocked = await ask(proxy, "a crude prompt")
        assert blocked.status_code == 400
        assert "Violated decision model guardrail policy" in blocked.text
        assert "test/threat" in blocked.text
        assert len(script.requests) == asked

        answered = await ask(proxy, "answer badly")
        assert answered.status_code == 400
        assert "crude answer" not in answered.text

        # Spam is only logged.
        assert (await ask(proxy, "buy")).status_code == 200

        scorer.failure = ScorerUnavailable("The scorer failed.")
        failed = await ask(proxy, "rye")
        assert failed.status_code == 502
        assert "Decision model guardrail failed to respond" in failed.text
        assert len(script.requests) == asked + 2
