"""What it costs to judge an answer as it grows, and how long its text waits for that."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch

from benchmarks.subject import Plan, Subject
from benchmarks.timing import fastest
from shieldgate.policy import Policy, Streaming
from shieldgate.scoring.local.prefix_cache import PrefixCache
from shieldgate.types import Exchange

# Text arrives at this pace, in tokens a second, when waiting is counted.
PACE = 50
POLICIES = 4

ONCE, DEFAULT = "once, at the end", "default"
TIMED = {ONCE: Streaming(mode="full"), DEFAULT: Streaming()}
FAR = {
    "twice as far apart": replace(Streaming(), most=2 * Streaming().most),
    "twice as close": replace(Streaming(), most=Streaming().most // 2),
    "every 200 characters": replace(Streaming(), first=200, most=200),
}


@dataclass(frozen=True)
class Stream:
    """One schedule for one answer.

    `predicted` is (T + k·N·S)/(T + N·S) for k checks of N policies with S tokens each;
    `computed` the tokens really computed, and `seconds` their processor time, both None where not
    run.
    `waits` has the seconds that each character waits at PACE, without the judgements' own time.
    """

    schedule: str
    checks: int
    predicted: float
    waits: Sequence[float]
    computed: int | None = None
    seconds: float | None = None

    @property
    def median_wait(self) -> float:
        """Give the wait of the character in the middle, in seconds."""
        return median(self.waits)


def measure(subject: Subject, plan: Plan) -> list[Stream]:
    """Judge one growing answer by the default schedule and by one check; count the others."""
    policies = subject.policies[:POLICIES]
    prompt, answer = subject.text(20), subject.text(plan.answer)
    (whole,) = subject.scorer.prepare(Exchange(prompt, answer), policies).work
    trunk = len(whole.trunk) - subject.remembered(whole)
    questions = sum(map(len, whole.branches))
    pace = PACE * len(answer) / plan.answer

    def stream(name: str, schedule: Streaming) -> Stream:
        ends = _ends(schedule, len(answer))
        predicted = (trunk + len(ends) * questions) / (trunk + questions)
        return Stream(name, len(ends), predicted, _waits(ends, pace))

    runs = {
        name: partial(_judge, subject, prompt, answer, _ends(schedule, len(answer)), policies)
        for name, schedule in TIMED.items()
    }
    computed = {name: run() for name, run in runs.items()}
    # The two are too unlike in length for a busy machine to disturb them alike. So it is the
    # processor's time that counts, on one thread: others would be charged for waiting.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = fastest(runs, 0.0, time.process_time)
    torch.set_num_threads(threads)
    return [
        *(
            replace(stream(name, schedule), computed=computed[name], seconds=seconds[name])
            for name, schedule in TIMED.items()
        ),
        *(stream(name, schedule) for name, schedule in FAR.items()),
    ]


def _ends(schedule: Streaming, length: int) -> list[int]:
    """List the lengths, in characters, at which an answer is judged; the last is its end."""
    ends = [0]
    while schedule.mode != "full" and schedule.next_check(ends[-1]) < length:
        ends.append(schedule.next_check(ends[-1]))
    return [*ends[1:], length]


def _judge(
    subject: Subject, prompt: str, answer: str, ends: Sequence[int], policies: Sequence[Policy]
) -> int:
    """Judge the answer at each of these lengths, with no answer remembered; count the tokens."""
    scorer = subject.scorer
    scorer._prefixes = PrefixCache(2**30, scorer._prefixes.preambles)
    tokens = 0

    def count(module: object, given: object, embedded: object) -> None:
        nonlocal tokens
        tokens += embedded.shape[1]  # type: ignore[attr-defined]

    hook = scorer.model.model.embed_tokens.register_forward_hook(count)
    for end in ends:
        exchange = Exchange(prompt, answer[:end], growing=end < len(answer))
        scorer.forward(scorer.prepare(exchange, policies).work)
    hook.remove()
    return tokens


def _waits(ends: Sequence[int], pace: float) -> list[float]:
    """List how long each character waits for the check that covers it, at `pace` a second."""
    starts = [0, *ends]
    return [
        (end - place) / pace
        for start, end in zip(starts, ends, strict=False)
        for place in range(start, end)
    ]
