"""A gateway before a scripted model."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import openai
from fakes import FakeScorer
from serving import Gateway, gateway
from structlog.testing import capture_logs
from upstream import Script, data_of, serving, whole

from shieldgate.upstream import Upstream


@dataclass
class Front:
    """A gateway, the model behind it, and ways to ask."""

    gateway: Gateway
    script: Script

    def body(self, prompt: str, **more: Any) -> dict[str, Any]:
        return {"model": "m", "messages": [{"role": "user", "content": prompt}], **more}

    async def ask(self, prompt: str = "bread", **more: Any) -> httpx.Response:
        body = self.body(prompt, **more)
        return await self.gateway.client.post("/v1/chat/completions", json=body)

    async def answer(self, prompt: str = "bread", **more: Any) -> dict[str, Any]:
        reply = await self.ask(prompt, **more)
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    async def stream(self, prompt: str = "bread", **more: Any) -> list[Any]:
        """Ask for a stream and read its events to the end."""
        reply = await self.ask(prompt, stream=True, **more)
        assert reply.status_code == 200, reply.text
        assert reply.headers["content-type"].startswith("text/event-stream")
        return data_of(reply.text)

    @asynccontextmanager
    async def streaming(self, prompt: str = "bread", **more: Any) -> AsyncIterator[httpx.Response]:
        """Ask for a stream and read it as it comes."""
        body = self.body(prompt, stream=True, **more)
        async with self.gateway.client.stream("POST", "/v1/chat/completions", json=body) as reply:
            yield reply

    @asynccontextmanager
    async def client(self) -> AsyncIterator[openai.AsyncOpenAI]:
        """The official client."""
        async with openai.AsyncOpenAI(
            base_url=f"{self.gateway.url}/v1", api_key="caller", max_retries=0
        ) as client:
            yield client


class Open(Protocol):
    """Opens a front; `body` is what the model answers, `profile` changes the default profile.

    `silence` is the longest one of the model, in seconds.
    """

    def __call__(
        self,
        body: Any = None,
        *,
        profile: dict[str, Any] | None = None,
        silence: float = 300.0,
        **how: Any,
    ) -> AbstractAsyncContextManager[Front]: ...


def opening(scorer: FakeScorer) -> Open:
    @asynccontextmanager
    async def opened(
        body: Any = None,
        *,
        profile: dict[str, Any] | None = None,
        silence: float = 300.0,
        **how: Any,
    ) -> AsyncIterator[Front]:
        script = Script(whole("a kind answer") if body is None else body)
        with capture_logs() as lines:
            async with (
                serving(script) as url,
                gateway(
                    scorer,
                    upstream=Upstream(url, silence_seconds=silence),
                    profile=profile,
                    **how,
                ) as running,
            ):
                yield Front(running, script)
        assert not [line for line in lines if line["log_level"] == "error"]

    return opened
