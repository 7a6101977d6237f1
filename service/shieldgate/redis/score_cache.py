"""Scores that all replicas share."""

import hmac
import struct
from collections.abc import Mapping, Sequence

from shieldgate.redis.client import RedisClient
from shieldgate.redis.values import find, storing
from shieldgate.types import Score

_PREFIX = "shieldgate:score:v2:"
_FIELDS = struct.Struct("<dII")
_SEAL_BYTES = 16


class RedisScoreCache:
    """Keeps margins in Redis for `keep_seconds`; the second level of `scoring.Cached`.

    Keys come from the cache and tell nothing about texts. Each value is sealed, together with its
    key, under the `secret` that the replicas share: what no replica of ours wrote for this key is
    a miss, so that nobody who can write to Redis can make a text pass.
    """

    def __init__(self, redis: RedisClient, *, secret: bytes, keep_seconds: int) -> None:
        self._redis = redis
        self._secret = secret
        self._keep_seconds = keep_seconds

    async def find(self, keys: Sequence[bytes]) -> dict[bytes, Score]:
        """Look keys up in one round trip; what can't be had is missing."""
        found = await find(self._redis, _PREFIX, keys)
        opened = {key: self._open(key, value) for key, value in found.items()}
        return {key: score for key, score in opened.items() if score is not None}

    def keep(self, scores: Mapping[bytes, Score]) -> None:
        """Store scores in one round trip, for which nobody waits."""
        values = {key: self._sealed(key, score) for key, score in scores.items()}
        self._redis.tell(storing(_PREFIX, values, self._keep_seconds))

    def _sealed(self, key: bytes, score: Score) -> bytes:
        fields = _FIELDS.pack(score.margin, score.windows, score.prompt_omitted)
        return fields + self._seal(key, fields)

    def _open(self, key: bytes, value: bytes) -> Score | None:
        if len(value) != _FIELDS.size + _SEAL_BYTES:
            return None
        fields, seal = value[: _FIELDS.size], value[_FIELDS.size :]
        if not hmac.compare_digest(seal, self._seal(key, fields)):
            return None
        return Score(*_FIELDS.unpack(fields))

    def _seal(self, key: bytes, fields: bytes) -> bytes:
        return hmac.digest(self._secret, b"score 1:" + key + fields, "sha256")[:_SEAL_BYTES]
