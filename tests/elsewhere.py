"""A scorer elsewhere, as one file adds it: it asks a server of words for its margins."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from shieldgate.errors import ScorerUnavailable
from shieldgate.policy import Policy
from shieldgate.scoring.factory import ScorerObserver
from shieldgate.scoring.interfaces import Identity
from shieldgate.settings import ScoringSettings
from shieldgate.types import Exchange, Score


class ElsewhereScorer:
    """Asks the server at a URL; an OpenScorer."""

    available = True

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self.identity = Identity("elsewhere@1", "1", "float32", "words", "none")

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        text = exchange.prompt if exchange.response is None else exchange.response
        asked = {"text": text, "guidelines": [p.guidelines[exchange.direction] for p in policies]}
        try:
            async with self._session.post("/margins", json=asked) as reply:
                return [Score(margin) for margin in (await reply.json())["margins"]]
        except aiohttp.ClientError as failure:
            raise ScorerUnavailable("The server of words failed.") from failure

    async def check(self, policies: Iterable[Policy]) -> None:
        """There is always room."""


@asynccontextmanager
async def open_elsewhere(
    settings: ScoringSettings, *, max_waiting: int, observer: ScorerObserver | None = None
) -> AsyncIterator[ElsewhereScorer]:
    url = settings.model.removeprefix("elsewhere+")
    async with aiohttp.ClientSession(url, raise_for_status=True) as session:
        yield ElsewhereScorer(session)


async def _margins(request: web.Request) -> web.Response:
    asked = await request.json()
    margin = 3.0 if "zork" in asked["text"] else -3.0
    return web.json_response({"margins": [margin for _ in asked["guidelines"]]})


def server_of_words() -> web.Application:
    """What answers there: `zork` is harmful under every guideline."""
    app = web.Application()
    app.router.add_post("/margins", _margins)
    return app
