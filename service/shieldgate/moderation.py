"""Exchange and rules in, verdict out: score, then decide; nothing else."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from shieldgate import language
from shieldgate.columns import columns
from shieldgate.english import rejoined
from shieldgate.errors import ScorerUnavailable, TooLong
from shieldgate.normalise import readings
from shieldgate.passages import between_signs, passages
from shieldgate.policy import Policy, Profile, Rules, decide
from shieldgate.scoring import Scorer, turn
from shieldgate.scoring.fair_threads import FairThreads
from shieldgate.strands import decoded, in_pieces, strings_in, whole_and_parts
from shieldgate.types import Action, Exchange, Score, Verdict

T = TypeVar("T")

# Characters up to which reading and cutting are done at once where callers take turns, and from
# which on they take so long that a text is scored first as it came.
_SHORT, _LONG = 100, 10_000

# In what is longer than a sentence or two, as passages have them in characters, one in another
# language is lost; and more of a text's passages are not read.
_SENTENCES, _READ = 200, 64

# How many ways of one exchange are scored at a time. A request may bring 32 exchanges, and others
# are to find room in the batcher, too.
AT_ONCE = 4

# After so many ways their pace tells whether all of them can be scored in time.
_TELLING = 4 * AT_ONCE


async def judge(
    scorer: Scorer, exchange: Exchange, rules: Rules, threads: FairThreads | None = None
) -> Verdict:
    """Judge one exchange, its parts, all their readings and passages; the worst score counts.

    What JSON in it says is one of its parts, and so is what stands down its rows. At `threads`,
    where there are some, callers take turns at having their texts read.

    Raises ScoringError when no score could be had. The caller turns that into the answer of its
    surface, by way of `on_failure`. Where the profile refuses the text's language, it fails closed
    without a score.
    """
    profile, name = rules.profile, scorer.identity.name
    known = scorer.identity.languages
    guess = partial(unsupported_language, exchange, known)
    unsupported = await in_turn(guess, len(exchange.judged), threads) if known is not None else None
    if unsupported and profile.refuses_unsupported_language:
        return Verdict(
            exchange.direction, Action.FAILED_CLOSED, (), unsupported_language=unsupported
        )
    scored = (await score_ways(scorer, exchange, rules, threads)).values()
    worst = [_worst(column) for column in zip(*scored, strict=True)]
    pairs = list(zip((*rules.policies, *rules.beside), worst, strict=True))
    asked = len(rules.policies)
    verdict = decide(profile, pairs[:asked], exchange.direction, name)
    return replace(
        verdict,
        beside=decide(profile, pairs[asked:], exchange.direction, name).judgements,
        unsupported_language=unsupported,
    )


async def score_ways(
    scorer: Scorer, exchange: Exchange, rules: Rules, threads: FairThreads | None = None
) -> dict[Exchange, list[Score]]:
    """Score an exchange in all the ways in which it is judged, less their handicaps.

    The first is the exchange as it came. Raises as `judge` does.
    """
    profile, name = rules.profile, scorer.identity.name
    policies = (*rules.policies, *rules.beside)
    characters = sum(map(len, (exchange.judged, *exchange.parts)))
    spread, rows = await in_turn(partial(_spread, exchange), characters, threads)
    parts = tuple(dict.fromkeys((*exchange.parts, *spread)))
    wholes = dict.fromkeys(replace(exchange, parts=parts).apart(), 0.0)
    if rows:
        rule = profile.passages
        # Out of its place, as a passage is.
        handicap = rule.handicap if rule and rule.serve(name) else 0.0
        wholes.setdefault(replace(exchange, parts=()).judging(rows), handicap)
    known: dict[Exchange, list[Score]] = {}
    characters = sum(whole.characters for whole in wholes)
    if characters > _LONG:
        # First as it came: who can't be judged in time, or not now, should cost no reading.
        known = await score_all(scorer, [*wholes], policies)
    ways = await in_turn(partial(_ways, wholes, profile, name), characters, threads)
    known |= await score_all(scorer, [way for way in ways if way not in known], policies)
    return {
        way: [replace(score, margin=score.margin - handicap) for score in known[way]]
        for way, handicap in ways.items()
    }


def unsupported_language(exchange: Exchange, known: Sequence[str] | None) -> str | None:
    """Tell in which language a part of the text under judgement is that is none of those `known`.

    Of a long text some passages are read, all over it.
    """
    if known is None:
        return None
    cut = passages(exchange.judged, _SENTENCES)
    read = cut[:: math.ceil(len(cut) / _READ)]
    guesses = (language.unsupported_language(passage, known) for passage in read)
    return next(filter(None, guesses), None)


async def in_turn(work: Callable[[], T], characters: int, threads: FairThreads | None) -> T:
    """Do the reading of so many characters in its caller's turn, and before the deadline.

    Few are read at once, in the event loop. Raises ScorerUnavailable where they were not in time.
    """
    if characters <= (_LONG if threads is None else _SHORT):
        return work()
    if threads is None:
        return await asyncio.to_thread(work)
    job = threads.submit(turn.caller.get(), characters, work, long=characters > _LONG)
    deadline = turn.deadline.get()
    try:
        async with asyncio.timeout_at(deadline.until if deadline else None):
            return await job.done
    except TimeoutError:
        raise ScorerUnavailable("The text was not read in time.") from None
    finally:
        threads.withdraw(job)


def _spread(exchange: Exchange) -> tuple[list[str], str]:
    """List what it says once it is decoded or deals out to strings and lines; and give its rows."""
    said = exchange.judged
    _, parts = whole_and_parts([("content/", said)])
    lines = (text.split("\n") for text in (said, *exchange.parts, *parts))
    plain = decoded(said)
    # Beside what isn't joined, because the words that pieces make may hide those that they are.
    joined = in_pieces(strings_in(plain), partial(rejoined, between=" "))
    texts = dict.fromkeys((*parts, *map(rejoined, lines), joined))
    # Of parts, too: what strings of JSON say once they are decoded, and voices by turns.
    rows = dict.fromkeys(column for text in (plain, *exchange.parts) for column in columns(text))
    return [text for text in texts if text not in ("", said)], "\n".join(rows)


def _ways(wholes: Mapping[Exchange, float], profile: Profile, scorer: str) -> dict[Exchange, float]:
    """List what is to be scored, each once, with its handicap; first is the exchange as it came."""
    found: dict[Exchange, float] = {}
    for way, handicap in wholes.items():
        # The words as they came count too: nobody knows how their reader takes them.
        for reading in way.rewritten(readings) if profile.normalise else [way]:
            found.setdefault(reading, handicap)
    if (rule := profile.passages) and rule.serve(scorer):
        # Of what was read, because a disguise may be as long as it likes.
        cut = [passage for way in found for passage in _passages(way, rule.size)]
        found |= {passage: rule.handicap for passage in cut if passage not in found}
    return found


def _passages(way: Exchange, size: int) -> list[Exchange]:
    """Cut what is under judgement; an answer's passages stand beside the end of its prompt."""
    whole = passages(way.judged, size)
    cut = [text for passage in whole for text in (passage, *between_signs(passage))]
    if way.response is None:
        return [replace(way, prompt=text) for text in cut]
    prompt = way.prompt[-size:]
    if len(whole) == 1 and prompt == way.prompt:
        cut = cut[1:]
    # None of them grows: all but the last stay as they are, and that is too short to be resumed.
    return [replace(way, prompt=prompt, response=text, growing=False) for text in cut]


async def score_all(
    scorer: Scorer,
    ways: Sequence[Exchange],
    policies: Sequence[Policy],
    *,
    at_once: int = AT_ONCE,
) -> dict[Exchange, list[Score]]:
    """Score each of several ways, some at a time; when one fails the others are cancelled.

    Raises TooLong as soon as their pace tells that not all of them can be scored in time.
    """
    ways = list(dict.fromkeys(ways))
    if len(ways) == 1:
        return {ways[0]: await scorer.score(ways[0], policies)}
    clock, deadline = asyncio.get_running_loop().time, turn.deadline.get()
    began = clock()
    ahead, scored = iter(ways), dict[Exchange, list[Score]]()

    async def score() -> None:
        for way in ahead:
            scored[way] = await scorer.score(way, policies)
            if deadline and len(scored) >= _TELLING:
                needed = (clock() - began) / len(scored) * (len(ways) - len(scored))
                if needed > deadline.left:
                    seconds = deadline.seconds - deadline.left + needed
                    raise TooLong(
                        f"The text is judged in {len(ways):,} pieces, which is about "
                        f"{seconds:,.0f} seconds of this server's time, and at most "
                        f"{deadline.seconds:g} are spent. Send less at once."
                    )

    try:
        async with asyncio.TaskGroup() as group:
            # A text may have tens of thousands of ways: no task for each.
            for _ in range(min(at_once, len(ways))):
                group.create_task(score())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return {way: scored[way] for way in ways}


def _worst(scores: Sequence[Score]) -> Score:
    """Take the worst margin of all ways; what was left out is what the whole left out."""
    margin = max(score.margin for score in scores)
    return replace(scores[0], margin=margin, windows=sum(score.windows for score in scores))
