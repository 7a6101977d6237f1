"""A guideline that leaves no room for content is a fault of configuration, found early."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fakes import FakeScorer, FixedPolicies, small_book
from front import opening
from serving import gateway
from structlog.testing import capture_logs
from test_cli_policies import policies as policies_command
from test_cli_serve import serving
from upstream import streamed, whole

from shieldgate.errors import ConfigurationError, ScorerUnavailable
from shieldgate.policy import LiveBook, Policy, shipped_policies
from shieldgate.scoring import OpenScorer, Resilient, Scorer, UnixSocketScorer, loading
from shieldgate.scoring.factory import open_scorer
from shieldgate.scoring.loading import LoadingScorer
from shieldgate.scoring.unix_socket import listening
from shieldgate.settings import ScoringSettings
from shieldgate.types import Exchange, Score

STARTER = Path(__file__).parents[1] / "service/shieldgate/starter"
LONG = "No bread, no tea, no seven wizards. " * 400


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return shutil.copytree(shipped_policies(), tmp_path / "policies")


def add_long(directory: Path) -> None:
    """Add a policy whose guideline is short for prompts and fills the context for responses."""
    (directory / "acme.yaml").write_text(
        "family: acme\npolicies:\n  long:\n    title: Long\n    guideline:\n"
        f"      prompt: No bread.\n      response: {LONG}\n"
    )


def is_refusal(why: str) -> bool:
    """Tell whether a sentence names the policy, the direction, and the mend, and nothing else."""
    return why.startswith("acme/long: response: the guideline takes ") and why.endswith(
        "which leaves no room for the text to be judged; shorten it"
    )


@pytest.fixture
async def scorer() -> AsyncIterator[OpenScorer]:
    settings = ScoringSettings(device="cpu")
    async with open_scorer(settings, max_batch_tokens=4096, max_waiting=10) as opened:
        yield opened


def test_check_tells_it_for_a_model_of_which_it_loads_the_tokenizer_only(
    directory: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(STARTER, model, ignore=shutil.ignore_patterns("*.safetensors"))
    good = policies_command("check", directory, "--model", model)
    assert (good.exit_code, good.stderr) == (0, "")
    add_long(directory)
    assert policies_command("check", directory).exit_code == 0  # for some models it has room
    bad = policies_command("check", directory, "--model", model)
    assert (bad.exit_code, bad.stdout) == (1, "")
    assert is_refusal(bad.stderr.strip())


async def test_a_scorer_that_is_not_there_is_opened_again_with_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "_REOPEN_SECONDS", 0.01)
    opened = 0

    @asynccontextmanager
    async def opening() -> AsyncIterator[Scorer]:
        nonlocal opened
        opened += 1
        if opened < 4:
            raise ScorerUnavailable("Nobody is there.")
        yield FakeScorer()

    ready = asyncio.Event()
    with capture_logs() as logs:
        holding = asyncio.create_task(LoadingScorer(opening).hold(lambda there: ready.set()))
        async with asyncio.timeout(10):  # others have their turn meanwhile
            await ready.wait()
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)
    assert [line["why"] for line in logs] == ["Nobody is there."] * 3


def test_serve_never_becomes_ready_with_it_and_keeps_the_old_book_at_a_reload(
    directory: Path,
) -> None:
    with serving("--policies", directory, "--device", "cpu") as server:
        url = server.line("listening")["url"]
        server.line("ready")
        add_long(directory)
        server.process.send_signal(signal.SIGHUP)
        refused = server.line("policies_refused")
        assert is_refusal(refused["why"])
        book = httpx.get(f"{url}/v1/policies").json()
        assert book["version"] == refused["kept"]
        assert server.end(signal.SIGTERM) == 0
    with serving("--policies", directory, "--device", "cpu") as server:
        assert is_refusal(server.line("stopped")["why"])
        assert server.process.wait(60) == 1
        assert not any(line["event"] == "ready" for line in server.lines)


async def test_a_reload_asks_the_scorer_in_this_process_or_in_another(
    scorer: OpenScorer, directory: Path, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    async with listening(scorer, path), UnixSocketScorer(path) as other:
        for asked in (scorer, other):
            live = LiveBook.load(directory)
            live.check = asked.check
            add_long(directory)
            before = live.current
            with capture_logs():
                await live.reload()
            assert live.current is before
            assert is_refusal(live.last_error or "")
            (directory / "acme.yaml").unlink()
            await live.reload()
            assert live.last_error is None
    add_long(directory)
    with capture_logs():
        await live.reload()
    assert live.current.version == before.version
    assert live.last_error == "The scorer's process is not there."


async def test_a_request_is_refused_and_nothing_passes_unjudged_or_opens_the_breaker(
    scorer: OpenScorer,
) -> None:
    guarded = Resilient(scorer, seconds=60)

    @asynccontextmanager
    async def opened() -> AsyncIterator[Scorer]:
        yield guarded

    book = small_book(on_failure={"prompt": "open", "response": "open"})
    fives = {"prompt": 0.5, "response": 0.5}
    long = Policy("acme/long", "Long", {"prompt": LONG, "response": LONG}, fives)
    known = {**book.policies, long.id: long}
    policies = FixedPolicies(replace(book, policies=known))
    async with gateway(FakeScorer(), LoadingScorer(opened), policies=policies) as running:
        while (await running.client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0)
        for path, body in (
            ("/v1/screen", {"prompt": "bread"}),
            ("/v1/screen", {"prompt": "bread", "response": "tea"}),
        ) * 4:
            asked = {**body, "policies": ["acme/long"]}
            reply = await running.client.post(path, json=asked)
            assert reply.status_code == 400, reply.text
            error = reply.json()["error"]
            assert (error["code"], "shorten it" in error["message"]) == ("unsupported", True)
        assert guarded._breaker.state == "closed"
        reply = await running.client.post("/v1/screen", json={"prompt": "bread"})
        assert reply.json()["results"][0]["action"] == "allowed"


class FindsOut(FakeScorer):
    """A scorer that can judge prompts, and finds out that it can't judge answers."""

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        if exchange.response is not None:
            raise ConfigurationError("test/threat: response: no room; shorten it")
        return await super().score(exchange, policies)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_does_not_pass_where_it_is_found_out_only_then(stream: bool) -> None:
    profile = {"on_failure": {"prompt": "open", "response": "open"}}
    body = streamed("a kind answer") if stream else whole("a kind answer")
    async with opening(FindsOut())(body, profile=profile) as running:
        reply = await running.ask("bread", stream=stream)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "unsupported"
