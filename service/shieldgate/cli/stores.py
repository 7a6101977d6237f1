"""Prepares what a gateway keeps, as the settings say: in Redis, in records, in a database."""

import secrets
from typing import TYPE_CHECKING

import structlog

from shieldgate.errors import ConfigurationError, needed
from shieldgate.given_settings import flag, variable
from shieldgate.history import SharedHistory
from shieldgate.settings import ServeSettings
from shieldgate.telemetry import Sink, Telemetry

if TYPE_CHECKING:
    from shieldgate.kept_texts.keeper import Keeper
    from shieldgate.redis.client import RedisClient
    from shieldgate.redis.score_cache import RedisScoreCache
    from shieldgate.review.desk import Desk

_DAY = 86_400.0

log = structlog.get_logger(__name__)


def cache_secret(settings: ServeSettings) -> bytes:
    """Give the secret of cached scores, which replicas share; raise ConfigurationError."""
    if settings.cache_secret is not None:
        return settings.cache_secret.get_secret_value().encode()
    if settings.redis_url is not None:
        raise ConfigurationError(
            f"{flag('redis_url')} shares scores among the replicas that have one secret. Give all "
            f"of them the same {variable('cache_secret')}; `openssl rand -hex 32` makes one."
        )
    return secrets.token_bytes(32)


def open_redis(
    settings: ServeSettings, secret: bytes, telemetry: Telemetry
) -> tuple["RedisClient | None", "RedisScoreCache | None"]:
    """Prepare what replicas share, where there is a Redis; raise ConfigurationError."""
    if settings.redis_url is None:
        return None, None
    # Here, because who has no Redis need not wait for its library.
    from shieldgate.redis.client import RedisClient  # noqa: PLC0415
    from shieldgate.redis.score_cache import RedisScoreCache  # noqa: PLC0415

    shared = RedisClient(
        settings.redis_url.get_secret_value(), seconds=settings.redis_seconds, observer=telemetry
    )
    keep = settings.redis_keep_seconds
    return shared, RedisScoreCache(shared, secret=secret, keep_seconds=keep)


def shared_history(
    settings: ServeSettings, secret: bytes, shared: "RedisClient | None"
) -> SharedHistory | None:
    """Prepare what replicas remember together, where there is a Redis."""
    if shared is None:
        return None
    from shieldgate.redis.history import RedisHistory  # noqa: PLC0415

    return RedisHistory(shared, secret=secret)


def audit_secret(settings: ServeSettings) -> bytes:
    """Give the secret of the digests in the records of decisions."""
    if settings.audit_secret is None:
        return secrets.token_bytes(32)
    return settings.audit_secret.get_secret_value().encode()


def audit_sink(
    settings: ServeSettings,
    shared: "RedisClient | None",
    telemetry: Telemetry,
    *,
    suffix: str = "",
) -> Sink | None:
    """Prepare the stream of records, where one is asked for; raise ConfigurationError."""
    if settings.audit_stream is None:
        return None
    if shared is None:
        raise ConfigurationError(
            f"{flag('audit_stream')} is a stream in Redis. Give its {variable('redis_url')}."
        )
    from shieldgate.redis.audit_stream import RedisAuditStream  # noqa: PLC0415

    return RedisAuditStream(
        shared,
        settings.audit_stream + suffix,
        length=settings.audit_stream_length,
        lost=telemetry.audit_unconfirmed,
    )


def open_kept_texts(
    settings: ServeSettings, telemetry: Telemetry
) -> tuple["Keeper | None", "Desk | None"]:
    """Prepare what keeps texts for review, and what asks people about them.

    There are none where that isn't asked for. Raises ConfigurationError.
    """
    if settings.keep_texts is None:
        return None, None
    with needed("Keeping texts", "review"):
        # Here, because who keeps none needs no database.
        from shieldgate.kept_texts.keeper import Keeper  # noqa: PLC0415
        from shieldgate.kept_texts.labels import LabelStore  # noqa: PLC0415
        from shieldgate.kept_texts.rule import KeepRule  # noqa: PLC0415
        from shieldgate.kept_texts.seal import Seal  # noqa: PLC0415
        from shieldgate.kept_texts.store import TextStore  # noqa: PLC0415
        from shieldgate.review.desk import Desk  # noqa: PLC0415
        from shieldgate.review.kept import KeptTexts  # noqa: PLC0415
    seal = Seal.of(settings.keep_texts_key, settings.keep_texts_key_file)
    store = TextStore.at(settings.keep_texts.get_secret_value())
    log.info("texts of some decisions are kept", where=store.name, days=settings.keep_texts_days)
    keep_labels_seconds = settings.keep_labels_days * _DAY
    keeper = Keeper(
        store,
        seal,
        KeepRule(settings.keep_texts_share, settings.keep_texts_near),
        keep_seconds=settings.keep_texts_days * _DAY,
        keep_labels_seconds=keep_labels_seconds,
        max_bytes=settings.keep_texts_bytes,
        observer=telemetry,
    )
    kept = KeptTexts(store, LabelStore(store.database), seal)
    desk = Desk(kept, keep_seconds=keep_labels_seconds)
    return keeper, desk
