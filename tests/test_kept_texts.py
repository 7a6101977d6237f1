"""Texts are kept for review only where that is asked for: sealed, for a time, and unnoticed."""

import asyncio
import base64
import functools
import io
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import FakeScorer
from front import Open
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from serving import Gateway, gateway
from test_cli_serve import screened, serving
from test_keys import entry, written
from test_telemetry_audit import Records
from typer.testing import CliRunner
from upstream import streamed

from shieldgate.cli import app
from shieldgate.errors import ConfigurationError, ScorerUnavailable, StoreFailed
from shieldgate.kept_texts import database as database_module
from shieldgate.kept_texts import keeper as keeper_module
from shieldgate.kept_texts.keeper import Keeper
from shieldgate.kept_texts.kept import KeptText
from shieldgate.kept_texts.rule import KeepRule, distance
from shieldgate.kept_texts.seal import Seal
from shieldgate.kept_texts.store import SealedText, TextStore
from shieldgate.policy import Streaming
from shieldgate.telemetry import Telemetry, configure_logging
from shieldgate.types import Judgement, Score

DAY = 86_400.0
CANARY = "canary-51c7 wörds nobody else would send"


def new_key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


KEY = new_key()
ALL = KeepRule(share=1.0, near=0.0)


def judgement(probability: float, threshold: float = 0.5) -> Judgement:
    violated = probability >= threshold
    return Judgement("test/threat", probability, threshold, violated, False, Score(0.0))


def kept(id: str = "dec_1", *, prompt: str = "bread", **changes: Any) -> KeptText:
    made = KeptText(
        id=id,
        caller="web",
        at=1000.0,
        request_id="req_1",
        prompt=prompt,
        response=None,
        action="allowed",
        judgements=(judgement(0.4),),
        profile="default",
        policy_book="book-1",
        scorer="fake@0",
        why=("near",),
        chance=1.0,
    )
    return replace(made, **changes)


def put(store: TextStore, *texts: KeptText, seal: Seal | None = None, days: float = 30) -> None:
    seal = seal or Seal([KEY])
    store.add([SealedText(t.id, t.caller, t.at, t.at + days * DAY, t.sealed(seal)) for t in texts])


def opened(store: TextStore, key: str = KEY) -> list[KeptText]:
    found = [KeptText.opened(s.id, s.sealed, Seal([key])) for s in store.read()]
    return [text for text in found if text]


def ids(store: TextStore) -> list[str]:
    return [sealed.id for sealed in store.read()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "review.db"


@pytest.fixture
def store(file: Path) -> TextStore:
    return TextStore.at(str(file))


def bytes_of(file: Path) -> bytes:
    """Read a database, and what SQLite has beside it."""
    return b"".join(part.read_bytes() for part in file.parent.glob(f"{file.name}*"))


# Seals


def test_what_is_sealed_is_opened_by_its_key_and_by_no_other() -> None:
    text = kept(prompt="half a pair \ud83c of surrogates", response="ünd")
    sealed = text.sealed(Seal([KEY]))
    assert KeptText.opened("dec_1", sealed, Seal([KEY])) == text
    assert KeptText.opened("dec_1", sealed, Seal([new_key()])) is None
    changed = sealed[:40] + bytes([sealed[40] ^ 1]) + sealed[41:]
    assert KeptText.opened("dec_1", changed, Seal([KEY])) is None


def test_a_text_put_in_place_of_another_is_not_taken_for_it() -> None:
    assert KeptText.opened("dec_2", kept("dec_1").sealed(Seal([KEY])), Seal([KEY])) is None


def test_a_new_key_is_put_before_the_old_one(tmp_path: Path) -> None:
    old, new = new_key(), new_key()
    file = tmp_path / "keys"
    file.write_text(f"{new}\n{old}\n")
    both = Seal.of(None, file)
    assert both.open(Seal([old]).seal(b"text")) == b"text"
    assert Seal([new]).open(both.seal(b"text")) == b"text"


@pytest.mark.parametrize("given", ["", "password", base64.b64encode(b"short").decode()])
def test_a_key_that_is_none_is_refused_and_not_shown(given: str) -> None:
    with pytest.raises(ConfigurationError, match="openssl rand -base64 32") as refused:
        Seal.of(SecretStr(given), None)
    assert not given or given not in str(refused.value)


def test_two_places_for_the_key_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Give one of them"):
        Seal.of(SecretStr(KEY), tmp_path / "keys")
    with pytest.raises(ConfigurationError, match="can't be read: No such file"):
        Seal.of(None, tmp_path / "keys")


# The store; the same on PostgreSQL in test_kept_texts_postgres.py


def check_store(store: TextStore) -> None:
    """Put a store through all that it does."""
    put(store, kept("dec_2", at=2000.0, prompt=CANARY), kept("dec_1"), days=1)
    put(store, kept("dec_3", at=3000.0, caller="other"))
    assert ids(store) == ["dec_1", "dec_2", "dec_3"]
    assert [text.prompt for text in opened(store)] == ["bread", CANARY, "bread"]
    assert store.expire(1000.0 + DAY) == 1, "dec_1 has expired, though just"
    assert store.expire(2500.0, keep_seconds=500.0) == 1, "the operator keeps texts for less time"
    assert ids(store) == ["dec_3"]
    put(store, kept("dec_4", at=4000.0), kept("dec_5", at=5000.0), kept("dec_6", at=5000.0))
    one = len(kept("dec_4").sealed(Seal([KEY])))
    assert store.shrink(2 * one) == 2
    assert store.shrink(2 * one) == 0
    assert ids(store) == ["dec_5", "dec_6"]
    put(store, kept("dec_7", caller="other"))
    assert store.forget("web") == 2
    assert ids(store) == ["dec_7"]
    with pytest.raises(StoreFailed):
        put(store, kept("dec_8"), kept("dec_7"))
    assert ids(store) == ["dec_7"], "all or none"


def test_a_file_keeps_finds_expires_shrinks_and_forgets(store: TextStore) -> None:
    check_store(store)


def test_adding_up_waits_for_no_writer_and_holds_none_up(store: TextStore, file: Path) -> None:
    put(store, kept())
    with closing(sqlite3.connect(file, isolation_level=None)) as writer:
        writer.execute("begin immediate")
        assert store.shrink(10**6) == 0


def test_gateways_that_start_together_make_one_file(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        for attempt in range(20):
            files = [str(tmp_path / f"{attempt}.db")] * 4
            assert [store.count() for store in threads.map(TextStore.at, files)] == [0] * 4


def test_nobody_else_may_read_the_file_and_it_holds_no_text(store: TextStore, file: Path) -> None:
    put(store, kept(prompt=CANARY, response=CANARY))
    for part in file.parent.glob(f"{file.name}*"):
        assert part.stat().st_mode & 0o077 == 0, part
    found = bytes_of(file)
    assert b"dec_1" in found
    assert CANARY.encode() not in found
    assert b"canary" not in found
    assert b"threat" not in found


def test_what_is_deleted_is_gone_from_the_files_bytes(store: TextStore, file: Path) -> None:
    text = kept("dec_forgotten", caller="gone")
    put(store, text)
    [sealed] = [s.sealed for s in store.read()]
    assert sealed in bytes_of(file)
    store.forget("gone")
    assert sealed[:64] not in bytes_of(file)
    assert b"dec_forgotten" not in bytes_of(file)


def test_what_was_deleted_while_somebody_read_is_gone_at_the_next_upkeep(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "_SECONDS", 0)
    store = TextStore.at(str(file))
    put(store, kept("dec_forgotten", caller="gone"))
    with closing(sqlite3.connect(file)) as reading:
        reading.execute("begin")
        reading.execute("select * from shieldgate_kept_texts").fetchone()
        store.forget("gone")
        assert b"dec_forgotten" in bytes_of(file)
    store.expire(0.0)
    assert b"dec_forgotten" not in bytes_of(file)


@pytest.mark.parametrize("place", ["u:hidden@host/db", "host/db?password=hidden&sslmode=require"])
def test_the_name_of_a_place_has_no_password(place: str) -> None:
    name = TextStore.at(f"postgresql://{place}").name
    assert "hidden" not in name
    assert "host/db" in name


@pytest.mark.parametrize(
    "place",
    ["mysql://host/db", "nothing://", "sqlite://", "postgresql:", "postgresql://u@host:p/db"],
)
def test_other_places_are_refused(place: str, tmp_path: Path) -> None:
    if "://" not in place:
        place = str(tmp_path / "no" / "folder" / place)
    with pytest.raises(ConfigurationError, match="--keep-texts"):
        TextStore.at(place)


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(file: Path) -> None:
    file.write_text("notes of mine, " * 100)
    with pytest.raises(ConfigurationError, match="not a database"):
        TextStore.at(str(file))
    assert file.read_text().startswith("notes of mine")


def test_who_reviews_makes_no_new_file(file: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file"):
        TextStore.at(str(file), make=False)
    assert not file.exists()


# The rule


@pytest.mark.parametrize(
    ("probability", "threshold", "expected"),
    [(0.5, 0.5, 0.0), (0.731, 0.5, 1.0), (0.269, 0.5, 1.0), (0.01, 0.027, 1.01), (0.0, 0.0, 0.0)],
)
def test_distances_are_in_logits(probability: float, threshold: float, expected: float) -> None:
    assert distance(probability, threshold) == pytest.approx(expected, abs=0.01)


def test_what_is_certain_is_near_to_nothing_else() -> None:
    assert distance(1.0, 0.999) == distance(0.0, 0.001) == float("inf")


def test_the_rule_says_what_is_kept_and_with_which_chance() -> None:
    rule = KeepRule(share=0.02, near=1.0)
    far, near = judgement(0.9), judgement(0.35)
    assert rule.choose([far], 0.02) == (0.02, ())
    assert rule.choose([far], 0.01) == (0.02, ("random",))
    assert rule.choose([far, near], 0.5) == (1.0, ("near",))
    assert rule.choose([far, near], 0.01) == (1.0, ("near", "random"))
    assert KeepRule(share=0.0, near=0.0).choose([judgement(0.5)], 0.0) == (0.0, ())


# The gateway


@asynccontextmanager
async def keeping(
    scorer: FakeScorer, store: TextStore, rule: KeepRule = ALL, **given: Any
) -> AsyncIterator[Gateway]:
    telemetry = Telemetry(CollectorRegistry())
    keeper = Keeper(
        store,
        Seal([KEY]),
        rule,
        keep_seconds=30 * DAY,
        keep_labels_seconds=90 * DAY,
        max_bytes=10**6,
        observer=telemetry,
        **{name: given.pop(name) for name in ("draw",) if name in given},
    )
    async with gateway(scorer, telemetry=telemetry, keeper=keeper, **given) as served:
        yield served


def again(file: Path) -> list[KeptText]:
    return opened(TextStore.at(str(file), make=False))


async def test_a_kept_text_has_the_id_of_its_record(
    scorer: FakeScorer, store: TextStore, file: Path, tmp_path: Path
) -> None:
    records, keys = Records(), written(tmp_path, entry("web", "sg-secret"))
    async with keeping(scorer, store, audit=records, keys=keys) as served:
        body = {"prompt": "bread", "response": "a crude answer"}
        headers = {"authorization": "Bearer sg-secret"}
        reply = await served.client.post("/v1/screen", json=body, headers=headers)
    [record] = records.written
    [text] = again(file)
    assert text.id == record["id"]
    assert text.caller == "web"
    assert text.request_id == reply.headers["x-request-id"]
    assert (text.prompt, text.response, text.action) == ("bread", "a crude answer", "blocked")
    assert [(j.policy, j.score.margin) for j in text.judgements] == [("test/threat", 3.0)]
    assert (text.why, text.chance) == (("random",), 1.0)
    assert time.time() - 60 < text.at <= time.time()
    assert served.metric("shieldgate_kept_texts_total", storage="kept") == 1


async def test_only_what_the_rule_chooses_is_kept(
    scorer: FakeScorer, store: TextStore, file: Path
) -> None:
    scorer.margins[("unsure", "test/threat")] = 0.5
    draws = iter([0.9, 0.5, 0.05, 0.0])
    rule = KeepRule(share=0.1, near=1.0)
    async with keeping(scorer, store, rule, draw=lambda: next(draws)) as served:
        for text in ("bread", "unsure", "buns"):
            await served.client.post("/v1/screen", json={"prompt": text})
        scorer.failure = ScorerUnavailable("The scorer failed.")
        await served.client.post("/v1/screen", json={"prompt": "not judged"})
    assert [(t.prompt, t.why, t.chance) for t in again(file)] == [
        ("unsure", ("near",), 1.0),
        ("buns", ("random",), 0.1),
    ]


async def test_a_streamed_answer_is_kept_once_as_it_was_judged_at_its_end(
    front: Open, store: TextStore, file: Path
) -> None:
    keeper = Keeper(
        store,
        Seal([KEY]),
        ALL,
        keep_seconds=DAY,
        keep_labels_seconds=DAY,
        max_bytes=10**6,
        observer=Telemetry(CollectorRegistry()),
    )
    soon = {"streaming": Streaming(first=8, growth=2.0, most=16)}
    async with front(streamed("a kind answer"), profile=soon, keeper=keeper) as f:
        await f.stream()
    assert [t.response for t in again(file)] == [None, "a kind answer"]


class Refusing:
    """A store whose calls wait for `released`, and then fail while it `fails`."""

    def __init__(self) -> None:
        self.released, self.fails, self.texts = threading.Event(), True, 0
        self.database = self

    def add(self, texts: Sequence[SealedText]) -> None:
        self.released.wait(10)
        if self.fails:
            raise StoreFailed("the database refused: it is away")
        self.texts += len(texts)

    def expire(self, now: float, keep_seconds: float) -> None:
        pass

    def shrink(self, most: int) -> None:
        pass

    def delete(self, *which: object) -> None:
        pass

    def close(self) -> None:
        pass


async def test_a_database_that_hangs_or_fails_costs_no_request_and_is_counted(
    scorer: FakeScorer, restored_logging: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "_MOST_WAITING", 100)
    logs = io.StringIO()
    configure_logging("info", as_json=True, stream=logs)
    store: Any = Refusing()
    async with keeping(scorer, store) as served:
        began = time.monotonic()
        texts = [f"{CANARY} {number}" for number in range(32)]
        for _ in range(8):
            reply = await served.client.post("/v1/moderations", json={"input": texts})
            assert reply.status_code == 200
        assert time.monotonic() - began < 8, "nobody waited for the database"
        dropped = served.metric("shieldgate_kept_texts_total", storage="dropped")
        tried = 8 * 32 - (dropped or 0)
        assert 100 < tried <= 200, "that many wait, and some are under way"
        store.released.set()
        async with asyncio.timeout(10):
            while served.metric("shieldgate_kept_texts_total", storage="failed") != tried:
                await asyncio.sleep(0.01)
        store.fails = False
        for kept_ in (1, 2):
            await served.client.post("/v1/screen", json={"prompt": "bread"})
            async with asyncio.timeout(10):
                while served.metric("shieldgate_kept_texts_total", storage="kept") != kept_:
                    await asyncio.sleep(0.01)
    lines = [json.loads(line) for line in logs.getvalue().splitlines()]
    said = [line["event"] for line in lines if "kept" in line["event"]]
    assert said == ["texts can't be kept", "texts are kept again"]
    assert "canary" not in logs.getvalue()


async def test_what_waits_is_bounded_in_characters(scorer: FakeScorer) -> None:
    store: Any = Refusing()
    long = {"max_text_chars": 10**7, "max_body_bytes": 10**8}
    plain = {"normalise": False, "passages": None}
    async with keeping(scorer, store, profile=plain, **long) as served:
        for _ in range(3):
            await served.client.post("/v1/screen", json={"prompt": "a" * 9_000_000})
        # The first is under way, the second waits, and the third finds no room.
        assert served.metric("shieldgate_kept_texts_total", storage="dropped") == 1
        store.released.set()


def test_serve_without_a_key_does_not_start(file: Path, restored_logging: None) -> None:
    done = CliRunner().invoke(app, ["serve", "--keep-texts", str(file), "--port", "0"])
    assert isinstance(done.exception, ConfigurationError)
    assert "there is no key" in str(done.exception)
    assert not file.exists()


def test_a_real_server_keeps_expires_and_says_no_word_of_texts(
    hot_checkpoint: Path, file: Path, store: TextStore
) -> None:
    put(store, kept("dec_expired", at=time.time() - 31 * DAY), days=30)
    put(store, kept("dec_shortened", at=time.time() - 8 * DAY), days=30)
    store.close()
    given = ("--keep-texts", file, "--keep-texts-share", "1", "--keep-texts-days", "7")
    environment = {"SHIELDGATE_KEEP_TEXTS_KEY": KEY}
    with serving(
        "--model", hot_checkpoint, *given, "--log-level", "debug", **environment
    ) as server:
        url = server.line("listening")["url"]
        server.line("ready")
        screened(url, CANARY).raise_for_status()
        asks = {"reviewer": "anna-0123456789abcdef"}
        ask = functools.partial(httpx.post, f"{url}/admin/review/next", json=asks)
        while (asked := ask().json()["text"]) is None:
            time.sleep(0.05)
        assert asked["prompt"] == [[CANARY, False]]
        said = {question["policy"]: 0 for question in asked["questions"]}
        label = asks | {"id": asked["id"], "labels": said}
        httpx.post(f"{url}/admin/review/label", json=label).raise_for_status()
        assert httpx.get(f"{url}/admin/review/labels").json()["labels"] == said
        assert server.end(signal.SIGTERM) == 0
        assert server.process.returncode == 0
        assert CANARY.split(maxsplit=1)[0] not in server.raw
        assert KEY not in server.raw
        decisions = [line for line in server.lines if line["event"] == "decision"]
    logged = [json.loads(line) for line in server.raw.splitlines() if '"decision"' in line]
    [text] = again(file)
    assert text.prompt == CANARY
    assert text.id in {line["id"] for line in (*decisions, *logged)}
    assert b"canary" not in bytes_of(file)
    with sqlite3.connect(file) as raw:
        [(until, at)] = raw.execute("select until, at from shieldgate_kept_texts").fetchall()
    assert until - at == pytest.approx(7 * DAY)
