"""What `shieldgate evaluate` does: has labelled data scored, and shows what the scores say."""

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as ProgressTask
from rich.text import Text

from shieldgate.batch.recorded import Recorded
from shieldgate.cli.options import asking, chosen_profile
from shieldgate.cli.report_tables import show, show_comparison
from shieldgate.errors import ConfigurationError, ScoringError
from shieldgate.evaluation.compare import compare
from shieldgate.evaluation.files import write_result
from shieldgate.evaluation.llm_comparator import to_llm_comparator
from shieldgate.evaluation.report import Mistake, Report
from shieldgate.evaluation.row_scoring import RowScorer, row_scorer
from shieldgate.evaluation.score_columns import read_columns
from shieldgate.evaluation.session import Evaluation, EvaluationOptions, EvaluationRun
from shieldgate.evaluation.sources import open_source
from shieldgate.explanations.explain import explain_whole
from shieldgate.given_settings import load, variable
from shieldgate.policy import load_book
from shieldgate.scoring import Scorer
from shieldgate.scoring.factory import open_scorer
from shieldgate.scoring.gateway_client import GatewayScorer, open_gateway
from shieldgate.scoring.hub import locate
from shieldgate.settings import GatewaySettings, ScoringSettings
from shieldgate.telemetry import configure_logging
from shieldgate.types import Exchange, Explanation

LLM_COMPARATOR = "llm-comparator.json"


@dataclass(frozen=True, slots=True)
class Scored:
    """A file of margins, what it was scored for, and what it says.

    `texts` are those of the report's mistakes, as far as they are shown, and `explained` some of
    them.
    """

    path: Path
    run: EvaluationRun
    report: Report
    texts: Mapping[int, Exchange] | None
    explained: Mapping[Mistake, Explanation]


@dataclass(frozen=True, slots=True)
class EvaluateCommand:
    """What to measure, and with what.

    That is an engine as the settings say, the gateway at `url`, or what the folder `scores` holds.
    With `keyless` the gateway is not shown the key of the settings, which is another one's.
    """

    options: EvaluationOptions
    settings: ScoringSettings
    url: str | None
    scores: str | None
    concurrency: int
    examples: bool
    explain: bool
    command: str
    keyless: bool = False

    def run(self, data: str, out: Path | None, sides: tuple[str, str] | None) -> None:
        """Score, report and print; with `sides`, both of them, and then compare.

        Raises ConfigurationError. Exits with 1 when no score could be had, with 130 when it was
        interrupted.
        """
        configure_logging("warning", as_json=False)
        whose = self.url in sides if sides else self.scores is None
        if (self.url and not whose) or (self.scores is not None and sides):
            raise ConfigurationError(
                "Give one of --scores, --url and --compare: each says what scores. Beside "
                f"--compare, --url may say which of its gateways has {variable('gateway_key')}."
            )
        if self.explain and (self.scores is not None or not self.examples):
            raise ConfigurationError(
                "--explain asks the scorer about texts that the report shows, so it can't go with "
                "--scores or --no-examples."
            )
        evaluation = Evaluation.of(open_source(data), self.options)
        for note in (*evaluation.survey.notes(), *evaluation.survey.one_sided()):
            typer.echo(f"Note: {note}", err=True)
        try:
            if sides is None:
                self._measure(evaluation, out)
            else:
                self._compare(evaluation, out, *sides)
        except ScoringError as failure:
            typer.echo(f"Error: {failure} What was scored is saved.", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            typer.echo(
                "Stopped. What was scored is saved: give the same command to go on.", err=True
            )
            sys.exit(128 + signal.SIGINT)

    def _measure(self, evaluation: Evaluation, out: Path | None) -> Scored:
        """Score, print the report and write it."""
        scored = asyncio.run(self._score(evaluation, out))
        console = Console()
        show(scored.report, console)
        folder = scored.path.parent
        scored.report.write(folder, scored.texts, scored.explained)
        console.print(f"Wrote scores.jsonl, report.json and report.html to {folder}")
        return scored

    async def _score(self, evaluation: Evaluation, out: Path | None) -> Scored:
        async with self._opened(evaluation) as (run, scorer):
            rows = scorer if isinstance(scorer, Recorded) else self._row_scorer(scorer)
            folder = out or run_folder(
                evaluation, self.options.protocol or "", scorer.identity.name
            )
            with scoring_progress(evaluation.row_count) as progress:
                path = await run.score(rows, folder, progress=progress)
            report = await asyncio.to_thread(run.report, path, command=self.command)
            texts = evaluation.dataset.texts(report.mistaken_rows) if self.examples else None
            explained: Mapping[Mistake, Explanation] = {}
            if self.explain and texts and not isinstance(scorer, Recorded):
                with Console(stderr=True).status("leaving words of mistakes out"):
                    explained = await _explained(scorer, run, report, texts)
            return Scored(path, run, report, texts, explained)

    @asynccontextmanager
    async def _opened(
        self, evaluation: Evaluation
    ) -> AsyncIterator[tuple[EvaluationRun, Scorer | Recorded]]:
        """Open the scorer, after its policies were found to be there."""
        if self.url is not None:
            opened = GatewayScorer(self.url) if self.keyless else open_gateway(self.url)
            async with opened as gateway:
                book = await gateway.book()
                run = evaluation.under(book, chosen_profile(book, self.settings))
                yield run, gateway
            return
        settings = self.settings
        if evaluation.protocol is not None and "template" not in settings.model_fields_set:
            settings = settings.model_copy(update={"template": evaluation.protocol.template})
        book = load_book(settings.policies)
        run = evaluation.under(book, chosen_profile(book, settings))
        if self.scores is not None:
            recorded = Recorded(self.scores)
            recorded.check(run.task.policies)
            yield run, recorded
            return
        most = self.options.max_batch_tokens
        with Console(stderr=True).status(f"loading {settings.model}") as status:
            async with open_scorer(
                settings, max_batch_tokens=most, max_waiting=sys.maxsize
            ) as scorer:
                status.stop()
                yield run, scorer

    def _row_scorer(self, scorer: Scorer) -> RowScorer:
        return row_scorer(
            scorer,
            max_batch_tokens=self.options.max_batch_tokens,
            concurrency=self.concurrency,
        )

    def _compare(self, evaluation: Evaluation, out: Path | None, a: str, b: str) -> None:
        """Measure two sides, then compare them on the rows that both scored."""
        out = out or run_folder(evaluation, a, "vs", b)
        sides = {"a": self._side(a), "b": self._side(b)}
        self._check_keys(*sides.values())
        for side in sides.values():
            side._check(evaluation)  # now, and not when the first one was scored for hours
        scored = [side._measure(evaluation, out / name) for name, side in sides.items()]
        left, right = (read_columns(one.path) for one in scored)
        books = (scored[0].run.book, scored[1].run.book)
        profile = scored[0].run.profile.name
        comparison = compare(left, right, books, profile, seed=self.options.seed)
        console = Console()
        show_comparison(comparison, console)
        file = out / "comparison.json"
        comparison.write(file)
        console.print(f"Wrote {file}")
        if self.examples:
            found = to_llm_comparator(
                left, right, books, profile, evaluation.dataset.texts, seed=self.options.seed
            )
            write_result(out / LLM_COMPARATOR, json.dumps(found))
            console.print(
                f"Wrote {out / LLM_COMPARATOR}, rows with their texts, for LLM Comparator"
            )

    def _check(self, evaluation: Evaluation) -> None:
        """Find its policies, and its model where that isn't served elsewhere."""
        if self.url is None:
            book = load_book(self.settings.policies)
            evaluation.under(book, chosen_profile(book, self.settings))
            if not self.settings.servers:
                locate(self.settings.model, self.settings.revision, ["config.json"])

    def _side(self, given: str) -> "EvaluateCommand":
        """Tell what one side of a comparison is: a gateway, policy files, or a model."""
        is_url = given.startswith(("http://", "https://"))
        if is_url and not given.rstrip("/").endswith("/v1"):
            return replace(self, url=given, keyless=self.url not in (None, given))
        path = Path(given).expanduser()
        if is_url or not path.exists() or (path / "config.json").is_file():
            settings = asking(self.settings, given)
        else:
            settings = self.settings.model_copy(update={"policies": path})
        return replace(self, url=None, settings=settings)

    def _check_keys(self, a: "EvaluateCommand", b: "EvaluateCommand") -> None:
        """Refuse a key that could be either server's; raise ConfigurationError."""
        if a.url and b.url and self.url is None:
            key, field, naming = load(GatewaySettings, {}).gateway_key, "gateway_key", "--url"
            servers = {a.url, b.url}
        elif a.settings.servers and b.settings.servers and not self.settings.servers:
            key, field, naming = self.settings.model_key, "model_key", "--model"
            servers = {a.settings.model, b.settings.model}
        else:
            return
        if key and len(servers) > 1:
            raise ConfigurationError(
                f"{variable(field)} is the key of one server, and --compare names two. Say by "
                f"{naming} URL whose it is; the other one is then asked without a key."
            )


async def _explained(
    scorer: Scorer, run: EvaluationRun, report: Report, texts: Mapping[int, Exchange]
) -> dict[Mistake, Explanation]:
    """Explain the mistakes over all policies, each under the policy that it is listed with."""
    policies = {policy.id: policy for policy in run.task.policies}
    return {
        mistake: explained
        for mistake in report.overall_mistakes
        for explained in (
            await explain_whole(scorer, texts[mistake.row], [policies[mistake.policy]])
        ).values()
    }


@contextmanager
def scoring_progress(rows: int) -> Iterator[Callable[[int], None]]:
    """Show on standard error how far it is; gives what is told how many rows are scored."""
    bar = Progress(
        TextColumn("scoring"),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    task: TaskID | None = None

    def show(scored: int) -> None:
        nonlocal task
        if task is None:
            task = bar.add_task("", total=rows, completed=scored)
            bar.start()
        else:
            bar.update(task, completed=scored)

    try:
        yield show
    finally:
        if task is not None:
            bar.stop()


class _Speed(ProgressColumn):
    """Rows a second, lately."""

    def render(self, task: ProgressTask) -> Text:
        return Text(f"{task.speed:.1f} rows/s" if task.speed else "")


def run_folder(evaluation: Evaluation, *names: str) -> Path:
    """Name the folder of a run for which no other was given."""
    data = evaluation.dataset.source.name
    stem = re.sub(r"(?i)(\.(jsonl?|ndjson|csv|tsv|parquet|gz))+$", "", data).removeprefix("hf://")
    slugs = [re.sub(r"[^\w.@-]+", "-", name).strip("-.") for name in (stem, *names)]
    return Path("runs") / "-".join(slug for slug in slugs if slug)
