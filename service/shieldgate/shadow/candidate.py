"""By what a candidate judges: its rules for an exchange, and its verdict."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from shieldgate.errors import UnknownName
from shieldgate.moderation import judge
from shieldgate.policy import PolicyBook, Profile, Rules, decide, join_profiles
from shieldgate.scoring import Identity, Scorer
from shieldgate.scoring.fair_threads import FairThreads
from shieldgate.types import Direction, Exchange, Verdict


@dataclass(frozen=True, slots=True)
class Judged:
    """An exchange as it was judged: by what rules, by which scorer, and the verdict.

    `scorer` is None where none is loaded any more.
    """

    exchange: Exchange
    rules: Rules
    scorer: Identity | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Candidate:
    """Judges by `book`, under the profile that has the name of the request's, or `profile`.

    `in_force` is the book that requests are judged by.
    """

    book: Callable[[], PolicyBook]
    in_force: Callable[[], PolicyBook]
    profile: str | None = None

    def rules(self, rules: Rules, direction: Direction, scorer: str) -> Rules | None:
        """Find the rules that stand for those of a request; None where the book has no such.

        What a request asked for beside its profile is asked for here, too.
        """
        book = self.book()
        asked = [p.id for p in rules.policies if p.id not in rules.profile.policies]
        try:
            profile = self._profile(rules.profile, book, direction, scorer)
            if profile is None:
                return None
            return book.rules(profile, [id for id in asked if id in book.policies])
        except UnknownName:
            return None

    def _profile(
        self, given: Profile, book: PolicyBook, direction: Direction, scorer: str
    ) -> Profile | None:
        if self.profile is not None:
            return book.profile(self.profile)
        if given == self.in_force().profiles.get(given.name):
            return book.profile(given.name)
        # As `Services.with_added` joins what a caller names with what its key is bound to. What a
        # chat joins can't be told from its name.
        base, joined, named = given.name.partition("+")
        if not joined:
            return None
        both = book.profile(base), book.profile(named)
        made = join_profiles(*both, "block", book=book, direction=direction, scorer=scorer)
        return replace(made, name=given.name)

    async def judge(
        self, judged: Judged, rules: Rules, scorer: Scorer, threads: FairThreads | None = None
    ) -> Verdict:
        """Judge what was judged before; what the same scorer said under the same words holds.

        Its text is read at `threads`, where there are some. What the profile refuses for its
        language has no score. Raises what the scorer raises.
        """
        exchange, before = replace(judged.exchange, growing=False), judged.rules
        direction, name = exchange.direction, scorer.identity.name
        known = {}
        language = judged.verdict.unsupported_language
        refused = language and rules.profile.refuses_unsupported_language
        ways, ways_before = _ways(rules.profile, name), _ways(before.profile, name)
        if scorer.identity == judged.scorer and ways == ways_before and not refused:
            words = {policy.id: policy.guidelines[direction] for policy in before.policies}
            known = {words[j.policy]: j.score for j in judged.verdict.judgements}
        rest = tuple(p for p in rules.policies if p.guidelines[direction] not in known)
        if rest:
            asked = replace(rules, policies=rest, beside=())
            found = await judge(scorer, exchange, asked, threads)
            if not found.judgements:
                return found
            by_id = {policy.id: policy for policy in rest}
            known |= {by_id[j.policy].guidelines[direction]: j.score for j in found.judgements}
        scores = [(policy, known[policy.guidelines[direction]]) for policy in rules.policies]
        return decide(rules.profile, scores, direction, name)


def _ways(profile: Profile, scorer: str) -> object:
    """Tell what of a text is scored under a profile."""
    cut = profile.passages
    return profile.normalise, (cut.size, cut.handicap) if cut and cut.serve(scorer) else None
