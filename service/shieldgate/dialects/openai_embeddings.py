"""`POST /v1/embeddings`: asked like a completion, and answered in numbers."""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from shieldgate.dialects.beside import field_items, material_beside
from shieldgate.dialects.fields import Anything, Passed, known
from shieldgate.dialects.interface import Endpoint, JsonObject
from shieldgate.dialects.openai import ACCOUNT, BEARER, answering
from shieldgate.dialects.openai_completions import OpenAICompletions
from shieldgate.dialects.plan import Plan, Subject, distinct
from shieldgate.dialects.text import Field, index_of
from shieldgate.errors import UpstreamError
from shieldgate.openai.embeddings import EmbeddingRequest
from shieldgate.policy import Profile

_FIELDS: dict[str, Field] = {
    **dict.fromkeys(("model", "user"), Passed()),
    "encoding_format": known("float", "base64"),
    "dimensions": Anything(),
}
_FLOAT_BYTES = 4
_LIST = {"type": "object", "required": ["data"]}
_COUNTS = ("prompt_tokens", "total_tokens")


class OpenAIEmbeddings(OpenAICompletions):
    """OpenAI's embeddings."""

    name = "embed"
    description = "Embed texts with the upstream model, once they are judged like prompts."
    route = "/v1/embeddings"
    request_model: type[BaseModel] = EmbeddingRequest
    endpoint = Endpoint("/embeddings", BEARER, ACCOUNT)
    prompt_param = "input"
    choices_param: str | None = None
    responses: Mapping[int | str, dict[str, Any]] = {
        **answering(_LIST),
        200: {
            "description": "The numbers of upstream's reply.",
            "content": {"application/json": {"schema": _LIST}},
        },
    }

    def plan(self, body: JsonObject, profile: Profile) -> Plan:
        """Judge each input by itself; tokens are unscreenable."""
        given = body.get("input")
        tokens = isinstance(given, list) and any(isinstance(item, int) for item in given)
        inputs = [("input", given)] if tokens else list(field_items(body, ("input",)))
        subjects = [
            Subject.of(field, [("content/", text)])
            for field, text in inputs
            if isinstance(text, str)
        ]
        unscreenable = [field for field, text in inputs if not isinstance(text, str)]
        beside, unreadable = material_beside(body, _FIELDS, ("input",))
        return Plan(distinct([*subjects, *beside]), (*unscreenable, *unreadable), contexts=("",))


def numbers(reply: JsonObject, body: JsonObject) -> dict[str, Any]:
    """Write a reply with the numbers of upstream's, and no word of it; raise UpstreamError."""
    data, usage, model = reply.get("data"), reply.get("usage"), body.get("model")
    embeddings = [_embedding(item) for item in data] if isinstance(data, list) else []
    # Replies need not be in the order of the inputs.
    places = [index_of(item, place) for place, item in enumerate(data or ())]
    if not embeddings or not all(embeddings) or len(set(places)) < len(places):
        raise UpstreamError("Upstream answered without embeddings.", code="upstream_invalid")
    counted = usage if isinstance(usage, dict) else {}
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": place, "embedding": embedding}
            for place, embedding in zip(places, embeddings, strict=True)
        ],
        "model": model if isinstance(model, str) else "",
        "usage": {name: counted[name] if type(counted.get(name)) is int else 0 for name in _COUNTS},
    }


def _embedding(item: Any) -> list[float] | str | None:
    """Give one embedding, as numbers or as the base64 of such; None where it is neither."""
    given = item.get("embedding") if isinstance(item, dict) else None
    if isinstance(given, list) and given and {int, float}.issuperset(map(type, given)):
        return given
    if not isinstance(given, str):
        return None
    try:
        raw = base64.b64decode(given, validate=True)
    except binascii.Error:
        return None
    return None if len(raw) % _FLOAT_BYTES else given
