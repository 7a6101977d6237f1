"""The figures of one run, and the tables that a person reads."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.dtypes import BESIDE, BF16, INT8, VLLM, DtypeRace
from benchmarks.dtypes import MATMUL as MATMUL_BF16
from benchmarks.memory import LongText
from benchmarks.streaming import PACE, POLICIES, Stream
from benchmarks.subject import QUICK, Plan

OURS, SNIPPET, PIPELINE, MATMUL = "shieldgate", "snippet", "pipeline", "matmul"
RIVALS = {
    SNIPPET: "the published snippet (a pass per policy, full logits)",
    PIPELINE: 'transformers\' pipeline("decision")',
}

OF_PREDICTED = 0.90
OF_MATMUL = 0.80
OF_TOKENS = 1.15
OF_STREAM = 1.10
OF_BF16 = 1.4
OF_VLLM = 1.4


@dataclass(frozen=True)
class Race:
    """One text, all contestants: multiply-adds counted and seconds measured, by name.

    The seconds of MATMUL are those of plain matmuls that make up `operations[MATMUL]`.
    """

    text: int
    prompts: int
    packed: int
    operations: dict[str, int]
    seconds: dict[str, float]
    difference: float

    def measured(self, rival: str) -> float:
        """Tell how many times as long a rival takes."""
        return self.seconds[rival] / self.seconds[OURS]

    def predicted(self, rival: str) -> float:
        """Tell how many times as many operations a rival needs."""
        return self.operations[rival] / self.operations[OURS]

    def reached(self, rival: str) -> float:
        """Give the part of the predicted ratio that was measured."""
        return self.measured(rival) / self.predicted(rival)

    def rate(self, name: str) -> float:
        """Give floating-point operations per second, two a multiply-add."""
        return 2 * self.operations[name] / self.seconds[name]

    @property
    def of_matmul(self) -> float:
        """Give our rate as a part of the plain matmul's."""
        return self.rate(OURS) / self.rate(MATMUL)


@dataclass(frozen=True)
class Cost:
    """What scoring under several policies takes: packed tokens, and seconds."""

    policies: int
    tokens: int
    seconds: float


@dataclass
class Report:
    """All figures of a run."""

    setting: str
    plan: Plan
    races: list[Race] = field(default_factory=list)
    dtypes: list[DtypeRace] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    memory: LongText | None = None

    def print(self, console: Console) -> None:
        """Print the tables, and what of the targets was reached."""
        console.print(self.setting)
        for rival, name in RIVALS.items():
            self._print_speed(console, rival, name)
        self._print_rates(console)
        self._print_dtypes(console)
        self._print_policies(console)
        self._print_streams(console)
        worst = max(r.difference for r in self.races)
        console.print(f"P(Yes) of the three differs by at most {worst:.1e}.")
        if self.memory and self.memory.growth is not None:
            long = f"{self.plan.long_text:,}"
            console.print(
                f"Scoring {long} tokens raised the resident memory by at most "
                f"{self.memory.growth / 2**20:,.0f} MiB.\n"
                f"One fp32 tensor of heads x {long} x {long} would take "
                f"{self.memory.square / 2**20:,.0f} MiB."
            )
        if self.plan is QUICK:
            console.print("A smoke run: its figures say nothing about speed.")
        else:
            console.print("\nTargets", *self._targets(), sep="\n  ")

    def _print_speed(self, console: Console, rival: str, name: str) -> None:
        console.print(f"Time of {name}, in multiples of ours:")
        titles = ("text", "its tokens", "our tokens", "measured", "predicted", "reached")
        table = _table(console, *titles)
        for race in self.races:
            table.add_row(
                str(race.text),
                str(race.prompts),
                str(race.packed),
                f"{race.measured(rival):.2f}",
                f"{race.predicted(rival):.2f}",
                f"{race.reached(rival):.0%}",
            )
        console.print(table)

    def _print_rates(self, console: Console) -> None:
        console.print(
            "Billion operations a second, and those of a plain matmul of the MLP's shape:"
        )
        table = _table(console, "text", OURS, SNIPPET, PIPELINE, MATMUL, f"{OURS} / {MATMUL}")
        for race in self.races:
            rates = (f"{race.rate(n) / 1e9:.0f}" for n in (OURS, *RIVALS, MATMUL))
            table.add_row(str(race.text), *rates, f"{race.of_matmul:.0%}")
        console.print(table)

    def _print_dtypes(self, console: Console) -> None:
        console.print(
            "Milliseconds from text to scores in each dtype, and as many operations as bf16 matmuls"
            " on a packed weight:"
        )
        names = list(dict.fromkeys(name for race in self.dtypes for name in race.seconds))
        table = _table(console, "text", *names, *(["vLLM / ours"] if VLLM in names else []))
        for race in self.dtypes:
            row = [f"{race.seconds[name] * 1e3:.0f}" for name in names]
            if VLLM in names:
                row.append(f"{race.seconds[VLLM] / race.seconds[BESIDE]:.2f}")
            table.add_row(str(race.text), *row)
        console.print(table)
        if VLLM in names:
            console.print(
                f"P(Yes) of vLLM and ours: {max(r.apart for r in self.dtypes):.1e} apart."
            )

    def _print_policies(self, console: Console) -> None:
        console.print(f"More policies on a text of {self.plan.policies_text} tokens, against one:")
        titles = ("policies", "tokens", "times the tokens", "times the time", "time / tokens")
        table = _table(console, *titles)
        for cost, tokens, seconds in self._growths():
            table.add_row(
                str(cost.policies),
                str(cost.tokens),
                f"{tokens:.2f}",
                f"{seconds:.2f}",
                f"{seconds / tokens:.2f}",
            )
        console.print(table)

    def _print_streams(self, console: Console) -> None:
        console.print(
            f"An answer of {self.plan.answer} tokens judged as it grows, {POLICIES} policies, "
            "against one check at its end (processor time, one thread).\n"
            f"Text comes at {PACE} tokens a second; its waiting doesn't count the checks' time:"
        )
        titles = ("schedule", "checks", "tokens", "time", "predicted", "median wait", "worst")
        table = _table(console, *titles)
        for stream in self.streams:
            table.add_row(
                stream.schedule,
                str(stream.checks),
                "" if stream.computed is None else str(stream.computed),
                "" if stream.seconds is None else f"{self._times_once(stream):.2f}",
                f"{stream.predicted:.2f}",
                f"{stream.median_wait:.1f} s",
                f"{max(stream.waits):.1f} s",
            )
        console.print(table)

    def _times_once(self, stream: Stream) -> float:
        return (stream.seconds or 0.0) / (self.streams[0].seconds or 1.0)

    def _growths(self) -> Iterator[tuple[Cost, float, float]]:
        one = self.costs[0]
        for cost in self.costs:
            yield cost, cost.tokens / one.tokens, cost.seconds / one.seconds

    def _targets(self) -> Iterator[str]:
        ratio = min(r.reached(rival) for r in self.races for rival in RIVALS)
        yield _target(
            f"at least {OF_PREDICTED:.0%} of each predicted ratio",
            ratio >= OF_PREDICTED,
            f"{ratio:.0%}",
        )
        long = [r.of_matmul for r in self.races if r.text >= 300]
        if long:
            yield _target(
                f"at least {OF_MATMUL:.0%} of the matmul's rate from 300 tokens on",
                min(long) >= OF_MATMUL,
                f"{min(long):.0%}",
            )
        yield from self._dtype_targets()
        growth = max(seconds / tokens for _, tokens, seconds in self._growths())
        yield _target(
            f"more policies cost at most {OF_TOKENS:.2f} times their tokens",
            growth <= OF_TOKENS,
            f"{growth:.2f}",
        )
        cost = max(self._times_once(s) / s.predicted for s in self.streams if s.seconds)
        yield _target(
            f"judging an answer as it grows costs at most {OF_STREAM:.2f} times what counting says",
            cost <= OF_STREAM,
            f"{cost:.2f}",
        )

    def _dtype_targets(self) -> Iterator[str]:
        long = [r for r in self.dtypes if r.text >= 300 and MATMUL_BF16 in r.seconds]
        if long:
            worst = min(r.seconds[MATMUL_BF16] / r.seconds[BF16] for r in long)
            yield _target(
                f"at least {OF_MATMUL:.0%} of the bf16 matmul's rate from 300 tokens on",
                worst >= OF_MATMUL,
                f"{worst:.0%}",
            )
        for slow, fast, wanted in ((BF16, INT8, OF_BF16), (VLLM, BESIDE, OF_VLLM)):
            raced = [r.seconds for r in self.dtypes if {slow, fast} <= r.seconds.keys()]
            if raced:
                worst = min(seconds[slow] / seconds[fast] for seconds in raced)
                yield _target(
                    f"{fast} at least {wanted:.1f} times as fast as {slow}",
                    worst >= wanted,
                    f"{worst:.2f}",
                )


def _table(console: Console, *titles: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else box.MARKDOWN)
    for title in titles:
        table.add_column(title, justify="right")
    return table


def _target(wanted: str, reached: bool, worst: str) -> str:
    return f"{'reached' if reached else 'MISSED '}  {wanted} (worst: {worst})"
