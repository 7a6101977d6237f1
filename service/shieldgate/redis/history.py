"""What was said earlier, for all replicas."""

import hmac
import secrets
from collections.abc import Mapping, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shieldgate.redis.client import RedisClient
from shieldgate.redis.values import find, storing

_PREFIX = "shieldgate:history:v2:"
_NONCE_BYTES = 12


class RedisHistory:
    """Keeps histories in Redis; what `shieldgate.history` shares.

    Values are encrypted under the `secret` that the replicas share, and bound to their keys: who
    can read Redis learns no text, and who can write to it can't make one up.
    """

    def __init__(self, redis: RedisClient, *, secret: bytes) -> None:
        self._redis = redis
        self._cipher = AESGCM(hmac.digest(secret, b"history of conversations", "sha256"))

    async def find(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Look keys up in one round trip; what can't be had is missing."""
        found = await find(self._redis, _PREFIX, keys)
        opened = {key: self._open(key, value) for key, value in found.items()}
        return {key: value for key, value in opened.items() if value is not None}

    async def keep(self, values: Mapping[bytes, bytes], seconds: float) -> None:
        """Store values in one round trip."""
        sealed = {key: self._sealed(key, value) for key, value in values.items()}
        await self._redis.ask("redis_write", storing(_PREFIX, sealed, seconds))

    def _sealed(self, key: bytes, value: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, value, key)

    def _open(self, key: bytes, value: bytes) -> bytes | None:
        if len(value) < _NONCE_BYTES:
            return None
        try:
            return self._cipher.decrypt(value[:_NONCE_BYTES], value[_NONCE_BYTES:], key)
        except InvalidTag:
            return None
