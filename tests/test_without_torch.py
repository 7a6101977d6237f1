"""`pip install shieldgate` alone serves a gateway before a scorer elsewhere."""

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
from engines_elsewhere import Double, answering, free_port
from test_cli_serve import PROGRAM, screened, serving
from test_engines_elsewhere import prompts, tokenizer

from shieldgate.scoring.prompts import PromptBuilder

__all__ = ["prompts", "tokenizer"]  # fixtures

# What the extras bring.
ABSENT = "torch transformers accelerate safetensors datasets pyarrow peft"

BLOCK = f"""
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT.split()!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables under which Python finds none of the extras' packages."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    path = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{tmp_path}:{path}" if path else str(tmp_path)}


def run(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.fixture
def tokenizer_alone(tokenizer: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())
    return folder


async def test_it_serves_scores_and_checks_without_what_the_extras_bring(
    environment: dict[str, str], prompts: PromptBuilder, tokenizer_alone: Path
):
    double = Double("vllm", prompts.answers, ("Yes", "No"))
    double.margin = lambda prompt: -4.0

    def use() -> None:
        given = ("--model", url, "--tokenizer", tokenizer_alone)
        without = run(environment, "score", "a text", "--model", "starter")
        assert "shieldgate[local]" in without.stderr, "it is really absent"
        scored = run(environment, "score", "a text", *given, "--json")
        assert scored.returncode == 0, scored.stderr
        checked = run(environment, "policies", "check", *given)
        assert checked.returncode == 0, checked.stderr
        assert "policies" in checked.stdout
        local = run(environment, "policies", "check", "--model", tokenizer_alone)
        assert local.returncode == 0, local.stderr
        arguments = map(str, given)
        variables = {"SHIELDGATE_MODEL_KEY": "sk-hidden", **environment}
        with serving(*arguments, afresh=True, **variables) as server:
            gateway = server.line("listening")["url"]
            server.line("ready")
            reply = screened(gateway, "a text").json()
            assert reply["results"][0]["action"] == "allowed"
            assert reply["scorer"]["dtype"] == "vllm 0.32.0"
            assert 'shieldgate_remote_up{server="' in httpx.get(f"{gateway}/metrics").text
            assert server.end(signal.SIGTERM) == 0
            assert "sk-hidden" not in server.raw

    async with answering(double) as url:
        await asyncio.to_thread(use)


async def test_it_waits_for_an_engine_that_is_not_there_yet(
    prompts: PromptBuilder, tokenizer: Path
):
    double = Double("vllm", prompts.answers, ("Yes", "No"))
    port = free_port()
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    def use() -> None:
        model = f"http://127.0.0.1:{port}/v1"
        with serving("--model", model, "--tokenizer", tokenizer) as server:
            gateway = server.line("listening")["url"]
            server.line("the scorer is not there, and is opened again")
            assert httpx.get(f"{gateway}/readyz").status_code == 503
            loop.call_soon_threadsafe(started.set)
            server.line("ready")
            assert screened(gateway, "a text").status_code == 200

    waiting = asyncio.create_task(asyncio.to_thread(use))
    await started.wait()
    async with answering(double, port):
        await waiting
