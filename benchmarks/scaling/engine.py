"""A scorer process: a checkpoint behind `Batched`, asked as vLLM is.

    python -m benchmarks.scaling.engine --port 9001 [--model starter] [--max-waiting 256]

It computes real margins and has what a gateway uses of vLLM's `/v1/completions`: token ids in,
the log-probabilities of two of them out. They are relative to each other, as no more of the
vocabulary is computed.
"""

import argparse
import asyncio
import math
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from aiohttp import web

from shieldgate.errors import Overloaded, ShieldgateError
from shieldgate.policy import Policy
from shieldgate.scoring import Batched, Prepared
from shieldgate.scoring.factory import open_engine
from shieldgate.scoring.local import PackedEngine
from shieldgate.scoring.pack import Pack, pack
from shieldgate.settings import ScoringSettings
from shieldgate.telemetry import configure_logging
from shieldgate.types import Exchange

MODEL = "guard"
PASS_SECONDS = 0.25  # as serve had it in the runs of docs/simulation.md; now it is 0.1


class TokenIds:
    """Takes prompts as token ids, in JSON in place of a text; an Engine."""

    def __init__(self, engine: PackedEngine) -> None:
        self._engine = engine
        self.identity = engine.identity
        self.labels = engine.template.positive, engine.template.negative

    def check_policies(self, policies: Iterable[Policy]) -> None:
        """There are none."""

    def least_tokens(self, exchange: Exchange, most: float) -> int:
        """An id and its comma take six characters at most."""
        return len(exchange.prompt) // 6

    def prepare(self, exchange: Exchange, policies: Sequence[Policy]) -> Prepared:
        return Prepared((pack(orjson.loads(exchange.prompt)),))

    def forward(self, work: Sequence[Pack]) -> list[list[float]]:
        return self._engine.forward(work)


class Server:
    """Answers a gateway."""

    def __init__(self, engine: TokenIds, scorer: Batched, context: int) -> None:
        self._engine = engine
        self._scorer = scorer
        self._context = context

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/version", self._version)
        app.router.add_post("/v1/completions", self._completions)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        entry = {"id": MODEL, "owned_by": "vllm", "root": self._engine.identity.name}
        return web.json_response({"data": [{**entry, "max_model_len": self._context}]})

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": self._engine.identity.dtype})

    async def _completions(self, request: web.Request) -> web.Response:
        body = orjson.loads(await request.read())
        prompts: list[list[int]] = body["prompt"]
        read = sum(map(len, prompts))
        # With the label in place, as part of the prompt: it is the one before that is judged.
        placed = "prompt_logprobs" in body
        judged = [prompt[:-1] for prompt in prompts] if placed else prompts
        try:
            scores = await self._scorer.score(Exchange(orjson.dumps(judged).decode()), ())
        except Overloaded as full:
            head = {"retry-after": str(math.ceil(full.retry_after or 1))}
            return web.json_response({"error": str(full)}, status=429, headers=head)
        except ShieldgateError as failure:
            return web.json_response({"error": str(failure)}, status=503)
        margins = [score.margin for score in scores]
        if placed:
            choices = [_placed(*pair) for pair in enumerate(zip(prompts, margins, strict=True))]
        else:
            by_id = body["return_tokens_as_token_ids"]
            ids = [f"token_id:{number}" for number in body["logprob_token_ids"]]
            names = ids if by_id else self._engine.labels
            choices = [
                {
                    "index": n,
                    "logprobs": {"top_logprobs": [dict(zip(names, _both(m), strict=True))]},
                }
                for n, m in enumerate(margins)
            ]
        reply = {"choices": choices, "usage": {"prompt_tokens": read}}
        return web.Response(body=orjson.dumps(reply), content_type="application/json")


def _both(margin: float) -> tuple[float, float]:
    """Give the log-probabilities of both labels, as if there were no others."""
    return -math.log1p(math.exp(-margin)), -math.log1p(math.exp(margin))


def _placed(index: int, found: tuple[list[int], float]) -> dict[str, Any]:
    """Say how likely the last token of a prompt was; the positive label is asked first."""
    prompt, margin = found
    last = {str(prompt[-1]): {"logprob": _both(margin)[index]}}
    return {"index": index, "prompt_logprobs": [None, last]}


async def _serve(arguments: argparse.Namespace) -> None:
    inner = open_engine(ScoringSettings(model=arguments.model, device="cpu"))
    engine = TokenIds(inner)
    batched = Batched(
        engine,
        max_batch_tokens=arguments.max_batch_tokens,
        max_waiting=arguments.max_waiting,
        max_pass_seconds=PASS_SECONDS,
    )
    async with batched:
        context = int(inner.model.config.max_position_embeddings)
        # Whoever hangs up is not scored.
        runner = web.AppRunner(Server(engine, batched, context).app(), handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", arguments.port).start()
        await asyncio.Event().wait()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="starter", help="what --model of serve takes")
    parser.add_argument("--max-waiting", type=int, default=256)
    parser.add_argument("--max-batch-tokens", type=int, default=16_384)
    configure_logging("error", as_json=False)
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
