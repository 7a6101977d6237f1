"""Exchange and rules in, verdict out: score, then decide; nothing else."""

import asyncio

from shieldgate.normalise import readings
from shieldgate.policy import Rules, decide
from shieldgate.scoring import Scorer
from shieldgate.types import Exchange, Verdict


async def judge(scorer: Scorer, exchange: Exchange, rules: Rules) -> Verdict:
    """Judge one exchange; raise ScoringError when no score could be had.

    The caller turns a ScoringError into the answer of its surface, by way of `on_failure`.
    """
    policies = rules.policies
    ways = exchange.apart()
    if rules.profile.normalise:
        # The words as they came count too: nobody knows how their reader takes them.
        ways = [reading for way in ways for reading in way.rewritten(readings)]
    scored = await asyncio.gather(*(scorer.score(way, policies) for way in dict.fromkeys(ways)))
    scores = [max(column, key=lambda s: s.margin) for column in zip(*scored, strict=True)]
    pairs = list(zip(policies, scores, strict=True))
    return decide(rules.profile, pairs, exchange.direction, scorer.identity.name)
