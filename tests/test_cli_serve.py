"""`shieldgate serve` as a process: from the start to the end, with a real engine."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import openai
import pytest
from forked import Forked
from redis_server import redis_server
from structlog.testing import capture_logs
from typer.testing import CliRunner

from shieldgate.cli import app
from shieldgate.cli.meanwhile import while_loading
from shieldgate.cli.serve import _log_scorer
from shieldgate.policy import Calibration, load_book, policy_files, shipped_policies
from shieldgate.scoring import Identity
from shieldgate.settings import ServeSettings

PROGRAM = str(Path(sys.executable).with_name("shieldgate"))
CANARY = "canary-8d41"


class Server:
    """A running `shieldgate serve`; its log lines are read as they come."""

    def __init__(self, process: subprocess.Popen[str] | Forked) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self.raw = ""

    def line(self, event: str) -> dict[str, Any]:
        """Wait for the next log line of this event."""
        assert self.process.stderr
        for text in self.process.stderr:
            self.raw += text
            if text.startswith("{"):
                self.lines.append(json.loads(text))
                if self.lines[-1]["event"] == event:
                    return self.lines[-1]
        raise AssertionError(f"the process ended without {event!r}:\n{self.raw}")

    def end(self, number: signal.Signals) -> int:
        """Send a signal, and wait for the exit code."""
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=60)
        self.raw += rest
        return self.process.returncode


@contextmanager
def serving(*arguments: str | Path, afresh: bool = False, **environment: str) -> Iterator[Server]:
    """Run `shieldgate serve` on a free port; `afresh` as its users do, and no fork.

    That is for what depends on how it is imported, or how Python ends.
    """
    command = [PROGRAM, "serve", "--port", "0", "--log-format", "json", *map(str, arguments)]
    variables = {**os.environ, **environment}
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables)
        if afresh
        else Forked(command, variables)
    ) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


def refused(*arguments: str | Path) -> str:
    """Give what `shieldgate serve` says where it doesn't start because a setting is wrong."""
    with serving(*arguments) as server:
        _, said = server.process.communicate(timeout=60)
        assert server.process.returncode == 2
    return said


def screened(url: str, text: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/screen", json={"prompt": text}, timeout=60)


def test_several_processes_show_one_set_of_figures(hot_checkpoint: Path, tmp_path: Path) -> None:
    shared = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "figures")}

    def figure(url: str, name: str) -> float:
        page = httpx.get(f"{url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in page if line.startswith(name))

    with (
        serving("--model", hot_checkpoint, afresh=True, **shared) as one,
        serving("--model", hot_checkpoint, afresh=True, **shared) as other,
    ):
        urls = [server.line("listening")["url"] for server in (one, other)]
        for server in (one, other):
            server.line("ready")
        for number, url in enumerate([*urls, urls[0]]):
            screened(url, f"text {number}").raise_for_status()
        for url in urls:
            assert figure(url, 'shieldgate_requests_total{outcome="answered",route="/v1/scr') == 3
            assert figure(url, 'shieldgate_phase_seconds_count{phase="forward"}') == 3
            assert figure(url, "shieldgate_ready ") == 1
            assert figure(url, "shieldgate_requests_in_progress ") == 1, "the scrape itself"
        one.process.kill()
        one.process.wait()
        assert figure(urls[1], 'shieldgate_requests_total{outcome="answered",route="/v1/scr') == 3
        assert not list((tmp_path / "figures").glob(f"gauge_live*_{one.process.pid}.db"))
        assert other.end(signal.SIGTERM) == 0


@pytest.mark.usefixtures("restored_logging")
def test_from_start_to_verdict_to_end(hot_checkpoint: Path) -> None:
    # Languages take half a second to load, and "ready" is said when they are.
    given = ("--model", hot_checkpoint, "--languages", "en")
    with serving(*given, SHIELDGATE_PROFILE="strict") as server:
        listening = server.line("listening")
        assert listening["profile"] == "strict"
        assert listening["policies"] == str(shipped_policies())
        url = listening["url"]
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert server.line("loading")["model"] == str(hot_checkpoint)
        ready = server.line("ready")
        assert ready["scorer"].startswith(f"{hot_checkpoint.name}@")
        assert ready["dtype"] == "float32"
        bare = server.line("not calibrated for this scorer: default thresholds decide")
        assert "shieldgemma/profanity" in bare["policies"]
        assert httpx.get(f"{url}/readyz").status_code == 200

        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as api:
            reply = api.moderations.create(input=[CANARY, f"{CANARY} again"])
        assert reply.model == ready["scorer"]
        assert len(reply.results) == 2
        scores = [r.category_scores.model_dump(by_alias=True) for r in reply.results]
        assert 0 < scores[0]["shieldgemma/hate"] < 1
        assert scores[0] != scores[1]

        # What the command line says, the server says, scored or from its cache.
        words = ["score", CANARY, "--model", str(hot_checkpoint), "--profile", "strict", "--json"]
        printed = CliRunner().invoke(app, words)
        [expected] = json.loads(printed.stdout)["results"]
        found = screened(url, CANARY).json()["results"][0]
        assert found["policies"].keys() == expected["policies"].keys()
        for policy, judged in expected["policies"].items():
            assert found["policies"][policy] == pytest.approx(judged, abs=1e-4)

        metrics = httpx.get(f"{url}/metrics").text
        assert 'shieldgate_cache_lookups_total{level="memory"} 6.0' in metrics
        assert "shieldgate_forward_seconds_count" in metrics
        assert "process_resident_memory_bytes" in metrics
        assert CANARY not in metrics
        assert server.end(signal.SIGTERM) == 0
    assert '"event": "request"' in server.raw
    assert CANARY not in server.raw


def test_a_deadline_that_no_scorer_can_keep_is_a_503(
    hot_checkpoint: Path,
) -> None:
    with serving("--model", hot_checkpoint, "--guard-seconds", "0.0001") as server:
        url = server.line("listening")["url"]
        server.line("ready")
        for n in range(6):
            reply = screened(url, f"{CANARY} {n}")
            assert reply.status_code == 503
            assert reply.json()["error"]["code"] == "moderation_unavailable"
            assert int(reply.headers["retry-after"]) > 0
        metrics = httpx.get(f"{url}/metrics").text
        assert 'shieldgate_guard_failures_total{reason="timeout"} 6.0' in metrics
        assert httpx.get(f"{url}/readyz").status_code == 200


def test_policies_are_read_again_on_a_signal_and_when_their_files_change(tmp_path: Path) -> None:
    for file in policy_files(shipped_policies()):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    profiles = tmp_path / "profiles.yaml"
    # The model need not exist for this: the first answers come before it is loaded.
    arguments = ("--policies", tmp_path, "--profile", "strict", "--model", never_loads(tmp_path))
    with serving(*arguments) as server:
        url = server.line("listening")["url"]
        before = httpx.get(f"{url}/v1/policies").json()["version"]
        text = profiles.read_text()
        profiles.write_text(text.replace("mode: enforce", "mode: monitor", 1))
        server.process.send_signal(signal.SIGHUP)
        replaced = server.line("policies_replaced")
        assert replaced["old"] == before
        book = httpx.get(f"{url}/v1/policies").json()
        assert book["version"] == replaced["new"]
        assert {p["name"]: p["mode"] for p in book["profiles"]}["default"] == "monitor"

        for refused in ("profiles: [", text.replace("  strict:", "  renamed:")):
            profiles.write_text(refused)
            server.process.send_signal(signal.SIGHUP)
            assert server.line("policies_refused")["kept"] == replaced["new"]
            assert httpx.get(f"{url}/v1/policies").json()["version"] == replaced["new"]
            assert "shieldgate_policies_refused 1.0" in httpx.get(f"{url}/metrics").text

        profiles.write_text(text)
        assert server.line("policies_replaced")["new"] == before
        assert "shieldgate_policies_refused 0.0" in httpx.get(f"{url}/metrics").text
        assert server.end(signal.SIGTERM) == 0


def never_loads(directory: Path) -> Path:
    """Make a checkpoint whose loading waits for ever: its configuration is a pipe."""
    checkpoint = directory / "checkpoint"
    checkpoint.mkdir()
    os.mkfifo(checkpoint / "config.json")
    return checkpoint


class _Models(BaseHTTPRequestHandler):
    """Lists models at /v1/models, and has a page for people at /page/models."""

    def do_GET(self) -> None:
        body = {"/v1/models": b'{"data": []}', "/page/models": b"<html>"}.get(self.path)
        self.send_response(200 if body else 404)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", "upstream seems to have no API at this URL"),
        ("/page/", "upstream seems to have no API at this URL"),
        ("/v1", None),
    ],
)
def test_an_upstream_without_an_api_is_said_at_the_start(
    tmp_path: Path, path: str, said: str | None
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Models) as model:
        Thread(target=model.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{model.server_port}{path}"
        with serving("--model", never_loads(tmp_path), "--upstream", url) as server:
            if said:
                line = server.line(said)
                assert line["mend"].endswith(f"--upstream {url.rstrip('/')}/v1")
            else:
                own = server.line("listening")["url"]
                assert httpx.get(f"{own}/v1/models").status_code == 200
            server.end(signal.SIGTERM)
        assert said or "no API at" not in server.raw
        model.shutdown()


def test_an_upstream_that_is_not_there_is_said_at_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    with serving("--model", never_loads(tmp_path), "--upstream", url) as server:
        assert server.line("upstream can't be asked")["why"] == "Upstream can't be reached."


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_even_while_a_model_is_being_loaded(
    number: signal.Signals, tmp_path: Path
) -> None:
    with serving("--model", never_loads(tmp_path)) as server:
        server.line("Application startup complete.")
        assert server.end(number) == 0


def test_a_model_that_cannot_be_loaded_is_one_sentence_and_exit_code_1() -> None:
    with serving("--model", "/no/such/folder") as server:
        assert "there is no such folder" in server.line("stopped")["why"]
        assert server.process.wait(60) == 1


def test_a_taken_port_is_one_sentence_and_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = refused("--port", port)
    assert f"Can't listen on 127.0.0.1, port {port}: Address already in use." in said


def test_serving_beyond_this_machine_without_keys_is_refused() -> None:
    said = refused("--host", "0.0.0.0")
    assert "there are no API keys. Make one with 'shieldgate keys new'" in said


def test_serving_beyond_this_machine_without_keys_takes_a_word_and_is_warned_of(
    tmp_path: Path,
) -> None:
    with serving("--host", "0.0.0.0", "--keyless", "--model", never_loads(tmp_path)) as server:
        event = "there are no API keys: whoever reaches this address can use the server"
        assert server.line(event)["level"] == "warning"


def test_what_one_server_scored_another_finds_in_redis(
    hot_checkpoint: Path, tmp_path: Path
) -> None:
    with redis_server(tmp_path) as redis:
        shared = {
            "SHIELDGATE_REDIS_URL": redis.url,
            "SHIELDGATE_REDIS_SECONDS": "30",  # however busy the machine is
            "SHIELDGATE_CACHE_SECRET": "0123456789abcdef",
        }
        verdicts = []
        for level in ("miss", "redis"):
            with serving("--model", hot_checkpoint, **shared) as server:
                url = server.line("listening")["url"]
                server.line("ready")
                reply = screened(url, CANARY).json()
                verdicts.append(reply["results"][0]["policies"])
                counted = 'shieldgate_cache_lookups_total{level="%s"} %d.0'
                assert counted % (level, len(verdicts[0])) in httpx.get(f"{url}/metrics").text
                assert server.end(signal.SIGTERM) == 0
        assert verdicts[0] == verdicts[1]


def test_redis_without_a_secret_is_one_sentence_and_exit_code_2() -> None:
    assert "the same SHIELDGATE_CACHE_SECRET" in refused("--redis-url", "redis://localhost")


def test_keys_are_read_again_on_a_signal_and_keep_their_profiles_in_the_book(
    tmp_path: Path,
) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    for file in policy_files(shipped_policies()):
        (policies / file.name).write_bytes(file.read_bytes())
    keys = tmp_path / "keys.yaml"
    arguments = ("--policies", policies, "--keys", keys, "--model", never_loads(tmp_path))

    def made(name: str, *more: str) -> str:
        run = CliRunner().invoke(app, ["keys", "new", name, *more])
        with keys.open("a") as file:
            file.write(run.stdout)
        return run.stderr.split()[-1]

    first = made("first", "--profile", "strict")
    with serving("--host", "0.0.0.0", *arguments) as server:
        url = server.line("listening")["url"].replace("0.0.0.0", "127.0.0.1")

        def status(key: str, path: str = "/v1/policies") -> int:
            bearer = {"authorization": f"Bearer {key}"}
            return httpx.get(url + path, headers=bearer).status_code

        assert [status(first), status("sg-other"), status(first, "/metrics")] == [200, 401, 403]
        admin = made("prometheus", "--admin")
        server.process.send_signal(signal.SIGHUP)
        assert server.line("keys_replaced")["keys"] == 2
        assert status(admin, "/metrics") == 200

        keys.write_text(keys.read_text() + "third: nothing\n")
        server.process.send_signal(signal.SIGHUP)
        assert "third: must hold" in server.line("keys_refused")["why"]
        bearer = {"authorization": f"Bearer {admin}"}
        page = httpx.get(f"{url}/metrics", headers=bearer).text
        assert "shieldgate_keys_refused 1.0" in page

        profiles = policies / "profiles.yaml"
        text = profiles.read_text()
        profiles.write_text(text.replace("  strict:", "  renamed:"))
        server.process.send_signal(signal.SIGHUP)
        assert "'first' is bound" in server.line("policies_refused")["why"]
        assert status(first) == 200
        assert server.end(signal.SIGTERM) == 0
    assert first not in server.raw
    assert admin not in server.raw


def test_keys_that_name_no_profile_stop_the_start(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(CliRunner().invoke(app, ["keys", "new", "web", "--profile", "strct"]).stdout)
    assert "did you mean 'strict'?" in refused("--keys", keys)


@pytest.mark.parametrize(("dtype", "told"), [("float32", False), ("bfloat16", True)])
def test_a_scorer_is_told_when_its_thresholds_were_calibrated_in_another_dtype(
    dtype: str, told: bool
) -> None:
    book = load_book()
    names = {name for p in book.policies.values() for name, _ in p.calibrations}
    (name,) = [name for name in names if name.startswith("starter@")]
    with capture_logs() as logs:
        _log_scorer(Identity(name, "w", dtype, "t", "2048/256/v1"), book, ServeSettings())
    warned = [e for e in logs if e["event"].startswith("calibrated in another dtype")]
    assert [(e["dtype"], e["calibrated"]) for e in warned] == [("bfloat16", "float32")] * told


def test_calibrations_of_files_that_say_no_dtype_are_taken_as_they_are() -> None:
    known = {"identity": "f86b|float32|072f|2048/256/v1"}
    assert Calibration(0.5, provenance=known).dtype == "float32"
    assert Calibration(0.5).dtype is None
    assert Calibration(0.5, provenance={"identity": "by hand"}).dtype is None


async def test_who_waits_for_a_scorer_is_told_so_until_it_is_loaded() -> None:
    with capture_logs() as logs:
        async with while_loading("a model", seconds=0.01) as loaded:
            while len(logs) < 3:
                await asyncio.sleep(0.01)
            loaded()
            said = len(logs)
            await asyncio.sleep(0.05)
    assert [line["event"] for line in logs[:3]] == ["loading", "still loading", "still loading"]
    assert len(logs) == said


def test_make_shows_what_installing_does() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    assert "pip install" in makefile
    assert "--quiet" not in makefile
