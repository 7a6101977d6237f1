"""Sparse autoencoders of a scorer's states: read, refused, trained, and put to the test."""

import gzip
import json
import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import WORDS, save_calm_checkpoint
from safetensors.torch import save_file
from test_packed_engine import POLICIES as MANY
from torch import Tensor

from shieldgate.errors import ConfigurationError
from shieldgate.features import training
from shieldgate.features.ablation import CONTROLS, Ablation, Place, changes, removals
from shieldgate.features.autoencoder import SparseAutoencoder, load_autoencoder
from shieldgate.features.inspection import Inspection, Inspector
from shieldgate.features.labels import load_labels
from shieldgate.features.passes import forward, judged, states
from shieldgate.features.quality import measure
from shieldgate.features.training import Recipe, Trained, train_autoencoder
from shieldgate.policy import Policy
from shieldgate.scoring.local import PackedEngine, load_engine
from shieldgate.scoring.pack import Pack
from shieldgate.types import Exchange

HIDDEN, FEATURES = 32, 96
RECIPE = Recipe(layer=0, features=FEATURES, l0=12, steps=60, texts=4, rate=1e-2)
POLICIES = tuple(MANY[:3])
EXCHANGE = Exchange("seven wizards brew tea and count stars")


def texts(count: int) -> list[Exchange]:
    drawn = random.Random(5)
    return [Exchange(" ".join(drawn.choices(WORDS, k=8))) for _ in range(count)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> PackedEngine:
    return load_engine(str(save_calm_checkpoint(tmp_path_factory.mktemp("calm"))), device="cpu")


@pytest.fixture(scope="module")
def trained(engine: PackedEngine, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    out = tmp_path_factory.mktemp("trained") / "out"
    return train_autoencoder(engine, texts(60), POLICIES, RECIPE, out)


@pytest.fixture(scope="module")
def autoencoder(trained: Trained) -> SparseAutoencoder:
    return load_autoencoder(trained.file)


def parts(hidden: int = HIDDEN, features: int = 8) -> dict[str, Any]:
    drawn = np.random.default_rng(0)
    shapes = {
        "W_enc": (hidden, features),
        "b_enc": (features,),
        "W_dec": (features, hidden),
        "b_dec": (hidden,),
        "threshold": (features,),
    }
    return {n: drawn.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}


def write(folder: Path, **arrays: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **arrays)
    return folder / "params.npz"


def test_both_of_gemma_scopes_layouts_are_read(tmp_path: Path) -> None:
    file = write(tmp_path / "layer_12" / "width_16k" / "average_l0_82", **parts())
    second = tmp_path / "resid_post" / "layer_12_width_16k_l0_medium"
    second.mkdir(parents=True)
    lower = {name.lower(): torch.from_numpy(array) for name, array in parts().items()}
    save_file(lower, second / "params.safetensors")
    (second / "config.json").write_text('{"hf_hook_point_in": "model.layers.12.output"}')
    first, other = load_autoencoder(file), load_autoencoder(second)
    assert first.layer == other.layer == 12
    assert (first.hidden, first.features) == (HIDDEN, 8)
    for name, tensor in lower.items():
        assert torch.equal(getattr(first, name), tensor)
        assert torch.equal(getattr(other, name), tensor)
    assert load_autoencoder(write(tmp_path, **parts()), layer=3).layer == 3


def test_activations_are_those_of_the_paper() -> None:
    """Above the threshold and above zero; at the threshold itself nothing fires."""
    weights = {
        "w_enc": torch.tensor([[1.0, 1.0, 1.0, 1.0]]),
        "b_enc": torch.tensor([0.0, 0.0, -9.0, 0.0]),
        "w_dec": torch.eye(4)[:, :1],
        "b_dec": torch.tensor([0.5]),
        "threshold": torch.tensor([1.0, 2.0, -8.0, 3.0]),
    }
    firing = SparseAutoencoder(**weights, layer=0).encode(torch.tensor([[2.0], [0.5], [4.0]]))
    assert firing.rows.tolist() == [0, 2, 2, 2]
    assert firing.features.tolist() == [0, 0, 1, 3]
    assert firing.values.tolist() == [2, 4, 4, 4]
    rebuilt = SparseAutoencoder(**weights, layer=0).reconstruct(torch.tensor([[2.0], [0.5]]))
    assert rebuilt.tolist() == [[2.5], [0.5]]


def test_what_was_written_is_read_again(autoencoder: SparseAutoencoder, tmp_path: Path) -> None:
    autoencoder.save(tmp_path / "a" / "params.npz")
    again = load_autoencoder(tmp_path / "a", layer=0)
    assert torch.equal(again.w_enc, autoencoder.w_enc)
    with np.load(tmp_path / "a" / "params.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == set(parts())
        assert {str(array.dtype) for array in arrays.values()} == {"float32"}


def unpickled() -> None:
    raise AssertionError("it was unpickled")


class Evil:
    def __reduce__(self) -> Any:
        return unpickled, ()


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda at: (at / "params.npz").unlink(), "No such file"),
    "empty": (lambda at: (at / "params.npz").write_bytes(b""), "can't be read: "),
    "cut": (lambda at: cut(at / "params.npz"), "can't be read: "),
    "text": (lambda at: (at / "params.npz").write_text("hello"), "can't be read: "),
    "objects": (
        lambda at: write(at, **parts() | {"b_dec": np.array([{}] * HIDDEN)}),
        "pickled Python objects",
    ),
    "integers": (
        lambda at: write(at, **parts() | {"threshold": np.zeros(8, np.int64)}),
        "stores threshold as int64. Gemma Scope's are float32",
    ),
    "doubles": (
        lambda at: write(at, **{n: a.astype(np.float64) for n, a in parts().items()}),
        "stores w_enc as float64. Gemma Scope's are float32",
    ),
    "not finite": (
        lambda at: write(at, **parts() | {"b_enc": np.full(8, np.nan, np.float32)}),
        "numbers in b_enc that are not finite",
    ),
    "no threshold": (
        lambda at: write(at, **{n: a for n, a in parts().items() if n != "threshold"}),
        "is no JumpReLU autoencoder: it lacks threshold, and holds b_dec, b_enc, w_dec, w_enc",
    ),
    "another model": (lambda at: write(at, weight=np.zeros((2, 2), np.float32)), "holds weight"),
    "turned": (
        lambda at: write(at, **parts() | {"W_dec": parts()["W_dec"].T}),
        "has a w_dec of [32, 8], and beside a W_enc of [32, 8] it must be [8, 32]",
    ),
    "a transcoder": (
        lambda at: write(at, **parts(), affine_skip_connection=np.zeros((32, 32), np.float32)),
        "is a transcoder",
    ),
    "of attention": (
        lambda at: (at / "config.json").write_text(
            '{"hf_hook_point_in": "model.layers.3.self_attn.o_proj.input"}'
        ),
        "is for model.layers.3.self_attn.o_proj.input, by its config.json",
    ),
    "another layer": (
        lambda at: (at / "config.json").write_text('{"hf_hook_point_in": "model.layers.5.output"}'),
        "is for layer 5, and --layer says 3",
    ),
}


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:700])


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_such_autoencoder_is_refused_in_words(tmp_path: Path, what: str) -> None:
    file = write(tmp_path, **parts())
    spoil, words = REFUSED[what]
    spoil(tmp_path)
    with pytest.raises(ConfigurationError) as refused:
        load_autoencoder(file, layer=3)
    assert words in str(refused.value)
    assert str(file) in str(refused.value)


@pytest.mark.parametrize("name", ["params.npz", "params.safetensors", "params.pt"])
def test_a_pickle_is_never_loaded(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConfigurationError, match=r"can't be read|is neither"):
        load_autoencoder(tmp_path / name, layer=0)


def test_the_layer_must_be_known_and_there(engine: PackedEngine, tmp_path: Path) -> None:
    file = write(tmp_path, **parts())
    with pytest.raises(ConfigurationError, match=r"which layer.*Give it with --layer"):
        load_autoencoder(file)
    with pytest.raises(ConfigurationError, match=r"no layer 2: .* has layers 0 to 1"):
        Inspector.of(engine, load_autoencoder(file, layer=2))
    wide = load_autoencoder(write(tmp_path / "wide", **parts(hidden=2304)), layer=1)
    with pytest.raises(ConfigurationError, match=r"2,304 wide, and those of .* are 32 wide"):
        Inspector.of(engine, wide)


def test_features_that_explain_nothing_are_refused(
    engine: PackedEngine, autoencoder: SparseAutoencoder
) -> None:
    """As those of another layer would be, where no name tells."""
    wrong = Inspector.of(engine, replace(autoencoder, b_dec=10 * autoencoder.b_dec + 1))
    with pytest.raises(ConfigurationError, match="explains nothing of the states after layer 0"):
        wrong.inspect(EXCHANGE, POLICIES)


def test_a_folder_must_hold_one_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds neither of params"):
        load_autoencoder(tmp_path, layer=0)
    write(tmp_path, **parts())
    assert load_autoencoder(tmp_path, layer=0).features == 8
    (tmp_path / "params.safetensors").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="holds both of"):
        load_autoencoder(tmp_path, layer=0)


def test_the_first_token_of_each_prompt_does_not_count() -> None:
    shared, apart = Pack((5, 6), ((7,), (8,))), Pack((), ((1, 2), (3,)))
    assert judged([shared, apart]).tolist() == [False, True, True, True, False, True, False]


def test_training_leaves_less_unexplained_and_as_many_features_fire_as_asked(
    engine: PackedEngine, trained: Trained, tmp_path: Path
) -> None:
    none = [Exchange("", "")]  # which is held out
    untrained = train_autoencoder(
        engine, texts(60) + none, POLICIES, replace(RECIPE, steps=1, seed=10), tmp_path
    )
    assert trained.quality.fvu < 0.5 * untrained.quality.fvu
    assert trained.quality.fvu < 0.3
    assert trained.quality.l0 == pytest.approx(RECIPE.l0, rel=0.15)
    assert trained.file.parent.parts[-3:-1] == ("layer_0", "width_96")
    report = json.loads((trained.file.parents[3] / "report.json").read_text())
    assert report["quality"]["fvu"] == trained.quality.fvu
    assert not any(text.prompt in json.dumps(report) for text in texts(60))


def test_the_figures_are_what_they_say(
    engine: PackedEngine, autoencoder: SparseAutoencoder
) -> None:
    some = texts(3)
    quality = measure(engine, autoencoder, some, POLICIES)
    rows, rebuilt, changed = [], [], []
    for exchange in some:
        [item] = engine.prepare(exchange, POLICIES).work
        seen, margins = states(engine, 0, [item])
        inner = judged([item])
        assert inner.logical_not().nonzero().tolist() == [[0]], "the first token alone"
        new = torch.where(inner[:, None], autoencoder.reconstruct(seen), seen)
        rows.append(seen[1:])
        rebuilt.append(new[1:])
        changed.append(forward(engine, 0, [item], lambda _, new=new: new) - margins)
    x, y = torch.cat(rows), torch.cat(rebuilt)
    assert quality.rows == len(x)
    left = (x - y).square().sum() / (x - x.mean(0)).square().sum()
    assert quality.fvu == pytest.approx(float(left), rel=1e-4)
    fires = ((x @ autoencoder.w_enc + autoencoder.b_enc) > autoencoder.threshold).float()
    assert quality.l0 == pytest.approx(float(fires.sum(1).mean()))
    assert quality.dead == pytest.approx(float((fires.sum(0) == 0).float().mean()))
    assert quality.margin_change == pytest.approx(
        float(torch.stack(changed).abs().mean()), rel=1e-4
    )


def test_training_goes_on_where_it_was_stopped(
    engine: PackedEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", 4)
    recipe, some = replace(RECIPE, steps=10), texts(20)

    def stop(step: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_autoencoder(engine, some, POLICIES, recipe, tmp_path / "a", on_step=stop)
    steps: list[int] = []
    resumed = train_autoencoder(
        engine, some, POLICIES, recipe, tmp_path / "a", on_step=lambda s, _: steps.append(s)
    )
    whole = train_autoencoder(engine, some, POLICIES, recipe, tmp_path / "b")
    assert steps == [4, 5, 6, 7, 8, 9]
    assert resumed.file.read_bytes() == whole.file.read_bytes()
    assert resumed.quality == whole.quality
    assert train_autoencoder(engine, some, POLICIES, recipe, tmp_path / "a") == resumed
    with pytest.raises(ConfigurationError, match=r"another run:\n  l0: 12 -> 7"):
        train_autoencoder(engine, some, POLICIES, replace(recipe, l0=7), tmp_path / "a")


@pytest.mark.parametrize(
    ("changed", "count", "words"),
    [
        ({"layer": 2}, 60, "There is no layer 2"),
        ({}, 5, "5 texts"),
        ({"l0": 96}, 60, "96 can't fire at once"),
    ],
)
def test_what_can_not_be_trained_is_refused(
    engine: PackedEngine,
    tmp_path: Path,
    changed: dict[str, int],
    count: int,
    words: str,
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        train_autoencoder(
            engine, texts(count), POLICIES, replace(RECIPE, **changed), tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_a_feature_moves_a_margin_where_none_of_enough_others_moves_it_as_much() -> None:
    others = (0.1,) * (CONTROLS - 1)
    assert Ablation(-0.3, (*others, 0.2)).moves
    assert not Ablation(-0.3, (*others, 0.3)).moves
    assert not Ablation(-0.3, (*others, -0.4)).moves
    assert not Ablation(-0.3, others).moves, "too few to tell"


def test_a_feature_that_carries_the_verdict_is_told_from_those_that_do_not(
    engine: PackedEngine,
) -> None:
    """After the last layer, where the margin is read off one direction, known beforehand."""
    [item] = engine.prepare(EXCHANGE, POLICIES).work
    yes, no = engine.model.get_output_embeddings().weight[list(engine.prompts.answers)]
    read = (yes - no) * (1 + engine.model.base_model.norm.weight)
    torch.manual_seed(0)
    drawn = torch.randn(1 + CONTROLS, HIDDEN)
    beside = drawn - torch.outer(drawn @ read, read) / read.square().sum()
    directions = torch.nn.functional.normalize(torch.cat((read[None], beside)))
    made = SparseAutoencoder(
        w_enc=torch.zeros(HIDDEN, len(directions)),
        b_enc=torch.ones(len(directions)),
        w_dec=directions,
        b_dec=torch.zeros(HIDDEN),
        threshold=torch.zeros(len(directions)),
        layer=1,
    )
    answer = torch.tensor([item.tokens - 1])
    place = Place(answer, torch.arange(len(directions)), 1 + torch.rand(1, len(directions)))
    taken = removals(made, place, (0, 7))
    margins = [float(change[-1]) for change in changes(engine, 1, item, taken)]
    carrying, other = margins[: 1 + CONTROLS], margins[1 + CONTROLS :]
    assert Ablation(carrying[0], tuple(carrying[1:])).moves
    assert carrying[0] < -0.1, "without it, Yes is less likely"
    assert not Ablation(other[0], tuple(other[1:])).moves


def test_others_are_scaled_to_the_size_of_what_they_stand_for(
    autoencoder: SparseAutoencoder,
) -> None:
    torch.manual_seed(0)
    place = Place(torch.tensor([4, 9]), torch.arange(30), torch.rand(2, 30) + 0.1)
    first, *others = removals(autoencoder, place, [3])
    expected = torch.outer(place.activations[:, 3], autoencoder.w_dec[3])
    torch.testing.assert_close(first.vectors, expected)
    assert len(others) == CONTROLS
    for other in others:
        assert float(other.vectors.norm()) == pytest.approx(float(expected.norm()), rel=1e-4)
        assert not torch.allclose(other.vectors, expected)


@pytest.fixture(scope="module")
def inspector(engine: PackedEngine, autoencoder: SparseAutoencoder) -> Inspector:
    return Inspector.of(engine, autoencoder, top=2)


def firing_alone(inspector: Inspector, policy: Policy) -> Tensor:
    """Compute what fires on each token of a policy's prompt of its own, [tokens, features]."""
    [ids] = inspector.engine.prompts.encode(EXCHANGE, [policy.guidelines["prompt"]])
    rows, _ = states(inspector.engine, 0, [Pack(tuple(ids[:-1]), (tuple(ids[-1:]),))])
    autoencoder = inspector.autoencoder
    fires = (rows @ autoencoder.w_enc + autoencoder.b_enc).relu()
    return torch.where(fires > autoencoder.threshold, fires, 0)


def assert_tokens_fire(inspector: Inspector, found: Inspection, policy: Policy) -> None:
    """Hold what is shown of each token of the text to what fires on it in the prompt alone."""
    fires = firing_alone(inspector, policy)
    placed = inspector.engine.prompts.content(EXCHANGE, policy.guidelines["prompt"])
    for token, (row, start, end) in zip(found.tokens, placed, strict=True):
        assert (token.start, token.end) == (start, end)
        assert len(token.features) == 3
        expected = fires[row].topk(3).values.tolist()
        assert list(token.features.values()) == pytest.approx(expected, rel=1e-3)
        for index, value in token.features.items():
            assert value == pytest.approx(float(fires[row, index]), rel=1e-3)


def test_what_is_shown_fires_in_the_states_that_were_scored(
    inspector: Inspector, autoencoder: SparseAutoencoder
) -> None:
    engine = inspector.engine
    found = inspector.inspect(EXCHANGE, POLICIES)
    [item] = engine.prepare(EXCHANGE, POLICIES).work
    assert [of.margin for of in found.policies.values()] == pytest.approx(
        engine.forward([item])[0], abs=1e-4
    )
    for policy, of in zip(POLICIES, found.policies.values(), strict=True):
        fires = firing_alone(inspector, policy)
        for feature in of.features:
            assert feature.activation == pytest.approx(float(fires[-1, feature.index]), rel=1e-3)
        strongest = fires[-1] * autoencoder.w_dec.norm(dim=1)
        assert of.features[0].index == int(strongest.argmax())
        assert of.fit.l0 == int((fires[-1] > 0).sum())
        covered = "".join(found.text[token.start : token.end] for token in found.tokens)
        assert covered == found.text == EXCHANGE.prompt
        assert_tokens_fire(inspector, found, policy)


def test_an_ablation_is_the_margin_without_the_feature(
    inspector: Inspector, autoencoder: SparseAutoencoder
) -> None:
    engine = inspector.engine
    found = inspector.inspect(EXCHANGE, POLICIES)
    [item] = engine.prepare(EXCHANGE, POLICIES).work
    ends = [len(item.trunk)]
    for branch in item.branches:
        ends.append(ends[-1] + len(branch))

    def without(index: int, rows: list[int]) -> Tensor:
        def take(given: Tensor) -> Tensor:
            fires = autoencoder.encode(given).of(index)
            left = given.clone()
            for row, value in zip(fires.rows.tolist(), fires.values.tolist(), strict=True):
                if row in rows:
                    left[row] -= value * autoencoder.w_dec[index]
            return left

        before = forward(engine, 0, [item], lambda _: None)
        return forward(engine, 0, [item], take) - before

    for number, (id, of) in enumerate(found.policies.items()):
        feature = of.features[-1]
        expected = without(feature.index, [ends[number + 1] - 1])
        assert feature.ablations[id].change == pytest.approx(float(expected[number]), abs=1e-4)
        assert len(feature.ablations[id].others) == min(CONTROLS, of.fit.l0 - 1)
    feature = found.features[0]
    of_text = [
        at for at, _, _ in engine.prompts.content(EXCHANGE, POLICIES[0].guidelines["prompt"])
    ]
    expected = without(feature.index, of_text)
    changed = [feature.ablations[policy.id].change for policy in POLICIES]
    assert changed == pytest.approx(expected.tolist(), abs=1e-4)
    assert max(map(abs, changed)) > 1e-3


def test_of_a_long_text_the_window_that_scored_highest_is_shown(inspector: Inspector) -> None:
    long = Exchange("why?", " ".join(text.prompt for text in texts(60)))
    found = inspector.inspect(long, POLICIES[:1])
    prepared = inspector.engine.prepare(long, POLICIES[:1])
    margins = [inspector.engine.forward([item])[0][0] for item in prepared.work]
    assert found.windows == len(margins) > 1
    assert found.window == 1 + margins.index(max(margins))
    assert found.policies[POLICIES[0].id].margin == pytest.approx(max(margins), abs=1e-4)
    assert found.text in str(long.response)
    assert "".join(found.text[t.start : t.end] for t in found.tokens) == found.text


def test_a_text_without_tokens_has_features_at_the_answer_alone(inspector: Inspector) -> None:
    found = inspector.inspect(Exchange(""), POLICIES)
    assert (found.content, list(found.features), list(found.tokens)) == (None, [], [])
    assert all(of.features for of in found.policies.values())


def test_a_text_behind_the_guideline_is_found_in_each_prompt(
    engine: PackedEngine,
    autoencoder: SparseAutoencoder,
    tmp_path: Path,
) -> None:
    """Where the guideline comes first, prompts share no text: each branch has its own."""
    file = tmp_path / "guideline-first.yaml"
    file.write_text(
        "prompt: '<bos>Rule: {guideline} Text: {prompt} Broken?'\n"
        "control_tokens: [<bos>]\npositive: 'Yes'\nnegative: 'No'\n"
    )
    other = load_engine(str(engine.model.name_or_path), device="cpu", template=str(file))
    behind = Inspector.of(other, autoencoder, top=1)
    for policies in (POLICIES[:2], POLICIES[1::-1]):
        found = behind.inspect(EXCHANGE, policies)
        text = "".join(found.text[token.start : token.end] for token in found.tokens)
        assert text.strip() == EXCHANGE.prompt
        highest = max(policies, key=lambda policy: found.policies[policy.id].margin)
        assert_tokens_fire(behind, found, highest)
        ablations = found.features[0].ablations
        assert ablations.keys() == {policy.id for policy in policies}
        assert all(abs(ablation.change) > 1e-4 for ablation in ablations.values())


def gz(path: Path, content: str) -> Path:
    path.write_bytes(gzip.compress(content.encode()))
    return path


EXPLANATIONS = [
    {"modelId": "gemma-2-2b", "layer": "12-gemmascope-res-16k", "index": "7", "description": "tea"},
    {"modelId": "gemma-2-2b", "layer": "12-gemmascope-res-16k", "index": "7", "description": "hot"},
    {"layer": "12-gemmascope-res-16k", "index": 95, "description": " stars ", "scores": [1]},
    {"layer": "12-gemmascope-res-16k", "index": "8", "description": None},
]


def test_labels_are_read_from_all_their_forms(tmp_path: Path) -> None:
    expected = {7: "tea", 95: "stars"}
    rows = "\n".join(map(json.dumps, EXPLANATIONS))
    plain, listed, lines = (tmp_path / name for name in ("a.json", "b.json", "c.jsonl"))
    plain.write_text('{"7": "tea", "95": "stars"}')
    listed.write_text(json.dumps(EXPLANATIONS))
    lines.write_text(rows + "\n")
    for file in (plain, listed, lines, gz(tmp_path / "batch-0.jsonl.gz", rows)):
        assert load_labels(file, layer=12, features=96) == expected
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps(EXPLANATIONS[0]))
    assert load_labels(one, layer=None, features=96) == {7: "tea"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has no labels"),
        (b"index,description", "is no JSON"),
        (b"{}", "has no labels"),
        (b"[]", "has no labels"),
        (b"[3]", "an entry 1 that is no JSON object"),
        (b'{"one": "tea"}', "an entry 1 without a number as its index"),
        (b'{"7": 3}', "an entry 1 without a number as its index"),
        (b'{"96": "tea"}', "a label for feature 96, and the autoencoder has features 0 to 95"),
        (json.dumps(EXPLANATIONS).replace("12-", "20-").encode(), "is for layer 20"),
        (b"\xff\xfe", "is no JSON"),
        (gzip.compress(b'{"7": "tea"}', mtime=0)[:20], "gzip can't read it"),
    ],
)
def test_labels_that_can_not_be_meant_are_refused(
    tmp_path: Path, content: bytes, words: str
) -> None:
    file = tmp_path / "labels.json"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError) as refused:
        load_labels(file, layer=12, features=96)
    assert words in str(refused.value)
    assert str(refused.value).startswith(str(file))
