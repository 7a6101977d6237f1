"""From a URL to a client of one Redis, of a cluster, or of what sentinels watch.

redis-py reads redis://, rediss:// and unix://, with its options as a query. It has no form for
several hosts, so those are written as other libraries do:

    redis+cluster://host:7000,host:7001                 any nodes of a cluster
    redis+sentinel://host:26379,host:26379/service/0    sentinels, the service, a database

and rediss+… for TLS. User and password are those of the data nodes; the sentinels' own are the
options `sentinel_username` and `sentinel_password`.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias
from urllib.parse import SplitResult, urlsplit

from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.exceptions import RedisClusterException, RedisError

from shieldgate.errors import ConfigurationError

Client: TypeAlias = "Redis | RedisCluster"

_FORMS = (
    "redis://host:6379/0, rediss:// for TLS, unix://path, redis+cluster://host:7000,host:7001 or "
    "redis+sentinel://host:26379,host:26379/service"
)


def client(url: str, **options: Any) -> tuple[Client, Callable[[], Awaitable[object]]]:
    """Make a client, which connects when it is used, and what closes it.

    `options` are redis-py's; those in the URL win. Raises ConfigurationError.
    """
    try:
        parts = urlsplit(url)
        _, _, form = parts.scheme.partition("+")
        made = _MAKERS[form](url, parts, options)
    except (KeyError, ValueError, TypeError, RedisError, RedisClusterException) as refused:
        # What redis-py says would quote the URL, which may hold a password.
        raise ConfigurationError(
            f"The URL of Redis is refused ({type(refused).__name__}). It looks like {_FORMS}; "
            "options follow as a query, in redis-py's names."
        ) from None
    return made


def _single(
    url: str, parts: SplitResult, options: dict[str, Any]
) -> tuple[Client, Callable[[], Awaitable[object]]]:
    made = Redis.from_url(url, **options)
    pool = made.connection_pool
    pool.connection_class(**pool.connection_kwargs)  # so that a wrong option is found now
    return made, made.aclose


def _cluster(
    url: str, parts: SplitResult, options: dict[str, Any]
) -> tuple[Client, Callable[[], Awaitable[object]]]:
    first, *others = _hosts(parts)
    nodes = [ClusterNode(host, port) for host, port in others]
    made = RedisCluster.from_url(
        _for_one(parts, first, parts.path.lstrip("/")), startup_nodes=nodes, **options
    )
    return made, made.aclose


def _sentinel(
    url: str, parts: SplitResult, options: dict[str, Any]
) -> tuple[Client, Callable[[], Awaitable[object]]]:
    sentinels = _hosts(parts)
    service, _, database = parts.path.lstrip("/").partition("/")
    if not service:
        raise ValueError
    given: dict[str, Any] = dict(parse_url(_for_one(parts, sentinels[0], database)))
    given = {**options, **given, "ssl": parts.scheme.startswith("rediss")}
    for name in ("host", "port", "connection_class"):
        given.pop(name, None)
    own = {name: given.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    same = {k: v for k, v in given.items() if k.startswith(("socket_", "ssl")) or k in options}
    watched = Sentinel(  # type: ignore[no-untyped-call]
        sentinels, sentinel_kwargs={**same, **own}, **given
    )
    made = watched.master_for(service)

    async def close() -> None:
        await made.aclose()
        await watched.aclose()

    return made, close


_MAKERS = {"": _single, "cluster": _cluster, "sentinel": _sentinel}


def _hosts(parts: SplitResult) -> list[tuple[str, int]]:
    default = 26379 if parts.scheme.endswith("sentinel") else 6379
    split = [urlsplit(f"//{host}") for host in parts.netloc.rpartition("@")[2].split(",")]
    if not all(host.hostname for host in split):
        raise ValueError
    return [(str(host.hostname), host.port or default) for host in split]


def _for_one(parts: SplitResult, host: tuple[str, int], database: str) -> str:
    user, at, _ = parts.netloc.rpartition("@")
    name = f"[{host[0]}]" if ":" in host[0] else host[0]
    scheme = parts.scheme.partition("+")[0]
    return f"{scheme}://{user}{at}{name}:{host[1]}/{database}?{parts.query}"
