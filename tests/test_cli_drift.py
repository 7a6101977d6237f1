"""`shieldgate drift`, from records of decisions to what to do."""

import asyncio
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from redis_server import redis_server
from scipy.stats import ks_2samp
from scored import SCORER, header, scored, write_scores
from test_calibrate import BOOK, SPAM, THREAT
from typer.testing import CliRunner, Result

from shieldgate.cli.calibrate import calibrate
from shieldgate.cli.drift import drift
from shieldgate.drift import bin_of
from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.score_drift import kolmogorov_smirnov
from shieldgate.policy import load_book
from shieldgate.redis.audit_stream import RedisAuditStream
from shieldgate.redis.client import RedisClient
from shieldgate.telemetry import Audit, Decision, configure_logging
from shieldgate.types import Action, Exchange, Judgement, Score, Verdict

pytestmark = pytest.mark.usefixtures("restored_logging")

STREAM = "shieldgate:audit"


def run(command: Callable[..., Any], *arguments: object, input: str | None = None) -> Result:
    app = typer.Typer()
    app.command()(command)
    given = [str(a) for a in arguments]
    return CliRunner().invoke(app, given, input=input, env={"COLUMNS": "140"})


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A book whose policies were calibrated on prompts, a quarter of them harmful."""
    folder = tmp_path_factory.mktemp("calibrated")
    path = folder / "acme.yaml"
    path.write_text(BOOK)
    policies = SPAM, THREAT
    rows = scored(policies, 1200)
    scores = write_scores(folder / "scores.jsonl", header(load_book(path), policies), rows)
    assert run(calibrate, scores, "--target", "fpr=0.05", "--write", path).exit_code == 0
    return path.read_text()


@pytest.fixture
def book(calibrated: str, tmp_path: Path) -> Path:
    path = tmp_path / "policies" / "acme.yaml"
    path.parent.mkdir()
    path.write_text(calibrated)
    return path


def margins(rows: int, seed: int, moved: float = 0.0) -> list[float]:
    """Margins of texts such as those of the calibration, or higher ones."""
    return [row.margins[SPAM] + moved for row in scored([SPAM], rows, seed=seed)]


def decisions(
    found: Sequence[float], texts: Sequence[str] | None = None, scorer: str = SCORER
) -> Iterator[Decision]:
    """Decisions on prompts by one policy; the guard fails on what has no margin."""
    for number, margin in enumerate(found):
        judged = (Judgement(SPAM, 0.5, 0.5, False, True, Score(margin)),)
        yield Decision(
            Exchange(texts[number] if texts else f"text {number}"),
            Verdict("prompt", Action.ALLOWED, judged),
            [SPAM],
            "default",
            "book",
            scorer,
        )


def logged(given: Iterator[Decision], path: Path) -> Path:
    """The log of a gateway that made these decisions."""
    stream = io.StringIO()
    configure_logging("info", as_json=True, stream=stream)
    audit = Audit(b"secret")
    for decision in given:
        audit.record(decision)
    path.write_text(f"INFO: some other program\n{stream.getvalue()}")
    return path


def found(result: Result) -> dict[str, Any]:
    [one] = json.loads(result.stdout)["policies"]
    return dict(one)


def test_traffic_as_it_was_is_as_expected(book: Path, tmp_path: Path) -> None:
    log = logged(decisions(margins(900, 1)), tmp_path / "log")
    result = run(drift, log, "--policies", book)
    assert result.exit_code == 0, result.output
    assert f"{SPAM} (prompt): as expected, nothing to do." in result.output
    assert "1 line without a decision passed over" in result.output
    said = found(run(drift, log, "--policies", book, "--json"))
    assert (said["scores"], said["state"], said["flags"]) == (900, "steady", None)
    assert abs(said["psi"]) < said["psi_by_chance"] < 0.05
    assert said["ks_p_value"] > 0.01
    assert said["flagged_then"]["value"] == pytest.approx(said["flagged_now"]["value"], abs=0.05)
    for share in (said["flagged_then"], said["flagged_now"]):
        assert share["low"] < share["value"] < share["high"]


def test_a_drift_is_told_with_what_to_do(book: Path, tmp_path: Path) -> None:
    log = logged(decisions(margins(900, 1, moved=2.0)), tmp_path / "log")
    result = run(drift, log, "--policies", book)
    assert result.exit_code == 1
    assert "unlike calibration, more is flagged" in result.output
    assert "Label some of it (shieldgate review)" in result.output
    said = found(run(drift, log, "--policies", book, "--json"))
    assert said["psi"] > 0.25
    assert said["ks_p_value"] < 1e-6
    assert said["flagged_now"]["low"] > said["flagged_then"]["high"]


def test_less_that_is_flagged_alarms_where_the_index_doesnt(book: Path, tmp_path: Path) -> None:
    """What is above the threshold is a small part of all scores."""
    fitted = load_book(book).policies[SPAM].calibration(SCORER, "prompt")
    assert fitted
    below = fitted.margin(fitted.threshold) - 0.5
    quiet = [min(m, below) if n % 2 else m for n, m in enumerate(margins(3000, 1))]
    result = run(drift, logged(decisions(quiet), tmp_path / "log"), "--policies", book, "--json")
    said = found(result)
    assert (result.exit_code, said["flags"], said["state"]) == (1, "less", "shifted")
    assert "where harm passes, calibrate again" in said["advice"]


def test_a_text_that_came_often_is_known_once(book: Path, tmp_path: Path) -> None:
    """900 decisions on nine texts are no 900 scores; each is worth a hundredth."""
    nine = margins(9, 1)
    repeated = decisions(nine * 100, [f"text {n}" for n in range(9)] * 100)
    result = run(drift, logged(repeated, tmp_path / "log"), "--policies", book, "--json")
    said = found(result)
    assert (said["scores"], said["worth"], said["psi"]) == (900, 9, None)
    assert result.exit_code == 3
    assert "It takes 100 texts of their own" in said["advice"]


def test_scores_are_accepted_as_those_to_expect_and_thresholds_stay(
    book: Path, tmp_path: Path
) -> None:
    before = load_book(book)
    log = logged(decisions(margins(900, 1, moved=2.0)), tmp_path / "log")
    assert run(drift, log, "--policies", book).exit_code == 1
    shown = run(drift, log, "--accept", book, "--dry-run")
    assert load_book(book) == before
    added = [line for line in shown.stdout.splitlines() if line[:1] in "+-" and "acme" not in line]
    assert [line.strip("+- ").split(":")[0] for line in added] == ["scores", "scores"]
    assert run(drift, log, "--accept", book).exit_code == 0
    after = load_book(book)
    assert run(drift, log, "--policies", book).exit_code == 0
    back = logged(decisions(margins(900, 1)), tmp_path / "back")
    assert "has drifted, less is flagged" in run(drift, back, "--policies", book).output
    scores = after.policies[SPAM].calibration(SCORER, "prompt").scores
    assert scores.rows == 900
    today = f"{date.today()}"
    assert scores.of.startswith("900 decisions, 20")
    assert today[:4] in scores.of
    old = before.policies[SPAM].calibration(SCORER, "prompt")
    new = after.policies[SPAM].calibration(SCORER, "prompt")
    assert (new.threshold, new.provenance) == (old.threshold, old.provenance)
    assert after.policies[THREAT] == before.policies[THREAT]


def test_what_cannot_be_accepted_is_left_with_its_reason(book: Path, tmp_path: Path) -> None:
    few = logged(decisions(margins(50, 1)), tmp_path / "few")
    with_other = logged(decisions(margins(200, 1), scorer="other@9"), tmp_path / "other")
    cascade = f"cheap@1>{SCORER}"
    of_cascade = logged(decisions(margins(200, 1), scorer=cascade), tmp_path / "cascade")
    assert found(run(drift, of_cascade, "--policies", book, "--json"))["state"] == "steady"
    for log, why in (
        (few, "these are worth 50"),
        (with_other, "no calibration of it for other@9"),
        (of_cascade, f"no calibration of it for {cascade}"),
    ):
        before = book.read_bytes()
        result = run(drift, log, "--accept", book)
        assert why in result.output
        assert "none of these scores can be accepted" in str(result.exception)
        assert book.read_bytes() == before


def test_nothing_to_expect_and_too_few_are_no_verdict(book: Path, tmp_path: Path) -> None:
    other = logged(decisions(margins(200, 1), scorer="other@9"), tmp_path / "other")
    result = run(drift, other, "--policies", book)
    assert result.exit_code == 3
    assert "nothing says which scores to expect of other@9" in result.output


def test_decisions_without_scores_are_counted_and_compare_nothing(
    book: Path, tmp_path: Path
) -> None:
    failed = Decision(
        Exchange("x"), Verdict("prompt", Action.FAILED_OPEN, ()), [SPAM], "default", "book", SCORER
    )
    log = logged(iter([failed] * 3 + list(decisions(margins(200, 1)))), tmp_path / "log")
    result = run(drift, log, "--policies", book, "--json")
    assert json.loads(result.stdout)["unjudged"] == 3
    assert found(result)["scores"] == 200


def test_records_come_from_standard_input_and_since_a_time(book: Path, tmp_path: Path) -> None:
    log = logged(decisions(margins(200, 1)), tmp_path / "log")
    lines = [json.loads(line) for line in log.read_text().splitlines()[1:]]
    for number, line in enumerate(lines):
        line["timestamp"] = f"2026-11-{1 + number % 20:02}T12:00:00Z"
    text = "\n".join(map(json.dumps, lines))
    result = run(drift, "-", "--policies", book, "--since", "2026-11-11", "--json", input=text)
    said = json.loads(result.stdout)
    assert (said["decisions"], said["first"]) == (100, "2026-11-11T12:00:00+00:00")
    late = run(drift, "-", "--since", "2026-12-01T00:00+02:00", "--json", input=text)
    assert "it has 200 decisions from before --since, and none after" in str(late.exception)


def test_records_of_several_logs_are_taken_together(book: Path, tmp_path: Path) -> None:
    logs = [logged(decisions(margins(100, n)), tmp_path / f"log-{n}") for n in (1, 2)]
    assert found(run(drift, *logs, "--policies", book, "--json"))["scores"] == 200


def test_what_a_log_says_is_shown_as_it_is(book: Path, tmp_path: Path) -> None:
    log = logged(decisions([1.0], scorer="odd [red]@1"), tmp_path / "log")
    log.write_text(log.read_text().replace(SPAM, "test/[red]spam"))
    shown = run(drift, log, "--policies", book).stdout
    table, _, _ = shown.partition("test/[red]spam (prompt)")
    assert "odd [red]@1" in table
    assert "[red]spam" in table


def test_a_margin_that_is_no_number_is_no_record(book: Path, tmp_path: Path) -> None:
    log = logged(decisions(margins(100, 1)), tmp_path / "log")
    endless = json.loads(log.read_text().splitlines()[-1])
    endless["policies"][SPAM]["margin"] = "Infinity"
    with log.open("a") as file:
        file.write(json.dumps(endless))
    assert found(run(drift, log, "--policies", book, "--json"))["scores"] == 100


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "Give the records: a log, "),
        (["{tmp}/log"], "no record of a decision in it. 'shieldgate serve --log-format json'"),
        (["{tmp}/nowhere"], "can't be read: No such file"),
        (["{tmp}/log", "--since", "yesterday"], "--since: 'yesterday' is no time"),
        (["{tmp}/log", "--policy", "spam"], "--policy: "),
        (["{tmp}/log", "--accept", "{tmp}/nowhere.yaml"], "nowhere.yaml: there is no file of"),
        (["{tmp}/log", "--accept", "{tmp}"], ": there is no file of that name."),
        (["{tmp}/log", "--accept", "{tmp}/log", "--json"], "--json is for comparing"),
        (["{tmp}/log", "--dry-run"], "--dry-run is for --accept"),
        (
            ["--audit-stream", "s", "--redis-url", "redis://:secret@127.0.0.1:1/0"],
            "Redis can't be read (ConnectionError)",
        ),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], why: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text('some words\n{"event": "ready"}\n[1]\n')
    result = run(drift, *(a.format(tmp=tmp_path) for a in arguments))
    assert isinstance(result.exception, ConfigurationError)
    assert why in str(result.exception)
    assert "secret" not in str(result.exception)


def test_records_come_from_the_stream_of_the_gateways(book: Path, tmp_path: Path) -> None:
    async def write(url: str) -> None:
        async with RedisClient(url, seconds=20) as redis:
            sink = RedisAuditStream(redis, STREAM, length=10_000, lost=lambda: None)
            audit = Audit(b"secret", sink)
            for decision in decisions(margins(1200, 1)):
                audit.record(decision)
                if number := len(redis._running):
                    await asyncio.sleep(0) if number < 16 else await asyncio.wait(redis._running)

    with redis_server(tmp_path) as server:
        configure_logging("warning", as_json=True, stream=io.StringIO())
        asyncio.run(write(server.url))
        where = "--redis-url", server.url, "--audit-stream"
        result = run(drift, *where, STREAM, "--policies", book, "--json")
        assert result.exit_code == 0, result.output
        assert found(result)["scores"] == 1200  # more than a page
        assert json.loads(result.stdout)["first"].startswith(f"{date.today():%Y-}")
        none = run(drift, *where, "elsewhere", "--policies", book)
        assert "There is no stream 'elsewhere'" in str(none.exception)


def test_the_test_is_scipys_on_the_bins() -> None:
    random = np.random.default_rng(0)
    a, b = (
        [bin_of(m) for m in random.normal(mean, 2, rows)] for mean, rows in ((0, 700), (0.3, 900))
    )
    theirs = ks_2samp(a, b, method="asymp")
    statistic, p_value = kolmogorov_smirnov(Counter(a), Counter(b))
    assert statistic == pytest.approx(theirs.statistic)
    assert p_value == pytest.approx(theirs.pvalue)
    assert 0 < p_value < 0.05
