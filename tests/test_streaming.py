"""Nothing leaves the guard of a stream before a judgement covers it, whatever comes when."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shieldgate.policy import Streaming
from shieldgate.streaming import READ_AHEAD, Step, StreamGuard
from shieldgate.types import Action, Exchange, Judged, Judgement, Score, Verdict

SECRET = "xyz"


def verdict(action: Action) -> Verdict:
    violated = action in (Action.BLOCKED, Action.WOULD_BLOCK)
    judgement = Judgement("test/threat", 0.9 * violated, 0.5, violated, False, Score(0.0))
    failed = action in (Action.FAILED_OPEN, Action.FAILED_CLOSED)
    return Verdict("response", action, () if failed else (judgement,))


@dataclass
class Bench:
    """A guard on its own, with a judge that answers only when told to."""

    streaming: Streaming
    hold: bool = True
    action: Callable[[str], Action] = lambda text: (
        Action.BLOCKED if SECRET in text else Action.ALLOWED
    )
    asked: list[Exchange] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    steps: list[Step[str]] = field(default_factory=list)
    waiting: list[asyncio.Future[None]] = field(default_factory=list)
    prompt: str = "a question"

    def __post_init__(self) -> None:
        self.guard = StreamGuard(self.prompt, self.streaming, self.judge, self.emit, hold=self.hold)

    async def judge(self, exchange: Exchange) -> Judged:
        self.asked.append(exchange)
        assert not self.waiting, "judgements come one at a time"
        answered = asyncio.get_running_loop().create_future()
        self.waiting.append(answered)
        try:
            await answered
        finally:
            self.waiting.remove(answered)
        assert exchange.response is not None
        found = verdict(self.action(exchange.response))
        if not found.action.stops:
            self.passed.append(exchange.response)
        return Judged(found)

    def emit(self, step: Step[str]) -> None:
        self.steps.append(step)
        if self.hold:
            covered = max(self.passed, key=len, default="")
            assert covered.startswith(self.released), "text left that no judgement covers"

    def answer(self) -> None:
        for future in self.waiting:
            future.set_result(None)

    @property
    def released(self) -> str:
        return "".join(piece for step in self.steps for piece in step.pieces)


async def settle() -> None:
    """Let everything happen that can happen without us."""
    for _ in range(10):
        await asyncio.sleep(0)


async def finish(bench: Bench, running: asyncio.Task[None]) -> None:
    while not running.done():
        bench.answer()
        await settle()
    await running


def one(text: str) -> list[tuple[str, str]]:
    return [("content", text)]


def driven(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run each example of a property in a loop of its own."""

    def run(**example: Any) -> None:
        asyncio.run(test(**example))

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


# What happens, in any order: a text comes, the judgement under way is answered, or neither.
happenings = st.lists(
    st.one_of(st.text("abxyz", max_size=12), st.sampled_from(["", SECRET]), st.none()), max_size=40
)
schedules = st.builds(
    Streaming,
    mode=st.sampled_from(["hold", "full"]),
    first=st.integers(1, 30),
    growth=st.sampled_from([1.0, 1.3, 2.0, 5.0]),
    most=st.integers(1, 40),
)


@given(streaming=schedules, happenings=happenings)
@driven
async def test_every_released_prefix_is_covered_by_a_judgement(
    streaming: Streaming, happenings: list[str | None]
) -> None:
    """`Bench.emit` asserts it at each step; the secret never leaves, all else does at the end."""
    bench = Bench(streaming)
    running = asyncio.create_task(bench.guard.run())
    text = ""
    for happening in happenings:
        if happening is None:
            bench.answer()
        else:
            if not bench.guard.stopped:
                text += happening
            await bench.guard.feed(happening, one(happening))
        await settle()
    bench.guard.end()
    await finish(bench, running)
    assert bench.guard.stopped == (SECRET in text)
    assert SECRET not in bench.released
    if bench.guard.stopped:
        assert text.startswith(bench.released)
        assert bench.steps[-1].verdict is bench.guard.verdict
        assert not bench.steps[-1].pieces
    else:
        assert bench.released == text


@given(
    streaming=schedules,
    pieces=st.lists(st.text("ab", min_size=1, max_size=9), max_size=60),
)
@driven
async def test_checks_are_as_few_as_the_schedule_says(
    streaming: Streaming, pieces: list[str]
) -> None:
    """The next check is due when the answer has grown enough, never before, and at the end."""
    bench = Bench(streaming)
    running = asyncio.create_task(bench.guard.run())
    for piece in pieces:
        await bench.guard.feed(piece, one(piece))
        await settle()
        bench.answer()
        await settle()
    bench.guard.end()
    await finish(bench, running)
    lengths = [len(e.response or "") for e in bench.asked]
    assert lengths[-1] == sum(map(len, pieces))
    assert lengths == sorted(set(lengths))
    before = [len(e.response or "") for e in bench.asked if e.growing]
    if streaming.mode == "full":
        assert not before
    for length, following in zip([0, *before], before, strict=False):
        due = min(max(int(length * streaming.growth), length + 1), length + streaming.most)
        assert following >= (due if length else streaming.first)
        # A piece is at most 9 characters, so no check is late by more.
        assert following < (due if length else streaming.first) + 9
    assert len(bench.asked) - len(before) <= 1
    assert {e.prompt for e in bench.asked} == {bench.prompt}


async def test_a_long_answer_costs_checks_in_proportion_to_its_length() -> None:
    bench = Bench(Streaming(first=100, growth=2.0, most=1000))
    running = asyncio.create_task(bench.guard.run())
    for _ in range(25_000):
        await bench.guard.feed("four", one("four"))
        if bench.guard._due():
            await settle()
            bench.answer()
            await settle()
    bench.guard.end()
    await finish(bench, running)
    assert [len(e.response or "") for e in bench.asked[:6]] == [100, 200, 400, 800, 1600, 2600]
    assert len(bench.asked) == 5 + 99


@pytest.mark.parametrize("cut", range(1, len(SECRET)))
async def test_a_violation_that_straddles_two_checks_is_caught(cut: int) -> None:
    bench = Bench(Streaming(first=10, growth=1.0, most=1))
    running = asyncio.create_task(bench.guard.run())
    for piece in ("a" * (10 - cut) + SECRET[:cut], SECRET[cut:]):
        await bench.guard.feed(piece, one(piece))
        await settle()
        bench.answer()
        await settle()
    assert bench.released == "a" * (10 - cut) + SECRET[:cut]
    assert bench.guard.stopped
    await running


async def test_strands_are_judged_whole_however_they_mix() -> None:
    """A word spread over the deltas of one tool call is a word, whatever came in between."""
    bench = Bench(Streaming(first=100))
    running = asyncio.create_task(bench.guard.run())
    for strand, text in (("a", "x"), ("b", "1"), ("a", "y"), ("b", "2"), ("a", "z")):
        await bench.guard.feed(text, [(strand, text)])
    bench.guard.end()
    await finish(bench, running)
    parts = ("xyz", "12", "x1y2z")
    assert bench.asked == [Exchange(bench.prompt, "xyz\n12", parts=parts)]
    assert bench.guard.stopped
    assert bench.released == ""


async def test_pieces_that_say_nothing_are_not_held_for_ever() -> None:
    bench = Bench(Streaming(first=100))
    running = asyncio.create_task(bench.guard.run())
    await bench.guard.feed("begun", [("content", "begun")])
    for _ in range(READ_AHEAD):
        await bench.guard.feed("", [])
    await settle()
    bench.answer()
    await settle()
    assert [len(step.pieces) for step in bench.steps] == [READ_AHEAD + 1]
    bench.guard.end()
    await finish(bench, running)
    assert bench.released == "begun"


async def test_what_takes_turns_is_judged_as_it_arrives() -> None:
    """Whoever shows all strands of an answer shows them in this order."""

    async def judged(*pieces: list[tuple[str, str]]) -> tuple[str, ...]:
        bench = Bench(Streaming(mode="full"))
        running = asyncio.create_task(bench.guard.run())
        for piece in pieces:
            await bench.guard.feed("", piece)
        bench.guard.end()
        await finish(bench, running)
        return bench.asked[0].parts

    a, b = "content/a", "reasoning/b"
    turns = [[(a, "I w")], [(b, "ill ")], [(a, "find")], [(b, " you")]]
    assert await judged(*turns) == ("I wfind", "ill  you", "I will find you")
    # Names and tokens are no text that is shown; what is said twice at once is shown once.
    apart = [("names/n", "n"), ("logprobs/l", "I w"), ("other/x:", "x")]
    assert "I will find you" in await judged(turns[0] + apart, *turns[1:])
    both = [[(a, text), (b, text)] for text in ("so ", "it ", "is")]
    assert await judged(*both) == ("so it is",)
    assert await judged([(b, "so ")], [(b, "it ")], [(a, "is")]) == ("so it ", "is")


@pytest.mark.parametrize("start", ["a", "a" * (READ_AHEAD + 1)])
async def test_reading_goes_on_during_a_judgement_and_the_next_one_covers_what_came(
    start: str,
) -> None:
    bench = Bench(Streaming(first=1, growth=1.0, most=1))
    running = asyncio.create_task(bench.guard.run())
    await bench.guard.feed(start, one(start))
    await settle()
    bench.answer()
    await settle()
    for piece in "bcdef":
        await asyncio.wait_for(bench.guard.feed(piece, one(piece)), 5)
        await settle()
    assert [e.response for e in bench.asked] == [start, start + "b"]
    bench.answer()
    await settle()
    assert bench.released == start + "b"
    assert [e.response for e in bench.asked][2:] == [start + "bcdef"]
    bench.guard.end()
    await finish(bench, running)


@pytest.mark.parametrize("piece", ["a" * 1000, ""])
async def test_reading_waits_when_too_much_is_held(piece: str) -> None:
    """What is held stays bounded, and moves on as soon as the judgement is there."""
    bench = Bench(Streaming(first=1))
    running = asyncio.create_task(bench.guard.run())
    await bench.guard.feed("a", one("a"))
    await settle()
    pieces = 0
    floods = 2 * READ_AHEAD // (len(piece) + 1)

    async def flood() -> None:
        nonlocal pieces
        for _ in range(floods):
            await bench.guard.feed(piece, one(piece))
            pieces += 1

    flooding = asyncio.create_task(flood())
    await settle()
    assert not flooding.done()
    held = 2 + (pieces + 1) * (len(piece) + 1)
    assert READ_AHEAD < held <= READ_AHEAD + len(piece) + 1
    while not flooding.done():
        bench.answer()
        await settle()
    bench.guard.end()
    await finish(bench, running)
    assert len(bench.released) == 1 + len(piece) * floods


async def test_a_finished_answer_is_judged_before_the_stream_ends() -> None:
    """And pieces without text, such as late annotations, need no judgement of their own."""
    bench = Bench(Streaming())
    running = asyncio.create_task(bench.guard.run())
    await bench.guard.feed("all", one("all"), complete=True)
    await settle()
    assert bench.asked == [Exchange(bench.prompt, "all", growing=False)]
    await bench.guard.feed("", [])
    bench.guard.end()
    await finish(bench, running)
    assert len(bench.asked) == 1
    assert [step.pieces for step in bench.steps] == [("all",), ("",)]


async def test_text_after_the_finish_is_judged_too() -> None:
    bench = Bench(Streaming())
    running = asyncio.create_task(bench.guard.run())
    await bench.guard.feed("x", one("x"), complete=True)
    await settle()
    bench.answer()
    await settle()
    await bench.guard.feed("yz", one("yz"))
    await settle()
    assert bench.asked[1:] == [Exchange(bench.prompt, "xyz", growing=False)], "not at the end only"
    bench.guard.end()
    await finish(bench, running)
    assert bench.released == "x"
    assert bench.guard.stopped


async def test_an_empty_answer_is_judged_once() -> None:
    bench = Bench(Streaming())
    running = asyncio.create_task(bench.guard.run())
    bench.guard.end()
    await finish(bench, running)
    assert bench.asked == [Exchange(bench.prompt, "")]


async def test_without_holding_text_leaves_at_once_until_a_verdict_stops_it() -> None:
    bench = Bench(Streaming("async", first=3, growth=1.0, most=3), hold=False)
    running = asyncio.create_task(bench.guard.run())
    for piece in ("abc", "xyz", "def"):
        await bench.guard.feed(piece, one(piece))
        assert bench.released.endswith(piece)
    await settle()
    bench.answer()
    await settle()
    bench.answer()
    await running
    await bench.guard.feed("ghi", one("ghi"))
    assert bench.released == "abcxyzdef"
    spans = [(s.start, s.end, s.verdict.action) for s in bench.steps if s.verdict]
    assert spans == [(0, 9, Action.BLOCKED)]


@pytest.mark.parametrize(("last", "released"), [("kind", "abckind"), (SECRET, "abc")])
async def test_without_holding_only_the_end_of_an_answer_waits_for_its_verdict(
    last: str, released: str
) -> None:
    bench = Bench(Streaming("async"), hold=False)
    running = asyncio.create_task(bench.guard.run())
    await bench.guard.feed("abc", one("abc"))
    await bench.guard.feed(last, one(last), complete=True)
    await settle()
    assert bench.released == "abc"
    bench.guard.end()
    await finish(bench, running)
    assert bench.released == released


async def test_spans_of_verdicts_follow_each_other() -> None:
    bench = Bench(Streaming("async", first=2, growth=2.0, most=2), hold=False)
    running = asyncio.create_task(bench.guard.run())
    for piece in "abcde":
        await bench.guard.feed(piece, one(piece))
        await settle()
        bench.answer()
        await settle()
    bench.guard.end()
    await finish(bench, running)
    assert [(s.start, s.end) for s in bench.steps if s.verdict] == [(0, 2), (2, 4), (4, 5)]


@pytest.mark.parametrize(
    ("actions", "kept"),
    [
        ([Action.ALLOWED, Action.FAILED_OPEN], Action.FAILED_OPEN),
        ([Action.FAILED_OPEN, Action.ALLOWED], Action.ALLOWED),
        ([Action.WOULD_BLOCK, Action.ALLOWED], Action.WOULD_BLOCK),
        ([Action.WOULD_BLOCK, Action.BLOCKED], Action.BLOCKED),
        ([Action.WOULD_BLOCK, Action.FAILED_CLOSED], Action.FAILED_CLOSED),
    ],
)
async def test_the_verdict_on_an_answer_is_its_first_violation_or_its_last_word(
    actions: list[Action], kept: Action
) -> None:
    """What monitoring reports is what enforcing would have done."""
    bench = Bench(Streaming(first=1), action=lambda text: actions[len(text) - 1])
    running = asyncio.create_task(bench.guard.run())
    for piece in "ab":
        await bench.guard.feed(piece, one(piece))
        await settle()
        bench.answer()
        await settle()
    bench.guard.end()
    await finish(bench, running)
    assert bench.guard.verdict is not None
    assert bench.guard.verdict.action is kept
    assert bench.guard.exchange == bench.asked[actions.index(kept)]
    assert bench.released == ("a" if kept.stops else "ab")


async def test_cancelling_cancels_the_judgement_and_releases_nothing() -> None:
    bench = Bench(Streaming(first=1))
    running = asyncio.create_task(bench.guard.run())
    await bench.guard.feed("a", one("a"))
    await settle()
    assert bench.waiting
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not bench.waiting
    assert not bench.steps


async def test_an_answer_may_be_stopped_from_outside_even_while_it_is_judged() -> None:
    bench = Bench(Streaming(first=1))
    running = asyncio.create_task(bench.guard.run())
    await bench.guard.feed("a", one("a"))
    await settle()
    assert bench.waiting
    bench.guard.stop(Judged(verdict(Action.FAILED_CLOSED)))
    await bench.guard.feed("b", one("b"))
    await finish(bench, running)
    assert bench.released == ""
    assert [step.verdict.action for step in bench.steps if step.verdict] == [Action.FAILED_CLOSED]


async def test_an_unknown_exception_of_the_judge_is_raised() -> None:
    def fails(text: str) -> Action:
        raise RuntimeError("a defect")

    bench = Bench(Streaming(first=1), action=fails)
    running = asyncio.create_task(bench.guard.run())
    await bench.guard.feed("a", one("a"))
    await settle()
    bench.answer()
    with pytest.raises(RuntimeError):
        await running
    assert bench.released == ""
