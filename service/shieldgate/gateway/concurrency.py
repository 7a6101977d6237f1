"""Work that is done together, and ends together."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

T = TypeVar("T")


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """Open a TaskGroup that raises its first failure as it is, not in a group."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def while_connected(request: Request, work: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """Do `work` concurrently and collect the results in order.

    When one fails the others are cancelled and its exception is raised. When the caller
    disconnects all are cancelled, so that nobody's text takes a place in the queue, and
    ClientDisconnect is raised. The request's body must have been read.
    """

    async def watch_connection() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        # A connection counts as closed, too, when all has been sent.
        if not all(task.done() for task in tasks):
            raise ClientDisconnect

    async with together() as group:
        connection = group.create_task(watch_connection())
        tasks = [group.create_task(w) for w in work]
        results = [await task for task in tasks]
        connection.cancel()
    return results
