"""What was said earlier, for all replicas."""

import hmac
import secrets
from collections.abc import Mapping, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shieldgate.redis.client import RedisClient
from shieldgate.redis.urls import Client

_PREFIX = b"shieldgate:history:"
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

        async def get(client: Client) -> list[bytes | None]:
            pipeline = client.pipeline(transaction=False)
            for key in keys:
                pipeline.get(_PREFIX + key)
            values: list[bytes | None] = await pipeline.execute()
            return values

        values = await self._redis.ask("redis_read", get) or ()
        opened = {key: self._open(key, value) for key, value in zip(keys, values, strict=False)}
        return {key: value for key, value in opened.items() if value is not None}

    async def keep(self, values: Mapping[bytes, bytes], seconds: float) -> None:
        """Store values in one round trip."""

        async def put(client: Client) -> None:
            pipeline = client.pipeline(transaction=False)
            for key, value in values.items():
                pipeline.set(_PREFIX + key, self._sealed(key, value), px=int(seconds * 1000))
            await pipeline.execute()

        await self._redis.ask("redis_write", put)

    def _sealed(self, key: bytes, value: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, value, key)

    def _open(self, key: bytes, value: bytes | None) -> bytes | None:
        if value is None or len(value) < _NONCE_BYTES:
            return None
        try:
            return self._cipher.decrypt(value[:_NONCE_BYTES], value[_NONCE_BYTES:], key)
        except InvalidTag:
            return None
