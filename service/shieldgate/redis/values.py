"""Values under keys of one kind, all that are asked for in one round trip.

A prefix ends with the version of what lies under it: whoever changes the form of keys or values
raises it, and no replica takes what another version wrote for its own.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from shieldgate.redis.client import RedisClient
from shieldgate.redis.urls import Client


async def find(redis: RedisClient, prefix: str, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    """Look keys up; what can't be had is missing."""

    async def get(client: Client) -> list[bytes | None]:
        # MGET in a form that a cluster, where the keys lie on several nodes, knows as well.
        pipeline = client.pipeline(transaction=False)
        for key in keys:
            pipeline.get(_named(prefix, key))
        values: list[bytes | None] = await pipeline.execute()
        return values

    values = await redis.ask("redis_read", get) or ()
    found = zip(keys, values, strict=False)
    return {key: value for key, value in found if value is not None}


def storing(
    prefix: str, values: Mapping[bytes, bytes], seconds: float
) -> Callable[[Client], Awaitable[None]]:
    """Give the command that stores values for so long."""

    async def put(client: Client) -> None:
        pipeline = client.pipeline(transaction=False)
        for key, value in values.items():
            pipeline.set(_named(prefix, key), value, px=int(seconds * 1000))
        await pipeline.execute()

    return put


def _named(prefix: str, key: bytes) -> str:
    """Write a key as people and their tools can read and type it."""
    return prefix + key.hex()
