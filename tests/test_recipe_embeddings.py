"""What a sentence encoder makes of the rows: a real BERT, small, made from config."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from recipes.starter.embeddings import embeddings
from shieldgate.errors import ConfigurationError

WORDS = ("[PAD]", "[UNK]", "one", "two", "three", "four", "five")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def plain(text: str, encoder: Path) -> Tensor:
    """The mean of the last states of a text that is encoded alone, in fp32."""
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModel.from_pretrained(encoder).eval()
    with torch.no_grad():
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
    return torch.as_tensor(states[0].mean(0))


def test_an_embedding_is_the_mean_of_the_last_states_whatever_stands_beside(
    encoder: Path, tmp_path: Path
) -> None:
    texts = ["one two three four five one two", "two", "five four", "three three two one"]
    seen: list[int] = []
    found = embeddings(texts, str(encoder), tmp_path / "embeddings.npy", seen.append)
    wanted = torch.stack([plain(text, encoder) for text in texts])
    wanted = (wanted - wanted.mean(0)) / wanted.std(0)
    assert found.dtype == torch.float16
    assert seen[-1] == len(texts)
    torch.testing.assert_close(found.float(), wanted, atol=0.1, rtol=0)  # bf16


def test_embeddings_are_kept(encoder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "embeddings.npy"
    first = embeddings(["one", "two", "three"], str(encoder), kept, lambda done: None)
    again = embeddings(["one", "two", "three"], "none such", kept, lambda done: None)
    assert torch.equal(first, again)


def test_an_encoder_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(ConfigurationError, match=r"--encoder .*missing"):
        embeddings(["one"], missing, tmp_path / "embeddings.npy", lambda done: None)
