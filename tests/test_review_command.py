"""`shieldgate review` in a real terminal, and what becomes of its rows."""

import json
import re
import signal
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import save_calm_checkpoint
from scored import header, scored, write_scores
from terminal import Terminal, terminal
from test_cli_serve import PROGRAM
from test_kept_texts import CANARY, DAY, KEY, bytes_of, judgement, kept, new_key, put
from typer.testing import CliRunner, Result

from shieldgate.cli import app
from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.sources import open_source
from shieldgate.kept_texts.labels import LabelStore
from shieldgate.kept_texts.seal import Seal
from shieldgate.kept_texts.store import TextStore
from shieldgate.policy import load_book
from shieldgate.review.desk import Desk
from shieldgate.review.kept import KeptTexts

BOOK = """
family: test
policies:
  threat:
    title: Threats
    threshold: 0.5
    guideline: {prompt: '"No Threats": none in prompts.', response: '"No Threats": none.'}
  spam:
    title: Spam
    threshold: 0.5
    guideline: {prompt: '"No Spam": none in prompts.', response: '"No Spam": none.'}
profiles:
  default: {policies: [test/threat, test/spam]}
"""
IDS = ["test/threat", "test/spam"]


def invoke(*arguments: str | Path, **environment: str) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200", **environment})


def refusal(*arguments: str | Path, **environment: str) -> str:
    result = invoke("review", *arguments, **environment)
    assert isinstance(result.exception, ConfigurationError), (result.output, result.exception)
    return str(result.exception)


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.yaml"
    path.write_text(BOOK)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "labelled.jsonl"


def scored_rows(
    folder: Path, book: Path, texts: Sequence[str | Mapping[str, str]]
) -> tuple[Path, ...]:
    """Write rows and their scores; gives what the command is to be given of them."""
    data, scores = folder / "rows.jsonl", folder / "scores.jsonl"
    rows = [t if isinstance(t, Mapping) else {"prompt": t} for t in texts]
    lines = [json.dumps({"id": f"r{n}", "labels": {}, **row}) for n, row in enumerate(rows)]
    data.write_text("\n".join(lines) + "\n")
    made = [replace(row, labels={}) for row in scored(IDS, len(texts))]
    digest = open_source(str(data)).digest()
    known = header(load_book(book), IDS, dataset=data.name, dataset_digest=digest)
    write_scores(scores, known, made)
    return data, Path("--scores"), scores, Path("--policies"), book, Path("--share"), Path("1")


def command(*arguments: str | Path) -> list[str | Path]:
    return [PROGRAM, "review", *arguments]


def test_a_person_labels_by_keys_is_killed_and_goes_on(
    tmp_path: Path, book: Path, out: Path
) -> None:
    given = scored_rows(tmp_path, book, [f"zebra {n}" for n in range(4)])
    arguments = command(*given, "--out", out)
    with terminal(arguments) as person:
        before = person.modes()
        first = person.shows("text 1 of 4", "zebra", "Threats", "1 of 2", "none in prompts.")
        assert "probability" not in first, "who sees it leans towards it"
        assert not person.modes() & (termios.ECHO | termios.ICANON)
        person.press("y")
        person.shows("Spam", "2 of 2", "labels in labelled.jsonl: 1")
        person.press("n")
        person.shows("text 2 of 4")
        person.press("x?\x1b[Z\x1b[200~")  # nothing of these is an answer
        person.press("a")
        person.shows("text 3 of 4", "labelled.jsonl: 4")
        person.press("y")
        person.shows("2 of 2", "labelled.jsonl: 5")
        person.press("u")
        person.shows("text 3 of 4", "1 of 2", "labelled.jsonl: 4")
        person.press("y")
        person.shows("labelled.jsonl: 5")
        person.process.kill()
        person.ends()
    rows = written(out)
    assert [row["labels"] for row in rows] == [
        {"test/threat": 1, "test/spam": 0},
        {"test/threat": 0, "test/spam": 0},
        {"test/threat": 1},
    ]
    assert re.search(r"zebra \d", first)
    assert rows[0]["prompt"] in first

    with terminal(arguments) as person:
        assert rows[2]["prompt"] in person.shows("text 1 of 2", "Spam"), "but for what it has"
        person.press("s")
        person.shows("text 2 of 2", "labelled.jsonl: 0")
        person.press("ny")
        person.shows("That was the last one.", "all of 2", "labelled.jsonl: 2")
        person.press("u")
        person.shows("Spam", "labelled.jsonl: 1")
        person.press("nq")
        assert person.ends() == 0
        assert person.modes() == before
        after = person.raw.rpartition("\x1b[?1049l")[2]
        assert "zebra" not in after, "nothing of the texts stays on the terminal"
        assert "with the texts: 1, by 2 answers" in after
    assert [row["id"] for row in written(out)][:3] == [row["id"] for row in rows]
    assert written(out)[3]["labels"] == {"test/threat": 0, "test/spam": 0}


def test_long_and_hostile_texts_are_paged_and_safe_at_any_size(
    tmp_path: Path, book: Path, out: Path
) -> None:
    lines = "\n".join(f"line {n} of it" for n in range(60))
    hostile = f"\x1b[2Jgone\x1b]0;title\x07 \u202eretteb\u202c\n{lines}"
    given = scored_rows(tmp_path, book, [{"prompt": "What?", "response": hostile}])
    arguments = command(*given, "--out", out, "--show-scores", "--policy", "test/spam")
    with terminal(arguments) as person:
        shown = person.shows("for context", "What?", "which is judged", "<U+001B>[2J", "page 1")
        assert "<U+202E>retteb<U+202C>" in shown
        assert "\x1b]0;" not in person.raw
        assert "probability 0." in shown
        assert "chosen: " in shown
        assert len(shown.split("\n")) <= 24
        person.press(" ")
        assert "<U+001B>" not in person.shows("page 2 of", "line 20 of it")
        person.press("\x1b[5~")
        person.shows("page 1 of", "What?")
        person.resize(12, 30)
        small = person.shows("page 1 of", "─" * 30 + "\n", "Spam", "q quit")
        while "─" * 31 in small:
            small = person.shows("q quit", redrawn=True)
        assert len(small.split("\n")) <= 12
        person.press("\x03")
        assert person.ends() == 128 + signal.SIGINT
        assert person.modes() & termios.ECHO
    assert not out.exists()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "review.db"


def keep(file: Path, *ids: str, **changes: Any) -> None:
    store = TextStore.at(str(file))
    now = {"at": time.time(), **changes}
    put(store, *(kept(id, prompt=f"{CANARY} {id}", **now) for id in ids))
    store.close()


def test_kept_texts_are_reviewed_expired_ones_deleted_and_nobody_without_the_key(
    file: Path, book: Path, out: Path
) -> None:
    keep(file, "dec_1", why=("random",), chance=0.01, caller="web")
    keep(file, "dec_old", at=time.time() - 31 * DAY)
    key = {"SHIELDGATE_KEEP_TEXTS_KEY": KEY}
    where = ("--keep-texts", file, "--policies", book, "--out", out)
    assert "there is no key" in refusal(*where)
    assert "is opened by this key" in refusal(*where, SHIELDGATE_KEEP_TEXTS_KEY=new_key())
    keep(file, "dec_older", at=time.time() - 32 * DAY)
    with terminal(command(*where), **key) as person:
        person.shows(f"{CANARY} dec_1", "Threats")
        person.press("y")
        person.shows("labelled.jsonl: 1")
        person.process.send_signal(signal.SIGTERM)
        assert person.ends() == 128 + signal.SIGTERM
        assert person.modes() & termios.ECHO, "the terminal is as it was"
        assert "1 texts have expired and are deleted" in person.raw
        assert KEY not in person.raw
    [row] = written(out)
    assert (row["id"], row["labels"], row["caller"]) == ("dec_1", {"test/threat": 1}, "web")
    assert (row["weight"], row["chosen"]) == (100.0, ["near", "random"])
    assert b"dec_old" not in bytes_of(file)
    assert b"canary" not in bytes_of(file)
    assert "asked: 0 texts" in invoke("review", *where, "--dry-run", **key).stderr


def test_a_callers_texts_are_forgotten_wherever_they_are(file: Path, out: Path) -> None:
    keep(file, "dec_1", "dec_2", caller="gone")
    keep(file, "dec_3", caller="stays")
    rows = [
        {"source": "kept texts", "id": caller, "prompt": "x", "labels": {}, "caller": caller}
        for caller in ("gone", "stays")
    ]
    out.write_text("".join(json.dumps(row | {"weight": 1}) + "\n" for row in rows))
    done = invoke("review", "--keep-texts", file, "--forget", "gone", "--out", out)
    assert done.exit_code == 0, done.exception
    assert f"deleted 2 kept texts of gone from {file}" in done.stdout
    assert f"deleted 1 labelled row of gone from {out}" in done.stdout
    assert [row["caller"] for row in written(out)] == ["stays"]
    store = TextStore.at(str(file))
    assert [text.caller for text in store.read()] == ["stays"]


@pytest.mark.parametrize(
    "given",
    [("--export", "--dry-run"), ("--forget", "web", "--dry-run"), ("--export", "--forget", "web")],
)
def test_what_would_be_passed_over_is_refused(
    file: Path, out: Path, given: tuple[str, ...]
) -> None:
    """Who asks for a dry run must not lose texts by it."""
    keep(file, "dec_1", caller="web")
    key = {"SHIELDGATE_KEEP_TEXTS_KEY": KEY}
    refused = invoke("review", "--keep-texts", file, *given, "--out", out, **key)
    assert re.match(r"--(dry-run|export and --forget) ", str(refused.exception)), refused.output
    assert [text.id for text in TextStore.at(str(file)).read()] == ["dec_1"]
    assert not out.exists()


def label_in_console(file: Path, **labels: Mapping[str, int]) -> None:
    store = TextStore.at(str(file))
    desk = Desk(KeptTexts(store, LabelStore(store.database), Seal([KEY])), keep_seconds=90 * DAY)
    for id, said in labels.items():
        desk.label("anna-0123456789abcdef", id, said, IDS)  # type: ignore[arg-type]
    store.close()


def test_labels_of_the_console_are_added_to_those_of_a_terminal(
    file: Path, book: Path, out: Path
) -> None:
    both = (judgement(0.4), replace(judgement(0.4), policy="test/spam"))
    keep(file, "dec_1", judgements=both, why=("random",), chance=0.01)
    keep(file, "dec_2", judgements=both)
    key = {"SHIELDGATE_KEEP_TEXTS_KEY": KEY}
    where = ("--keep-texts", file, "--policies", book, "--out", out)
    exported = invoke("review", *where, "--export", **key)
    assert (exported.exit_code, out.exists()) == (0, False)
    assert "Nothing was labelled in the console so far" in exported.stderr
    label_in_console(file, dec_1={"test/threat": 1})
    other = {"SHIELDGATE_KEEP_TEXTS_KEY": new_key()}
    assert "is opened by this key" in refusal(*where, "--export", **other)
    with terminal(command(*where), **key) as person:
        shown = person.shows("text 1 of 2", "2")
        person.press("ys" if "dec_1" in shown else "sys")  # once the policy that has no label yet
        person.shows("labelled.jsonl: 1")
        person.press("q")
        assert person.ends() == 0
    [before] = written(out)
    label_in_console(file, dec_2={"test/threat": 0})
    exported = invoke("review", *where, "--export", **key)
    assert exported.exit_code == 0, exported.exception
    assert f"Added to {out}, with the texts: 2 that were labelled" in exported.stderr
    assert "--weight weight" in exported.stderr
    rows = {row["id"]: row for row in written(out)}
    assert rows["dec_1"]["labels"]["test/threat"] == 1
    assert rows[before["id"]]["labels"].items() >= before["labels"].items()
    assert {id: row["weight"] for id, row in rows.items()} == {"dec_1": 100.0, "dec_2": 1.0}
    assert out.stat().st_mode & 0o077 == 0
    lines = [json.dumps(row | {"weight": 7.0}) + "\n" for row in rows.values()]
    out.write_text("".join(lines))
    assert "chosen by other rules" in refusal(*where, "--export", **key)
    assert "takes no DATASET" in refusal("rows.jsonl", *where, "--export", **key)
    done = invoke("review", "--keep-texts", file, "--forget", "web", "--out", out)
    assert "deleted 2 kept texts of web" in done.stdout
    assert (written(out), "Nothing" in invoke("review", *where, "--export", **key).stderr) == (
        [],
        True,
    )


def test_what_cannot_be_reviewed_is_said_in_a_sentence(
    tmp_path: Path, book: Path, out: Path, file: Path
) -> None:
    given = (*scored_rows(tmp_path, book, ["zebra"]), "--out", out)
    assert "this is no terminal" in refusal(*given)
    assert "There is nothing to review" in refusal()
    gone = Path("gone.jsonl")
    assert "gone.jsonl: there is no such file or folder" in refusal(given[0], "--scores", gone)
    assert "--scores is missing" in refusal(given[0])
    assert "are of a DATASET" in refusal("--scores", given[2], "--keep-texts", file)
    assert "no such file" in refusal("--keep-texts", file, SHIELDGATE_KEEP_TEXTS_KEY=KEY)
    file.touch()
    assert "the file is empty" in refusal("--keep-texts", file, SHIELDGATE_KEEP_TEXTS_KEY=KEY)
    assert not file.stat().st_size
    assert "There is no policy" in refusal(*given, "--policy", "test/sapm")
    assert "write POLICY=POLICY" in refusal(*given, "--disagree", "test/spam")
    planned = invoke("review", *given, "--dry-run")
    assert planned.exit_code == 0
    assert "1 of 1 text chosen" in planned.stderr
    assert "asked: 1 text, 2 questions" in planned.stderr
    assert (
        "say nothing of the others" in invoke("review", *given, "--dry-run", "--share", "0").stderr
    )


def test_a_dry_run_writes_nothing(tmp_path: Path, book: Path, out: Path) -> None:
    labelled = {"source": "old", "id": "a", "prompt": "zebra", "labels": {"test/spam": 1}}
    out.write_text(json.dumps(labelled | {"weight": 1}) + "\n")
    before = out.read_bytes()
    given = (*scored_rows(tmp_path, book, ["zebra"]), "--out", out)
    planned = invoke("review", *given, "--dry-run").stderr
    assert "1 get the labels that the same text has" in planned
    assert "asked: 1 text, 1 question" in planned
    assert out.read_bytes() == before


def label_all(person: Terminal, texts: int) -> None:
    for _ in range(texts):
        person.press("y" if "fox" in person.screen else "n")
        person.shows("q quit", redrawn=True)


@pytest.mark.usefixtures("restored_logging")
def test_evaluate_calibrate_and_tune_read_what_was_labelled(
    tmp_path: Path, book: Path, out: Path
) -> None:
    animals = ["a quick brown fox" if n % 2 else "a lazy dog" for n in range(40)]
    given = scored_rows(tmp_path, book, [f"zebra {n}, {a}" for n, a in enumerate(animals)])
    with terminal(command(*given, "--policy", "test/spam", "--out", out)) as person:
        person.shows("text 1 of 40")
        label_all(person, 40)
        person.shows("That was the last one.")
        person.press("q")
        assert person.ends() == 0
    base = save_calm_checkpoint(tmp_path / "base")
    runs = tmp_path / "runs"
    of_book = ("--policies", book, "--policy", "test/spam")
    evaluated = invoke("evaluate", out, "--model", base, *of_book, "--out", runs)
    assert evaluated.exit_code == 0, evaluated.exception
    [slice_] = [s for s in json.loads((runs / "report.json").read_text())["slices"] if s["policy"]]
    assert (slice_["rows"], slice_["harmful"]) == (40, 20)
    calibrated = invoke(
        "calibrate", runs / "scores.jsonl", "--target", "recall=0.5", "--write", book
    )
    assert calibrated.exit_code == 0, calibrated.exception
    assert f"wrote {book}" in calibrated.stdout
    few = ("--steps", "1", "--device", "cpu", "--out", tmp_path / "tuned")
    tuned = invoke("tune", "--base", base, "--data", out, *of_book, *few)
    assert tuned.exit_code == 0, (tuned.output, tuned.exception)
    report = json.loads((tmp_path / "tuned/tuning/report.json").read_text())
    assert "test/spam" in json.dumps(report)
