"""One request for a completion, and the judging of its prompts."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import State

from shieldgate.conversation import Plan
from shieldgate.errors import ScoringError, Unscreenable, UpstreamError
from shieldgate.gateway import blocks
from shieldgate.gateway.errors import RETRY_SECONDS, UPSTREAM_ID, RequestError
from shieldgate.gateway.inline import Demands, demands
from shieldgate.gateway.services import Judged, Services, together
from shieldgate.openai.chat import ChatRequest, CompletionRequest
from shieldgate.policy import Profile
from shieldgate.settings import flag
from shieldgate.types import Action, Exchange, Verdict
from shieldgate.upstream import Upstream

# How many prompts of one request are judged at a time; a long history has hundreds.
_AT_ONCE = 8

# Beyond every conversation and every use of `n`, so that a small body can't ask for much work.
_MOST_JUDGED = 1024
_MOST_CHOICES = 128


@dataclass(frozen=True, slots=True)
class Call:
    """A request on its way: what goes upstream, and what is judged under which profile.

    `state` is the request's own; the outcome is named there for the metrics.
    """

    services: Services
    upstream: Upstream
    surface: blocks.Surface
    body: dict[str, Any]
    headers: Mapping[str, str]
    state: State
    plan: Plan
    demands: Demands

    @classmethod
    def of(
        cls,
        request: Request,
        asked: ChatRequest | CompletionRequest,
        surface: blocks.Surface,
        services: Services,
    ) -> "Call":
        """Read a request; raise UpstreamError where nothing could answer it, and RequestError."""
        if services.upstream is None:
            raise UpstreamError(
                "There is no model here to answer: start the gateway with "
                f"{flag('upstream')} URL or {flag('generator')} MODEL.",
                status=503,
                code="no_upstream",
            )
        if services.worker and not services.worker.ready:
            # Its socket listens all the time: who asked now would wait there for the restart.
            raise UpstreamError(
                "The generator is being loaded or restarted.",
                status=503,
                code="generator_unavailable",
                retry_after=RETRY_SECONDS,
            )
        book = services.policies.current
        base = services.profile(request, book, "prompt")
        body = asked.for_upstream()
        demanded = demands(base, asked.moderation, book, services.scorer_name)
        plans = (surface.plan(body, profile) for profile in demanded.plans)
        call = cls(
            services=services,
            upstream=services.upstream,
            surface=surface,
            body=body,
            headers={**request.headers, **services.telemetry.traces.headers()},
            state=request.state,
            plan=reduce(Plan.joined, plans),
            demands=demanded,
        )
        call._check_size()
        if call.plan.unscreenable and call.refuses_unscreenable(call.prompt_profile):
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
        return self.demands.rules["prompt"].profile

    @property
    def answer_profile(self) -> Profile:
        """Give the profile for what the model writes."""
        return self.demands.rules["response"].profile

    @property
    def scorer(self) -> str:
        """Name the scorer, as far as it is loaded."""
        return self.services.scorer_name

    @property
    def asks_for_usage(self) -> bool:
        """Tell whether a stream is to end with the tokens it took."""
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    @property
    def most_choices(self) -> int:
        """Count the choices that were asked for."""
        return (self.body.get("n") or 1) * len(self.plan.contexts)

    def _check_size(self) -> None:
        most, param = self.services.settings.max_inputs, self.surface.asks_in
        if len(self.plan.contexts) > most:
            raise RequestError(f"{param}: A request holds at most {most} prompts.", param)
        if len(self.plan.prompts) > _MOST_JUDGED:
            raise RequestError(
                f"{param}: A request holds at most {_MOST_JUDGED} texts to judge. Send fewer, or "
                "ask the operator for a profile with a shorter `history`.",
                param,
            )
        # The operator may allow more prompts than that; each may have its one choice.
        choices = max(_MOST_CHOICES, most)
        if self.most_choices > choices:
            raise RequestError(
                f"n: A request asks for at most {choices} choices, `n` for each prompt.", "n"
            )

    def refuses_unscreenable(self, profile: Profile) -> bool:
        """Tell whether what can't be screened is stopped; monitoring stops nothing."""
        return profile.unscreenable == "refuse" and profile.mode == "enforce"

    def unscreenable(self) -> tuple[Verdict, Unscreenable]:
        """Judge an answer that holds what can't be screened."""
        stops = self.refuses_unscreenable(self.answer_profile)
        action = Action.FAILED_CLOSED if stops else Action.FAILED_OPEN
        failure = Unscreenable("The answer holds what can't be screened: only text can be.")
        return Verdict("response", action, ()), failure

    async def told(self, failure: UpstreamError) -> UpstreamError:
        """Judge what upstream says of its failure, which may quote the answer that failed.

        Gives the failure without its words where they must not pass.
        """
        words = (failure.body or {}).values()
        if not (said := "\n".join(word for word in words if isinstance(word, str))):
            return failure
        exchange = Exchange(self.plan.context(0), said)
        try:
            judged = await self.services.judge(
                exchange, self.demands.rules["response"], may_open=True
            )
        except ScoringError:
            return failure.without_words()
        return failure.without_words() if judged.verdict.action.stops else failure

    def account(self, judged: Iterable[Judged]) -> None:
        """Name the outcome that verdicts have."""
        actions = {j.verdict.action for j in judged}
        if Action.BLOCKED in actions:
            self.state.outcome = "blocked"
        else:
            self.state.outcome = "unjudged" if Action.FAILED_CLOSED in actions else "answered"

    async def judge_prompts(self) -> list[Judged]:
        """Judge all that the model will read; raise ScoringError where the guard fails closed."""
        places = asyncio.Semaphore(_AT_ONCE)
        rules = self.demands.rules["prompt"]

        async def judge(exchange: Exchange) -> Judged:
            async with places:
                return await self.services.judge(exchange, rules, may_open=True)

        async with together() as group:
            tasks = [group.create_task(judge(subject.exchange)) for subject in self.plan.prompts]
        return [task.result() for task in tasks]

    def block(self, inputs: Sequence[Judged]) -> Response | None:
        """Write the reply to a request whose prompts are blocked; None where they are not."""
        if not any(judged.verdict.action.stops for judged in inputs):
            return None
        self.account(inputs)
        if self.prompt_profile.on_block == "error":
            body = blocks.prompt_error(inputs, self.surface.asks_in, self.scorer)
            return JSONResponse(body, 400, {"x-should-retry": "false"})
        streamed = bool(self.body.get("stream"))
        refusal = self.prompt_profile.refusal
        envelope = self.surface.envelope(self.body.get("model"), streamed=streamed)
        moderation = blocks.moderation(inputs, (), self.scorer)
        count = range(self.most_choices)
        # What a model that was asked at the same time has spent, nobody knows.
        before = self.prompt_profile.prompt_check == "before"
        spent = {"usage": blocks.NOTHING_SPENT} if before else {}
        if not streamed:
            choices = [self.surface.whole(index, refusal) for index in count]
            return JSONResponse({**envelope, "choices": choices, **spent, "moderation": moderation})
        endings = [choice for i in count for choice in self.surface.ending(i, refusal, False)]
        events = [blocks.event({**envelope, "choices": [choice]}) for choice in endings]
        events.append(blocks.event({**envelope, "choices": [], "moderation": moderation}))
        if spent and self.asks_for_usage:
            events.append(blocks.event({**envelope, "choices": [], **spent}))
        return Response(b"".join(events) + blocks.END, media_type="text/event-stream")

    def moderation(
        self, inputs: Sequence[Judged], outputs: Sequence[Judged]
    ) -> dict[str, dict[str, Any]]:
        """Give the field `moderation` of a reply, where the caller asked or something happened."""
        happened = any(j.failure or j.verdict.action.stops for j in (*inputs, *outputs))
        if not (self.demands.reports or happened):
            return {}
        return {"moderation": blocks.moderation(inputs, outputs, self.scorer)}

    def reply_headers(self, request_id: str | None) -> dict[str, str]:
        """Write the headers that tell what upstream's id is, and what was passed unscreened."""
        from_upstream = {UPSTREAM_ID: request_id} if request_id else {}
        passed = len(self.plan.unscreenable)
        return from_upstream | ({"x-shieldgate-unscreened": str(passed)} if passed else {})
