"""The model of gateways and scorers gives what queueing theory gives, and batches as we do."""

import asyncio
import json
import math
import random
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from time import sleep

import pytest
from aiohttp import web
from simpy import Environment

from benchmarks.scaling import __main__ as command
from benchmarks.scaling.deployment import Outcome, Plan, _chooser
from benchmarks.scaling.engine import Server, TokenIds
from benchmarks.scaling.load import Load
from benchmarks.scaling.machines import Dedicated, Meter, SharedCores, Thread
from benchmarks.scaling.real import STARTER, text
from benchmarks.scaling.scorer import Full, Limits, Scorer
from benchmarks.scaling.simulation import REFUSED, Day, over, simulate, simulate_all
from benchmarks.scaling.times import Times, shipped
from shieldgate.errors import Overloaded
from shieldgate.policy import load_book
from shieldgate.scoring import Batched, Identity, Prepared, turn
from shieldgate.scoring.factory import open_engine, open_scorer
from shieldgate.scoring.pack import Pack
from shieldgate.settings import ScoringSettings
from shieldgate.types import Exchange

# Nothing takes time but a pass, which is the same for each text.
FREE = Times(
    **{"source": "made up", "scorer_name": "none", "prompt_tokens": 99, "context": 2048},
    pass_seconds=0.01,
    **dict.fromkeys(("pass_token", "pass_pair", "pass_pair_of_all"), 0.0),
    **dict.fromkeys(("scorer", "cached", "scored", "refused", "way"), 0.0),
    **dict.fromkeys(("redis_find", "redis_keep", "redis_way", "redis_client"), 0.0),
)
ONE = Plan(gateways=1, scorers=1, limits=Limits(max_waiting=10**6, model_texts=10**6))
ONE_BY_ONE = replace(ONE, limits=replace(ONE.limits, max_batch_tokens=1))
SEEDS = range(8)


def near(values: Sequence[float], wanted: float) -> bool:
    """Whether the mean over seeds is what theory says: within its 99.9 % interval, t with 7."""
    half = 5.41 * stdev(values) / math.sqrt(len(values))
    assert half < 0.15 * wanted, "too few requests to tell"
    return abs(mean(values) - wanted) < half


def sojourns(
    serve: Callable[[Environment], Callable[[float], object]],
    length: Callable[[random.Random], float],
    seed: int,
) -> float:
    """The mean time from arrival to end of 4,000 jobs of which 50 arrive a second."""
    env, draw, taken = Environment(), random.Random(seed), []
    begin = serve(env)

    def job(seconds: float):
        came = env.now
        yield from begin(seconds)
        taken.append(env.now - came)

    def come():
        for _ in range(4000):
            yield env.timeout(draw.expovariate(50))
            env.process(job(length(draw)))

    env.process(come())
    env.run()
    return mean(taken)


def one_thread(env: Environment) -> Callable[[float], object]:
    return Thread(env, Dedicated(env), Meter(1.0, 1)).run


def one_core(env: Environment) -> Callable[[float], object]:
    cores = SharedCores(env, [1.0])

    def run(seconds: float):
        yield cores.work(seconds)

    return run


def fixed(_: random.Random) -> float:
    return 0.01


def exponential(draw: random.Random) -> float:
    return draw.expovariate(100)


def test_a_thread_is_m_m_1_and_m_d_1() -> None:
    # Kleinrock, Queueing Systems I: in all 1 / (mu - lambda), and by Pollaczek and Khinchine.
    assert near([sojourns(one_thread, exponential, seed) for seed in SEEDS], 1 / 50)
    assert near([sojourns(one_thread, fixed, seed) for seed in SEEDS], 0.01 + 0.5 * 0.01 / 1)


def test_a_shared_core_is_as_fair_as_processor_sharing_whatever_the_lengths() -> None:
    for length in (exponential, fixed):
        assert near([sojourns(one_core, length, seed) for seed in SEEDS], 0.01 / 0.5)


def test_cores_that_are_slower_together() -> None:
    env = Environment()
    cores, ended = SharedCores(env, [1.0, 0.5]), []
    for seconds in (1.0, 2.0, 2.0):
        cores.work(seconds).callbacks.append(lambda _: ended.append(env.now))
    env.run()
    # Three share two half-fast cores; then two have one of these each; they end together.
    assert ended == pytest.approx([3.0, 5.0, 5.0])


def test_a_scorer_that_takes_one_at_a_time_is_m_d_1() -> None:
    def seconds(seed: int) -> float:
        day = simulate(FREE, ONE_BY_ONE, Load(50, 40), seed)
        return mean(answer.seconds for answer in day.answers)

    assert near([seconds(seed) for seed in SEEDS], 0.01 + 0.5 * 0.01 / 1)


def test_batching_carries_what_one_by_one_cannot() -> None:
    load = Load(150, 20)
    alone, together = (simulate(FREE, plan, load, 0) for plan in (ONE_BY_ONE, ONE))
    assert alone.percentile(50) > 1
    assert together.percentile(99) < 0.021  # a pass under way, and one's own


def test_a_load_is_a_poisson_process_with_a_day_in_it() -> None:
    load = Load(50, 400, peak=1.8)
    days = [[r.at for r in load.requests(seed)] for seed in range(4)]
    counts = [len(day) for day in days]
    assert mean(counts) == pytest.approx(20_000, abs=4 * math.sqrt(20_000 / 4))
    middle = mean(sum(150 <= at < 250 for at in day) for day in days) / 100
    assert middle == pytest.approx(50 * (1 + 0.8 * 2 * math.sqrt(2) / math.pi), rel=0.03)
    gaps = [b - a for a, b in pairwise(r.at for r in Load(50, 200).requests(1))]
    assert stdev(gaps) == pytest.approx(mean(gaps), rel=0.05)


def test_bursts_come_on_top() -> None:
    plain, bursts = (
        sum(len(list(Load(50, 100, bursts=n, burst_factor=4).requests(s))) for s in range(8)) / 8
        for n in (0, 4)
    )
    # Four of five seconds each, in which three times as much comes besides.
    assert bursts == pytest.approx(plain + 4 * 5 * 3 * 50, rel=0.2)


@pytest.mark.parametrize("choice", ["rendezvous", "round-robin", "least-requests", "own"])
def test_whoever_asks_is_answered_once_and_more_scorers_are_never_worse(choice: str) -> None:
    load = Load(300, 3, repeats=0.2, bursts=1, callers=5)
    limits = Limits(max_batch_tokens=1, max_waiting=20, guard_seconds=0.15)
    days = {
        scorers: simulate(FREE, Plan(4, scorers, choice=choice, redis=True, limits=limits), load, 3)
        for scorers in (1, 2, 4)
    }
    came = sorted(request.at for request in load.requests(3))
    for day in days.values():
        assert sorted(answer.at for answer in day.answers) == came
        assert all(answer.seconds >= 0 for answer in day.answers)
    refused = [days[scorers].share(*REFUSED) for scorers in (1, 2, 4)]
    assert refused[0] > refused[1] > refused[2]


def test_hashing_spreads_texts_and_moves_few_when_a_scorer_comes() -> None:
    def chosen(scorers: int) -> list[int]:
        return [_chooser("rendezvous", [None] * scorers)(0, n) for n in range(3000)]

    three, four = chosen(3), chosen(4)
    assert all(abs(three.count(number) - 1000) < 130 for number in range(3))
    moved = [new for old, new in zip(three, four, strict=True) if old != new]
    assert set(moved) == {3}
    assert abs(len(moved) - 750) < 120


def outcomes(plan: Plan, load: Load, times: Times = FREE) -> set[Outcome]:
    return {answer.outcome for answer in simulate(times, plan, load, 0).answers}


def test_what_is_too_much_is_refused_for_want_of_a_place_or_of_time() -> None:
    crowd = Load(200, 5)
    tight = replace(ONE_BY_ONE.limits, max_waiting=10)
    assert outcomes(replace(ONE, limits=tight), crowd) == {"scored", "full"}
    # The gateway's own bound, where the scorer never has more than one.
    tight = replace(tight, model_texts=1)
    assert outcomes(replace(ONE, limits=tight), crowd) == {"scored", "full"}
    short = replace(ONE_BY_ONE.limits, guard_seconds=0.1)
    assert outcomes(replace(ONE, limits=short), crowd) == {"scored", "late"}
    # Where callers say until when they wait, who can't be done by then is told at once.
    assert outcomes(replace(ONE, limits=short, choice="own"), crowd) >= {"scored", "full"}


def test_redis_shares_what_another_gateway_has_scored() -> None:
    load = Load(50, 40, repeats=0.5)
    apart = simulate(FREE, Plan(4, 1), load, 0)
    shared = simulate(FREE, Plan(4, 1, redis=True), load, 0)
    # Of what comes again a gateway of four has seen some itself.
    assert apart.share("cached") < 0.35
    assert shared.share("cached", "shared") == pytest.approx(0.5, abs=0.05)
    slow = replace(FREE, redis_find=0.06)
    few = replace(load, rate=4)
    assert "shared" in outcomes(Plan(4, 1, redis=True), few)
    assert "shared" not in outcomes(Plan(4, 1, redis=True), few, slow)


class Sleeping:
    """An engine whose passes take as long, whatever is in them."""

    identity = Identity("sleeping@0", "0", "float32", "chat", "none")

    def __init__(self) -> None:
        self.passes: list[list[int]] = []

    def prepare(self, exchange: Exchange, policies: object) -> Prepared:
        return Prepared((Pack(tuple(range(len(exchange.prompt) - 1)), ((1,),)),))

    def forward(self, work: Sequence[Pack]) -> list[list[float]]:
        self.passes.append([pack.tokens for pack in work])
        sleep(0.1)
        return [[0.0]] * len(work)


# When in units of 20 ms who comes with how many tokens. The first is alone in its pass.
CAME = [
    (0, "flood", 10),
    *((1, "flood", 11 + n) for n in range(5)),
    (2, "small", 5),
    (3, "flood", 17),
    (3, "other", 30),
    (4, "small", 6),
]


async def test_the_model_batches_and_refuses_as_batched_does() -> None:
    engine, refused = Sleeping(), []
    async with Batched(engine, max_batch_tokens=50, max_waiting=8) as batched:

        async def come(at: int, caller: str, tokens: int) -> None:
            await asyncio.sleep(at * 0.02)
            turn.caller.set(caller)
            try:
                await batched.score(Exchange("x" * tokens), ())
            except Overloaded:
                refused.append((caller, tokens))

        await asyncio.gather(*(come(*one) for one in CAME))

    env, passes, lost = Environment(), [], []

    class Recorded(Times):
        def forward(self, sizes: Sequence[int]) -> float:
            passes.append(list(sizes))
            return 0.1

    limits = Limits(max_batch_tokens=50, max_waiting=8, pass_seconds=math.inf)
    alone = Dedicated(env)
    loop, meter = Thread(env, alone, Meter(1, 1)), Meter(1, 1)
    times = Recorded(**vars(FREE))
    scorer = Scorer(env, times, limits, processors=alone, loop=loop, meter=meter)

    def ask(at: int, caller: str, tokens: int):
        yield env.timeout(at * 0.02)
        try:
            yield from scorer.score(caller, tokens, math.inf)
        except Full:
            lost.append((caller, tokens))

    for one in CAME:
        env.process(ask(*one))
    env.run()
    assert engine.passes == passes
    assert refused == lost
    assert lost, "nobody was refused, so that nothing was shown"


async def test_the_scorer_of_the_real_run_gives_a_gateway_the_starters_margins() -> None:
    engine = open_engine(ScoringSettings(model="starter", device="cpu"))
    book = load_book()
    policies = book.select(book.profile("default"))
    texts = [text(number, 20) for number in range(3)]
    inner = TokenIds(engine)
    async with Batched(inner, max_batch_tokens=1000, max_waiting=9) as batched:
        runner = web.AppRunner(Server(inner, batched, 2048).app())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        settings = ScoringSettings(model=url, tokenizer=str(STARTER))
        async with open_scorer(settings, max_batch_tokens=1, max_waiting=9) as scorer:
            found = [await scorer.score(Exchange(words), policies) for words in texts]
        await runner.cleanup()
    for words, scores in zip(texts, found, strict=True):
        (wanted,) = engine.forward(engine.prepare(Exchange(words), policies).work)
        assert [score.margin for score in scores] == pytest.approx(wanted, abs=1e-3)


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    monkeypatch.setattr("sys.argv", ["scaling", *flags])
    monkeypatch.setattr(command, "simulate_all", one_after_the_other)
    command.main()
    return capsys.readouterr().out


def one_after_the_other(times: Times, plan: Plan, load: Load, seeds: int) -> list[Day]:
    return simulate_all(times, plan, load, seeds, processes=1)


SHORT = ("--seconds", "6", "--seeds", "2", "--bursts", "0", "--times", "h200-2b")


def test_the_command_says_what_the_limit_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(monkeypatch, capsys, *SHORT, "--rate", "20")
    assert "No queue grows for long" in said
    said = run(monkeypatch, capsys, *SHORT, "--rate", "400", "--scorers", "1", "--peak", "1")
    assert "the limit is the scorer. Add scorers" in said
    slow = ("--balancer-us", "10000", "--peak", "1")
    said = run(monkeypatch, capsys, *SHORT, "--rate", "200", *slow)
    assert "the limit is the balancer" in said


def test_the_command_finds_how_many_scorers_are_enough(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(monkeypatch, capsys, *SHORT, "--rate", "300", "--p99", "0.3", "--peak", "1")
    assert "scorers answer 99 % within 0.3 s" in said
    with pytest.raises(SystemExit, match="are not enough for a p99 of"):
        run(monkeypatch, capsys, *SHORT, "--p99", "0.001", "--most-scorers", "2")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--peak", "3"), "--peak is from 1 to 2"),
        (("--seeds", "1"), "one day has no interval"),
        (("--scorers", "0"), "--scorers is more than 0"),
        (("--times", "h200-2b", "--one-machine"), "was not measured on one machine"),
        (("--texts", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--times", "nowhere"), "Beside the model are: epyc-starter, h200-2b"),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: Sequence[str],
    why: str,
) -> None:
    with pytest.raises(SystemExit) as refused:
        run(monkeypatch, capsys, *flags)
    assert why in f"{refused.value}{capsys.readouterr().err}"


def test_lengths_are_drawn_from_rows(tmp_path: Path) -> None:
    rows = [{"id": str(n), "prompt": text(n, 500 + n), "labels": {}} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = Namespace(texts=str(tmp_path / "rows.jsonl"), adapter="ours", tokenizer="starter")
    lengths = command._lengths(given)
    assert lengths == pytest.approx([500, 501, 502], abs=2)
    assert {r.tokens for r in Load(9, 9, lengths=lengths).requests(0)} == set(lengths)


def test_what_is_shipped_can_be_read_and_what_is_not_is_said() -> None:
    for name in shipped():
        times = Times.read(name)
        assert 0 < times.forward([times.prompt_tokens]) < 1
        assert 0 < times.cached < times.scored


def test_an_interval_holds_a_share_above_zero_and_a_latency_by_its_ratio() -> None:
    days = [Day(1.0, [], {"scorer": [[busy]]}, {}) for busy in (0.0, 0.0, 0.3)]
    assert over(days, lambda day: day.busiest("scorer")).low == 0
    values = iter((0.1, 1.0, 10.0))
    interval = over(days, lambda _: next(values), ratio=True)
    assert interval.mean == pytest.approx(1.0)
    assert interval.low * interval.high == pytest.approx(1.0)
