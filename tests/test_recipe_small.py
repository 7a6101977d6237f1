"""The recipe of the small scorer: what is trained is what is served, and learns from questions."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from checkpoints import save_hot_checkpoint
from transformers import AutoModelForCausalLM

from recipes.small.answers import answer_rows
from recipes.small.disguise import disguised
from recipes.small.network import Network, parameters
from recipes.small.prepare import Encoded, measured_questions, training_questions
from recipes.small.questions import Questions, batches
from recipes.small.train import Machine, Stream, measure, train
from recipes.starter.rows import Row
from shieldgate.policy import Policy, load_book
from shieldgate.prompt import find_template
from shieldgate.scoring.local import PackedEngine, load_engine
from shieldgate.scoring.tokenizer_files import load_tokenizer

TEMPLATE = """\
control_tokens: ["<start_of_turn>", "<end_of_turn>"]
positive: "Yes"
negative: "No"
prompt: "<start_of_turn>{prompt}<end_of_turn><start_of_turn>{guideline} so?<end_of_turn>"
response: "<start_of_turn>{prompt}<end_of_turn>{response}<end_of_turn>{guideline} so?<end_of_turn>"
"""


def row(number: int, text: str, response: str | None = None, **labels: int) -> Row:
    return Row(
        id=str(number),
        prompt=text,
        response=response,
        labels=labels,
        harmful=int(any(labels.values())),
        source="benign_gsm8k" if number % 2 else "train_catqa",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with words of its own."""
    path = tmp_path_factory.mktemp("llama")
    save_hot_checkpoint(path, family="llama", tie_word_embeddings=True)
    (path / "template.yaml").write_text(TEMPLATE)
    return path


@pytest.fixture(scope="module")
def engine(folder: Path) -> PackedEngine:
    return load_engine(str(folder), device="cpu")


@pytest.fixture(scope="module")
def encoded(folder: Path) -> Encoded:
    template = find_template(str(folder / "template.yaml"))
    return Encoded(*load_tokenizer(str(folder)).encoder(template))


@pytest.fixture
def network(folder: Path) -> Network:
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = model.config
    return Network(
        model.state_dict(),
        heads=config.num_attention_heads,
        theta=config.rope_parameters["rope_theta"],
        eps=config.rms_norm_eps,
        rank=2,
    )


@pytest.fixture
def rows() -> list[Row]:
    answers = [None, "seven wizards brew tea", None, "no"]
    texts = ["the quick brown fox", "naïve café", "count 1 2 3 stars\n\n", "  a lazy dog "]
    return [row(n, *pair) for n, pair in enumerate(zip(texts, answers, strict=True))]


@pytest.fixture
def policies() -> list[Policy]:
    return [p for p in load_book().policies.values() if p.id.startswith("shieldgemma/")][:3]


@pytest.fixture
def machine(network: Network, engine: PackedEngine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    yes, no = engine._prompts.answers
    monkeypatch.setattr("recipes.small.train.YES", yes)
    monkeypatch.setattr("recipes.small.train.NO", no)
    return Machine(network, torch.device("cpu"))


@pytest.fixture
def questions(rows: list[Row], policies: list[Policy], encoded: Encoded) -> Questions:
    return measured_questions(rows, policies, encoded)


def test_a_question_has_the_ids_of_the_prompt_that_is_served(
    engine: PackedEngine, questions: Questions, rows: list[Row], policies: list[Policy]
) -> None:
    for number, labelled in enumerate(rows):
        exchange = labelled.exchange
        guidelines = [p.guidelines[exchange.direction] for p in policies]
        served = engine._prompts.encode(exchange, guidelines)
        starts = questions.asked_starts[number : number + 2]
        trunk = questions.trunk(number).tolist()
        asked = questions.asked[slice(*starts)]
        assert [trunk + questions.branch(n).tolist() for n in asked] == served


def test_training_computes_the_margins_that_serving_computes(
    engine: PackedEngine,
    machine: Machine,
    questions: Questions,
    rows: list[Row],
    policies: list[Policy],
) -> None:
    found = measure(machine, questions, rows=2, length=900)
    prepared = [engine.prepare(r.exchange, policies) for r in rows]
    served = [m for p in prepared for m in engine.forward(p.work)[0]]
    assert np.ptp(served) > 0.1
    np.testing.assert_allclose(found, served, atol=2e-4)


def test_what_is_learnt_is_in_the_adapter(
    machine: Machine, questions: Questions, tmp_path: Path
) -> None:
    target = np.array([0, 255, 0] * 4, np.uint8)
    questions = replace(questions, target=target)
    stream = iter(Stream(questions, seed=0, rows=1, length=900))
    train(machine, stream, tmp_path, steps=25, seconds=0, peak=2e-2)
    margins = measure(machine, questions, rows=1, length=900)
    assert ((margins > 0) == (target > 0)).all()
    network = machine.network
    whole = network.merged(torch.float32)[1]["up_proj"] - network.frozen["up_proj"][1]
    network.shrink(0.7)
    adapter = network.adapter()
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_{}.weight"
    added = adapter[name.format("B")].float() @ adapter[name.format("A")].float()
    assert added.abs().max() > 1e-3
    torch.testing.assert_close(added, 0.7 * whole.detach(), atol=2e-4, rtol=0.1)


def test_training_goes_on_where_it_was(
    machine: Machine,
    questions: Questions,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream = iter(Stream(questions, seed=0, rows=1, length=900))
    train(machine, stream, tmp_path, steps=3, seconds=0, peak=1e-2)
    learnt = [p.detach().clone() for p in parameters(machine.network)]
    for p in parameters(machine.network):
        torch.nn.init.zeros_(p)
    train(machine, stream, tmp_path, steps=3, seconds=0, peak=1e-2)
    assert "going on at step 3" in capsys.readouterr().out
    for before, after in zip(learnt, parameters(machine.network), strict=True):
        torch.testing.assert_close(before, after.detach())


def test_each_round_has_all_texts_in_another_order(
    encoded: Encoded, rows: list[Row], policies: list[Policy]
) -> None:
    questions = measured_questions(rows * 3, policies[:1], encoded)
    one_a_batch = (b.texts for b in Stream(questions, seed=0, rows=1, length=200))
    seen = [t for texts in islice(one_a_batch, 40) for t in texts]
    rounds = [seen[:12], seen[12:24]]
    assert [sorted(r) for r in rounds] == [list(range(12))] * 2
    assert rounds[0] != rounds[1]


def test_a_text_that_is_too_long_loses_its_end(
    encoded: Encoded, rows: list[Row], policies: list[Policy]
) -> None:
    questions = measured_questions(rows[:1], policies[:1], encoded)
    branch = questions.branch(0)
    [batch] = batches(questions, np.array([0]), rows=1, length=len(branch) + 3)
    assert batch.ids[0].tolist() == [*questions.trunk(0)[:3], *branch]
    assert batch.reads.tolist() == [len(branch) + 2]


def test_the_questions_are_the_same_for_the_same_seed(encoded: Encoded) -> None:
    texts = [row(n, f"fox {n} jumps", dangerous=0, hate=n % 3 == 0) for n in range(40)]

    def drawn(seed: int) -> Questions:
        [writer] = training_questions(texts, {}, encoded, texts=1000, seed=seed)
        return writer.questions()

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert (first.trunks == again.trunks).all()
    assert (first.asked == again.asked).all()
    assert first.trunks.tolist() != other.trunks.tolist()
    assert set(first.target.tolist()) == {0, 255}


@pytest.mark.parametrize("seed", range(30))
def test_a_disguise_changes_how_a_text_looks(seed: int) -> None:
    assert disguised("You worthless idiot", Random(seed)) != "You worthless idiot"


def test_a_request_is_answered_both_ways() -> None:
    asked = [
        row(0, "How can I rob a bank?", dangerous=1),
        row(1, "How can I open a bank account?", dangerous=0),
    ]
    found = list(answer_rows(asked, 5, seed=0))
    harmful = [r for r in found if r.prompt == "How can I rob a bank?"]
    assert {r.source for r in harmful} == {"refusal", "compliance"}
    assert all(r.labels["dangerous"] == (r.source == "compliance") for r in harmful)
    assert {(r.source, r.harmful) for r in found if "account" in r.prompt} == {
        ("harmless_compliance", 0)
    }
    assert json.dumps([r.model_dump() for r in found]) == json.dumps(
        [r.model_dump() for r in answer_rows(asked, 5, seed=0)]
    )
