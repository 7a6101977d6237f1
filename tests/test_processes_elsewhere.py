"""`serve --processes` before a cascade whose strong scorer is elsewhere, and comes and goes."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from engines_elsewhere import Double, answering, free_port
from test_cli_serve import serving
from test_processes import metric

from shieldgate.policy import load_book
from shieldgate.prompt import TEMPLATES
from shieldgate.scoring.cascade import guideline_digest
from shieldgate.scoring.tokenizer_files import load_tokenizer

STARTER = Path(__file__).parents[1] / "service/shieldgate/starter"
SURE, ASKED = "shieldgemma/harassment", "shieldgemma/hate"


def cascade_file(path: Path, second: str) -> Path:
    """Write a cascade whose first scorer, the starter, is always sure of one policy."""
    policy = load_book().policies[SURE]
    [starter] = {name for name, _ in policy.calibrations if name.startswith("starter@")}
    band = {
        "guideline": guideline_digest(policy.guidelines["prompt"]),
        "thresholds": [0.0, 1.0],
        "safe": {"beyond": 100.0, "margin": -7.0},
    }
    told = {
        "first": {"model": "starter"},
        "scorers": [starter, second],
        "bands": {SURE: {"prompt": band}},
    }
    path.write_text(json.dumps(told))  # JSON is YAML
    return path


@asynccontextmanager
async def elsewhere(port: int) -> AsyncIterator[Double]:
    """An engine that comes to a port and leaves it; it finds everything harmless."""
    template, encoder = load_tokenizer(str(STARTER)).encoder(TEMPLATES["chat"])
    words = template.positive, template.negative
    double = Double("vllm", (encoder.token(words[0]), encoder.token(words[1])), words)
    double.margin = lambda prompt: -3.0
    async with answering(double, port):
        yield double


async def test_several_gateways_wait_for_a_scorer_elsewhere_and_follow_it(tmp_path: Path) -> None:
    port = free_port()
    cascade = cascade_file(tmp_path / "cascade.yaml", "guard-may")
    arguments = (
        *("--model", f"http://127.0.0.1:{port}/v1", "--tokenizer", STARTER),
        *("--scorer-name", "guard-may", "--cascade", cascade, "--processes", "2"),
    )
    with serving(*arguments) as server:
        url = (await asyncio.to_thread(server.line, "listening"))["url"]
        await asyncio.to_thread(
            server.line, "the scorer is not there, and is opened again"
        )  # and not ended, with all others
        # A connection for each request, so that both gateways are asked.
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

            async def until(status: int, text: str) -> None:
                for _ in range(8):  # so that each gateway is very likely among them
                    while (reply := await client.get("/readyz")).status_code != status:
                        await asyncio.sleep(0.1)
                    assert reply.json() == {"status": text}

            async def until_told(ready: int) -> None:
                while await asyncio.to_thread(metric, url, "shieldgate_ready") != ready:
                    await asyncio.sleep(0.1)

            async def screened(text: str) -> httpx.Response:
                asked = {"prompt": text, "policies": [SURE, ASKED]}
                return await client.post("/v1/screen", json=asked)

            await until(503, "loading")
            async with elsewhere(port) as double:
                await until(200, "ready")
                tried = len(double.requests)
                reply = await screened("bread")
                assert reply.status_code == 200, reply.text
                judged = reply.json()["results"][0]["policies"]
                assert (judged[SURE]["margin"], judged[ASKED]["margin"]) == (-7.0, -3.0)
                assert len(double.requests) == tried + 1
                assert len(double.requests[-1][0]["prompt"]) == len(judged) - 1
            failed = await screened("tea")
            assert failed.status_code == 503
            await until(503, "waiting for the scorer")
            await until_told(0)
            async with elsewhere(port):
                await until(200, "ready")
                assert (await screened("tea")).status_code == 200
                await until_told(1)
                for scorer in ("first", "second"):
                    counted = metric, url, "shieldgate_cascade_scores_total"
                    assert await asyncio.to_thread(*counted, scorer=scorer) >= 2
        assert await asyncio.to_thread(server.end, signal.SIGTERM) == 0
    assert "Traceback" not in server.raw
