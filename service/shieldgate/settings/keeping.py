"""What is kept: scores, conversations, the record of decisions, and texts for review."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr

from shieldgate.settings.base import Settings


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
