"""Exchange and profile in, verdict out: score, then decide; nothing else."""

from collections.abc import Sequence

from shieldgate.errors import ScoringError
from shieldgate.normalise import normalised
from shieldgate.policy import Policy, Profile, decide, fail
from shieldgate.scoring import Scorer
from shieldgate.types import Exchange, Verdict


class Moderator:
    """Judges exchanges with one scorer."""

    def __init__(self, scorer: Scorer) -> None:
        """Take the scorer, wrapped as the deployment wants it."""
        self.scorer = scorer

    async def judge(
        self, exchange: Exchange, profile: Profile, policies: Sequence[Policy]
    ) -> Verdict:
        """Judge one exchange under `policies`; raise ScoringError when no score could be had.

        The caller turns a ScoringError into the answer of its surface, by way of `on_failure`.
        """
        scores = await self.scorer.score(exchange, policies)
        if profile.normalise and (plain := exchange.rewritten(normalised)) != exchange:
            again = await self.scorer.score(plain, policies)
            # The words as they came count too: nobody knows how their reader takes them.
            scores = [max(pair, key=lambda s: s.margin) for pair in zip(scores, again, strict=True)]
        pairs = list(zip(policies, scores, strict=True))
        return decide(profile, pairs, exchange.direction, self.scorer.identity.name)

    async def judge_or_fail(
        self, exchange: Exchange, profile: Profile, policies: Sequence[Policy]
    ) -> tuple[Verdict, ScoringError | None]:
        """Judge one exchange; where the guard fails, decide as the profile's `on_failure` says."""
        try:
            return await self.judge(exchange, profile, policies), None
        except ScoringError as failure:
            return fail(profile, exchange.direction), failure
