"""Gradient times input of packed prompts is that of the plain model, prompt by prompt."""

from pathlib import Path

import pytest
import torch
from checkpoints import save_hot_checkpoint
from test_packed_engine import policy, words
from transformers import AutoModelForCausalLM, AutoTokenizer

from shieldgate.errors import ConfigurationError
from shieldgate.policy import Policy
from shieldgate.prompt import TEMPLATES, render
from shieldgate.scoring.local import PackedEngine, load_engine
from shieldgate.types import Exchange

POLICIES = [policy(n) for n in range(3)]
EXCHANGES = [
    Exchange(f"  {words(30, seed=1)}"),
    Exchange(words(150, seed=2)),  # longer than the window
    Exchange(words(12, seed=3), words(20, seed=4)),
]


def plain(folder: Path, exchange: Exchange, policy: Policy, template: str) -> dict[int, float]:
    """Differentiate the plain model; gives what a token carried, by where it begins in the text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    yes, no = tokenizer.convert_tokens_to_ids(["Yes", "No"])
    guideline = policy.guidelines[exchange.direction]
    text = render(TEMPLATES[template].segments(exchange, guideline))
    encoded = tokenizer(
        text, add_special_tokens=False, return_tensors="pt", return_offsets_mapping=True
    )
    embeddings = model.get_input_embeddings()(encoded.input_ids).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings).logits[0, -1]
    (gradient,) = torch.autograd.grad(logits[yes] - logits[no], embeddings)
    carried = (gradient * embeddings.detach()).sum(-1)[0].tolist()
    first = text.index(exchange.judged)
    return {
        start - first: value
        for (start, end), value in zip(encoded.offset_mapping[0].tolist(), carried, strict=True)
        if first < end and start < first + len(exchange.judged)
    }


@pytest.fixture(scope="module")
def engine(hot_checkpoint: Path) -> PackedEngine:
    return load_engine(str(hot_checkpoint), device="cpu", dtype="float32")


def check(folder: Path, engine: PackedEngine, exchange: Exchange, template: str) -> None:
    """Hold the gradients of all policies, taken together, against the plain model's."""
    found = engine.gradients(exchange, POLICIES)
    for asked, tokens in zip(POLICIES, found, strict=True):
        exact = plain(folder, exchange, asked, template)
        scale = max(map(abs, exact.values()))
        assert len(tokens) == len(exact)
        for (*_, value), expected in zip(tokens, exact.values(), strict=True):
            assert value == pytest.approx(expected, abs=0.01 * scale)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_packed_gradients_are_those_of_the_plain_model(
    hot_checkpoint: Path, engine: PackedEngine, exchange: Exchange
) -> None:
    check(hot_checkpoint, engine, exchange, "chat")


def test_so_they_are_where_a_text_comes_behind_its_guideline(hot_checkpoint: Path) -> None:
    engine = load_engine(str(hot_checkpoint), device="cpu", dtype="float32", template="paper")
    check(hot_checkpoint, engine, EXCHANGES[-1], "paper")


def test_tokens_are_placed_in_the_text(engine: PackedEngine) -> None:
    text = "naïve bread 🥖 at 東京, twice"
    for exchange in (Exchange(text), Exchange("a word", text)):
        [tokens] = engine.gradients(exchange, POLICIES[:1])
        covered = {at for start, end, _ in tokens for at in range(start, end)}
        assert covered == set(range(len(text)))


def test_tokens_are_placed_in_a_text_of_which_a_template_strips_the_ends(
    hot_checkpoint: Path,
) -> None:
    stripping = load_engine(str(hot_checkpoint), device="cpu", template="blog")
    [tokens] = stripping.gradients(Exchange(" \n two words  "), POLICIES[:1])
    assert (tokens[0][0], tokens[-1][1]) == (3, 12)


def test_what_has_no_gradient_is_refused(tmp_path: Path, engine: PackedEngine) -> None:
    with pytest.raises(ConfigurationError, match="one window"):
        engine.gradients(Exchange(words(9000, seed=5)), POLICIES[:1])
    if torch.cpu._is_vnni_supported():
        save_hot_checkpoint(tmp_path)
        integers = load_engine(str(tmp_path), device="cpu", quantize="int8")
        with pytest.raises(ConfigurationError, match="or quantised"):
            integers.gradients(Exchange("bread"), POLICIES[:1])
