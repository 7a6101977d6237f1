"""The watermark: what is marked is found with the same keys alone, and what it costs the texts."""

import asyncio
import io
import json
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from statistics import fmean

import pytest
import torch
from checkpoints import save_deeper_checkpoint, save_spelling_checkpoint
from scipy.stats import t
from test_worker_app import serving
from transformers import (
    Gemma2ForCausalLM,
    SynthIDTextWatermarkingConfig,
    SynthIDTextWatermarkLogitsProcessor,
)
from typer.testing import CliRunner, Result

from shieldgate.cli import app
from shieldgate.errors import ConfigurationError
from shieldgate.scoring.local import load_checkpoint
from shieldgate.worker.chat_template import gemma_prompt
from shieldgate.worker.generation import SamplingParams
from shieldgate.worker.generator import GemmaGenerator, find_gemma2, load_generator
from shieldgate.worker.watermark.calibration import Calibration, LengthScores, gather
from shieldgate.worker.watermark.keys import WatermarkKeys, load_watermark_keys, new_keys
from shieldgate.worker.watermark.synthid import SynthIDWatermark
from shieldgate.worker.watermark.texts import PROMPTS, write_texts

pytestmark = pytest.mark.usefixtures("restored_logging")

TOKENS = 70
SAMPLING = SamplingParams(temperature=0.9, top_p=0.95)
Texts = Callable[..., list[str]]


def invoke(*arguments: str | Path, given: str = "") -> Result:
    # Wide, so that no line is cut.
    words = [str(word) for word in arguments]
    return CliRunner().invoke(app, words, input=given, env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_spelling_checkpoint(tmp_path_factory.mktemp("spelling"))


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    file.write_text(json.dumps({"ngram_len": 5, "keys": [7919 * n for n in range(1, 31)]}))
    file.chmod(0o600)
    return file


@pytest.fixture(scope="module")
def keys(keys_file: Path) -> WatermarkKeys:
    return load_watermark_keys(keys_file)


@pytest.fixture(scope="module")
def texts(checkpoint: Path) -> Texts:
    """Writes texts with the spelling checkpoint, marked or not."""
    loaded = load_checkpoint(str(checkpoint), device="cpu", dtype="auto", find=find_gemma2)

    def write(number: int, watermark: WatermarkKeys | None, seed: int) -> list[str]:
        return write_texts(
            GemmaGenerator(loaded, watermark=watermark),
            PROMPTS,
            texts=number,
            max_tokens=TOKENS,
            sampling=SAMPLING,
            seed=seed,
            wrote=lambda: None,
        )

    return write


@pytest.fixture(scope="module")
def calibration(
    checkpoint: Path, keys_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A calibration as the command writes it; what it printed is beside it."""
    file = tmp_path_factory.mktemp("calibrated") / "watermark.json"
    result = invoke(
        *("watermark", "calibrate", "--generator", checkpoint, "--watermark-keys", keys_file),
        *("--texts", "48", "--tokens", TOKENS, "--temperature", "0.9", "--top-p", "0.95"),
        *("--out", file),
    )
    assert result.exit_code == 0, result.output
    file.with_suffix(".txt").write_text(result.stdout)
    return file


def detected(text: str, keys_file: Path, calibration: Path, *more: str) -> Result:
    arguments = ("--watermark-keys", keys_file, "--calibration", calibration, *more)
    return invoke("detect-watermark", "-", *arguments, given=text)


@pytest.mark.parametrize(("remembered", "repeated"), [(1024, 9), (4, 0)])
def test_marks_are_those_of_transformers_own_processor(
    keys: WatermarkKeys, remembered: int, repeated: int
) -> None:
    torch.manual_seed(0)
    keys = keys.model_copy(update={"context_history_size": remembered})
    watermark = SynthIDWatermark(keys)
    oracle = SynthIDTextWatermarkLogitsProcessor(
        **keys.model_dump(), device=torch.device("cpu"), skip_first_ngram_calls=True
    )
    # Contexts from the second four tokens of the repetition on were there before.
    written = [*range(3, 15), *range(3, 15), 1]
    expected, plain = [], []
    for length in range(len(written) + 1):
        logits = torch.randn(1, 50)
        logits[0, :20] = float("-inf")  # as top-k and top-p leave them
        plain.append(torch.softmax(logits, -1)[0])
        ids = torch.tensor([written[:length] or [0]])
        expected.append(torch.softmax(oracle(ids, logits), -1)[0])
    found = [watermark.mark(plain[n][None], written[:n])[0] for n in range(len(plain))]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))
    changed = [n for n in range(len(plain)) if not torch.allclose(found[n], plain[n])]
    assert changed == [n for n in range(4, len(plain)) if not 16 <= n < 16 + repeated]
    # As when an assistant has drafted: several rows at once.
    several = watermark.mark(torch.stack(plain[-6:]), written)
    torch.testing.assert_close(several, torch.stack(expected[-6:]))


def test_what_transformers_marks_with_these_keys_is_found(
    checkpoint: Path, keys: WatermarkKeys
) -> None:
    torch.manual_seed(0)
    prompt = torch.tensor([[2, 30, 40, 50]])
    [ids] = Gemma2ForCausalLM.from_pretrained(checkpoint).generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        watermarking_config=SynthIDTextWatermarkingConfig(keys.ngram_len, keys.keys),
        do_sample=True,
        min_new_tokens=60,
        max_new_tokens=60,
    )
    scores = SynthIDWatermark(keys).token_scores(ids[4:].tolist())
    assert len(scores) > 50
    assert fmean(scores) > 0.6


def test_over_keys_no_token_gets_likelier() -> None:
    torch.manual_seed(0)
    probs = torch.softmax(torch.randn(1, 12), -1)
    rng = Random(0)
    draws = [rng.sample(range(2**12), 8) for _ in range(400)]
    marked = [
        SynthIDWatermark(WatermarkKeys(ngram_len=3, keys=drawn, sampling_table_size=2**12)).mark(
            probs, [5, 6, 7]
        )
        for drawn in draws
    ]
    torch.testing.assert_close(torch.stack(marked).mean(0), probs, atol=0.03, rtol=0)
    assert max(float(row.max()) for row in marked) > 0.9, "a single text's tokens do"


def write(generator: GemmaGenerator, how: SamplingParams, seeds: Sequence[int]) -> list[list[int]]:
    """Write a text for each seed, all of them side by side."""
    prompt = generator.encode(gemma_prompt([("user", PROMPTS[0])]))
    going = texts = generator.begin(prompt, max_tokens=TOKENS, sampling=how, seeds=seeds)
    while going:
        new = generator.step(going)
        going = [
            text
            for text, tokens in zip(going, new, strict=True)
            if not tokens or not (generator.ends(tokens[-1]) or len(text.tokens) == text.max_length)
        ]
    return [text.tokens[text.prompt :] for text in texts]


def test_in_company_and_alone_a_text_gets_the_same_marks(
    checkpoint: Path, keys: WatermarkKeys
) -> None:
    generator = load_generator(str(checkpoint), watermark=keys)
    together = write(generator, SAMPLING, [1, 2, 3])
    assert together == [write(generator, SAMPLING, [seed])[0] for seed in (1, 2, 3)]
    watermark = SynthIDWatermark(keys)
    assert all(fmean(watermark.token_scores(tokens)) > 0.6 for tokens in together)


def test_at_temperature_0_nothing_is_marked(checkpoint: Path, keys: WatermarkKeys) -> None:
    greedy = SamplingParams(temperature=0)
    marked = load_generator(str(checkpoint), watermark=keys)
    assert write(marked, greedy, [1]) == write(load_generator(str(checkpoint)), greedy, [1])


def test_what_an_assistant_drafts_is_marked_and_saves_forwards(
    checkpoint: Path, keys: WatermarkKeys, tmp_path: Path
) -> None:
    deep = save_deeper_checkpoint(tmp_path, checkpoint, extra=1, weight=0.001)
    generator = load_generator(str(deep), assistant=str(checkpoint), watermark=keys)
    prompt = generator.encode(gemma_prompt([("user", PROMPTS[0])]))
    [text] = generator.begin(prompt, max_tokens=TOKENS, sampling=SAMPLING, seeds=[1])
    while len(text.tokens) < text.max_length and not generator.ends(text.tokens[-1]):
        generator.step([text])
    written = text.tokens[text.prompt :]
    assert fmean(SynthIDWatermark(keys).token_scores(written)) > 0.6
    assert len(written) / text.forwards > 3


def test_calibrating_prints_error_rates_by_length(calibration: Path, keys: WatermarkKeys) -> None:
    printed = calibration.with_suffix(".txt").read_text()
    rows = [line.split() for line in printed.splitlines() if line[:1] == " " and "%" in line]
    assert [row[0] for row in rows] == ["25", "50"]
    assert all(30 <= int(row[1]) <= 48 for row in rows)
    # All of them, and what so many cannot tell (Clopper and Pearson).
    assert rows[1][-4:] == ["100.0%", f"({0.025 ** (1 / int(rows[1][6])):.1%}", "to", "100.0%)"]
    written = calibration.read_text()
    assert keys.fingerprint in written
    assert not any(str(key) in written.replace(".", " ").split() for key in keys.keys)


def test_marked_texts_are_found_and_others_as_often_as_is_said(
    calibration: Path, keys: WatermarkKeys, keys_file: Path, texts: Texts, checkpoint: Path
) -> None:
    marked, unmarked = texts(8, keys, seed=7), texts(100, None, seed=8)
    for text in marked:
        result = detected(text, keys_file, calibration)
        assert (result.exit_code, result.stdout.split("\n")[0]) == (0, "MARKED"), text
    result = detected(unmarked[0], keys_file, calibration, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["verdict"] == "no_mark_found"

    judged = Calibration.model_validate_json(calibration.read_bytes())
    encode = load_generator(str(checkpoint)).encode
    watermark = SynthIDWatermark(keys)
    p_values = [judged.judge(watermark.token_scores(encode([text]))).p_value for text in unmarked]
    told = [p for p in p_values if p is not None]
    assert len(told) > 80
    # Of texts, those of 64 are compared with those of 50, whose scores scatter a little more.
    for rate in (0.05, 0.2):
        share = sum(p <= rate for p in told) / len(told)
        assert rate / 4 < share < rate + 2.5 * (rate * (1 - rate) / len(told)) ** 0.5


def test_with_other_keys_a_mark_is_not_found(
    keys: WatermarkKeys, texts: Texts, checkpoint: Path, tmp_path: Path
) -> None:
    other = new_keys(tmp_path / "other.json")
    encode = load_generator(str(checkpoint)).encode

    def scores(watermark: SynthIDWatermark, written: list[str]) -> list[list[float]]:
        return [watermark.token_scores(encode([text])) for text in written]

    marked, unmarked = texts(24, keys, seed=9), texts(24, None, seed=10)
    with_other, with_own = SynthIDWatermark(other), SynthIDWatermark(keys)
    [by_other, *_] = gather(scores(with_other, unmarked), scores(with_other, marked))
    [by_own, *_] = gather(scores(with_own, unmarked), scores(with_own, marked))
    assert by_own.found(0.001).value == 1
    assert (by_other.found(0.001).value or 0) < 0.1


def test_a_text_that_is_too_short_is_not_judged(calibration: Path, keys_file: Path) -> None:
    for text in ("", "abc", "twenty-five characters long"):
        result = detected(text, keys_file, calibration)
        assert result.exit_code == 3
        assert "TOO SHORT" in result.stdout
        assert "nothing can be said of fewer than 25" in result.stdout
    # Repetition makes no text longer: the same context bears one mark.
    assert detected("ab" * 100, keys_file, calibration).exit_code == 3
    shown = json.loads(detected("abc", keys_file, calibration, "--json").stdout)
    assert (shown["verdict"], shown["p_value"]) == ("too_short", None)


def test_a_p_value_is_students_for_one_more_text() -> None:
    draws = torch.randn(30, generator=torch.Generator().manual_seed(1)).double() / 100 + 0.5
    against = LengthScores(tokens=25, unmarked=tuple(draws.tolist()), marked=())
    for score in (0.48, 0.5, 0.52, 0.55):
        distance = (score - draws.mean()) / (draws.std() * (1 + 1 / 30) ** 0.5)
        assert against.p_value(score) == pytest.approx(float(t.sf(distance, 29)), rel=0.02)


def test_detecting_needs_the_keys_and_the_tokenizer_of_the_calibration(
    calibration: Path, keys_file: Path, hot_checkpoint: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    new_keys(other)
    for arguments, expected in (
        ((other, calibration), "calibrated with other keys"),
        ((keys_file, tmp_path / "none.json"), "can't be read"),
        ((keys_file, keys_file), "no calibration of a watermark"),
        ((keys_file, calibration, "--tokenizer", str(hot_checkpoint)), "its tokenizer is another"),
        ((keys_file, calibration, "--tokenizer", "/no/such/folder"), "Give it with --tokenizer"),
    ):
        result = detected("any", *arguments)
        assert isinstance(result.exception, ConfigurationError), result.output
        assert expected in str(result.exception)


def test_where_the_calibration_could_not_be_written_nothing_is(
    checkpoint: Path, keys_file: Path, tmp_path: Path
) -> None:
    arguments = ("--generator", checkpoint, "--watermark-keys", keys_file)
    out = tmp_path / "none" / "watermark.json"
    result = invoke("watermark", "calibrate", *arguments, "--out", out)
    assert "there is no folder" in str(result.exception)


def test_new_keys_are_for_their_owner_alone_and_never_replace_others(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    result = invoke("watermark", "new", file)
    assert result.exit_code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    made = load_watermark_keys(file)
    assert made.fingerprint in result.output
    assert not any(str(key) in result.output for key in made.keys)
    assert made != new_keys(tmp_path / "others.json")
    again = invoke("watermark", "new", file)
    assert "there is such a file already" in str(again.exception)
    assert load_watermark_keys(file) == made


SECRET = 1234567890123


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"ngram_len": 5, "keys": [SECRET] * 9}, "same modulo"),
        ({"ngram_len": 5, "keys": [SECRET]}, "at least 8"),
        ({"ngram_len": 5, "keys": [*range(9), -SECRET]}, "keys.9"),
        ({"ngram_len": 5, "keys": [*range(9), f"{SECRET}"]}, "keys.9"),
        ({"ngram_len": 1, "keys": [*range(9), SECRET]}, "ngram_len"),
        ({"ngram_len": 5, "keys": [*range(9)], "sampling_table_size": 5000}, "power of two"),
        ({"ngram_len": 5, "keys": [*range(9)], "debug_mode": True}, "debug_mode"),
        ([SECRET], "no keys of a watermark"),
    ],
)
def test_a_bad_file_of_keys_is_refused_without_repeating_a_key(
    content: object, expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps(content))
    file.chmod(0o600)
    with pytest.raises(ConfigurationError) as refused:
        load_watermark_keys(file)
    assert expected in str(refused.value)
    assert str(SECRET) not in str(refused.value)


@pytest.mark.parametrize(
    ("mode", "taken"), [(0o600, True), (0o440, True), (0o644, False), (0o660, False)]
)
def test_keys_that_others_may_read_are_refused(
    mode: int, taken: bool, keys_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(keys_file.read_bytes())
    file.chmod(mode)
    if taken:
        load_watermark_keys(file)
    else:
        with pytest.raises(ConfigurationError, match="chmod 600"):
            load_watermark_keys(file)


def test_keys_do_not_show_where_they_are_printed(keys: WatermarkKeys) -> None:
    out = io.StringIO()
    print(keys, repr(keys), [keys], file=out)
    assert str(keys.keys[-1]) not in out.getvalue()


async def test_the_workers_answers_bear_the_mark_and_say_nothing_of_it(
    checkpoint: Path, keys: WatermarkKeys, keys_file: Path, calibration: Path
) -> None:
    async with serving(load_generator(str(checkpoint), watermark=keys)) as client:
        asked = {"messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": 60, "n": 2}
        reply = await client.post("/v1/chat/completions", json={**asked, "seed": 2})
    for choice in reply.json()["choices"]:
        result = await asyncio.to_thread(
            detected, choice["message"]["content"], keys_file, calibration
        )
        assert result.exit_code == 0, result.output
    assert "watermark" not in reply.text
    assert keys.fingerprint not in reply.text
