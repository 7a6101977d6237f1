"""Exchange and rules in, verdict out: score, then decide; nothing else."""

import asyncio

from shieldgate.normalise import readings
from shieldgate.policy import Rules, decide
from shieldgate.scoring import Scorer
from shieldgate.types import Exchange, Score, Verdict

# Characters from which on reading takes long enough for others to wait.
_LONG = 10_000


async def judge(scorer: Scorer, exchange: Exchange, rules: Rules) -> Verdict:
    """Judge one exchange, its parts, and all their readings; the worst score counts.

    Raises ScoringError when no score could be had. The caller turns that into the answer of its
    surface, by way of `on_failure`.
    """
    policies = rules.policies
    ways = exchange.apart()
    scored: dict[Exchange, list[Score]] = {}
    if rules.profile.normalise:
        if sum(len(way.prompt) + len(way.response or "") for way in ways) >= _LONG:
            # First as it came: who can't be judged in time, or not now, should cost no reading.
            scored = {way: await scorer.score(way, policies) for way in dict.fromkeys(ways)}
            ways = await asyncio.to_thread(_read, ways)
        else:
            ways = _read(ways)
    for way in dict.fromkeys(ways):
        if way not in scored:
            scored[way] = await scorer.score(way, policies)
    # The words as they came count too: nobody knows how their reader takes them.
    columns = zip(*scored.values(), strict=True)
    scores = [max(column, key=lambda s: s.margin) for column in columns]
    pairs = list(zip(policies, scores, strict=True))
    return decide(rules.profile, pairs, exchange.direction, scorer.identity.name)


def _read(ways: list[Exchange]) -> list[Exchange]:
    return [reading for way in ways for reading in way.rewritten(readings)]
