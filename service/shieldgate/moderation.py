"""Exchange and rules in, verdict out: score, then decide; nothing else."""

import asyncio

from shieldgate.normalise import readings
from shieldgate.policy import Rules, decide
from shieldgate.scoring import Scorer
from shieldgate.types import Exchange, Verdict

# Characters from which on reading takes long enough for others to wait.
_LONG = 10_000


async def judge(scorer: Scorer, exchange: Exchange, rules: Rules) -> Verdict:
    """Judge one exchange; raise ScoringError when no score could be had.

    The caller turns a ScoringError into the answer of its surface, by way of `on_failure`.
    """
    policies = rules.policies
    # The words as they came count too: nobody knows how their reader takes them.
    ways = [exchange]
    if rules.profile.normalise:
        if len(exchange.prompt) + len(exchange.response or "") < _LONG:
            ways = exchange.rewritten(readings)
        else:
            ways = await asyncio.to_thread(exchange.rewritten, readings)
    scored = [await scorer.score(way, policies) for way in dict.fromkeys(ways)]
    scores = [max(column, key=lambda s: s.margin) for column in zip(*scored, strict=True)]
    pairs = list(zip(policies, scores, strict=True))
    return decide(rules.profile, pairs, exchange.direction, scorer.identity.name)
