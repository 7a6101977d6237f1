"""What a CPU multiplies: packed weights, no copies of them, only the rows read, bf16 and int8."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checkpoints import save_hot_checkpoint
from structlog.testing import capture_logs
from test_packed_engine import EXCHANGES, POLICIES, plain_scorer, probability, words
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers.activations import ACT2FN

from shieldgate.errors import ModelError
from shieldgate.prompt import find_template
from shieldgate.scoring.local import PackedEngine, load_checkpoint, load_engine
from shieldgate.scoring.local.attention import _capped
from shieldgate.scoring.local.dtype import choose_dtype
from shieldgate.scoring.local.linear import Int8Linear, PackedLinear, gated
from shieldgate.types import Exchange

CPU = torch.device("cpu")
needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bf16 here"
)
needs_vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="needs AVX512-VNNI")


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def linears(bias: bool, dtype: torch.dtype) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    gate, up = (nn.Linear(96, 160, bias=bias).to(dtype) for _ in range(2))
    return gate, up


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu", "silu", "relu"])
def test_packed_layers_give_what_plain_ones_give(
    dtype: torch.dtype, bias: bool, activation: str
) -> None:
    gate, up = linears(bias, dtype)
    act = ACT2FN[activation]
    x = 3 * torch.randn(1, 37, 96).to(dtype)
    expected = act(gate.float()(x.float())) * up.float()(x.float())
    packed = [PackedLinear(linear.to(dtype)) for linear in (gate, up)]
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(packed[0](x).float(), gate.float()(x.float()), **close)
    torch.testing.assert_close(gated(*packed, act, x).float(), expected, **close)


@needs_vnni
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_int8_is_off_by_its_rounding_even_where_rows_and_outputs_differ_in_size(
    dtype: torch.dtype, bias: bool
) -> None:
    linear, _ = linears(bias, torch.float32)
    linear.weight *= torch.logspace(-3, 3, 160)[:, None]
    x = (torch.randn(1, 37, 96) * torch.logspace(-2, 2, 37)[:, None]).to(dtype)
    x[0, 5] = 0
    expected = linear(x.float())
    error = Int8Linear(linear)(x).float() - expected
    assert (error.norm(dim=2) / expected.norm(dim=2).clamp(min=1e-6)).max() < 0.02
    assert (error.norm(dim=1) / expected.norm(dim=1)).max() < 0.04


@needs_bf16
def test_the_soft_cap_of_bf16_scores_is_right_to_the_last_bit() -> None:
    scores = torch.linspace(-9, 9, 2**16).bfloat16().view(4, -1, 128)
    expected = 50 * torch.tanh(scores.double()).bfloat16()
    torch.testing.assert_close(_capped(scores, 50.0), expected, rtol=2**-7, atol=0)


def profiled(engine: PackedEngine, exchange: Exchange) -> list[tuple[str, list[list[int]]]]:
    work = engine.prepare(exchange, POLICIES[:2]).work
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        engine.forward(work)
    return [(event.name, event.input_shapes) for event in seen.events()]


@needs_bf16
@pytest.mark.parametrize("quantize", [None, pytest.param("int8", marks=needs_vnni)])
def test_no_weight_is_copied_in_a_pass(tmp_path: Path, quantize: str | None) -> None:
    folder = save_hot_checkpoint(tmp_path, intermediate_size=516)
    engine = load_engine(str(folder), device="cpu", dtype="bfloat16", quantize=quantize)
    seen = profiled(engine, Exchange(words(900, seed=1)))
    takers = {
        name for name, shapes in seen if any(sorted(shape[-2:]) == [128, 516] for shape in shapes)
    }
    assert takers == {"onednn::qlinear_pointwise" if quantize else "mkldnn::_linear_pointwise"}
    assert "aten::linear" not in {name for name, _ in seen}


def test_long_texts_of_plain_layers_go_through_no_batched_product(hot_checkpoint: Path) -> None:
    """As for the generator and for tuning; a product of three dimensions copies its weight."""
    checkpoint = load_checkpoint(str(hot_checkpoint), device="cpu", dtype="bfloat16")
    mlp = checkpoint.model.model.layers[0].mlp
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        mlp(torch.randn(1, 2000, 128).bfloat16())
    assert "aten::bmm" not in {event.name for event in seen.events()}


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "qwen2", "qwen3"])
def test_the_last_layer_computes_the_rows_that_are_read(tmp_path: Path, family: str) -> None:
    engine = load_engine(str(save_hot_checkpoint(tmp_path, family=family)), device="cpu")
    work = [engine.prepare(e, POLICIES[:3]).work[0] for e in EXCHANGES[1:3]]
    rows = []
    for layer in engine.model.model.layers[-2:]:
        for part in (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp):
            part.register_forward_hook(lambda m, args, out: rows.append(out.shape[1]))
    engine.forward(work)
    memory = engine._remember(work)
    assert memory is not None
    assert rows == [sum(w.tokens for w in work) - sum(memory.lengths)] * 3 + [6] * 3


def test_weights_are_let_go_once_they_are_packed(hot_checkpoint: Path) -> None:
    engine = load_engine(str(hot_checkpoint), device="cpu")
    assert all(p.dim() == 1 for p in engine.model.model.layers.parameters())


@needs_bf16
@pytest.mark.parametrize("heat", [1.5, 6.0])
def test_bf16_is_as_near_the_truth_as_plain_bf16(tmp_path: Path, heat: float) -> None:
    """Both are read in fp32, so that the plain model's coarse logits are no excuse for ours."""
    folder = save_hot_checkpoint(tmp_path, heat=heat)
    exact = plain_scorer(folder, torch.float64)
    plain = PackedEngine(
        load_checkpoint(str(folder), device="cpu", dtype="bfloat16"), find_template("chat")
    )
    ours = load_engine(str(folder), device="cpu", dtype="bfloat16")
    off = {"ours": 0.0, "plain": 0.0}
    for exchange in [*EXCHANGES, *(Exchange(words(n, seed=n)) for n in range(20, 200, 30))]:
        truth = [exact(exchange, p, "chat") for p in POLICIES[:4]]
        work = ours.prepare(exchange, POLICIES[:4]).work
        prompts = [[*work[0].trunk, *branch] for branch in work[0].branches]
        found = {"ours": ours.forward(work)[0], "plain": read_in_fp32(plain, prompts)}
        for name, margins in found.items():
            off[name] += sum(abs(m - t) for m, t in zip(margins, truth, strict=True))
    assert off["ours"] <= 1.2 * off["plain"]


def read_in_fp32(engine: PackedEngine, prompts: list[list[int]]) -> list[float]:
    engine.model.set_attn_implementation("eager")
    rows = engine.model.lm_head.weight[engine._answers].float()
    found = []
    for ids in prompts:
        state = engine.model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        yes, no = 30 * torch.tanh(rows @ state.float() / 30)
        found.append(float(yes - no))
    return found


@needs_vnni
def test_int8_is_an_identity_of_its_own_and_near_the_plain_model(tmp_path: Path) -> None:
    folder = save_hot_checkpoint(tmp_path, heat=1.5)
    engine = load_engine(str(folder), device="cpu", quantize="int8")
    engine.check()
    assert engine.identity.dtype == "int8+float32"
    plain = plain_scorer(folder)
    for exchange in EXCHANGES:
        (margins,) = engine.forward(engine.prepare(exchange, POLICIES[:2]).work)
        for margin, policy in zip(margins, POLICIES, strict=False):
            expected = probability(plain(exchange, policy, "chat"))
            assert abs(probability(margin) - expected) < 0.05


def test_int8_is_refused_where_the_processor_lacks_it(
    hot_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ModelError, match="AVX512-VNNI"):
        load_engine(str(hot_checkpoint), device="cpu", quantize="int8")


@pytest.mark.parametrize(
    ("machine", "claims", "expected"),
    [
        ("x86_64", {"amx", "avx512", "onednn"}, "AMX"),
        ("x86_64", {"avx512", "onednn"}, "AVX512-BF16"),
        ("x86_64", {"onednn"}, None),  # it converts, and says that it can
        ("aarch64", {"onednn"}, "Arm BF16"),
        ("aarch64", set(), None),
    ],
)
def test_auto_takes_bf16_where_the_processor_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch, machine: str, claims: set[str], expected: str | None
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: "amx" in claims)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: "avx512" in claims)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: "onednn" in claims)
    narrow = SimpleNamespace(hidden_size=256)
    for width in (576, 2304):
        dtype, why = choose_dtype("auto", CPU, SimpleNamespace(hidden_size=width))
        assert dtype == (torch.bfloat16 if expected else torch.float32)
        assert (expected or "doesn't multiply") in why
    assert choose_dtype("auto", CPU, narrow)[0] == torch.float32
    assert choose_dtype("bfloat16", CPU, narrow)[0] == torch.bfloat16


def test_the_log_says_why_a_dtype_was_chosen(hot_checkpoint: Path) -> None:
    with capture_logs() as logs:
        load_engine(str(hot_checkpoint), device="cpu", dtype="bfloat16")
    (entry,) = [e for e in logs if e["event"] == "model loaded"]
    assert (entry["dtype"], entry["because"]) == ("bfloat16", "as asked for")
