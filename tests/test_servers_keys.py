"""A key goes to the server that it was given for, and to no other that the same command asks."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from typer.testing import CliRunner

from shieldgate.cli import app
from shieldgate.errors import ConfigurationError

pytestmark = pytest.mark.usefixtures("restored_logging")

KEY = "sk-canary-7f31"


@dataclass
class Listener:
    """A server that hears the keys that it is shown, and has nothing to say."""

    url: str = ""
    heard: set[str | None] = field(default_factory=set)

    async def answer(self, request: web.Request) -> web.Response:
        self.heard.add(request.headers.get("authorization"))
        return web.json_response({}, status=404)


@asynccontextmanager
async def listening(path: str = "") -> AsyncIterator[Listener]:
    listener = Listener()
    server = web.Application()
    server.router.add_route("*", "/{path:.*}", listener.answer)
    runner = web.AppRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        listener.url = f"http://127.0.0.1:{runner.addresses[0][1]}{path}"
        yield listener
    finally:
        await runner.cleanup()


@pytest.fixture
def run(
    tmp_path: Path, hot_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs a command that ends in a refusal, which it gives."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "zebra", "labels": {"hate": 1}}) + "\n")
    monkeypatch.chdir(tmp_path)

    def refusal(command: str, *given: str) -> str:
        words = [command, str(rows)] if command == "evaluate" else [command]
        more = ["--tokenizer", str(hot_checkpoint)]
        result = CliRunner().invoke(app, [*words, *given, *more])
        assert isinstance(result.exception, ConfigurationError), (result.output, result.exception)
        return str(result.exception)

    return refusal


SENT = {f"Bearer {KEY}"}


async def test_doctor_shows_a_server_no_key_of_another(run: Callable[..., str]) -> None:
    async with listening("/v1") as asked, listening("/v1") as other:
        await asyncio.to_thread(run, "doctor", asked.url, "--model-key", KEY)
        assert asked.heard == SENT
        asked.heard.clear()
        await asyncio.to_thread(run, "doctor", asked.url, "--model", other.url, "--model-key", KEY)
        assert (asked.heard, other.heard) == ({None}, set())


async def test_a_comparison_shows_an_engine_no_key_of_another(run: Callable[..., str]) -> None:
    async with listening("/v1") as mine, listening("/v1") as other:

        async def compare(a: str, b: str, *model: str) -> str:
            given = ("--compare", a, b, *model, "--model-key", KEY)
            return await asyncio.to_thread(run, "evaluate", *given)

        assert "Say by --model URL whose it is" in await compare(mine.url, other.url)
        assert mine.heard == other.heard == set()
        await compare(mine.url, "starter")
        assert mine.heard == SENT
        await compare(other.url, mine.url, "--model", mine.url)
        await compare(other.url, "starter", "--model", mine.url)
        assert other.heard == {None}


async def test_a_comparison_shows_a_gateway_no_key_of_another(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIELDGATE_GATEWAY_KEY", KEY)
    async with listening() as mine, listening() as other:

        async def compare(a: str, b: str, *url: str) -> str:
            return await asyncio.to_thread(run, "evaluate", "--compare", a, b, *url)

        assert "Say by --url URL whose it is" in await compare(mine.url, other.url)
        assert mine.heard == other.heard == set()
        await compare(mine.url, "starter")
        await compare(mine.url, other.url, "--url", mine.url)
        assert mine.heard == SENT
        await compare(other.url, mine.url, "--url", mine.url)
        assert other.heard == {None}


async def test_a_gateway_beside_a_comparison_is_one_of_its_sides(run: Callable[..., str]) -> None:
    async with listening() as gateway, listening("/v1") as engine:
        refused = await asyncio.to_thread(
            run, "evaluate", "--compare", "starter", engine.url, "--url", gateway.url
        )
        assert "Give one of --scores, --url and --compare" in refused
        # The other side is a model all the same.
        given = ("--compare", engine.url, gateway.url, "--url", gateway.url)
        await asyncio.to_thread(run, "evaluate", *given)
        assert (engine.heard, gateway.heard) == ({None}, set())
