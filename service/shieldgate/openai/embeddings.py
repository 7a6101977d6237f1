"""Wire types of `POST /v1/embeddings`, as far as they must be understood."""

from typing import Any

from pydantic import Field

from shieldgate.openai.chat import ScreenedRequest


class EmbeddingRequest(ScreenedRequest):
    """Texts to embed: one, or a list of them; tokens can't be screened."""

    # As many as OpenAI takes; the gateway judges fewer.
    input: str | list[Any] = Field(max_length=2_048, examples=["How do I bake bread?"])
