"""The model that answers chats: a generator of our own, or an API that serves one."""

from pathlib import Path

from pydantic import Field, HttpUrl, SecretStr

from shieldgate.settings.base import Settings


class GeneratorSettings(Settings):
    """What it takes to generate text with a model of our own."""

    panel = "Generator"

    generator: str | None = Field(
        None,
        min_length=1,
        description="Answer chats with this Gemma 2 model, in a worker of our own: "
        "google/gemma-2-2b-it, -9b-it or -27b-it, or the path of a checkpoint.",
    )
    generator_revision: str | None = Field(
        None, description="Branch, tag or commit of a generator from the Hugging Face Hub."
    )
    assistant: str | None = Field(
        None, min_length=1, description="A smaller Gemma 2 that drafts for the generator."
    )
    watermark_keys: Path | None = Field(
        None,
        description="Mark the generator's texts with the keys of this file, so that "
        "'shieldgate detect-watermark' finds them; 'shieldgate watermark new' makes one. Default: "
        "no marks.",
    )


class ChatSettings(GeneratorSettings):
    """What it takes to stand before an LLM."""

    panel = "Chat"

    upstream: HttpUrl | None = Field(
        None,
        description="The OpenAI-compatible API that answers chats, with its /v1: "
        "http://localhost:11434/v1, for example.",
    )
    upstream_key: SecretStr | None = Field(
        None,
        description="The API key for upstream. Flags show in process lists: prefer the variable. "
        "Default: the caller's own.",
    )
    upstream_headers: SecretStr | None = Field(
        None,
        description="Headers for upstream beyond those it needs, parted by commas: name=value is "
        "sent with each request, and a name alone passes the caller's on. Flags show in process "
        "lists: prefer the variable.",
    )
    upstream_proxy: SecretStr | None = Field(
        None,
        description="The proxy through which upstream is reached, http://proxy:3128, for example; "
        "or 'environment' for what HTTP_PROXY, HTTPS_PROXY and NO_PROXY say. Default: none, "
        "whatever they say.",
    )
    upstream_seconds: int = Field(
        300,
        ge=1,
        description="Longest silence of upstream, in seconds; then comes a 504. An answer that is "
        "not streamed is silent until it is complete.",
    )
    ping_seconds: float = Field(
        15,
        gt=0,
        allow_inf_nan=False,
        description="Longest silence within a streamed answer, in seconds; then a comment keeps "
        "the connection alive.",
    )
