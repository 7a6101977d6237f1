"""docs/coverage.md says of every field what becomes of it; here it is held to that."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai.types import chat, embedding_create_params
from openai.types import completion_create_params as completions
from openai.types.chat import chat_completion_chunk, completion_create_params

from shieldgate.dialects.openai_chat import plan_chat
from shieldgate.dialects.openai_completions import plan_completion
from shieldgate.dialects.openai_embeddings import OpenAIEmbeddings
from shieldgate.dialects.openai_text import answer, split
from shieldgate.dialects.plan import Plan
from shieldgate.dialects.text import Contents
from shieldgate.openai.chat import ChatRequest, CompletionRequest
from shieldgate.openai.embeddings import EmbeddingRequest
from shieldgate.policy import Profile

PROFILE = Profile("default", ("acme/spam",))
PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"


@dataclass(frozen=True)
class Row:
    """One row of one of the tables; `field` is its first name, such as `content`."""

    table: str
    title: str
    field: str
    becomes: str
    example: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.table}: {self.title}"


def rows(page: Path) -> Iterator[Row]:
    table = ""
    for line in page.read_text(encoding="utf-8").splitlines():
        table = line.lstrip("# ") if line.startswith("##") else table
        if found := re.fullmatch(r"\| (.+) \| (judged|refused|passed) \| `(.+)` \|", line):
            title, becomes, example = found.groups()
            field = re.match(r"`(\w+)`", title)
            yield Row(table, title, field[1] if field else "", becomes, json.loads(example))


ROWS = list(rows(PAGE))
MESSAGES, CHAT = "Messages", "`POST /v1/chat/completions`"
COMPLETIONS, EMBEDDINGS = "`POST /v1/completions`", "`POST /v1/embeddings`"
ANSWERS = "Answers"
CHOICES, AROUND = "Choices", "Around the choices"


def of(*tables: str) -> list[Row]:
    return [row for row in ROWS if row.table in tables]


def body(row: Row) -> dict[str, Any]:
    """The body of a request with the example of the row in its place."""
    if row.table == MESSAGES:
        return {"messages": [{"role": "user", **row.example}]}
    return {"messages": [], **row.example} if row.table == CHAT else row.example


def read(row: Row) -> dict[str, Any]:
    """The body as it is planned with and sent on, once it has been read."""
    kinds = {COMPLETIONS: CompletionRequest, EMBEDDINGS: EmbeddingRequest}
    kind = kinds.get(row.table, ChatRequest)
    return kind.model_validate(body(row)).for_upstream()


def planned(row: Row) -> Plan:
    if row.table == EMBEDDINGS:
        return OpenAIEmbeddings().plan(read(row), PROFILE)
    if row.table == COMPLETIONS:
        return plan_completion(read(row))
    return plan_chat(read(row), PROFILE)


def judged(plan: Plan) -> bool:
    exchanges = [subject.exchange for subject in plan.prompts]
    return any("TEXT" in text for e in exchanges for text in (e.prompt, *e.parts))


def test_the_page_has_the_tables_that_are_read_here():
    of_requests = {MESSAGES, CHAT, COMPLETIONS, EMBEDDINGS}
    assert {row.table for row in ROWS} == of_requests | {ANSWERS, CHOICES, AROUND}
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if "`{" in line]
    assert len(lines) == len(ROWS) > 90


@pytest.mark.parametrize("row", of(MESSAGES, CHAT, COMPLETIONS, EMBEDDINGS), ids=str)
def test_a_field_of_a_request_becomes_what_the_page_says(row: Row):
    plan = planned(row)
    assert bool(plan.unscreenable) == (row.becomes == "refused")
    assert judged(plan) == (row.becomes == "judged")


@pytest.mark.parametrize("row", of(CHAT, COMPLETIONS, EMBEDDINGS), ids=str)
def test_what_is_refused_is_named_by_its_field(row: Row):
    for named in planned(row).unscreenable:
        assert re.fullmatch(rf"{row.field or 'body'}(\[\d+\])?", named)


@pytest.mark.parametrize("row", of(MESSAGES), ids=str)
def test_what_is_refused_is_named_by_its_place_in_the_messages(row: Row):
    for named in planned(row).unscreenable:
        # What nobody knows may be named by anything, so that only the message is.
        assert re.fullmatch(rf"messages\[0\](\.{row.field}(\[0\](\.\w+)?)?)?", named)
        assert row.field in named


@pytest.mark.parametrize("row", of(MESSAGES, CHAT, COMPLETIONS, EMBEDDINGS), ids=str)
def test_every_field_goes_to_upstream_untouched(row: Row):
    assert read(row) == body(row)


def answered(row: Row, place: str) -> Contents:
    """What is read of an answer with the example of the row in its place."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    if row.table == ANSWERS:
        choice[place] = row.example
    elif row.table == CHOICES:
        choice |= row.example
    reply = {"id": "chatcmpl-1", "choices": [choice]}
    _, beside, *_ = split(reply | row.example if row.table == AROUND else reply)
    return answer(choice, beside)


@pytest.mark.parametrize("place", ["message", "delta"])
@pytest.mark.parametrize("row", of(ANSWERS, CHOICES, AROUND), ids=str)
def test_a_field_of_an_answer_becomes_what_the_page_says(row: Row, place: str):
    found = answered(row, place)
    assert ("TEXT" in "\n".join(found.texts)) == (row.becomes == "judged")
    assert bool(found.unscreenable) == (row.becomes == "refused")


def keys(*types: Any) -> set[str]:
    return {key for type_ in types for key in type_.__annotations__}


def test_every_field_of_the_official_client_has_a_row():
    asked = keys(
        completion_create_params.CompletionCreateParamsBase,
        completion_create_params.CompletionCreateParamsStreaming,
    )
    assert asked - {row.field for row in of(CHAT)} == {"moderation"}
    asked = keys(
        completions.CompletionCreateParamsBase, completions.CompletionCreateParamsStreaming
    )
    assert asked - {row.field for row in of(COMPLETIONS)} == set()
    asked = keys(embedding_create_params.EmbeddingCreateParams)
    assert asked - {row.field for row in of(EMBEDDINGS)} == set()


def test_every_field_of_the_official_clients_messages_has_a_row():
    messages = keys(
        chat.ChatCompletionAssistantMessageParam,
        chat.ChatCompletionDeveloperMessageParam,
        chat.ChatCompletionFunctionMessageParam,
        chat.ChatCompletionSystemMessageParam,
        chat.ChatCompletionToolMessageParam,
        chat.ChatCompletionUserMessageParam,
    )
    assert messages - {row.field for row in of(MESSAGES)} == set()
    choices = keys(chat.chat_completion.Choice, chat_completion_chunk.Choice)
    assert choices - {row.field for row in of(CHOICES)} == {"index", "message", "delta"}
    around = keys(chat.ChatCompletion, chat.ChatCompletionChunk)
    assert around - {row.field for row in of(AROUND)} == {"choices"}
    answers = keys(chat.ChatCompletionMessage, chat_completion_chunk.ChoiceDelta)
    assert answers - {row.field for row in of(ANSWERS)} == set()


def test_every_content_part_of_the_official_client_has_a_row():
    kinds = {
        "text": chat.ChatCompletionContentPartTextParam,
        "image_url": chat.ChatCompletionContentPartImageParam,
        "input_audio": chat.ChatCompletionContentPartInputAudioParam,
        "refusal": chat.ChatCompletionContentPartRefusalParam,
        "file": chat.chat_completion_content_part_param.File,
    }
    titles = {row.title for row in of(MESSAGES)}
    assert {f"`content`, part `{kind}`" for kind in kinds} <= titles
    marks = {"type", "prompt_cache_breakpoint"}
    assert {kind: keys(part) - marks for kind, part in kinds.items()} == {
        kind: {kind} for kind in kinds
    }
