"""docs/responses.md says of every field what becomes of it; here it is held to that."""

import re
from typing import Any, get_args, get_type_hints

import pytest
from openai.types import responses
from openai.types.responses import response_create_params, response_input_item_param
from test_coverage_table import PAGE, PROFILE, Row, keys, rows

from shieldgate.dialects.openai_responses import OpenAIResponses
from shieldgate.dialects.openai_responses_events import KINDS
from shieldgate.dialects.plan import Plan
from shieldgate.openai.responses import ResponsesRequest
from shieldgate.strands import whole_and_parts

DIALECT = OpenAIResponses()
RESPONSES_PAGE = PAGE.with_name("responses.md")
ROWS = list(rows(RESPONSES_PAGE))
FIELDS, ITEMS, ANSWERS = "Fields", "Items", "Answers"
ASKED = {
    "instructions": "Be brief.",
    "tools": [{"type": "function", "name": "look", "parameters": {}}],
    "input": "hello",
}


def of(*tables: str) -> list[Row]:
    return [row for row in ROWS if row.table in tables]


def in_answers() -> list[Row]:
    return [row for row in of(ITEMS, ANSWERS) if "in a request" not in row.title]


def said_in(plan: Plan) -> str:
    exchanges = [subject.exchange for subject in plan.prompts]
    return "\n".join(text for e in exchanges for text in (e.prompt, e.response or "", *e.parts))


def test_the_page_has_the_tables_that_are_read_here():
    assert {row.table for row in ROWS} == {FIELDS, ITEMS, ANSWERS}
    lines = [line for line in RESPONSES_PAGE.read_text().splitlines() if "`{" in line]
    assert len(lines) == len(ROWS) > 140


@pytest.mark.parametrize("row", of(FIELDS, ITEMS), ids=str)
def test_a_field_of_a_request_becomes_what_the_page_says(row: Row):
    body = {"input": [row.example]} if row.table == ITEMS else row.example
    given = ResponsesRequest.model_validate(body).for_upstream()
    assert given == body
    plan = DIALECT.plan(given, PROFILE)
    refused = [*plan.unscreenable, *plan.unseen]
    assert bool(refused) == (row.becomes == "refused")
    assert ("TEXT" in said_in(plan)) == (row.becomes == "judged")
    for named in refused:
        # What nobody knows may be named by anything, so that only its place is.
        assert re.fullmatch(r"input\[0\](\.\w+(\[0\])?)*|body|" + (row.field or "body"), named)


def test_a_prompt_of_the_servers_has_variables_that_are_judged():
    variables = {"of_mine": "TEXT", "b": {"type": "input_text", "text": "WORDS"}}
    plan = DIALECT.plan({"prompt": {"id": "pmpt_1", "variables": variables}}, PROFILE)
    assert plan.unseen == ("prompt",)
    assert all(said in said_in(plan) for said in ("TEXT", "WORDS", "of mine"))
    image = {"a": {"type": "input_image", "image_url": "u"}}
    plan = DIALECT.plan({"prompt": {"id": "pmpt_1", "variables": image}}, PROFILE)
    assert plan.unscreenable


def answered(row: Row) -> dict[str, Any]:
    reply = {"id": "resp_1", "object": "response", "output": []}
    return reply | ({"output": [row.example]} if row.table == ITEMS else row.example)


@pytest.mark.parametrize("row", in_answers(), ids=str)
def test_a_field_of_an_answer_becomes_what_the_page_says(row: Row):
    [answer] = DIALECT.answers(answered(row), ASKED)
    whole, parts = whole_and_parts(answer.texts)
    assert ("TEXT" in "\n".join((whole, *parts))) == (row.becomes == "judged")
    assert answer.unscreenable == (row.becomes == "refused")


@pytest.mark.parametrize("kind", ["response.created", "response.completed", "an item"])
@pytest.mark.parametrize("row", in_answers(), ids=str)
def test_a_field_of_a_stream_becomes_what_the_page_says(row: Row, kind: str):
    event: dict[str, Any] = {"type": kind, "response": answered(row)}
    if kind == "an item":
        if row.table != ITEMS:
            return
        event = {"type": "response.output_item.done", "output_index": 0, "item": row.example}
    [piece] = DIALECT.stream(ASKED, 1).read("", event)
    whole, parts = whole_and_parts(piece.texts)
    assert ("TEXT" in "\n".join((whole, *parts))) == (row.becomes == "judged")
    assert piece.unscreenable == (row.becomes == "refused")


def test_every_field_of_the_official_client_has_a_row():
    asked = keys(
        response_create_params.ResponseCreateParamsBase,
        response_create_params.ResponseCreateParamsStreaming,
    )
    assert asked - {row.field for row in of(FIELDS)} == {"moderation"}
    assert set(responses.Response.model_fields) - {row.field for row in of(ANSWERS)} == set()


def kind_of(item: Any) -> str:
    if hasattr(item, "model_fields"):
        return str(get_args(item.model_fields["type"].annotation)[0])
    words = [w for w in get_args(get_type_hints(item)["type"]) if isinstance(w, str)]
    return words[0] if words else str(get_args(get_args(get_type_hints(item)["type"])[0])[0])


def test_every_item_of_the_official_client_has_a_row():
    named = {row.field for row in of(ITEMS)}
    asked = {kind_of(item) for item in get_args(response_input_item_param.ResponseInputItemParam)}
    given = {kind_of(item) for item in get_args(get_args(responses.ResponseOutputItem)[0])}
    assert (asked | given) - named == set()


def test_every_event_of_the_official_client_is_known():
    events = {kind_of(event) for event in get_args(get_args(responses.ResponseStreamEvent)[0])}
    assert events - KINDS == {"error"}
