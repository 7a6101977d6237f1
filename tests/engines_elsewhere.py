"""Servers of models that are not ours, as processes; and one that goes wrong as it is told to."""

import math
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import httpx
from aiohttp import web


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def vllm(python: str, checkpoint: Path, *arguments: str) -> Iterator[str]:
    """Serve a checkpoint by vLLM on the CPU in fp32; gives its URL."""
    command = [
        *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)),
        *("--served-model-name", "guard", "--dtype", "float32", "--max-model-len", "2048"),
        *("--max-num-seqs", "16", "--enforce-eager", *arguments),
    ]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with _serving(command, environment) as url:
        yield f"{url}/v1"


@contextmanager
def llama_server(program: str, gguf: Path, *arguments: str) -> Iterator[str]:
    """Serve a GGUF file by llama.cpp's server, with keys and values in fp32; gives its URL."""
    command = [
        *(program, "-m", str(gguf), "-c", "4096", "-np", "2", "-t", "1", "--no-webui"),
        *("-ctk", "f32", "-ctv", "f32", "-fa", "off", *arguments),
    ]
    with _serving(command, {}) as url:
        yield url


@contextmanager
def _serving(command: list[str], environment: dict[str, str]) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        TemporaryFile("w+") as log,
        subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 280
            while not healthy(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise AssertionError(f"{command[0]} did not start:\n{log.read()[-4000:]}")
                time.sleep(0.3)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def margin_of(prompt: list[int]) -> float:
    """What the double says of a prompt; another token anywhere changes it."""
    return sum(number * token for number, token in enumerate(prompt, 7)) % 1009 / 100 - 5


class Double:
    """Answers as one kind of engine does, and goes wrong as it is told to.

    `kind` is vllm, sglang, llama.cpp or tensorrt_llm. What each request was is kept, with its
    headers. `fault` may change a prompt that is read, or a reply; `status` is what all get, and
    `waits` is awaited before each reply.
    """

    def __init__(self, kind: str, ids: tuple[int, int], words: tuple[str, str]) -> None:
        self.kind = kind
        self.ids = ids
        self.words = words
        self.model = "guard"
        self.limit = 2048
        self.status = 200
        self.headers: dict[str, str] = {}
        self.key: str | None = None
        self.reads: Callable[[list[int]], list[int]] = list
        self.margin: Callable[[list[int]], float] = margin_of
        self.waits: Callable[[], Awaitable[object]] | None = None
        self.forgets = False
        self.requests: list[tuple[dict, dict]] = []
        self.left = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self._answer)
        return app

    @property
    def prompts(self) -> list[list[list[int]]]:
        """The prompts of each request for scores."""
        return [body.get("prompt", body.get("input_ids")) for body, _ in self.requests]

    async def _answer(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "Unauthorized"}}, status=401)
        if request.method == "GET":
            told = self._told(request.path)
            return web.json_response(told, status=200 if told else 404)
        body = await request.json()
        self.requests.append((body, dict(request.headers)))
        try:
            if self.waits:
                await self.waits()
        except BaseException:
            self.left += 1
            raise
        if self.status != 200:
            error = {"error": {"message": "as told"}}
            return web.json_response(error, status=self.status, headers=self.headers)
        paths = {"sglang": "/generate", "llama.cpp": "/completion"}
        if request.path != paths.get(self.kind, "/v1/completions"):
            return web.json_response({"error": {"message": "no such path"}}, status=404)
        speak = {"sglang": self._sglang, "llama.cpp": self._llama_cpp}
        return web.json_response(speak.get(self.kind, self._completions)(body))

    def _told(self, path: str) -> dict | None:
        owner = {"llama.cpp": "llamacpp"}.get(self.kind, self.kind)
        entry: dict = {"id": self.model, "object": "model", "owned_by": owner}
        if self.kind in ("vllm", "sglang"):
            entry |= {"root": f"acme/{self.model}", "max_model_len": self.limit}
        told = {
            "/v1/models": {"object": "list", "data": [entry]},
            "/version": {"version": "0.32.0"} if self.kind == "vllm" else None,
            "/get_model_info": {"model_path": "acme/guard"} if self.kind == "sglang" else None,
            "/props": {"total_slots": 2, "default_generation_settings": {"n_ctx": self.limit}},
        }
        return told.get(path)

    def _labels(self, prompt: list[int]) -> list[float]:
        """Log-probabilities of both labels, which share all but a little of the probability."""
        margin = self.margin(self.reads(prompt))
        return [-math.log1p(math.exp(-margin)) - 0.01, -math.log1p(math.exp(margin)) - 0.01]

    def _completions(self, body: dict) -> dict:
        if self.kind == "tensorrt_llm":
            known = {"model", "prompt", "max_tokens", "temperature", "top_p", "logprobs"}
            assert body.keys() <= {*known, "logit_bias"}, "it refuses what it doesn't know"
            assert {int(i): b for i, b in body["logit_bias"].items()} == dict.fromkeys(
                self.ids, 100
            )
        choices = []
        for index, prompt in enumerate(body["prompt"]):
            if "prompt_logprobs" in body:
                label = self.ids.index(prompt[-1])
                value = {"logprob": self._labels(prompt[:-1])[label]}
                last = {str(prompt[-1]): value}
                choices.append({"index": index, "prompt_logprobs": [None, last]})
                continue
            by_id = body.get("return_tokens_as_token_ids")
            names = [f"token_id:{i}" for i in self.ids] if by_id else self.words
            top = dict(zip(names, self._labels(prompt), strict=True))
            if self.forgets:
                top.popitem()
            choices.append({"index": index, "logprobs": {"top_logprobs": [top]}})
        read = sum(len(self.reads(prompt)) for prompt in body["prompt"])
        return {"choices": choices[::-1], "usage": {"prompt_tokens": read}}

    def _sglang(self, body: dict) -> list[dict]:
        assert body["token_ids_logprob"] == [list(self.ids)] * len(body["input_ids"])
        replies = []
        for prompt in body["input_ids"]:
            values = self._labels(prompt)
            entries = [list(one) for one in zip(values, self.ids, self.words, strict=True)]
            found = entries[:1] if self.forgets else entries
            meta = {"prompt_tokens": len(self.reads(prompt)), "output_token_ids_logprobs": [found]}
            replies.append({"meta_info": meta})
        return replies

    def _llama_cpp(self, body: dict) -> dict:
        prompt = body["prompt"]
        values = self._labels(prompt)
        if body["post_sampling_probs"]:
            pairs = zip(self.ids, self.words, map(math.exp, values), strict=True)
            top = [{"id": i, "token": w, "prob": p} for i, w, p in pairs]
            probabilities = {"top_probs": top[:1] if self.forgets else top}
        else:
            pairs = zip(self.ids, values, strict=True)
            probabilities = {"top_logprobs": [{"id": i, "logprob": v} for i, v in pairs]}
        read = len(self.reads(prompt))
        return {"tokens_evaluated": read, "completion_probabilities": [probabilities]}


@asynccontextmanager
async def answering(double: Double, port: int = 0) -> AsyncIterator[str]:
    """Serve a double in the test's own event loop; gives its URL."""
    runner = web.AppRunner(double.app(), handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()
