"""The limit on request bodies."""

import asyncio

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimitMiddleware:
    """Refuses bodies that are too long, that take too long to arrive, or that are compressed.

    A body has `seconds` to arrive, counted from the end of its head. Whoever reads a body that is
    refused gets the HTTPException raised.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with a body that is watched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        size = int(declared) if declared.isdecimal() else 0
        deadline = asyncio.get_running_loop().time() + self._seconds
        read = 0
        complete = False

        async def receive_some() -> Message:
            nonlocal read, complete
            if complete:
                # What comes now is that the caller hangs up, whenever that is.
                return await receive()
            if headers.get("content-encoding", "identity").lower() != "identity":
                raise HTTPException(
                    415,
                    "The body is compressed. Send it as it is, without `content-encoding`.",
                    {"accept-encoding": "identity"},
                )
            if size > self._max_bytes:
                raise self._too_long()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408,
                    f"The body did not arrive within {self._seconds:g} s.",
                    {"connection": "close"},
                ) from None
            complete = not message.get("more_body")
            read += len(message.get("body", b""))
            if read > self._max_bytes:
                raise self._too_long()
            return message

        await self._app(scope, receive_some, send)

    def _too_long(self) -> HTTPException:
        return HTTPException(
            413, f"The body is longer than the {self._max_bytes} bytes that are allowed."
        )
