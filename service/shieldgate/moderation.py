"""Exchange and rules in, verdict out: score, then decide; nothing else."""

import asyncio
from dataclasses import replace

from shieldgate.normalise import readings
from shieldgate.policy import Rules, decide
from shieldgate.scoring import Scorer
from shieldgate.types import Exchange, Verdict

# Characters from which on reading takes long enough for others to wait.
_LONG = 10_000


async def judge(scorer: Scorer, exchange: Exchange, rules: Rules) -> Verdict:
    """Judge one exchange, its parts, and all their readings; the worst score counts.

    Raises ScoringError when no score could be had. The caller turns that into the answer of its
    surface, by way of `on_failure`.
    """
    policies = (*rules.policies, *rules.beside)
    ways = exchange.apart()
    if rules.profile.normalise:
        size = sum(len(way.prompt) + len(way.response or "") for way in ways)
        # The words as they came count too: nobody knows how their reader takes them.
        ways = _read(ways) if size < _LONG else await asyncio.to_thread(_read, ways)
    scored = [await scorer.score(way, policies) for way in dict.fromkeys(ways)]
    scores = [max(column, key=lambda s: s.margin) for column in zip(*scored, strict=True)]
    pairs = list(zip(policies, scores, strict=True))
    profile, direction, name = rules.profile, exchange.direction, scorer.identity.name
    known = len(rules.policies)
    verdict = decide(profile, pairs[:known], direction, name)
    return replace(verdict, beside=decide(profile, pairs[known:], direction, name).judgements)


def _read(ways: list[Exchange]) -> list[Exchange]:
    return [reading for way in ways for reading in way.rewritten(readings)]
