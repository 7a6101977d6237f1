"""Opens a scorer elsewhere: recognises its servers, tries them out, and names what they serve."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from shieldgate.errors import ConfigurationError, ModelError, ScorerUnavailable
from shieldgate.given_settings import flag
from shieldgate.prompt import Template, find_template, name_suffix
from shieldgate.scoring.interfaces import Identity
from shieldgate.scoring.languages import languages_of
from shieldgate.scoring.prompts import PromptBuilder
from shieldgate.scoring.remote.canary import agree, try_canary
from shieldgate.scoring.remote.connection import (
    Connection,
    NothingSpent,
    open_session,
)
from shieldgate.scoring.remote.engine import EngineApi, Labels, Served
from shieldgate.scoring.remote.observer import RemoteObserver
from shieldgate.scoring.remote.recognise import recognise
from shieldgate.scoring.remote.replicas import Replicas
from shieldgate.scoring.remote.scorer import RemoteScorer
from shieldgate.scoring.tokenizer_files import TokenizerFiles, load_tokenizer
from shieldgate.settings import ScoringSettings

log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_remote(
    settings: ScoringSettings,
    *,
    max_waiting: int,
    observer: RemoteObserver | None = None,
) -> AsyncIterator[RemoteScorer]:
    """Recognise the servers that `model` names, try a canary on each, and ask them for scores.

    Raises ConfigurationError, or ScorerUnavailable where none of them is there.
    """
    if settings.tokenizer is None:
        raise ConfigurationError(
            f"{settings.model} is asked in token ids, which are made here: give the tokenizer of "
            f"the model it serves as {flag('tokenizer')}, a hub id such as google/shieldgemma-2b "
            "or a folder that has its tokenizer.json, tokenizer_config.json and config.json."
        )
    key = settings.model_key.get_secret_value() if settings.model_key else None
    async with open_session(key) as session:
        connections = [
            Connection(
                url,
                session,
                seconds=settings.model_seconds,
                texts=settings.model_texts,
                observer=observer,
            )
            for url in settings.servers
        ]
        await _find_one(connections)
        files = await asyncio.to_thread(
            load_tokenizer, settings.tokenizer, revision=settings.revision
        )
        template = find_template(settings.template)
        examiner = await asyncio.to_thread(_Examiner, settings, files, template)
        replicas = Replicas(connections, examiner.examine, observer)
        try:
            await replicas.open()
            first = examiner.first
            if first.api.warning:
                log.warning(
                    "scores are not exact", server=connections[0].name, why=first.api.warning
                )
            scorer = RemoteScorer(
                first.identity,
                first.prompts,
                replicas,
                max_waiting=max_waiting,
                observer=observer,
            )
            try:
                yield scorer
            finally:
                scorer.close()
        finally:
            await replicas.close()


async def _find_one(connections: Sequence[Connection]) -> None:
    """Raise NothingSpent where no server is there: cheaply, as it is often asked meanwhile."""
    failures = []
    for connection in connections:
        try:
            await connection.get("/v1/models")
        except NothingSpent as failure:
            failures.append(failure)
        except ScorerUnavailable:
            pass  # somebody is there, who will be examined
    if len(failures) == len(connections):
        raise failures[0]


@dataclass(frozen=True, slots=True)
class _Examined:
    """What the first server was found to be, and so all must be."""

    api: EngineApi
    prompts: PromptBuilder
    identity: Identity
    canary: list[float]


class _Examiner:
    """Finds out what a server is, and refuses one that is not what the first one was."""

    def __init__(
        self, settings: ScoringSettings, files: TokenizerFiles, template: Template
    ) -> None:
        self._settings = settings
        self._files = files
        self._template, self._encoder = files.encoder(template)
        words = self._template.positive, self._template.negative
        positive, negative = map(self._encoder.token, words)
        self._labels = Labels((positive, negative), words)
        self._first: _Examined | None = None

    @property
    def first(self) -> _Examined:
        """Give what the first server was found to be."""
        if self._first is None:
            raise RuntimeError("No server was examined yet.")
        return self._first

    async def examine(self, connection: Connection) -> EngineApi:
        """Recognise a server and try the canary; raise ConfigurationError or ScorerUnavailable."""
        api = await recognise(connection, self._settings, self._labels)
        if self._first is None:
            prompts = PromptBuilder(self._template, self._encoder, self._context(api.served))
            canary = await try_canary(connection, api, prompts, self._labels)
            identity = self._identity(api.served, prompts)
            self._first = _Examined(api, prompts, identity, canary)
            log.info("canary passed", server=connection.name, engine=identity.dtype)
            return api
        first = self._first
        if self._weights(api.served) != first.identity.weights:
            raise ConfigurationError(
                f"{connection.name} serves another model than at first: {_told(api.served)}, not "
                f"{_told(first.api.served)}. Start again to take it; where both are the same "
                f"weights, say so by {flag('scorer_name')}."
            )
        if self._context(api.served) < first.prompts.windows.context:
            raise ConfigurationError(
                f"{connection.name} takes prompts of {self._context(api.served)} tokens, and "
                f"{first.prompts.windows.context} are needed. Serve all with the same limit."
            )
        agree(
            connection.name,
            await try_canary(connection, api, first.prompts, self._labels),
            first.canary,
        )
        return api

    def _context(self, served: Served) -> int:
        """Find how long a prompt may be, an answer of one token left; raise ModelError."""
        limits = [self._files.context, served.context and served.context - 1]
        known = [limit for limit in limits if limit]
        if not known:
            raise ModelError(
                f"Neither the server nor {self._files.model} says how long a prompt may be: put "
                "the model's config.json beside its tokenizer.json."
            )
        return min(known)

    def _identity(self, served: Served, prompts: PromptBuilder) -> Identity:
        weights = self._weights(served)
        name = self._settings.scorer_name or f"{_short(served.model)}@{weights[:12]}"
        return Identity(
            name=name + name_suffix(self._template),
            weights=weights,
            dtype=f"{served.engine} {served.version}".strip(),
            template=self._template.digest,
            windows=str(prompts.windows),
            languages=languages_of(name, self._settings.known_languages),
        )

    def _weights(self, served: Served) -> str:
        """Digest the tokenizer, and what is known of the weights or what they are called."""
        known = self._settings.scorer_name or [served.engine, served.model, dict(served.facts)]
        parts = json.dumps([known, self._files.digest, self._labels.ids], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()


def _told(served: Served) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in served.facts.items())
    return f"{served.model} ({facts})" if facts else served.model


def _short(model: str) -> str:
    """Name a model without the folder it lies in; an id of the hub stays whole."""
    is_hub_id = model.count("/") == 1 and not model.startswith("/")
    return model if is_hub_id else model.rsplit("/", maxsplit=1)[-1]
