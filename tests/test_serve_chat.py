"""`shieldgate serve` before a model, as processes: our worker, and a server of others."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from checkpoints import GEMMA_CHAT_TEMPLATE
from test_cli_serve import PROGRAM, Server, refused, serving

from shieldgate.policy import policy_files, shipped_policies
from shieldgate.worker.watermark.keys import new_keys

TALK: dict[str, Any] = {
    "model": "any",
    "messages": [
        {"role": "system", "content": "Count the stars."},
        {"role": "user", "content": "the quick brown fox"},
    ],
    "temperature": 0,
    "max_tokens": 40,
}


@pytest.fixture(scope="module")
def lenient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Policies under which the profile `strict` judges everything and blocks nothing."""
    folder = tmp_path_factory.mktemp("policies")
    for file in policy_files(shipped_policies()):
        text = re.sub(r"^(      shieldgemma/\w+: )0\.3$", r"\g<1>1.0", file.read_text(), flags=re.M)
        (folder / file.name).write_text(text.replace("max_thresholds:", "thresholds:"))
    return folder


def streamed(api: openai.OpenAI, asked: dict[str, Any]) -> str:
    chunks = api.chat.completions.create(**asked, stream=True)
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def until_ready(url: str, server: Server) -> None:
    """Follow the log until all is ready."""
    server.line("worker ready")
    while httpx.get(f"{url}/readyz").status_code != 200:
        server.line("ready")


def test_serve_starts_a_generator_and_stands_before_it(
    hot_checkpoint: Path, lenient: Path, tmp_path: Path
) -> None:
    keys = new_keys(tmp_path / "keys.json")
    arguments = ("--model", hot_checkpoint, "--policies", lenient, "--profile", "strict")
    writing = ("--generator", hot_checkpoint, "--watermark-keys", tmp_path / "keys.json")
    with serving(*arguments, *writing) as server:
        url = server.line("listening")["url"]
        started = server.line("worker started")["process"]
        assert server.line("generator ready")["watermark"] == keys.fingerprint
        until_ready(url, server)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as api:
            whole = api.chat.completions.create(**TALK)
            text = whole.choices[0].message.content
            assert text
            assert whole.usage
            assert whole.usage.completion_tokens == 40
            assert streamed(api, TALK) == text
            assert any(hot_checkpoint.name in m.id for m in api.models.list())

            # A worker that dies is replaced, and until then the server isn't ready.
            os.kill(started, signal.SIGKILL)
            server.line("worker ended")
            assert httpx.get(f"{url}/readyz").json() == {"status": "waiting for the generator"}
            with pytest.raises(openai.InternalServerError) as down:
                api.chat.completions.create(**TALK)
            assert down.value.code == "generator_unavailable"
            assert "retry-after" in down.value.response.headers
            server.line("worker ready")
            assert httpx.get(f"{url}/readyz").status_code == 200
            assert api.chat.completions.create(**TALK).choices[0].message.content == text

        # However the gateway ends, the worker does, too: only then does the pipe of their log.
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        assert not any(str(key) in server.raw for key in keys.keys)


def test_a_generator_that_cannot_be_loaded_stops_the_server(hot_checkpoint: Path) -> None:
    with serving("--model", hot_checkpoint, "--generator", "/no/such/folder") as server:
        assert "there is no such folder" in server.line("stopped")["why"]  # the worker's line
        assert "ended with exit code 1 before it was ready" in server.line("stopped")["why"]
        assert server.process.wait(60) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--upstream", "http://a/v1", "--generator", "b"], "Give one of them"),
        (["--upstream", "http://a/v1", "--template", "blog"], "judges prompts only"),
        (["--max-inputs", "32", "--max-waiting", "16"], "could never be served"),
        (["--generator", "a", "--processes", "2"], "Run 'shieldgate worker' beside"),
        (["--assistant", "b"], "Name one with --generator"),
        (["--watermark-keys", "b"], "Name one with --generator"),
        (["--generator", "a", "--watermark-keys", "/no/such/file"], "keys can't be read"),
        (["--upstream", "http://me:secret@a/v1"], "holds a password"),
    ],
)
def test_settings_that_contradict_each_other_stop_the_start(
    arguments: list[str], expected: str
) -> None:
    said = refused(*arguments)
    assert expected in said
    assert "secret" not in said


@contextmanager
def transformers_serving(program: str, checkpoint: Path) -> Iterator[str]:
    """Run transformers' own server on a free port; gives its base URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "serve", str(checkpoint), "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(
        [*command, "--dtype", "float32", "--attn-implementation", "eager"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    ) as process:
        try:
            assert process.stderr
            assert any("Application startup complete" in line for line in process.stderr)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


@pytest.fixture(scope="module")
def peer(
    transformers_serve: str, hot_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """Transformers' own server with the hot checkpoint: base URL and name of the model."""
    folder = tmp_path_factory.mktemp("peer")
    for file in hot_checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text(GEMMA_CHAT_TEMPLATE)
    with transformers_serving(transformers_serve, folder) as url:
        yield url, str(folder)


def test_a_server_that_we_did_not_write_is_screened_alike(
    peer: tuple[str, str], hot_checkpoint: Path, lenient: Path
) -> None:
    upstream, model = peer
    said = {**TALK, "model": model, "messages": TALK["messages"][1:]}
    with openai.OpenAI(base_url=upstream, api_key="none", max_retries=0) as api:
        alone = api.chat.completions.create(**said).choices[0].message.content
    assert alone
    arguments = ("--model", hot_checkpoint, "--policies", lenient, "--upstream", upstream)
    with serving(*arguments, "--profile", "strict") as server:
        url = server.line("listening")["url"]
        server.line("ready")
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as api:
            assert api.chat.completions.create(**said).choices[0].message.content == alone
            assert streamed(api, said) == alone
            raw = httpx.post(f"{url}/v1/chat/completions", json=said | {"stream": True}).text
            assert raw.endswith("data: [DONE]\n\n")  # which that server doesn't send


def test_our_worker_writes_what_that_server_writes(
    peer: tuple[str, str], hot_checkpoint: Path
) -> None:
    upstream, model = peer
    said = {**TALK, "messages": TALK["messages"][1:]}
    command = [PROGRAM, "worker", "--generator", str(hot_checkpoint), "--port", "0"]
    with subprocess.Popen(
        [*command, "--log-format", "json"], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            worker = Server(process)
            ours = f"{worker.line('generator listening')['url']}/v1"
            worker.line("generator ready")
            with (
                openai.OpenAI(base_url=ours, api_key="none") as our,
                openai.OpenAI(base_url=upstream, api_key="none") as their,
            ):
                a = our.chat.completions.create(**said)
                b = their.chat.completions.create(**{**said, "model": model})
        finally:
            process.kill()
    assert a.choices[0].message.content == b.choices[0].message.content
    assert a.usage == b.usage
