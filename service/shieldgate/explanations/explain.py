"""Finds the words that carried a score: by leaving them out, which any scorer can be asked.

For a model in this process gradients are the cheaper way, and the less faithful one where a text is
short (`benchmarks/explanations.py`).
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from shieldgate.explanations.spans import Span, joined, only, sentences, without, words
from shieldgate.moderation import score_all, score_ways
from shieldgate.passages import passages
from shieldgate.policy import Policy, Rules
from shieldgate.scoring import Scorer
from shieldgate.scoring.fair_threads import FairThreads
from shieldgate.types import Exchange, Explanation, Judgement, Part, Score

# What bounds the cost: policies, characters of a text, and parts that are left out one by one.
MOST_POLICIES = 3
MOST_CHARACTERS = 2000
MOST_SENTENCES = 16
MOST_WORDS = 40

# This share of the words that were left out is tested together.
TESTED = 0.2

# There is one exchange to a request, and a pass of many short texts costs least.
_AT_ONCE = 16

# What each token of the text under judgement carried of each policy's margin, with its characters.
Gradients = Callable[[Exchange, Sequence[Policy]], Sequence[Sequence[tuple[int, int, float]]]]

_Lost = Mapping[Span, Sequence[float]]
_NOTHING: _Lost = {}


async def explain(
    scorer: Scorer,
    exchange: Exchange,
    rules: Rules,
    judgements: Sequence[Judgement],
    gradients: Gradients | None = None,
    *,
    threads: FairThreads | None = None,
) -> dict[str, Explanation]:
    """Explain what a verdict says of one exchange, by policy.

    Of the violated policies the MOST_POLICIES most probable are explained; of none the most
    probable. What is explained is the reading or passage that scored worst. Words are left out, or
    weighed by `gradients` where they are given. At `threads`, where there are some, callers take
    turns at having their texts read. Raises ScoringError, and what `gradients` raises.
    """
    asked = {policy.id: policy for policy in rules.policies}
    ranked = sorted(judgements, key=lambda j: (j.violated, j.probability), reverse=True)
    chosen = [j for j in ranked[:MOST_POLICIES] if j.violated] or ranked[:1]
    policies = [asked[j.policy] for j in chosen]
    rules = replace(rules, policies=tuple(policies), beside=())
    found: dict[str, Explanation] = {}
    ways = _by_worst(await score_ways(scorer, exchange, rules, threads), policies)
    for way, of_way in ways.items():
        for policy, explained in (await explain_whole(scorer, way, of_way, gradients)).items():
            at = exchange.judged.find(way.judged)
            moved = replace(explained, reading=way.judged) if at < 0 else _moved(explained, at)
            found[policy] = moved
    return {policy.id: found[policy.id] for policy in policies}


async def explain_whole(
    scorer: Scorer,
    exchange: Exchange,
    policies: Sequence[Policy],
    gradients: Gradients | None = None,
) -> dict[str, Explanation]:
    """Explain an exchange as it is, by policy; of a long one the passage that scores worst alone.

    Long are more than MOST_CHARACTERS. Raises as `explain` does.
    """
    text = exchange.judged
    worst = {exchange: list(policies)}
    if len(text) > MOST_CHARACTERS:
        cut = [exchange.judging(passage) for passage in passages(text, MOST_CHARACTERS)]
        worst = _by_worst(await score_all(scorer, cut, policies, at_once=_AT_ONCE), policies)
    found: dict[str, Explanation] = {}
    for part, of_part in worst.items():
        explained = await _explain(scorer, part, of_part, gradients)
        at = text.find(part.judged)
        found |= {p.id: _moved(e, at) for p, e in zip(of_part, explained, strict=True)}
    return found


async def _explain(
    scorer: Scorer,
    exchange: Exchange,
    policies: Sequence[Policy],
    gradients: Gradients | None,
) -> list[Explanation]:
    """Weigh a text's words; of many leave sentences out first, and then words of those."""
    text = exchange.judged
    whole = await scorer.score(exchange, policies)

    async def lost(parts: Sequence[Span]) -> _Lost:
        """Leave each part out, and tell what each policy's margin loses."""
        left = {part: exchange.judging(without(text, [part])) for part in parts}
        scores = await score_all(scorer, list(left.values()), policies, at_once=_AT_ONCE)
        return {
            part: [a.margin - b.margin for a, b in zip(whole, scores[way], strict=True)]
            for part, way in left.items()
        }

    parts, of_sentences = words(text), _NOTHING
    if gradients:
        carried = await asyncio.to_thread(gradients, exchange, policies)
        of_words: _Lost = {part: [_inside(part, tokens) for tokens in carried] for part in parts}
    elif len(parts) > MOST_WORDS:
        of_sentences = await lost(joined(sentences(text), MOST_SENTENCES))
        of_words = await lost(joined(_inside_of_worst(parts, of_sentences), MOST_WORDS))
    else:
        of_words = await lost(parts)
    explained = [
        Explanation(
            start=0,
            end=len(text),
            margin=score.margin,
            sentences=_column(of_sentences, number),
            words=_column(of_words, number),
        )
        for number, score in enumerate(whole)
    ]
    return [
        await _tested(scorer, exchange, policy, one)
        for policy, one in zip(policies, explained, strict=True)
    ]


def _inside(part: Span, tokens: Sequence[tuple[int, int, float]]) -> float:
    """Sum what the tokens of a part carried."""
    return sum(carried for start, end, carried in tokens if start < part[1] and end > part[0])


def _inside_of_worst(parts: Sequence[Span], sentences: _Lost) -> list[Span]:
    """Take the words of the sentences that carry most under any policy, MOST_WORDS or one's."""
    taken: list[Span] = []
    for start, end in sorted(sentences, key=lambda s: max(sentences[s]), reverse=True):
        inside = [part for part in parts if start <= part[0] and part[1] <= end]
        if taken and len(taken) + len(inside) > MOST_WORDS:
            break
        taken += inside
    return sorted(taken)


async def _tested(
    scorer: Scorer, exchange: Exchange, policy: Policy, explanation: Explanation
) -> Explanation:
    """Leave the words that count most out together, and keep them alone."""
    ranked = sorted(explanation.words, key=lambda word: word.lost, reverse=True)
    most = math.ceil(TESTED * min(len(ranked), MOST_WORDS))
    worst = [(word.start, word.end) for word in ranked[:most] if word.lost > 0]
    if not worst:
        return explanation
    text = exchange.judged
    left, kept = (exchange.judging(cut(text, worst)) for cut in (without, only))
    scores = await score_all(scorer, [left, kept], [policy])
    return replace(
        explanation,
        tested=len(worst),
        margin_without=scores[left][0].margin,
        margin_alone=scores[kept][0].margin,
    )


def _by_worst(
    scores: Mapping[Exchange, Sequence[Score]], policies: Sequence[Policy]
) -> dict[Exchange, list[Policy]]:
    """Group policies by the exchange that scores worst under them."""
    found: dict[Exchange, list[Policy]] = {}
    for number, policy in enumerate(policies):
        worst = max(scores, key=lambda exchange: scores[exchange][number].margin)
        found.setdefault(worst, []).append(policy)
    return found


def _moved(explained: Explanation, by: int) -> Explanation:
    """Count characters from further ahead."""
    sentences, words = (
        tuple(Part(part.start + by, part.end + by, part.lost) for part in parts)
        for parts in (explained.sentences, explained.words)
    )
    return replace(
        explained,
        start=explained.start + by,
        end=explained.end + by,
        sentences=sentences,
        words=words,
    )


def _column(lost: _Lost, number: int) -> tuple[Part, ...]:
    return tuple(Part(*span, losses[number]) for span, losses in lost.items())
