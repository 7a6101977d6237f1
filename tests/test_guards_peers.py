"""Gateways that we didn't write, with us as their guard."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fakes import FakeScorer
from redis_server import free_port
from serving import Gateway, gateway
from test_keys import entry, written
from upstream import Script, data_of, serving, streamed, text_of, whole

from shieldgate.errors import ScorerUnavailable

MASTER = "sk-of-the-proxy-0123456789abcdef0123456789"
CONFIG = """
model_list:
- model_name: m
  litellm_params: {{model: openai/m, api_base: "{upstream}/v1", api_key: of-upstream}}
litellm_settings: {{num_retries: 0}}
guardrails:
- guardrail_name: shieldgate
  litellm_params:
    guardrail: generic_guardrail_api
    mode: [pre_call, post_call]
    api_base: {guard}
    api_key: sg-one
    default_on: true
    unreachable_fallback: fail_closed
    streaming_transform_mode: incremental_diff
"""


class Baker(Script):
    """A model that answers badly where it is asked to."""

    def reply(self, request: dict[str, Any] | None) -> Any:
        assert request
        said = json.dumps(request["messages"])
        text = (
            "at first kind words, and more of them, but then so crude"
            if "badly" in said
            else ("a kind answer")
        )
        return streamed(text) if request.get("stream") else whole(text)


async def output(python: str, program: str, *arguments: str) -> list[Any]:
    process = await asyncio.create_subprocess_exec(
        python, Path(__file__).with_name(program), *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return [json.loads(line) for line in out.splitlines() if line[:1] in (b"[", b"{")]


@asynccontextmanager
async def proxy(program: str, folder: Path, served: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with serving(Baker()) as upstream:
        config = folder / "litellm.yaml"
        config.write_text(CONFIG.format(upstream=upstream, guard=served.url))
        url = f"http://127.0.0.1:{(port := free_port())}"
        process = await asyncio.create_subprocess_exec(
            *(program, "--config", config, "--host", "127.0.0.1", "--port", str(port)),
            env={**os.environ, "LITELLM_MASTER_KEY": MASTER},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with httpx.AsyncClient() as client:
                for _ in range(600):
                    try:
                        await client.get(f"{url}/health/liveliness")
                        break
                    except httpx.TransportError:
                        await asyncio.sleep(0.2)
            async with openai.AsyncOpenAI(
                base_url=f"{url}/v1", api_key=MASTER, max_retries=0
            ) as asking:
                yield asking
        finally:
            process.terminate()
            await process.wait()


async def test_litellm_s_proxy_is_guarded_both_ways(
    scorer: FakeScorer, litellm_proxy: str, tmp_path: Path
) -> None:
    keys = written(tmp_path, entry("one", "sg-one"))
    async with (
        gateway(scorer, keys=keys) as served,
        proxy(litellm_proxy, tmp_path, served) as client,
    ):

        async def ask(prompt: str, *, stream: bool = False) -> Any:
            said = [{"role": "user", "content": prompt}]
            reply = await client.chat.completions.create(model="m", messages=said, stream=stream)
            if not stream:
                return reply.choices[0].message.content
            left = ""
            try:
                async for chunk in reply:
                    left += "".join(c.delta.content or "" for c in chunk.choices)
            except openai.APIError as refused:
                return left, str(refused)
            return left, None

        assert await ask("how are you?") == "a kind answer"
        judged = {(e.prompt, e.response) for e, _ in scorer.calls}
        assert judged == {("how are you?", None), ("how are you?", "a kind answer")}
        assert await ask("how are you?", stream=True) == ("a kind answer", None)
        with pytest.raises(openai.BadRequestError, match=r"prompt was blocked.*test/threat"):
            await ask("so crude")
        with pytest.raises(openai.BadRequestError, match=r"answer was blocked.*test/threat"):
            await ask("answer badly")
        left, why = await ask("answer badly", stream=True)
        assert left.startswith("at first kind")
        assert "crude" not in left
        assert "answer was blocked" in str(why)
        growing = [e.growing for e, _ in scorer.calls if e.response and "first kind" in e.response]
        assert any(growing)
        scorer.failure = ScorerUnavailable("The scorer failed.")
        with pytest.raises(openai.APIStatusError) as closed:
            await ask("another")
        assert closed.value.status_code >= 500


@asynccontextmanager
async def portkey(folder: str) -> AsyncIterator[httpx.AsyncClient]:
    """Portkey's gateway, and a client of it."""
    port = free_port()
    server = Path(folder) / "node_modules/@portkey-ai/gateway/build/start-server.js"
    process = await asyncio.create_subprocess_exec(
        *("node", server, f"--port={port}", "--headless"), stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            for _ in range(150):
                try:
                    await client.get("/")
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.2)
            yield client
    finally:
        process.terminate()
        await process.wait()


async def test_portkey_s_gateway_is_guarded_both_ways(
    scorer: FakeScorer, portkey_folder: str, tmp_path: Path
) -> None:
    keys = written(tmp_path, entry("one", "sg-one"))
    script = Baker()
    async with (
        gateway(scorer, keys=keys) as served,
        serving(script) as upstream,
        portkey(portkey_folder) as client,
    ):

        async def ask(
            prompt: str, path: str = "/v1/chat/completions", guard: str = served.url, **more: Any
        ) -> httpx.Response:
            webhook = {
                "webhookURL": f"{guard}/v1/guards/portkey",
                "headers": {"Authorization": "Bearer sg-one"},
                "failOnError": True,
            }
            guardrails = [{"default.webhook": webhook, "deny": True}]
            config = {"provider": "openai", "api_key": "of-upstream", "custom_host": upstream}
            config |= {"input_guardrails": guardrails, "output_guardrails": guardrails}
            headers = {"x-portkey-config": json.dumps(config)}
            said = {"messages": [{"role": "user", "content": prompt}], "model": "m", **more}
            script.requests.clear()
            scorer.calls.clear()
            return await client.post(path, json=said, headers=headers)

        good = await ask("how are you?")
        assert good.json()["choices"][0]["message"]["content"] == "a kind answer"
        judged = [(e.prompt, e.response) for e, _ in scorer.calls]
        assert judged == [("how are you?", None), ("how are you?", "a kind answer")]

        bad = await ask("so crude")
        assert bad.status_code == 446
        [hook] = bad.json()["hook_results"]["before_request_hooks"]
        assert hook["checks"][0]["data"]["responseData"]["violated"] == ["test/threat"]
        assert script.requests == []

        answer = await ask("answer badly")
        assert answer.status_code == 446
        assert len(script.requests) == 1
        assert "so crude" not in answer.text

        # As docs/guards.md says: answers that are streamed, and Responses, are not screened.
        stream = await ask("answer badly", stream=True)
        assert "so crude" in text_of(data_of(stream.text))
        await ask("bread", "/v1/responses", input="so crude")
        assert scorer.calls == []
        assert "so crude" in json.dumps(script.requests)

        nobody = await ask("how are you?", guard=f"http://127.0.0.1:{free_port()}")
        assert nobody.status_code == 446
        scorer.failure = ScorerUnavailable("The scorer failed.")
        assert (await ask("another")).status_code == 446
        assert script.requests == []


async def test_nemo_guardrails_blocks_by_both_engines(
    served: Gateway, nemo_guardrails: str
) -> None:
    good, bad = await output(nemo_guardrails, "nemo_peer.py", served.url, "kind", "so crude")
    assert all("can't respond" not in said for said in good)
    assert all("can't respond" in said for said in bad)


async def test_azure_s_client_reads_severities_and_errors(
    scorer: FakeScorer, azure_content_safety: str, tmp_path: Path
) -> None:
    keys = written(tmp_path, entry("one", "sg-one"))
    async with gateway(scorer, keys=keys) as served:
        texts = ("kind", "so crude", "x" * 10_001)
        good, bad, long = await output(azure_content_safety, "azure_peer.py", served.url, *texts)
        scorer.failure = ScorerUnavailable("The scorer failed.")
        [failed] = await output(azure_content_safety, "azure_peer.py", served.url, "another")
    assert good == {"Hate": 0, "SelfHarm": 0, "Sexual": 0, "Violence": 0}
    assert bad == {"Hate": 6, "SelfHarm": 0, "Sexual": 0, "Violence": 0}
    assert long == [400, "InvalidRequestBody"]
    assert failed == [503, "ServiceUnavailable"]
