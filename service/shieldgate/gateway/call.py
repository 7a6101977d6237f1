"""One request for an answer of the model, and the judging of its prompts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from shieldgate.dialects import Dialect
from shieldgate.dialects.interface import (
    CallerRequest,
    JsonObject,
    Refusal,
    StreamReader,
    Verdicts,
)
from shieldgate.dialects.plan import Plan
from shieldgate.errors import (
    Overloaded,
    ScorerUnavailable,
    ShieldgateError,
    Unscreenable,
    UpstreamError,
)
from shieldgate.gateway.errors import UPSTREAM_ID, RequestError
from shieldgate.gateway.services import Services
from shieldgate.gateway.state import RequestState, state_of
from shieldgate.policy import Profile, Rules, fail, screening_rules
from shieldgate.strands import NAMES, whole_and_parts
from shieldgate.types import Action, Direction, Exchange, Judged, Verdict
from shieldgate.upstream import Upstream

# Beyond every conversation and every use of `n`, so that a small body can't ask for much work.
MOST_JUDGED = 1024
_MOST_CHOICES = 128


@dataclass(frozen=True, slots=True)
class Call:
    """A request on its way: what goes upstream, what the model reads, and what judges it."""

    services: Services
    upstream: Upstream
    dialect: Dialect
    request: CallerRequest
    body: JsonObject
    headers: Mapping[str, str]
    state: RequestState
    plan: Plan
    rules: Mapping[Direction, Rules]

    @classmethod
    async def of(cls, request: Request, asked: Any, dialect: Dialect, services: Services) -> "Call":
        """Read a request; raise UpstreamError where nothing could answer it, and RequestError."""
        upstream = services.model
        state = state_of(request.scope)
        book = services.policies.current
        base = services.profile(state.key, book, "prompt")
        read = dialect.read(asked)
        found = screening_rules(base, read.screening, book, services.screener.name)
        state.profile = found.name
        body = await _as_read(read, state, found.plans, services)

        def planned() -> Plan:
            return reduce(Plan.joined, (dialect.plan(body, profile) for profile in found.plans))

        # What is known of earlier requests may be longer than this one.
        most = services.settings.max_body_bytes
        length = len(await request.body()) if body is read.body else most
        # Without its plan no request passes, so one that fails open waits for it.
        opens = not fail(found.rules["prompt"].profile, "prompt").action.stops
        with nullcontext() if opens else services.screener.deadline():
            plan = await services.screener.read(planned, length)
        call = cls(
            services=services,
            upstream=upstream,
            dialect=dialect,
            request=read,
            body=body,
            headers={**request.headers, **services.telemetry.traces.headers()},
            state=state,
            plan=plan,
            rules=found.rules,
        )
        call._check_size()
        if not refuses_unscreenable(call.prompt_profile):
            return call
        if call.plan.unseen:
            field = call.plan.unseen[0]
            raise RequestError(
                f"{field} refers to what did not pass here, or was blocked, or is forgotten by "
                "now, so that it can't be screened. Send the whole conversation, or ask the "
                "operator for a profile with `unscreenable: pass`.",
                field,
            )
        if call.plan.unscreenable:
            field = call.plan.unscreenable[0]
            raise RequestError(
                f"{field} can't be screened, only text can be. Leave out images, audio, files and "
                "tokens, or ask the operator for a profile with `unscreenable: pass`.",
                field,
            )
        return call

    @property
    def prompt_profile(self) -> Profile:
        """Give the profile for what the model reads."""
        return self.rules["prompt"].profile

    @property
    def answer_profile(self) -> Profile:
        """Give the profile for what the model writes."""
        return self.rules["response"].profile

    def _check_size(self) -> None:
        most, param = self.services.settings.max_inputs, self.dialect.prompt_param
        if len(self.plan.contexts) > most:
            raise RequestError(f"{param}: A request holds at most {most} prompts.", param)
        if sum(1 + len(s.exchange.parts) for s in self.plan.prompts) > MOST_JUDGED:
            raise RequestError(
                f"{param}: A request holds at most {MOST_JUDGED} texts to judge. Send fewer, or "
                "ask the operator for a profile with a shorter `history`.",
                param,
            )
        # The operator may allow more prompts than that; each may have its one choice.
        choices, number = max(_MOST_CHOICES, most), self.dialect.choices_param
        if number and self.plan.choices > choices:
            raise RequestError(
                f"{number}: A request asks for at most {choices} choices, `{number}` for each "
                "prompt.",
                number,
            )

    def stream(self) -> StreamReader:
        """Begin a streamed reply; only a worker of ours can count usage on the way."""
        return self.dialect.stream(
            self.request.body,
            self.plan.choices,
            enforces=self.answer_profile.mode == "enforce",
            counts_usage=self.services.worker is not None,
        )

    def unscreenable(self) -> Judged:
        """Judge an answer that holds what can't be screened."""
        stops = refuses_unscreenable(self.answer_profile)
        action = Action.FAILED_CLOSED if stops else Action.FAILED_OPEN
        failure = Unscreenable("The answer holds what can't be screened: only text can be.")
        return Judged(Verdict("response", action, ()), failure)

    async def screen_error(self, failure: UpstreamError) -> UpstreamError:
        """Judge what upstream says of its failure, which may quote the answer that failed.

        Gives the failure without its words where they must not pass.
        """
        words = [(f, w) for f, w in (failure.body or {}).items() if isinstance(w, str)]
        # What isn't the message may be words that are written as names.
        named = [(f"{NAMES}/{f}", w) for f, w in words if f != "message"]
        said, parts = whole_and_parts([*((f"error {f}/", w) for f, w in words), *named])
        if not said:
            return failure
        exchange = Exchange(self.plan.context(0), said, parts=parts)
        try:
            judged = await self.services.screener.screen(exchange, self.rules["response"])
        except ShieldgateError:  # no scorer, or none that could judge this
            return failure.without_words()
        return failure.without_words() if judged.verdict.action.stops else failure

    async def judge_prompts(self) -> list[Judged]:
        """Judge all that the model will read; raise ScoringError where the guard fails closed."""
        exchanges = [subject.exchange for subject in self.plan.prompts]
        return await self.services.screener.screen_all(exchanges, self.rules["prompt"])

    def refuse(self, inputs: Sequence[Judged]) -> Response | None:
        """Write the reply to a request whose prompts are blocked; None where they are not."""
        if not any(judged.verdict.action.stops for judged in inputs):
            return None
        self.state.name_outcome(inputs)
        verdicts = Verdicts(inputs, (), self.services.screener.name)
        profile, choices = self.prompt_profile, self.plan.choices
        refusal = Refusal.of(profile)
        native = profile.on_block == "native"
        if (self.dialect.on_block if native else profile.on_block) == "error":
            return JSONResponse(self.dialect.blocked(verdicts), 400, {"x-should-retry": "false"})
        unasked = profile.prompt_check == "before"
        if not self.request.streamed:
            body = self.request.body
            return JSONResponse(
                self.dialect.refused(body, choices, refusal, verdicts, unasked=unasked)
            )
        stream = self.stream()
        events = [stream.ending(index, refusal) for index in range(choices)]
        events.append(stream.closing(verdicts, unasked=unasked))
        return Response(b"".join(events), media_type="text/event-stream")

    async def remember(self, reply: JsonObject) -> None:
        """Keep what a reply that leaves whole adds to its conversation, where later ones ask."""
        thread, history = self.request.thread, self.services.history
        if thread and history and _resolves(self.rules["prompt"].profile):
            await history.keep(self.state.caller, thread.said(self.body, reply))

    def verdicts(self, inputs: Sequence[Judged], outputs: Sequence[Judged]) -> Verdicts | None:
        """Give what a reply tells of its verdicts, where the caller asked or something happened."""
        happened = any(j.failure or j.verdict.action.stops for j in (*inputs, *outputs))
        if not (self.request.screening or happened):
            return None
        return Verdicts(inputs, outputs, self.services.screener.name)

    def reply_headers(self, request_id: str | None) -> dict[str, str]:
        """Write the headers that tell what upstream's id is, and what was passed unscreened."""
        from_upstream = {UPSTREAM_ID: request_id} if request_id else {}
        passed = len(self.plan.unscreenable) + len(self.plan.unseen)
        return from_upstream | ({"x-shieldgate-unscreened": str(passed)} if passed else {})


async def _as_read(
    request: CallerRequest, state: RequestState, profiles: Sequence[Profile], services: Services
) -> JsonObject:
    """Give the body as the model reads it, as far as it is known what it refers to."""
    thread, history = request.thread, services.history
    if thread is None or history is None or not thread.ids or not all(map(_resolves, profiles)):
        return request.body
    return thread.read(await history.find(state.caller, thread.ids))


def _resolves(profile: Profile) -> bool:
    return profile.references == "resolve"


def refuses_unscreenable(profile: Profile) -> bool:
    """Tell whether what can't be screened is stopped; monitoring stops nothing."""
    return profile.unscreenable == "refuse" and profile.mode == "enforce"


@contextmanager
def overload_as_unavailable() -> Iterator[None]:
    """Report a guard that has no room as one that failed; a 429 would read as the model's."""
    try:
        yield
    except Overloaded as failure:
        raise ScorerUnavailable(str(failure), retry_after=failure.retry_after) from failure
