"""`shieldgate serve --processes`: several gateways, one scorer, and one that looks after them."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from test_cli_serve import never_loads, screened, serving

from shieldgate.policy import policy_files, shipped_policies


@contextmanager
def alone(process: int, others: list[int]) -> Iterator[None]:
    """Let only one of the gateways answer."""
    for other in others:
        if other != process:
            os.kill(other, signal.SIGSTOP)
    try:
        yield
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)


def metric(url: str, name: str, **labels: str) -> float:
    page = httpx.get(f"{url}/metrics").text
    samples = (s for family in text_string_to_metric_families(page) for s in family.samples)
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def until_ready(url: str, status: int) -> None:
    """Wait until a gateway has noticed what its scorer does."""
    while httpx.get(f"{url}/readyz").status_code != status:
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def holds_torch(process: int) -> bool:
    return "libtorch" in Path(f"/proc/{process}/maps").read_text()


def test_two_gateways_share_a_scorer_a_port_and_their_figures(  # noqa: PLR0915 - loading a model once is slow enough
    hot_checkpoint: Path, tmp_path: Path
) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    for file in policy_files(shipped_policies()):
        (policies / file.name).write_bytes(file.read_bytes())
    arguments = ("--model", hot_checkpoint, "--policies", policies, "--processes", "2")
    with serving(*arguments) as server:
        url = server.line("listening")["url"]
        scorer = server.line("scorer started")["process"]
        gateways = [server.line("gateway started")["process"] for _ in range(2)]
        for _ in gateways:
            server.line("gateway ready")

        # Both answer, and alike, though none but the scorer has loaded anything.
        verdicts = []
        for number, gateway in enumerate(gateways, 1):
            with alone(gateway, gateways):
                assert httpx.get(f"{url}/readyz").status_code == 200
                reply = screened(url, "bread")
                assert reply.status_code == 200
                verdicts.append(reply.json()["results"][0]["policies"])
                # It counts once it has answered.
                while metric(url, "shieldgate_requests_total", route="/v1/screen") < number:
                    time.sleep(0.05)
        assert verdicts[0] == verdicts[1]
        if Path("/proc").is_dir():
            assert [holds_torch(p) for p in (scorer, *gateways)] == [True, False, False]

        # Each of them shows what all have counted, and the scorer's passes.
        for gateway in gateways:
            with alone(gateway, gateways):
                assert metric(url, "shieldgate_requests_total", route="/v1/screen") == 2
                assert metric(url, "shieldgate_forward_seconds_count") == 2
                assert metric(url, "shieldgate_ready") == 1
                figures = httpx.get(f"{url}/admin/figures").json()
                assert figures["requests"] == {"answered": 2}
        # And the decisions of all that answer.
        found = httpx.get(f"{url}/admin/decisions").json()
        assert (len(found["decisions"]), found["processes"]) == (2, 2)

        # New policies reach both.
        profiles = policies / "profiles.yaml"
        profiles.write_text(profiles.read_text().replace("blocked early", "blocked sooner"))
        server.process.send_signal(signal.SIGHUP)
        replaced = {server.line("policies_replaced")["new"] for _ in gateways}
        for gateway in gateways:
            with alone(gateway, gateways):
                assert {httpx.get(f"{url}/v1/policies").json()["version"]} == replaced

        # A scorer that dies is replaced; until then nothing is judged, and none is ready.
        os.kill(scorer, signal.SIGKILL)
        server.line("scorer ended")
        for gateway in gateways:
            with alone(gateway, gateways):
                until_ready(url, 503)
                assert httpx.get(f"{url}/readyz").json() == {"status": "loading"}
                failed = screened(url, "tea")
                assert failed.status_code == 503
                assert failed.json()["error"]["code"] == "moderation_unavailable"
                assert "retry-after" in failed.headers
                assert metric(url, "shieldgate_ready") == 0
        server.line("scorer ready")
        for gateway in gateways:
            with alone(gateway, gateways):
                until_ready(url, 200)
        assert screened(url, "tea").status_code == 200
        assert metric(url, "shieldgate_ready") == 1

        # So is a gateway, and meanwhile the other one serves.
        os.kill(gateways[0], signal.SIGKILL)
        server.line("gateway ended")
        assert screened(url, "tea").status_code == 200
        gateways[0] = server.line("gateway started")["process"]
        server.line("gateway ready")

        assert server.end(signal.SIGTERM) == 0
        assert not any(map(alive, gateways))
    assert '"level": "error"' in server.raw  # the two that ended
    assert "Traceback" not in server.raw


def test_all_of_them_end_with_their_parent_however_it_ends(tmp_path: Path) -> None:
    with serving("--model", never_loads(tmp_path), "--processes", "2") as server:
        for _ in range(2):
            server.line("Application startup complete.")
        # The pipe of their log ends only when the last of them has.
        assert server.end(signal.SIGKILL) == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_they_end_at_once_while_the_scorer_is_being_loaded(
    number: signal.Signals, tmp_path: Path
) -> None:
    with serving("--model", never_loads(tmp_path), "--processes", "2") as server:
        server.line("Application startup complete.")
        assert server.end(number) == 0


def test_a_scorer_that_cannot_be_loaded_stops_all_with_exit_code_1() -> None:
    with serving("--model", "/no/such/folder", "--processes", "2") as server:
        assert "there is no such folder" in server.line("stopped")["why"]  # the scorer's line
        why = server.line("stopped")["why"]
        assert "The scorer ended with exit code 1 before it was ready" in why
        assert server.process.wait(60) == 1
