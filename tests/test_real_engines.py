"""Scores by engines that we didn't write are those of the plain model, as near as each can come."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from engines_elsewhere import healthy, llama_server, vllm
from test_engines_elsewhere import asking
from test_packed_engine import EXCHANGES, POLICIES, Plain, plain_scorer, probability, words
from test_serve_chat import transformers_serving

from shieldgate.errors import ConfigurationError, ModelError
from shieldgate.prompt import TEMPLATES
from shieldgate.scoring import OpenScorer
from shieldgate.scoring.prompts import PromptBuilder
from shieldgate.scoring.tokenizer_files import load_tokenizer
from shieldgate.types import Exchange

pytestmark = pytest.mark.timeout(600)

POLICIES_ASKED = POLICIES[:4]

# How far a probability may be from the plain model's on the hot checkpoint, which magnifies
# rounding: 3e-6 and 8e-4 were seen. llama.cpp's kernels round intermediate results.
VLLM, LLAMA_CPP = 1e-4, 3e-3


@pytest.fixture(scope="module")
def vllm_url(vllm_python: str, hot_checkpoint: Path) -> Iterator[str]:
    with vllm(vllm_python, hot_checkpoint) as url:
        yield url


@pytest.fixture(scope="module")
def llama_url(
    llama_program: str, hot_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    from gguf_checkpoints import save_gguf

    file = save_gguf(hot_checkpoint, tmp_path_factory.mktemp("gguf") / "hot.gguf")
    with llama_server(llama_program, file) as url:
        yield url


async def worst(scorer: OpenScorer, plain: Plain, exchanges: Sequence[Exchange]) -> float:
    """Tell how far the probabilities are from a plain model's, at most."""
    differences = []
    for exchange in exchanges:
        for policy, score in zip(
            POLICIES_ASKED, await scorer.score(exchange, POLICIES_ASKED), strict=True
        ):
            expected = probability(plain(exchange, policy, "chat"))
            differences.append(abs(probability(score.margin) - expected))
    return max(differences)


def windowed(checkpoint: Path, exchange: Exchange, context: int) -> list[float]:
    """Score in windows of `context` tokens, each prompt by the plain model's packed twin."""
    from shieldgate.scoring.local import load_engine

    template, encoder = load_tokenizer(str(checkpoint)).encoder(TEMPLATES["chat"])
    prepared = PromptBuilder(template, encoder, context).prepare(exchange, POLICIES_ASKED)
    assert len(prepared.work) > 2
    margins = load_engine(str(checkpoint), device="cpu").forward(prepared.work)
    return [probability(score.margin) for score in prepared.scores(margins)]


async def test_vllm_gives_the_plain_models_probabilities_and_a_wrong_one_would_show(
    vllm_url: str, hot_checkpoint: Path
):
    async with asking(vllm_url, hot_checkpoint) as scorer:
        assert scorer.identity.dtype.startswith("vllm ")
        assert await worst(scorer, plain_scorer(hot_checkpoint), EXCHANGES) <= VLLM
        for ablation in (
            {"final_logit_softcapping": None},
            {"attn_logit_softcapping": None},
            {"sliding_window": 100_000},
        ):
            wrong = plain_scorer(hot_checkpoint, **ablation)
            assert await worst(scorer, wrong, EXCHANGES) > 50 * VLLM, ablation

        long = Exchange(words(4000, seed=8))
        found = [probability(s.margin) for s in await scorer.score(long, POLICIES_ASKED)]
        assert found == pytest.approx(windowed(hot_checkpoint, long, 2047), abs=VLLM)


async def test_vllm_is_refused_what_would_be_wrong_of_it(
    vllm_url: str, hot_checkpoint: Path, tmp_path: Path
):
    """By its words, its labels are not among the likeliest here; a model that isn't there."""
    with pytest.raises(ModelError, match="without the log-probability of"):
        async with asking(vllm_url, hot_checkpoint, engine="openai"):
            pass
    with pytest.raises(ConfigurationError, match="say which one with --served-model"):
        async with asking(vllm_url, hot_checkpoint, served_model="other"):
            pass
    starter = Path(__file__).parents[1] / "service/shieldgate/starter"
    with pytest.raises(ModelError):
        async with asking(vllm_url, starter):
            pass


async def test_llama_cpp_comes_near_the_plain_model_and_a_wrong_one_would_show(
    llama_url: str, hot_checkpoint: Path
):
    async with asking(llama_url, hot_checkpoint) as scorer:
        assert scorer.identity.dtype.startswith("llama.cpp ")
        assert await worst(scorer, plain_scorer(hot_checkpoint), EXCHANGES) <= LLAMA_CPP
        for ablation in (
            {"final_logit_softcapping": None},
            {"attn_logit_softcapping": None},
            {"sliding_window": 100_000},
        ):
            wrong = plain_scorer(hot_checkpoint, **ablation)
            assert await worst(scorer, wrong, EXCHANGES) > 2 * LLAMA_CPP, ablation


async def test_a_server_without_log_probabilities_of_token_ids_is_refused(
    transformers_serve: str, hot_checkpoint: Path
):
    with transformers_serving(transformers_serve, hot_checkpoint) as url:
        while not healthy(url.removesuffix("/v1")):  # it says that it has started before it has
            await asyncio.sleep(0.1)
        with pytest.raises(ModelError, match="It must take token ids as prompts"):
            async with asking(url, hot_checkpoint, engine="openai", served_model="hot"):
                pass
