"""What is raced: a Gemma 2 of the 2B's proportions, its tokenizer, and texts of known length."""

import copy
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import Gemma2Config, Gemma2ForCausalLM, TokenizersBackend

from shieldgate.policy import load_book
from shieldgate.prompt import TEMPLATES
from shieldgate.scoring.local import Checkpoint, PackedEngine, use_for_scoring
from shieldgate.scoring.local.attention import PACKED
from shieldgate.scoring.local.row_blocks import use_blocks
from shieldgate.scoring.pack import Pack

TEMPLATE = TEMPLATES["chat"]
UNKNOWN = "<unk>"
SPECIAL = ("<pad>", "<eos>", "<bos>", UNKNOWN, "<start_of_turn>", "<end_of_turn>")
SENTENCE = (
    "please tell me how long the bread should stay in a warm oven before it is done and what "
    "kind of flour my neighbour would take for the small white rolls that we ate last Sunday"
)


@dataclass(frozen=True)
class Plan:
    """What one run measures; `seconds` is what the rounds of one text may take."""

    shape: Mapping[str, Any]
    texts: tuple[int, ...]
    policies: tuple[int, ...]
    policies_text: int
    long_text: int
    answer: int
    seconds: float


# The 2B has 26 layers and a vocabulary of 256,000; with 6 layers, 6/26 of the vocabulary keeps
# the ratio between the output embedding and the body.
FULL = Plan(
    shape={
        "vocab_size": 256_000 * 6 // 26,
        "hidden_size": 2304,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "intermediate_size": 9216,
        "query_pre_attn_scalar": 256,
    },
    texts=(20, 100, 300, 1000),
    policies=(1, 2, 4, 8),
    policies_text=300,
    long_text=8000,
    answer=1000,
    seconds=40.0,
)

# A smoke run: shows that the bench works, and nothing about speed.
QUICK = Plan(
    shape={
        "vocab_size": 4096,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 512,
        "query_pre_attn_scalar": 32,
    },
    texts=(20, 100),
    policies=(1, 2),
    policies_text=20,
    long_text=1000,
    answer=200,
    seconds=0.0,
)


class Subject:
    """One model, seen by our engine (`scorer`) and by transformers as it comes (`plain`)."""

    def __init__(self, plan: Plan) -> None:
        """Make the model from its config, with random weights; both views share them."""
        torch.manual_seed(0)
        self.config = Gemma2Config(**plan.shape, pad_token_id=0, eos_token_id=1, bos_token_id=2)
        self.plain = Gemma2ForCausalLM(self.config).eval().requires_grad_(False)
        self.plain.set_attn_implementation("eager")
        book = load_book()
        # The four policies of the model card come first, then the rest of the family.
        self.policies = sorted(
            book.policies.values(), key=lambda p: not p.id.startswith("shieldgemma/")
        )
        guidelines = (p.guidelines["prompt"] for p in self.policies)
        self.tokenizer = word_tokenizer([TEMPLATE.for_prompt, f" {SENTENCE}", *guidelines])

    @cached_property
    def scorer(self) -> PackedEngine:
        """Our engine on the same weights."""
        ours = copy.deepcopy(self.plain, {id(p): p for p in self.plain.parameters()})
        return self._engine(ours)

    @cached_property
    def bf16(self) -> Gemma2ForCausalLM:
        """The model as transformers has it, rounded to bf16."""
        return copy.deepcopy(self.plain).bfloat16()

    def in_bf16(self, quantize: str | None = None) -> PackedEngine:
        """Make an engine on the rounded weights, or on those in int8; raise ModelError."""
        ours = copy.deepcopy(self.bf16, {id(p): p for p in self.bf16.parameters()})
        return self._engine(ours, quantize)

    def _engine(self, model: Gemma2ForCausalLM, quantize: str | None = None) -> PackedEngine:
        model.set_attn_implementation(PACKED)
        use_blocks(model)
        use_for_scoring(model, quantize)
        engine = PackedEngine(Checkpoint("bench", "random", model, self.tokenizer), TEMPLATE)
        engine.remember_preambles()
        return engine

    def remembered(self, work: Pack) -> int:
        """Count the tokens of a prompt that are not computed, because all prompts begin so."""
        memory = self.scorer._remember([work])
        return sum(memory.lengths) if memory else 0

    def text(self, tokens: int) -> str:
        """Write a text of that many tokens."""
        return " ".join(random.Random(tokens).choices(SENTENCE.split(), k=tokens))


def word_tokenizer(texts: Iterable[str]) -> TokenizersBackend:
    """Make a tokenizer that cuts these texts about as Gemma's does.

    Space as ▁, a word with the space before it as one token, newline runs and punctuation apart.
    Gemma's cuts a few rare words in two or three, so its counts are a little higher.
    """
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    pieces = Regex(r"\n+|▁?\w+|▁?[^\w\s▁]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, "isolated")
    seen = dict.fromkeys(
        piece
        for text in texts
        for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text.replace(" ", "▁"))
    )
    names = [*SPECIAL, *seen]
    tokenizer.model = models.WordLevel({n: i for i, n in enumerate(names)}, unk_token=UNKNOWN)
    tokenizer.add_special_tokens(list(SPECIAL))
    known = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")}
    return TokenizersBackend(tokenizer_object=tokenizer, **known)
