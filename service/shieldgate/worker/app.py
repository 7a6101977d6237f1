"""OpenAI's chat completions over a generator."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any, TypeVar
from uuid import uuid4

import orjson
import structlog
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shieldgate.errors import GeneratorBusy, GeneratorFailed
from shieldgate.openai.chat import DONE
from shieldgate.openai.errors import ErrorBody, ErrorEnvelope, field_path
from shieldgate.openai.models import Model, ModelList
from shieldgate.settings import WorkerSettings
from shieldgate.sse import Event
from shieldgate.version import __version__
from shieldgate.worker.chat_template import gemma_prompt
from shieldgate.worker.generation import FinishReason, GenerationRequest
from shieldgate.worker.scheduler import Job, Scheduler
from shieldgate.worker.schemas import (
    ChatCompletionRequest,
    CompletionStreamOptions,
    CompletionWriter,
    usage,
)

T = TypeVar("T")

log = structlog.get_logger(__name__)


# For what pydantic words for programmers.
_WORDS = {
    "extra_forbidden": "The generator does not know this; leave it out",
    "missing": "This is missing",
    "json_invalid": "The body is not valid JSON",
}


class LoadingGenerator:
    """What the routes work with: a generator that is there once it is loaded.

    `open_scheduler` loads it and closes it again; `became_ready` is called in between. `stop`
    ends the server, and is told what made that necessary.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        open_scheduler: Callable[[], AbstractAsyncContextManager[Scheduler]],
        became_ready: Callable[[], None],
        stop: Callable[[Exception], None],
    ) -> None:
        self.settings = settings
        self.scheduler: Scheduler | None = None
        self._open = open_scheduler
        self._became_ready = became_ready
        self._stop = stop

    async def run(self) -> None:
        """Hold the generator until cancelled; stop the server where that fails."""
        try:
            async with self._open() as self.scheduler:
                self._became_ready()
                await self.scheduler.broken()
        except Exception as failure:
            self._stop(failure)
        finally:
            self.scheduler = None


class _RequestError(Exception):
    """A request can't be served; carries the answer."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


def create_app(worker: LoadingGenerator) -> FastAPI:
    """Build the app; its lifespan holds the generator, and it answers from the start."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(worker.run(), name="worker")
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    app = FastAPI(
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        title="shieldgate worker",
        version=__version__,
        summary="Gemma 2 behind OpenAI's chat completions",
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
    )
    app.state.worker = worker
    app.get("/healthz")(_health)
    app.get("/readyz")(_ready)
    app.get("/v1/models")(_models)
    app.post("/v1/chat/completions", response_model=None)(_chat)
    app.exception_handler(_RequestError)(_refused)
    app.exception_handler(HTTPException)(_elsewhere)
    app.exception_handler(GeneratorBusy)(_busy)
    app.exception_handler(GeneratorFailed)(_failed)
    app.exception_handler(ClientDisconnect)(_disconnected)
    app.add_middleware(_RequestMiddleware)
    return app


def _worker(request: Request) -> LoadingGenerator:
    worker: LoadingGenerator = request.app.state.worker
    return worker


_Injected = Annotated[LoadingGenerator, Depends(_worker)]


async def _health() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "ok"}


async def _ready(worker: _Injected, response: Response) -> dict[str, str]:
    """Say whether text can be generated."""
    if worker.scheduler:
        return {"status": "ready"}
    response.status_code = 503
    return {"status": "loading"}


async def _models(worker: _Injected) -> ModelList:
    """List the one model, once it is loaded."""
    return ModelList(data=[Model(id=worker.scheduler.generator.name)] if worker.scheduler else [])


async def _chat(request: Request, worker: _Injected) -> Response:
    """Answer a conversation, streamed or whole; any `model` is served by the one there is."""
    body = await _read(request, worker.settings.max_body_bytes)
    scheduler = worker.scheduler
    if scheduler is None:
        raise GeneratorFailed("The generator is not loaded yet.")
    if body.n > (most := worker.settings.max_running):
        message = f"n is {body.n}, and at most {most} texts are written at the same time."
        raise _RequestError(_error(400, message, param="n", code="invalid_value"))
    prompt = gemma_prompt((m.role, m.text) for m in body.messages)
    tokens = await asyncio.to_thread(scheduler.generator.encode, prompt)
    room = scheduler.generator.context - len(tokens)
    if room < (body.token_limit or 1):
        message = (
            f"The model reads and writes at most {scheduler.generator.context} tokens together. "
            f"The messages have {len(tokens)}, and {body.token_limit or 1} more are asked for."
        )
        raise _RequestError(_error(400, message, param="messages", code="context_length_exceeded"))
    job = scheduler.submit(
        GenerationRequest(
            prompt=tokens,
            max_tokens=body.token_limit or room,
            sampling=body.sampling,
            choices=body.n,
            stop=body.stop_strings,
            seed=body.seed,
        )
    )
    writer = CompletionWriter(scheduler.generator.name)
    if body.stream:
        return _JobStream(job, _events(job, writer, body.stream_options))
    return JSONResponse(await _while_connected(request, job, _whole(job, writer)))


async def _whole(job: Job, writer: CompletionWriter) -> dict[str, Any]:
    texts = [""] * job.request.choices
    finishes: list[FinishReason | None] = [None] * job.request.choices
    written = 0
    async for delta in job:
        texts[delta.choice] += delta.text
        finishes[delta.choice] = delta.finish
        written += delta.tokens
    return writer.whole(texts, finishes, usage(len(job.request.prompt), written))


async def _events(
    job: Job, writer: CompletionWriter, options: CompletionStreamOptions
) -> AsyncIterator[bytes]:
    counts = options.include_usage and options.continuous_usage_stats

    def event(data: dict[str, Any]) -> bytes:
        if counts:
            data["usage"] = usage(len(job.request.prompt), written)
        return Event(orjson.dumps(data).decode()).encode()

    written = 0

    for choice in range(job.request.choices):
        yield event(writer.chunk(choice, {"role": "assistant", "content": ""}))
    try:
        async for delta in job:
            written += delta.tokens
            if delta.text:
                yield event(writer.chunk(delta.choice, {"content": delta.text}))
            if delta.finish:
                yield event(writer.chunk(delta.choice, {}, delta.finish))
    except GeneratorFailed as failure:
        yield Event(bytes(_unavailable(failure).body).decode()).encode()
        return
    if options.include_usage:
        yield event(writer.last(usage(len(job.request.prompt), written)))
    yield Event(DONE).encode()


class _JobStream(StreamingResponse):
    """A stream that cancels its job when it ends, however it ends."""

    media_type = "text/event-stream"

    def __init__(self, job: Job, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, headers={"cache-control": "no-cache"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()


async def _while_connected(request: Request, job: Job, work: Coroutine[Any, Any, T]) -> T:
    """Do `work`, and cancel the job when it ends or the caller leaves; raise ClientDisconnect."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = working, _ = asyncio.create_task(work), asyncio.create_task(disconnected())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        job.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(request: Request, max_bytes: int) -> ChatCompletionRequest:
    """Read the body; nothing of it is repeated in a refusal."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            message = f"The body is longer than the {max_bytes} bytes that are allowed."
            raise _RequestError(_error(413, message, code="body_too_large"))
    try:
        return ChatCompletionRequest.model_validate_json(bytes(body))
    except ValidationError as refused:
        first = refused.errors(include_url=False, include_context=False, include_input=False)[0]
        param = field_path(first["loc"])
        said = _WORDS.get(first["type"], first["msg"])
        message = f"{param}: {said}." if param else f"{said}."
        raise _RequestError(_error(400, message, param=param, code=first["type"])) from None


def _error(
    status: int,
    message: str,
    type_: str = "invalid_request_error",
    *,
    param: str | None = None,
    code: str,
    retry_after: float | None = None,
) -> Response:
    """Write an error in OpenAI's envelope."""
    body = ErrorBody(message=message, type=type_, param=param, code=code)
    headers = {} if retry_after is None else {"retry-after": f"{retry_after:.0f}"}
    return JSONResponse(ErrorEnvelope(error=body).model_dump(), status, headers)


def _unavailable(failure: GeneratorFailed) -> Response:
    return _error(503, str(failure), "server_error", code="generator_unavailable", retry_after=5)


async def _refused(request: Request, error: _RequestError) -> Response:
    return error.response


async def _elsewhere(request: Request, error: HTTPException) -> Response:
    """Say what there is, to whoever asks for something else, such as /v1/completions."""
    message = "The generator answers chats only: POST /v1/chat/completions."
    return _error(error.status_code, message, code="unknown_url")


async def _busy(request: Request, busy: GeneratorBusy) -> Response:
    seconds = busy.retry_after
    return _error(429, str(busy), "rate_limit_error", code="overloaded", retry_after=seconds)


async def _failed(request: Request, failure: GeneratorFailed) -> Response:
    return _unavailable(failure)


async def _disconnected(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # nobody reads this


class _RequestMiddleware:
    """Gives each request an id, and answers unknown exceptions."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{uuid4().hex}"
        begun = False

        async def send_with_id(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:
                log.exception("unexpected error")
                if not begun:
                    message = f"Something went wrong on our side. Request id: {request_id}."
                    answer = _error(500, message, "server_error", code="internal_error")
                    await answer(scope, receive, send_with_id)
