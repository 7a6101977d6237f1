"""Several people label kept texts at once: none is asked what another has, and no answer is lost.

The same on PostgreSQL in test_kept_texts_postgres.py.
"""

import json
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeScorer, small_book
from serving import Gateway, gateway
from structlog.testing import capture_logs
from test_kept_texts import CANARY, DAY, KEY, bytes_of, judgement, kept, new_key, put
from test_keys import entry
from test_keys import written as keys_written

from shieldgate.errors import StoreFailed, TextGone, TextTaken, UnknownName
from shieldgate.kept_texts.labels import LabelStore
from shieldgate.kept_texts.seal import Seal
from shieldgate.kept_texts.store import TextStore
from shieldgate.review.candidates import Search
from shieldgate.review.choice import Choice
from shieldgate.review.desk import ALONE_SECONDS, Desk
from shieldgate.review.kept import KeptTexts
from shieldgate.review.labelled_file import LabelledFile
from shieldgate.review.session import Session
from shieldgate.types import Judgement

THREAT, SPAM = "test/threat", "test/spam"
BOOK = small_book().policies
ANNA, BERT = "anna-0123456789abcdef", "bert-0123456789abcdef"


def both(threat: float = 0.4, spam: float = 0.01) -> tuple[Judgement, ...]:
    return (judgement(threat), replace(judgement(spam), policy=SPAM))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "review.db"


def desk_at(place: str, *keys: str, clock: Any = None) -> Desk:
    store = TextStore.at(place)
    texts = KeptTexts(store, LabelStore(store.database), Seal(keys or [KEY]))
    return Desk(texts, keep_seconds=90 * DAY, clock=clock or Clock())


@pytest.fixture
def desk(file: Path) -> Desk:
    return desk_at(str(file))


def fill(desk: Desk, *ids: str, **changes: Any) -> None:
    for id in ids:
        given = {"prompt": f"{CANARY} {id}", "judgements": both(), **changes}
        put(desk._texts, kept(id, **given))


def asked(desk: Desk, reviewer: str, after: str = "", *wanted: str) -> tuple[str, tuple] | None:
    """The id of the next text, and what is asked of it."""
    found = desk.next(reviewer, after, wanted or BOOK, BOOK).candidate
    return (found.text.key.id, found.asked) if found else None


def label(desk: Desk, reviewer: str, id: str, **labels: int | None) -> Mapping[str, int]:
    named = {f"test/{policy}": said for policy, said in labels.items()}
    return desk.label(reviewer, id, named, BOOK)


def rows(desk: Desk) -> dict[str, dict[str, int]]:
    return {row["id"]: dict(row["labels"]) for row in desk.rows()}


ALL = (THREAT, SPAM)


# One after another


def check_desk(place: str) -> None:
    """Put a desk through all that two people do."""
    clock = Clock()
    anna_sits = desk_at(place, clock=clock)
    bert_sits = desk_at(place, clock=clock)  # another process
    fill(anna_sits, "d1", "d2", "d3")
    assert asked(anna_sits, ANNA) == ("d1", ALL)
    assert asked(bert_sits, BERT) == ("d2", ALL), "not what Anna has"
    assert asked(anna_sits, ANNA) == ("d1", ALL), "a reload asks again"
    assert anna_sits.standing(ANNA) == (3, 3, 0, 1)
    assert label(anna_sits, ANNA, "d1", threat=1) == {THREAT: 1}
    assert rows(bert_sits) == {"d1": {THREAT: 1}}, "at once"
    assert asked(anna_sits, ANNA) == ("d1", (SPAM,))
    label(anna_sits, ANNA, "d1", spam=0)
    assert asked(anna_sits, ANNA, "d1") == ("d3", ALL)
    assert asked(bert_sits, BERT) == ("d2", ALL), "d1 is done"
    assert anna_sits.standing(ANNA) == (3, 2, 1, 1)
    # Skipped: it is free for others, and asked again by who begins again.
    assert asked(anna_sits, ANNA, "d3") is None
    assert anna_sits.standing(BERT).elsewhere == 0
    assert asked(bert_sits, BERT, "d2") == ("d3", ALL)
    # What Bert gave back by that is Anna's now, and his answer comes too late.
    assert asked(anna_sits, ANNA) == ("d2", ALL)
    with pytest.raises(TextTaken):
        label(bert_sits, BERT, "d2", threat=1)
    # Taking back.
    assert label(anna_sits, ANNA, "d1", spam=None) == {THREAT: 1}
    assert label(anna_sits, ANNA, "d1", threat=None) == {}
    assert rows(anna_sits) == {}
    clock.now += 120
    bert_sits._labels.expire(clock.now)
    assert asked(bert_sits, BERT) != ("d1", ALL), "Anna has it again"
    assert asked(anna_sits, ANNA) == ("d1", ALL)
    # Who says nothing for long has left.
    clock.now += ALONE_SECONDS
    assert asked(bert_sits, BERT) == ("d1", ALL)
    label(bert_sits, BERT, "d1", threat=0, spam=0)
    with pytest.raises(TextTaken):
        label(anna_sits, ANNA, "d1", threat=1)
    assert rows(anna_sits) == {"d1": {THREAT: 0, SPAM: 0}}
    with pytest.raises(TextGone):
        label(anna_sits, ANNA, "none", threat=1)
    clock.now += 60
    for each in (anna_sits, bert_sits):
        each._texts.forget("web")
        each._labels.expire(clock.now)
        assert each.standing(ANNA) == (0, 0, 0, 0)
        each._texts.close()


def test_two_people_at_one_file(file: Path) -> None:
    check_desk(str(file))


def check_crowd(place: str) -> None:
    """Four people label 40 texts, 8 of which say the same, as fast as they can."""
    desks = [desk_at(place, clock=time.time) for _ in range(4)]
    for number in range(40):
        prompt = "the same" if number % 5 == 0 else f"{CANARY} {number}"
        fill(desks[0], f"d{number:02}", prompt=prompt)
    questions: list[str] = []
    begin = threading.Barrier(4)

    def review(number: int) -> int:
        desk, reviewer, answers, after = desks[number], f"reviewer-{number}-000000000", 0, ""
        begin.wait(10)
        while True:
            found = desk.next(reviewer, after, BOOK, BOOK).candidate
            if found is None and not desk.standing(reviewer).unfinished:
                return answers
            after = found.text.key.id if found else ""
            if found is None:
                continue
            questions.append(found.exchange.prompt)
            for policy in found.asked:
                desk.label(reviewer, after, {policy: 1}, BOOK)
                answers += 1

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(review, range(4)))
    assert len(questions) == len(set(questions)) == 33, "each once, by whomever"
    assert sum(answers) == 66
    assert rows(desks[0]) == {f"d{n:02}": {THREAT: 1, SPAM: 1} for n in range(40)}
    for desk in desks:
        desk._texts.close()


def test_many_people_at_one_file(file: Path) -> None:
    check_crowd(str(file))


def test_a_text_that_was_kept_many_times_is_asked_once_and_labelled_in_all(desk: Desk) -> None:
    fill(desk, "d1", "d3", prompt="the same", judgements=(judgement(0.4),))
    fill(desk, "d4", prompt="the same", response="another")
    fill(desk, "d5", prompt="the same", judgements=both())
    fill(desk, "d2")
    assert asked(desk, ANNA) == ("d1", (THREAT,))
    assert asked(desk, BERT) == ("d2", ALL)
    assert asked(desk, BERT, "d2") == ("d4", ALL), "an answer is another text"
    label(desk, ANNA, "d1", threat=1)
    assert asked(desk, ANNA, "d2") == ("d5", (SPAM,)), "d3 has it, and d5 was judged by more"
    assert rows(desk) == {"d1": {THREAT: 1}, "d3": {THREAT: 1}, "d5": {THREAT: 1}}
    label(desk, ANNA, "d5", spam=0)
    assert asked(desk, ANNA, "d4") is None
    assert label(desk, ANNA, "d5", threat=None) == {SPAM: 0}
    assert asked(desk, ANNA, "d1") == ("d2", ALL)
    assert asked(desk, BERT, "d2") == ("d3", (THREAT,)), "it has none any more"
    label(desk, BERT, "d3", threat=1)
    with pytest.raises(TextTaken):
        label(desk, ANNA, "d1", threat=None)
    label(desk, BERT, "d5", spam=None)
    label(desk, BERT, "d1", threat=None)
    assert rows(desk) == {}
    assert asked(desk, BERT) == ("d1", (THREAT,))


def test_one_policy_alone_can_be_asked_about(desk: Desk) -> None:
    fill(desk, "d1", "d2", "d3")
    assert asked(desk, ANNA, "", SPAM) == ("d1", (SPAM,))
    label(desk, ANNA, "d1", spam=1)
    assert asked(desk, ANNA, "", SPAM) == ("d2", (SPAM,))
    assert asked(desk, BERT, "d1", THREAT) == ("d3", (THREAT,)), "d2 is Anna's"
    fill(desk, "d4", judgements=(judgement(0.4), replace(judgement(0.4), policy="test/gone")))
    assert asked(desk, ANNA, "d3") == ("d4", (THREAT,)), "nobody knows what the other asked"
    label(desk, ANNA, "d4", threat=0)
    assert desk.standing(ANNA).unfinished == 3, "of four"
    with pytest.raises(UnknownName, match="'test/spam'"):
        label(desk, ANNA, "d4", spam=0)


def test_what_no_key_opens_is_passed_over_and_counted(file: Path, desk: Desk) -> None:
    put(desk._texts, kept("d1"), seal=Seal([new_key()]))
    fill(desk, "d2")
    found = desk.next(ANNA, "", BOOK, BOOK)
    assert found.candidate
    assert (found.candidate.text.key.id, found.locked) == ("d2", 1)
    with pytest.raises(TextGone):
        label(desk, ANNA, "d1", threat=1)


def test_labels_stay_those_of_a_text_when_keys_rotate(file: Path, desk: Desk) -> None:
    fill(desk, "d1")
    asked(desk, ANNA)
    label(desk, ANNA, "d1", threat=1)
    rotated = desk_at(str(file), new_key(), KEY)
    assert asked(rotated, ANNA) == ("d1", (SPAM,))
    label(rotated, ANNA, "d1", spam=0)
    assert rows(rotated) == {"d1": {THREAT: 1, SPAM: 0}}


# Sealed, expiring, forgotten


def test_labels_are_sealed_and_those_of_one_text_are_not_taken_for_anothers(
    file: Path, desk: Desk
) -> None:
    fill(desk, "d1", "d2")
    for id, said in (("d1", 1), ("d2", 0)):
        asked(desk, ANNA)
        label(desk, ANNA, id, threat=said, spam=said)
    assert b"threat" not in bytes_of(file)
    assert b"canary" not in bytes_of(file)
    with sqlite3.connect(file) as raw:
        [(one,), _] = raw.execute("select sealed from shieldgate_labels").fetchall()
        raw.execute("update shieldgate_labels set sealed = ?", (one,))
    assert len(rows(desk)) == 1, "the other one's is not believed"


def test_a_labelled_text_stays_as_long_as_its_labels_and_no_longer(file: Path, desk: Desk) -> None:
    clock = desk._clock
    assert isinstance(clock, Clock)
    fill(desk, "d1", "d2", at=clock.now)
    asked(desk, ANNA)
    clock.now += 29 * DAY
    label(desk, ANNA, "d1", threat=1)

    def upkeep(labels: float = 90) -> None:
        desk._labels.expire(clock.now, labels * DAY)
        desk._texts.expire(clock.now, 30 * DAY)
        desk._texts.shrink(0)

    clock.now += 89 * DAY
    fill(desk, "d3", at=clock.now)
    upkeep()
    assert list(rows(desk)) == ["d1"], "and the others are gone"
    assert desk.standing(ANNA).kept == 1
    upkeep(labels=89)
    assert rows(desk) == {}
    assert desk.standing(ANNA) == (0, 0, 0, 0)
    assert b"d1" not in bytes_of(file)


def test_labels_expire_by_their_own_date_where_nobody_knows_the_setting(desk: Desk) -> None:
    fill(desk, "d1", at=1000.0)
    label(desk, ANNA, "d1", threat=1)
    desk._labels.expire(1000.0 + 90 * DAY - 1)
    desk._texts.expire(1000.0 + 90 * DAY - 1)
    assert len(rows(desk)) == 1
    desk._labels.expire(1000.0 + 90 * DAY)
    assert desk._texts.expire(1000.0 + 90 * DAY) == 1


def test_forgotten_texts_take_their_labels_with_them_and_leave_those_of_others(
    file: Path, desk: Desk
) -> None:
    fill(desk, "d1", "d2", caller="gone", prompt="the same")
    fill(desk, "d3", caller="stays", prompt="the same")
    fill(desk, "dec_forgotten", caller="gone")
    asked(desk, ANNA)
    label(desk, ANNA, "d1", threat=1, spam=0)
    assert asked(desk, ANNA) == ("dec_forgotten", ALL)
    label(desk, ANNA, "dec_forgotten", threat=1, spam=0)
    assert asked(desk, ANNA) is None
    assert len(rows(desk)) == 4
    assert desk._texts.forget("gone") == 3
    assert list(rows(desk)) == ["d3"]
    with pytest.raises(TextGone):
        label(desk, ANNA, "dec_forgotten", threat=0)
    clock = desk._clock
    assert isinstance(clock, Clock)
    clock.now += 60
    desk._labels.expire(clock.now)
    assert b"dec_forgotten" not in bytes_of(file)
    with desk._labels._database.connected() as connection:
        assert connection.exec_driver_sql("select count(*) from shieldgate_labels").scalar() == 1


# The rows


def test_rows_are_those_that_a_terminal_writes(desk: Desk, tmp_path: Path) -> None:
    fill(desk, "d1", why=("random",), chance=0.02)
    fill(desk, "d2", response="half \ud83c of one", judgements=both(0.9))
    fill(desk, "d3", prompt="not labelled")
    answers = {"d1": {THREAT: 1, SPAM: 0}, "d2": {THREAT: 0}}
    out = tmp_path / "labelled.jsonl"
    search = Search(Choice(share=1.0), list(BOOK), 1000)
    with LabelledFile(out) as file:
        found = search.among(desk._kept.judged(), file.row)
        session = Session(found.candidates, file)
        while question := session.question:
            id = question.text.candidates[0].text.key.id
            session.answer(answers.get(id, {}).get(question.policy))  # type: ignore[arg-type]
    for id, said in answers.items():
        desk.label(ANNA, id, said, BOOK)  # type: ignore[arg-type]
    terminal = sorted((json.loads(line) for line in out.read_text().splitlines()), key=str)
    console = sorted((json.loads(json.dumps(row)) for row in desk.rows()), key=str)
    for row in (*terminal, *console):
        assert row.pop("reviewed")
    assert console == terminal
    assert [row["weight"] for row in console] == [50.0, 1.0]
    # What was labelled in the console is not asked in a terminal.
    again = search.among(desk._kept.judged(), lambda key: None)
    left = {c.text.key.id: c.asked for c in again.candidates}
    assert left == {"d2": (SPAM,), "d3": ALL}


# Over HTTP


ADMIN = {"authorization": "Bearer sg-admin"}
WEB = {"authorization": "Bearer sg-web"}
NEXT, LABEL, LEAVE, LABELS = (
    f"/admin/review/{what}" for what in ("next", "label", "leave", "labels")
)


@asynccontextmanager
async def served_with(desk: Desk | None, **given: Any) -> AsyncIterator[Gateway]:
    async with gateway(FakeScorer({}), desk=desk, **given) as served:
        yield served


async def test_a_text_comes_safely_shown_and_its_labels_go_out_as_rows(desk: Desk) -> None:
    fill(desk, "d1", prompt=f"\u202e{CANARY}", why=("random",), chance=0.5)
    with capture_logs() as logged:
        async with served_with(desk) as served:
            reply = await served.client.post(NEXT, json={"reviewer": ANNA})
            assert reply.headers["cache-control"] == "no-store"
            found = reply.json()
            text = found.pop("text")
            assert found == {
                "keeping": True,
                **{"kept": 1, "unfinished": 1, "labelled": 0, "elsewhere": 0, "locked": 0},
            }
            assert text["prompt"] == [["<U+202E>", True], [CANARY, False]]
            assert (text["response"], text["chosen"]) == (None, ["near", "random"])
            assert text["questions"][0] == {
                "policy": THREAT,
                "title": "Threats",
                "guideline": "No threats in prompts.",
                "probability": 0.4,
                "threshold": 0.5,
            }
            assert (await served.client.get(LABELS)).text == ""
            said = {"reviewer": ANNA, "id": "d1", "labels": {THREAT: 1, SPAM: 0}}
            reply = await served.client.post(LABEL, json=said)
            assert reply.json() == {"labels": {THREAT: 1, SPAM: 0}}
            assert reply.headers["cache-control"] == "no-store"
            reply = await served.client.get(LABELS)
            assert reply.headers["cache-control"] == "no-store"
            assert reply.headers["content-type"] == "application/jsonl"
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert "labelled.jsonl" in reply.headers["content-disposition"]
            [row] = map(json.loads, reply.text.splitlines())
            assert (row["id"], row["weight"], row["labels"]) == ("d1", 2.0, said["labels"])
            reply = await served.client.post(NEXT, json={"reviewer": ANNA})
            assert reply.json()["text"] is None
            fill(desk, "d2")
            for reviewer, left in ((ANNA, False), (BERT, True)):
                reply = await served.client.post(NEXT, json={"reviewer": reviewer})
                assert (reply.json()["text"] is None) == left, "Anna has it"
            reply = await served.client.post(LEAVE, json={"reviewer": ANNA})
            assert reply.status_code == 204
            reply = await served.client.post(NEXT, json={"reviewer": BERT})
            assert reply.json()["text"]["id"] == "d2"
    assert "canary" not in str(logged)


async def test_it_takes_an_admins_key(desk: Desk, tmp_path: Path) -> None:
    fill(desk, "d1")
    keys = keys_written(tmp_path, entry("web", "sg-web"), entry("ops", "sg-admin", admin="true"))
    async with served_with(desk, keys=keys) as served:
        for method, path, body in (
            ("POST", NEXT, {"reviewer": ANNA}),
            ("POST", LABEL, {"reviewer": ANNA, "id": "d1", "labels": {}}),
            ("POST", LEAVE, {"reviewer": ANNA}),
            ("GET", LABELS, None),
        ):
            for headers, status in (({}, 401), (WEB, 403), (ADMIN, 204 if path == LEAVE else 200)):
                reply = await served.client.request(method, path, json=body, headers=headers)
                assert reply.status_code == status, (path, headers)
                assert ("canary" in reply.text) == (path == NEXT and status == 200)


async def test_what_cannot_be_is_said(desk: Desk) -> None:
    fill(desk, "d1")
    async with served_with(None) as served:
        assert (await served.client.post(NEXT, json={"reviewer": ANNA})).json()["keeping"] is False
        reply = await served.client.get(LABELS)
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "texts_not_kept")
        assert "--keep-texts" in reply.text
    async with served_with(desk) as served:

        async def refused(path: str, **body: Any) -> tuple[int, str]:
            reply = await served.client.post(path, json=body)
            return reply.status_code, reply.json()["error"]["code"]

        of_d1 = {"id": "d1", "labels": {THREAT: 1}}
        assert await refused(NEXT, reviewer="short") == (400, "string_pattern_mismatch")
        assert await refused(NEXT, reviewer=ANNA, policies=["test/thread"]) == (400, "unknown_name")
        assert await refused(NEXT, reviewer=ANNA, after="d1\u0000") == (
            400,
            "string_pattern_mismatch",
        )
        desk.next(ANNA, "", BOOK, BOOK)
        assert await refused(LABEL, reviewer=BERT, **of_d1) == (409, "text_taken")
        assert await refused(LABEL, reviewer=ANNA, id="d2", labels={}) == (404, "text_gone")
        assert (await refused(LABEL, reviewer=ANNA, id="d1", labels={THREAT: 2}))[0] == 400
        desk._texts.database.connected = away  # type: ignore[method-assign]
        for path, body in ((NEXT, {}), (LABEL, of_d1)):
            assert await refused(path, reviewer=ANNA, **body) == (503, "store_failed")
        assert (await served.client.get(LABELS)).status_code == 503


def away() -> Any:
    raise StoreFailed("the database refused: it is away")
