"""docs/messages.md says of every field what becomes of it; here it is held to that."""

import re
from typing import Any, get_args, get_type_hints

import pytest
from anthropic.types import (
    ContentBlock,
    ContentBlockParam,
    Message,
    message_create_params,
)
from test_coverage_table import PAGE, PROFILE, Row, judged, keys, rows

from shieldgate.dialects.anthropic_messages import AnthropicMessages, MessagesRequest
from shieldgate.strands import whole_and_parts

DIALECT = AnthropicMessages()
MESSAGES_PAGE = PAGE.with_name("messages.md")
ROWS = list(rows(MESSAGES_PAGE))
FIELDS, BLOCKS, ANSWERS = "Fields", "Blocks", "Answers"


def of(*tables: str) -> list[Row]:
    return [row for row in ROWS if row.table in tables]


def body(row: Row) -> dict[str, Any]:
    if row.table == BLOCKS:
        return {"messages": [{"role": "user", "content": [row.example]}]}
    return {"messages": [], **row.example}


def test_the_page_has_the_tables_that_are_read_here():
    assert {row.table for row in ROWS} == {FIELDS, BLOCKS, ANSWERS}
    lines = [line for line in MESSAGES_PAGE.read_text().splitlines() if "`{" in line]
    assert len(lines) == len(ROWS) > 80


@pytest.mark.parametrize("row", of(FIELDS, BLOCKS), ids=str)
def test_a_field_of_a_request_becomes_what_the_page_says(row: Row):
    given = MessagesRequest.model_validate(body(row)).for_upstream()
    plan = DIALECT.plan(given, PROFILE)
    assert bool(plan.unscreenable) == (row.becomes == "refused")
    assert judged(plan) == (row.becomes == "judged")
    assert given == body(row)
    for named in plan.unscreenable:
        assert re.fullmatch(r"messages\[0\](\.content\[0\][\w.\[\]]*)?|\w+", named)


@pytest.mark.parametrize("role", ["assistant", "system", "I_am_TEXT"])
@pytest.mark.parametrize("row", of(BLOCKS), ids=str)
def test_a_block_becomes_the_same_whoever_says_it(row: Row, role: str):
    given = {"messages": [{"role": role, "content": [row.example]}]}
    plan = DIALECT.plan(given, PROFILE)
    exchanges = [s.exchange for s in plan.prompts]
    said = "\n".join(t for e in exchanges for t in (e.prompt, e.response or "", *e.parts))
    assert bool(plan.unscreenable) == (row.becomes == "refused")
    assert ("TEXT" in said) == (row.becomes == "judged" or "TEXT" in role)


def answered(row: Row) -> dict[str, Any]:
    reply = {"type": "message", "role": "assistant", "content": []}
    return reply | ({"content": [row.example]} if row.table == BLOCKS else row.example)


@pytest.mark.parametrize("row", of(BLOCKS, ANSWERS), ids=str)
def test_a_field_of_an_answer_becomes_what_the_page_says(row: Row):
    [answer] = DIALECT.answers(answered(row))
    whole, parts = whole_and_parts(answer.texts)
    assert ("TEXT" in "\n".join((whole, *parts))) == (row.becomes == "judged")
    assert answer.unscreenable == (row.becomes == "refused")


@pytest.mark.parametrize("row", of(BLOCKS, ANSWERS), ids=str)
def test_a_field_of_a_stream_becomes_what_the_page_says(row: Row):
    if row.table == BLOCKS:
        event = {"type": "content_block_start", "index": 0, "content_block": row.example}
    else:
        event = {"type": "message_start", "message": answered(row)}
    [piece] = DIALECT.stream({}, 1).read("", event)
    whole, parts = whole_and_parts(piece.texts)
    assert ("TEXT" in "\n".join((whole, *parts))) == (row.becomes == "judged")
    assert piece.unscreenable == (row.becomes == "refused")


def test_every_field_of_the_official_client_has_a_row():
    asked = keys(
        message_create_params.MessageCreateParamsBase,
        message_create_params.MessageCreateParamsStreaming,
    )
    assert asked - {row.field for row in of(FIELDS)} == set()
    assert set(Message.model_fields) - {row.field for row in of(ANSWERS)} == set()


def kind(block: Any) -> str:
    if hasattr(block, "model_fields"):
        return get_args(block.model_fields["type"].annotation)[0]
    return get_args(get_type_hints(block)["type"])[0]


def test_every_block_of_the_official_client_has_a_row():
    named = {row.field for row in of(BLOCKS)}
    assert {kind(block) for block in get_args(ContentBlockParam)} - named == set()
    assert {kind(block) for block in get_args(get_args(ContentBlock)[0])} - named == set()
