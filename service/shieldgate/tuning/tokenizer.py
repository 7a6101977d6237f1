"""Build a small tokenizer of Gemma's kind: space as ▁, newline runs as tokens, byte fallback."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

from tokenizers import AddedToken, Regex, Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import Split
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from shieldgate.prompt import GEMMA_CONTROL_TOKENS, Template

_CONTROL = ("<pad>", "<eos>", *GEMMA_CONTROL_TOKENS[:1], "<unk>", *GEMMA_CONTROL_TOKENS[1:])
_NEWLINES = tuple("\n" * n for n in range(1, 17))
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
# A word keeps the space before it; digits stand alone, as in Gemma; punctuation keeps no letters.
_WORDS = Regex(r"▁?\p{L}+|▁?\p{N}|▁?[^\p{L}\p{N}▁]+|▁+")
# Enough for every letter and emoji that the data shows more than a few times.
_ALPHABET = 400


def train_tokenizer(
    texts: Iterable[str],
    size: int,
    template: Template,
    context: int,
    phrases: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """Train a tokenizer of `size` tokens on `texts`; `context` is the model's, in tokens.

    Each fixed sentence of `template` and each of `phrases` becomes one ordinary token, so that a
    branch is little more than its guideline. These are no control tokens: who types such a
    sentence gets its token, and has said nothing that other words could not say.
    """
    fixed = (*_NEWLINES, *_sentences(template), *phrases)
    pieces, merges = _learn(texts, size - len(_CONTROL) - len(fixed) - len(_BYTES))
    vocabulary = {t: i for i, t in enumerate((*_CONTROL, *fixed, *_BYTES, *pieces))}
    backend = Tokenizer(
        BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    _split_into_words(backend)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in _CONTROL])
    backend.add_tokens([AddedToken(t, normalized=False) for t in fixed])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=list(GEMMA_CONTROL_TOKENS[1:]),
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def _learn(texts: Iterable[str], size: int) -> tuple[Sequence[str], list[tuple[str, str]]]:
    """Learn `size` pieces, single characters included, and the merges that build them."""
    lines = [line.replace(" ", "▁") for text in texts for line in text.split("\n")]
    # Often enough that both answers surely end as one piece, with no space before them.
    lines += ["Yes", "No"] * 1000
    learner = Tokenizer(BPE())
    _split_into_words(learner)
    alphabet = _alphabet(lines)
    trainer = BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator(lines, trainer)
    model = json.loads(learner.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return pieces, [(left, right) for left, right in model["merges"]]


def _alphabet(lines: Iterable[str]) -> list[str]:
    """List the most frequent characters; the library would break ties between them by chance."""
    counts = Counter(chain.from_iterable(lines))
    return sorted(counts, key=lambda character: (-counts[character], character))[:_ALPHABET]


def _split_into_words(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = Replace(" ", "▁")
    tokenizer.pre_tokenizer = Split(_WORDS, behavior="isolated")


def _sentences(template: Template) -> Iterable[str]:
    """List the fixed lines of a template that hold at least three words."""
    lines = (template.for_prompt + "\n" + (template.for_response or "")).split("\n")
    for line in dict.fromkeys(lines):
        if "{" not in line and len(line.split()) > 2:
            yield line.removeprefix("<bos>")
