"""Records of decisions in a Redis stream, for whoever collects them."""

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from shieldgate.redis.client import RedisClient
from shieldgate.redis.urls import Client


class RedisAuditStream:
    """Appends records to a stream that keeps about the last `length`; a Sink of `Audit`.

    Nobody waits for it. A record that Redis has not confirmed in time is reported to `lost`; it
    may have arrived all the same, and the log has it in any case.
    """

    def __init__(
        self, redis: RedisClient, stream: str, *, length: int, lost: Callable[[], None]
    ) -> None:
        self._redis = redis
        self._stream = stream
        self._length = length
        self._lost = lost

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record, as JSON in the field `record`."""
        data = orjson.dumps(record)

        async def append(client: Client) -> None:
            # Trimmed about, because exactly would cost Redis more.
            await client.xadd(self._stream, {"record": data}, maxlen=self._length, approximate=True)

        self._redis.tell(append, lost=self._lost)
