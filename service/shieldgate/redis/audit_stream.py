"""Records of decisions in a Redis stream, for whoever collects them."""

from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from redis.exceptions import RedisError

from shieldgate.errors import ConfigurationError
from shieldgate.redis.client import RedisClient
from shieldgate.redis.urls import Client, client

_PAGE = 1000


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


async def read_audit_stream(
    url: str, stream: str, since: datetime | None = None
) -> AsyncIterator[list[tuple[datetime, bytes]]]:
    """Read the records of a stream as JSON, with their times, until those that are the last now.

    They come some at a time. Raises ConfigurationError where Redis can't be read, or there is no
    such stream.
    """
    redis: Any
    redis, close = client(url, protocol=2)
    try:
        newest = await redis.xrevrange(stream, count=1)
        if not newest:
            raise ConfigurationError(
                f"There is no stream {stream!r} in this Redis, or it is empty. 'shieldgate serve "
                "--audit-stream' writes it."
            )
        last, after = newest[0][0], "-"
        if since:
            # Its ids count from 1970 on.
            after = str(max(0, int(since.timestamp() * 1000)))
        while page := await redis.xrange(stream, after, last, count=_PAGE):
            yield [(_time(id), f[b"record"]) for id, f in page if b"record" in f]
            after = b"(" + page[-1][0]
    except (RedisError, OSError) as failure:
        # What redis-py says may quote the URL, which may hold a password.
        raise ConfigurationError(
            f"Redis can't be read ({type(failure).__name__}). Is it there, and is {stream!r} a "
            "stream?"
        ) from None
    finally:
        await close()


def _time(id: bytes) -> datetime:
    return datetime.fromtimestamp(int(id.partition(b"-")[0]) / 1000, UTC)
