"""Tuning trains what scoring asks, learns what rows say, and leaves a checkpoint that serves."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import WORDS, save_calm_checkpoint, save_hot_checkpoint
from safetensors.torch import load_file
from transformers import Gemma2Config, Gemma2ForCausalLM

from shieldgate.errors import ConfigurationError
from shieldgate.policy import Policy
from shieldgate.prompt import TEMPLATES
from shieldgate.scoring.local import PackedEngine, load_checkpoint, load_engine
from shieldgate.tuning.adapt import Method, TrainableScorer, method_for
from shieldgate.tuning.fit import Hyperparameters, PolicyObjective
from shieldgate.tuning.labelled import Labelled, split_rows
from shieldgate.tuning.loop import Check, EarlyStopping, Schedule, train
from shieldgate.tuning.tune import TuningCallback, TuningTask, tune
from shieldgate.types import Exchange

CHAT = TEMPLATES["chat"]
MARGIN = 1e-4
METHODS: tuple[Method, ...] = ("full", "lora")


def policy(id: str, words: str) -> Policy:
    return Policy(
        id=id,
        title=id,
        guidelines={"prompt": f'"No {words}": none.', "response": f'"Not {words}": none.'},
        thresholds={"prompt": 0.5, "response": 0.5},
    )


FOXES, TEA = policy("acme/foxes", "fox"), policy("acme/tea", "tea")
WIZARDS = policy("acme/wizards", "wizards")


def words(count: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def rows(count: int, seed: int = 0, marked: str = "weapon") -> list[Labelled]:
    """Rows of which every other one has a word in it that violates."""
    rng = random.Random(seed)
    plain = [word for word in WORDS if word != marked]
    found = []
    for number in range(count):
        text = [*rng.choices(plain, k=6), str(seed), str(number)]
        if number % 2:
            text.insert(rng.randrange(6), marked)
        found.append(Labelled(Exchange(" ".join(text)), {FOXES.id: bool(number % 2)}))
    return found


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_calm_checkpoint(tmp_path_factory.mktemp("calm"))


def scorer(folder: Path) -> PackedEngine:
    return PackedEngine(load_checkpoint(str(folder), device="cpu"), CHAT)


def task(base: Path, out: Path, **changes: Any) -> TuningTask:
    """Make a small task, which takes about a second."""
    made = TuningTask(
        base=str(base),
        out=out,
        template=CHAT,
        policies={FOXES.id: FOXES},
        kept=[TEA],
        splits=split_rows(rows(60), rows(40, seed=1)),
        device="cpu",
        changes={"steps": 30, "rate": 1e-2, "every": 5},
    )
    return replace(made, **changes)


@pytest.mark.parametrize("method", METHODS)
def test_training_computes_the_margins_that_scoring_computes(
    method: Method, tmp_path: Path
) -> None:
    """On a checkpoint where a wrong window or cap would show, and for a text in many windows."""
    base = save_hot_checkpoint(tmp_path, max_position_embeddings=600)
    asked = [
        (Exchange(words(5, seed=1)), [FOXES]),
        (Exchange(words(150, seed=2)), [FOXES, TEA, WIZARDS]),
        (Exchange(words(900, seed=3)), [TEA, WIZARDS]),
        (Exchange(words(20, seed=4), words(70, seed=5)), [FOXES, TEA]),
    ]
    plain = scorer(base)
    prepared = [plain.prepare(*one) for one in asked]
    assert [len(p.work) > 1 for p in prepared] == [False, False, True, False]
    scores = [p.scores([plain.forward([work])[0] for work in p.work]) for p in prepared]
    wanted = [[score.margin for score in found] for found in scores]
    trainable = TrainableScorer.of(scorer(base), method, tokens=400, seed=0)
    for found, margins in zip(exact(trainable).ask(asked), wanted, strict=True):
        assert found == pytest.approx(margins, abs=MARGIN)


def exact(trainable: TrainableScorer) -> TrainableScorer:
    return replace(trainable, dtype=torch.float32)


@pytest.mark.parametrize("method", METHODS)
def test_products_are_in_bf16_and_weights_gradients_and_margins_are_not(
    method: Method, calm: Path
) -> None:
    trainable = TrainableScorer.of(scorer(calm), method, tokens=2000, seed=0)
    multiplied: set[torch.dtype] = set()
    projection: Any = trainable.scorer.model.base_model.layers[0].mlp.down_proj
    projection.register_forward_hook(lambda module, x, found: multiplied.add(found.dtype))
    asked = [(Exchange(words(20, seed)), [FOXES, TEA]) for seed in range(8)]
    mixed = replace(trainable, dtype=torch.bfloat16)
    [(_, margins)] = mixed.passes(asked)
    assert (multiplied, margins.dtype) == ({torch.bfloat16}, torch.float32)
    [(_, precise)] = exact(trainable).passes(asked)
    assert multiplied == {torch.bfloat16, torch.float32}
    assert 0 < (margins - precise).abs().max() < 0.05
    assert len(margins.unique()) > 8  # a margin in bf16 would be one of few
    margins.sum().backward()
    trained = [p for p in trainable.scorer.model.parameters() if p.requires_grad]
    assert {p.grad.dtype for p in trained if p.grad is not None} == {torch.float32}


def test_adapters_alone_are_trained_and_checkpointing_changes_no_gradient(calm: Path) -> None:
    gradients = []
    for checkpointing in (True, False):
        trainable = exact(TrainableScorer.of(scorer(calm), "lora", tokens=2000, seed=0))
        if not checkpointing:
            trainable.scorer.model.activation_checkpointing_disable()
        objective = PolicyObjective(
            trainable, rows(20), {FOXES.id: FOXES}, [TEA], Hyperparameters("lora", 1, 1e-3, 0)
        )
        for loss in objective.losses(0):
            loss.backward()
        names = dict(objective.named_parameters())
        assert names
        assert all("lora_" in name for name in names)
        gradients.append({name: p.grad for name, p in names.items()})
    assert all(
        torch.allclose(gradient, gradients[1][name], atol=1e-7)
        for name, gradient in gradients[0].items()
    )
    assert any(gradient.abs().sum() > 0 for gradient in gradients[0].values())


def test_adapters_beside_weights_in_bf16_are_fp32(calm: Path, tmp_path: Path) -> None:
    """In bf16 a small step of a learning rate would be rounded away."""
    checkpoint = load_checkpoint(str(calm), device="cpu", dtype="bfloat16")
    trainable = TrainableScorer.of(PackedEngine(checkpoint, CHAT), "lora", tokens=2000, seed=0)
    objective = PolicyObjective(
        trainable, rows(20), {FOXES.id: FOXES}, [TEA], Hyperparameters("lora", 1, 1e-3, 0)
    )
    for loss in objective.losses(0):
        loss.backward()
    trained = [parameter for _, parameter in objective.named_parameters()]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert sum(float(parameter.grad.abs().sum()) for parameter in trained) > 0
    assert trainable.scorer.model.dtype == torch.bfloat16


def test_a_base_on_several_devices_is_refused(calm: Path) -> None:
    spread = scorer(calm)
    spread.model.model.norm.to("meta")
    with pytest.raises(ConfigurationError, match="CUDA_VISIBLE_DEVICES"):
        TrainableScorer.of(spread, "full", tokens=2000, seed=0)


def test_an_unlabelled_policy_teaches_nothing(calm: Path) -> None:
    """Rows that don't label a policy give the same gradient, whatever that policy says."""

    def gradient(other: Policy) -> list[torch.Tensor]:
        trainable = TrainableScorer.of(scorer(calm), "full", tokens=2000, seed=0)
        policies = {FOXES.id: FOXES, other.id: other}
        objective = PolicyObjective(
            trainable, rows(20), policies, [], Hyperparameters("full", 1, 1e-3, 0)
        )
        for loss in objective.losses(0):
            loss.backward()
        return [p.grad for _, p in objective.named_parameters()]

    pairs = zip(gradient(TEA), gradient(WIZARDS), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_policy_with_one_answer_left_to_learn_from_is_still_asked(calm: Path) -> None:
    """Few rows that label several policies can be dealt out so."""
    trainable = TrainableScorer.of(scorer(calm), "full", tokens=2000, seed=0)
    some = [row for row in rows(12) if row.labels[FOXES.id]]
    objective = PolicyObjective(
        trainable, some, {FOXES.id: FOXES}, [], Hyperparameters("full", 1, 1e-3, 0)
    )
    assert sum(loss.item() for loss in objective.losses(0)) > 0


def test_size_decides_the_method(calm: Path) -> None:
    assert method_for(scorer(calm).model) == "full"
    shape = Gemma2Config(hidden_size=2304, num_hidden_layers=26)
    with torch.device("meta"):
        assert method_for(Gemma2ForCausalLM(shape)) == "lora"


@pytest.mark.parametrize("method", METHODS)
def test_what_is_saved_serves_and_says_what_training_said(
    method: Method, calm: Path, tmp_path: Path
) -> None:
    report = tune(task(calm, tmp_path / "mine", method=method))
    [measured] = report.measured
    gain = measured.gain["average_precision"]
    assert gain.low is not None
    assert gain.low > 0
    assert report.best > 0
    engine = load_engine(str(tmp_path / "mine"), device="cpu")
    assert engine.identity.name == report.scorer
    engine.check()
    assert not (tmp_path / "mine/tuning/state.pt").exists()


@pytest.mark.parametrize("method", METHODS)
def test_saving_merges_and_keeps_dtype_and_tokenizer(method: Method, tmp_path: Path) -> None:
    base = save_calm_checkpoint(tmp_path / "base", torch.bfloat16)
    trainable = TrainableScorer.of(scorer(base), method, tokens=2000, seed=0)
    with torch.no_grad():
        for parameter in trainable.scorer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    asked = [(Exchange(words(30, seed=n)), [FOXES, TEA]) for n in range(4)]
    trained = trainable.ask(asked)
    trainable.save(tmp_path / "mine")
    saved = load_file(tmp_path / "mine/model.safetensors")
    assert saved.keys() == load_file(base / "model.safetensors").keys()
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "mine" / name).read_bytes() == (base / name).read_bytes()
    assert scorer(tmp_path / "mine").identity.languages is None
    again = TrainableScorer.of(scorer(tmp_path / "mine"), "full", tokens=2000, seed=0).ask(asked)
    for a, b in zip(again, trained, strict=True):
        assert a == pytest.approx(b, abs=0.05)  # rounded to bf16


def test_what_is_saved_says_which_languages_the_base_knows(calm: Path, tmp_path: Path) -> None:
    base = scorer(calm)
    base.identity = replace(base.identity, languages=("en", "de"))
    TrainableScorer.of(base, "full", tokens=2000, seed=0).save(tmp_path / "mine")
    assert scorer(tmp_path / "mine").identity.languages == ["en", "de"]


class _Stop(TuningCallback):
    def __init__(self, at: int) -> None:
        self._at = at

    def step(self, step: int, loss: float) -> None:
        if step == self._at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_ends_as_an_unbroken_one(method: Method, calm: Path, tmp_path: Path) -> None:
    wanted = {"steps": 12, "every": 4, "rate": 1e-2}
    whole = task(calm, tmp_path / "whole/mine", method=method, changes=wanted)
    broken = replace(whole, out=tmp_path / "broken/mine")
    unbroken = tune(whole)
    with pytest.raises(KeyboardInterrupt):
        tune(broken, _Stop(6))
    assert tune(broken) == unbroken
    paths = [o.out / "model.safetensors" for o in (whole, broken)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_run_that_is_done_is_read_and_another_is_refused(calm: Path, tmp_path: Path) -> None:
    mine = task(calm, tmp_path / "mine", changes={"steps": 2})
    first = tune(mine)
    assert tune(mine, _Stop(0)) == first
    with pytest.raises(ConfigurationError, match=r"another run:\n  recipe\.steps: 2 -> 3\n"):
        tune(replace(mine, changes={"steps": 3}))
    with pytest.raises(ConfigurationError, match="holds files that no tuning left"):
        tune(replace(mine, out=calm))


class _Drifting(torch.nn.Module):
    """Something to train whose only parameter moves by the rate in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(()))

    def losses(self, step: int) -> list[torch.Tensor]:
        return [-self.place]


@pytest.mark.parametrize(
    ("peak", "patience", "ends", "kept"), [(0.2, 2, 5, 3), (-1.0, 2, 2, 0), (9.0, 2, 8, 8)]
)
def test_training_stops_early_and_restores_the_best(
    peak: float, patience: int, ends: int, kept: int, tmp_path: Path
) -> None:
    objective = _Drifting()
    seen: list[Check] = []
    places: list[float] = []

    def measure() -> tuple[float, ...]:
        places.append(objective.place.item())
        return (-abs(objective.place.item() - peak),)

    stopping = EarlyStopping(measure, every=1, patience=patience, on_check=seen.append)
    schedule = Schedule(8, 0.1, warm_up=1)
    checks = train(objective, schedule, tmp_path / "state.pt", muon=False, early_stopping=stopping)
    assert checks == seen
    assert checks[-1].steps == ends
    assert objective.place.item() == places[kept]


def test_a_loss_that_is_not_finite_ends_training(tmp_path: Path) -> None:
    objective = _Drifting()
    objective.losses = lambda step: [objective.place * float("nan")]  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError):
        train(objective, Schedule(3, 0.1), tmp_path / "state.pt")


def test_rows_are_dealt_evenly_and_a_text_stays_in_one_part() -> None:
    some = [
        *rows(100),
        *(replace(r, exchange=Exchange(r.exchange.prompt.upper())) for r in rows(20)),
    ]
    splits = split_rows(some, seed=3)
    keys = [{row.key for row in part} for part in (splits.train, splits.validation, splits.test)]
    assert [len(k) for k in keys] == [60, 20, 20]
    assert len(keys[0] | keys[1] | keys[2]) == 100
    for part in (splits.train, splits.validation, splits.test):
        share = sum(row.labels[FOXES.id] for row in part) / len(part)
        assert 0.4 < share < 0.6
    assert split_rows(list(reversed(some)), seed=3).validation[0] in splits.validation
    assert split_rows(some, seed=4) != splits


def test_given_test_rows_are_never_learnt_from() -> None:
    some = rows(100)
    splits = split_rows(some, some[:30])
    learnt = {row.key for row in (*splits.train, *splits.validation)}
    assert splits.test == some[:30]
    assert learnt == {row.key for row in some[30:]}


@pytest.mark.parametrize("violated", [True, False])
def test_too_few_rows_of_a_class_are_refused(violated: bool) -> None:
    one_sided = [row for row in rows(40) if row.labels[FOXES.id] is violated]
    few = [row for row in rows(40) if row.labels[FOXES.id] is not violated][:4]
    with pytest.raises(ConfigurationError, match=r"acme/foxes: 4 rows .* at least 5"):
        split_rows([*one_sided, *few])
