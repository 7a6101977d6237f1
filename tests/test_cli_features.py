"""`shieldgate train-features` and `features`, as a person uses them: texts in, features out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import save_calm_checkpoint
from test_features import texts
from typer.testing import CliRunner, Result

from shieldgate.cli import app
from shieldgate.errors import ConfigurationError

pytestmark = pytest.mark.usefixtures("restored_logging")

TEXT = "seven wizards brew tea"
BOOK = """
family: acme
policies:
  foxes:
    title: Foxes
    threshold: 0.5
    guideline:
      prompt: '"No Foxes": none.'
      response: '"No Foxes": none at all.'
  tea:
    title: Tea
    threshold: 0.5
    guideline:
      prompt: '"No Tea": none.'
      response: '"No Tea": none at all.'
profiles:
  default:
    policies: [acme/foxes, acme/tea]
"""


def invoke(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), input=stdin, env={"COLUMNS": "150"})


def printed(*arguments: str | Path, stdin: str | None = None) -> str:
    result = invoke(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_calm_checkpoint(tmp_path_factory.mktemp("calm"))


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("book") / "acme.yaml"
    file.write_text(BOOK)
    return file


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory, model: Path, book: Path) -> tuple[str, Path]:
    """What training printed, and where it wrote."""
    folder = tmp_path_factory.mktemp("training")
    rows = folder / "rows.csv"
    rows.write_text("words\n" + "".join(f"{text.prompt}\n" for text in texts(40)))
    command = ["train-features", rows, "--map", "prompt=words", "--model", model, "--layer", "0"]
    command += ["--features", "64", "--l0", "24", "--steps", "30", "--rate", "0.01"]
    command += ["--policies", book]
    said = printed(*command, "--out", folder / "out")
    [file] = (folder / "out").rglob("params.npz")
    return said, file


@pytest.fixture
def show(model: Path, book: Path, training: tuple[str, Path]) -> Callable[..., str]:
    def run(*arguments: str | Path, stdin: str | None = None) -> str:
        given = ("--model", model, "--policies", book, "--sae", training[1], "--top", "1")
        return printed("features", *arguments, *given, stdin=stdin)

    return run


def test_training_says_how_good_it_came_out_and_what_to_do_next(
    training: tuple[str, Path],
) -> None:
    said, file = training
    report = json.loads((file.parents[3] / "report.json").read_text())
    quality = report["quality"]
    assert f"On 4 texts held out, {quality['rows']:,} tokens of prompts" in said
    assert f"unexplained of the states' variance: {quality['fvu']:.1%}" in said
    assert f"features that fire on a token: {quality['l0']:.1f} of 64" in said
    assert f"margin changes by {quality['margin_change']:.2f} on average" in said
    assert f"shieldgate features TEXT --sae {file}" in said
    assert not (file.parents[3] / "state.pt").exists()


def test_features_are_shown_with_what_is_unexplained_and_what_an_ablation_did(
    show: Callable[..., str], tmp_path: Path
) -> None:
    found = json.loads(show(TEXT, "--json"))
    [text] = found["texts"]
    assert found["autoencoder"]["layer"] == 0
    assert found["autoencoder"]["features"] == 64
    assert 0 < text["prompt"]["fvu"] < 1
    assert text["text"] == TEXT
    assert "".join(TEXT[t["start"] : t["end"]] for t in text["tokens"]) == TEXT
    labels = tmp_path / "labels.json"
    [first] = text["features"]
    labels.write_text(json.dumps({first["index"]: "tea [bold] \x1b[31mand red"}))
    table = show(TEXT, "--labels", labels, "--tokens")
    assert f"unexplained: {text['prompt']['fvu']:.1%} of the variance" in table
    for id, policy in text["policies"].items():
        assert policy["verdict_margin"] == pytest.approx(policy["margin"], abs=1e-3)
        assert f"margin {policy['margin']:+.2f}, rebuilt {policy['rebuilt_margin']:+.2f}" in table
        [feature] = policy["features"]
        ablation = feature["ablation"][id]
        moves = abs(ablation["change"]) > max(map(abs, ablation["others"]))
        assert ablation["evidence"] == ("moves" if moves else "associated")
        assert len(ablation["others"]) == 19
        assert f"{ablation['change']:+.2f}" in table
    assert "tea [bold] <U+001B>[31mand red" in table
    assert f"{first['index']} at '" in table
    strongest = max(text["tokens"], key=lambda t: t["features"][0]["activation"])
    assert repr(TEXT[strongest["start"] : strongest["end"]]) in table


def test_texts_come_from_where_score_takes_them(show: Callable[..., str], tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text(f"{TEXT}\n\nkind word\n")
    of_lines, of_input, answered = (
        json.loads(given)["texts"]
        for given in (
            show("--lines", lines, "--json"),
            show("-", "--json", stdin=TEXT),
            show("tea?", "--response", TEXT, "--json"),
        )
    )
    assert [text["text"] for text in of_lines] == [TEXT, "kind word"]
    assert of_input[0] == of_lines[0]
    assert (answered[0]["direction"], answered[0]["text"]) == ("response", TEXT)


def test_a_verdict_that_rests_on_another_reading_is_told(
    show: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    disguised = "d2l6YXJkcyBicmV3IHRlYSBhbmQgY291bnQgc3RhcnMgd2l0aCBhIHdlYXBvbg=="
    [text] = json.loads(show(disguised, "--json"))["texts"]
    assert any(p["verdict_margin"] > p["margin"] for p in text["policies"].values())
    monkeypatch.setattr("shieldgate.cli.features_run._HIGHER", 0.0)
    assert "the verdict rests on another reading, window or passage" in show(disguised)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--layer", "1"), "is for layer 0, and --layer says 1"),
        (("--policy", "no/such"), "--policy: There is no policy named 'no/such'"),
        (("--labels", "no-such.json"), "no-such.json can't be read: No such file"),
        (("--model", "starter"), "The autoencoder takes states 32 wide, and those of starter@"),
    ],
)
def test_what_can_not_be_shown_is_refused(
    model: Path, training: tuple[str, Path], arguments: tuple[str, ...], words: str
) -> None:
    given = () if "--model" in arguments else ("--model", model)
    result = invoke("features", TEXT, "--sae", training[1], *given, *arguments)
    assert isinstance(result.exception, ConfigurationError), result.output
    assert words in str(result.exception)


@pytest.mark.parametrize("scorer", [("--model", "http://vllm:8000/v1"), ("--cascade", "c.yaml")])
@pytest.mark.parametrize("command", ["features", "train-features"])
def test_a_scorer_whose_states_are_not_seen_is_refused(
    command: str, scorer: tuple[str, str], tmp_path: Path
) -> None:
    more = ("--sae", tmp_path) if command == "features" else ("--layer", "0", "--out", tmp_path)
    result = invoke(command, TEXT, *more, *scorer)
    assert isinstance(result.exception, ConfigurationError), result.output
    assert "a model in this process, and of one" in str(result.exception)


def test_a_dataset_without_texts_is_refused(model: Path, tmp_path: Path) -> None:
    rows: Any = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "kind word"}\n')
    command = ("train-features", rows, "--model", model, "--layer", "0", "--out", tmp_path / "out")
    result = invoke(*command)
    assert isinstance(result.exception, ConfigurationError), result.output
    assert "holds no texts. Name your column: --map prompt=text" in str(result.exception)
