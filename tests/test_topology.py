"""What deploy/kubernetes/vllm describes, run on this machine: its very arguments and settings.

Real vLLM on the CPU scores and answers, with a small checkpoint in place of Google's; the gateway
and Redis are real, too. It takes minutes, so it runs where it is asked for.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from checkpoints import GEMMA_CHAT_TEMPLATE
from engines_elsewhere import free_port, healthy
from redis_server import RedisServer
from test_cli_serve import PROGRAM, Server, serving
from test_deploy import adapted, applied
from test_processes import holds_torch

TOPOLOGY = os.environ.get("SHIELDGATE_TOPOLOGY")
pytestmark = [
    pytest.mark.skipif(not TOPOLOGY, reason="takes minutes: SHIELDGATE_TOPOLOGY=1 runs it"),
    pytest.mark.timeout(900),
]

# What a small model on a shared CPU can't do as a GPU does; the last of two flags counts.
ON_A_CPU = ("--max-model-len", "2048", "--max-num-seqs", "16", "--enforce-eager")
NEAR_0 = 1e-9
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}


def container(manifests: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    [found] = [m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name]
    [only] = found["spec"]["template"]["spec"]["containers"]
    return only


class Engine:
    """A vLLM as a manifest has it, which a test may end and start again."""

    def __init__(self, python: str, described: Mapping[str, Any], model: Path, home: Path) -> None:
        program, command, _ = described["command"]
        assert (program, command) == ("vllm", "serve")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # `vllm serve` of the CPU build looks for itself by another name; this is what it runs.
        self._command = [
            *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
            *(*described["args"], *ON_A_CPU, "--host", "127.0.0.1", "--port", str(self.port)),
        ]
        told = {one["name"]: one["value"] for one in described["env"] if "value" in one}
        self._environment = {**os.environ, **told, **ENVIRONMENT, "HOME": str(home)}
        self._log = home / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,  # its engine is a process of its own
            )

    def wait(self) -> None:
        assert self._process
        while not healthy(self.url):
            assert self._process.poll() is None, self._log.read_text()[-4000:]
            time.sleep(0.5)

    def end(self) -> None:
        """End as a pod does."""
        assert self._process
        self._process.terminate()
        self._process.wait(60)
        self.kill()

    def kill(self) -> None:
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def metric(self, name: str) -> float:
        page = httpx.get(f"{self.url}/metrics").text
        values = re.findall(rf"^{re.escape(name)}\{{[^}}]*\}} (\S+)$", page, re.M)
        assert values, f"vLLM has no {name}"
        return sum(map(float, values))


class Policies:
    """One policy, whose thresholds a test moves: at 1 nothing violates it, near 0 all does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "profiles.yaml").write_text("profiles: {default: {policies: [test/harm]}}\n")
        self.write(prompt=1.0, response=1.0)

    def write(self, **thresholds: float) -> None:
        guideline = {side: f"No Harm: the {side} shall do none." for side in ("prompt", "response")}
        harm = {"title": "Harm", "threshold": thresholds, "guideline": guideline}
        book = {"family": "test", "policies": {"harm": harm}}
        (self.folder / "test.yaml").write_text(json.dumps(book))  # JSON is YAML


@contextmanager
def gateway(
    manifests: list[dict[str, Any]], hosts: Mapping[str, str], checkpoint: Path, tmp_path: Path
) -> Iterator[Server]:
    """Serve with the settings of the ConfigMap, whose names of hosts are these."""
    [settings] = [m["data"] for m in manifests if m["kind"] == "ConfigMap"]

    def here(value: str) -> str:
        return re.sub(r"(?<=://)[\w.-]+:\d+", lambda named: hosts[named[0]], value)

    told = {name: here(value) for name, value in settings.items()}
    told |= {"SHIELDGATE_TOKENIZER": str(checkpoint), "SHIELDGATE_CACHE_SECRET": "0" * 32}
    told |= {"SHIELDGATE_KEYS": str(tmp_path / "keys.yaml")}
    told |= {"SHIELDGATE_POLICIES": str(tmp_path / "policies")}
    [command] = container(manifests, "Deployment", "shieldgate")["args"]
    assert command == "serve"
    with serving(afresh=True, **told) as server:
        yield server


def made_key(file: Path, *options: str) -> str:
    made = subprocess.run(
        [PROGRAM, "keys", "new", *options], check=True, capture_output=True, text=True
    )
    with file.open("a") as keys:
        keys.write(made.stdout)
    return made.stderr.split()[-1]


def until_ready(url: str, status: int) -> dict[str, str]:
    deadline = time.monotonic() + 60
    while (reply := httpx.get(f"{url}/readyz")).status_code != status:
        assert time.monotonic() < deadline, reply.text
        time.sleep(0.1)
    told: dict[str, str] = reply.json()
    return told


def test_the_topology_screens_both_ways_and_follows_its_scorer(  # noqa: PLR0915 - it starts once
    vllm_python: str, hot_checkpoint: Path, tmp_path: Path
) -> None:
    manifests = applied("vllm")
    model = tmp_path / "model"
    shutil.copytree(hot_checkpoint, model)
    (model / "chat_template.jinja").write_text(GEMMA_CHAT_TEMPLATE)
    policies = Policies(tmp_path / "policies")
    key = made_key(tmp_path / "keys.yaml", "web-app")
    admin = made_key(tmp_path / "keys.yaml", "prometheus", "--admin")
    with ExitStack() as stack:
        engines = {}
        for name in ("scorer", "generator"):
            home = tmp_path / name
            home.mkdir()
            described = container(manifests, "StatefulSet", name)
            engine = Engine(vllm_python, described, model, home)
            stack.callback(engine.kill)
            engines[name] = engine
        scorer, generator = engines["scorer"], engines["generator"]
        program, *options = container(manifests, "Deployment", "redis")["args"]
        assert program == "redis-server"
        pairs = zip(options[::2], options[1::2], strict=True)
        redis = RedisServer(tmp_path, *(f"{option} {value}" for option, value in pairs if value))
        stack.callback(redis.kill)
        hosts = {
            "scorer-0.scorer:8000": f"127.0.0.1:{scorer.port}",
            # The autoscaler has not made them.
            **{f"scorer-{n}.scorer:8000": f"127.0.0.1:{free_port()}" for n in (1, 2, 3)},
            "generator:8000": f"127.0.0.1:{generator.port}",
            "redis:6379": f"127.0.0.1:{redis.port}",
        }
        redis.start()
        server = stack.enter_context(gateway(manifests, hosts, model, tmp_path))
        url = server.line("listening")["url"]
        assert until_ready(url, 503) == {"status": "loading"}
        scorer.start()
        generator.start()
        scorer.wait()
        server.line("ready")
        assert until_ready(url, 200) == {"status": "ready"}
        generator.wait()
        assert not holds_torch(server.process.pid)

        def figure(name: str, **labels: str) -> float:
            page = httpx.get(f"{url}/metrics", headers={"authorization": f"Bearer {admin}"})
            lines = (line for line in page.text.splitlines() if line.startswith(name))
            wanted = [f'{label}="{value}"' for label, value in labels.items()]
            values = [float(x.split()[-1]) for x in lines if all(w in x for w in wanted)]
            assert values, f"the gateway has no {name}"
            return sum(values)

        api = stack.enter_context(
            openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)
        )
        asked: dict[str, Any] = {"model": str(model), "temperature": 0, "max_tokens": 20}

        def chat(text: str) -> Any:
            said = [{"role": "user", "content": text}]
            return api.chat.completions.create(**asked, messages=said).choices[0]

        # Both are judged, by vLLM, and pass.
        answer = chat("the quick brown fox").message.content
        assert answer
        for direction in ("prompt", "response"):
            counted = {"direction": direction, "result": "allowed"}
            assert figure("shieldgate_verdicts_total", **counted) == 1
        assert figure("shieldgate_remote_requests_total", engine="vllm", reply="answered") >= 3
        # What was scored, other gateways find.
        assert len(redis.keys()) >= 2

        # An answer is stopped, and then a prompt, of which the generator learns nothing.
        policies.write(prompt=1.0, response=NEAR_0)
        server.line("policies_replaced")
        assert chat("the quick brown fox").finish_reason == "content_filter"
        policies.write(prompt=NEAR_0, response=1.0)
        server.line("policies_replaced")
        answered = generator.metric("vllm:request_success_total")
        with pytest.raises(openai.BadRequestError) as blocked:
            chat("the lazy dog")
        assert blocked.value.code == "content_filter"
        assert generator.metric("vllm:request_success_total") == answered
        policies.write(prompt=1.0, response=1.0)
        server.line("policies_replaced")

        # What the autoscalers follow is there.
        for series in adapted().values():
            if series.startswith("vllm:"):
                assert scorer.metric(series) == generator.metric(series) == 0
            else:
                assert figure(f"{series} ") >= 0

        # The scorer ends as its pod does.
        scorer.end()
        with pytest.raises(openai.InternalServerError) as unjudged:
            chat("another text")
        assert unjudged.value.code == "moderation_unavailable"
        assert until_ready(url, 503) == {"status": "waiting for the scorer"}
        assert chat("the quick brown fox").message.content == answer, "its scores are cached"
        scorer.start()
        scorer.wait()
        until_ready(url, 200)
        assert chat("another text").message.content

        assert server.end(signal.SIGTERM) == 0
    assert "Traceback" not in server.raw
