"""Small Gemma 2 checkpoints made from config, on which a wrong engine shows.

Plain random weights can't tell a right engine from a wrong one: dropping a soft-cap hardly moves
their scores. These are hot (sharp attention, large logits) and yet not saturated.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import Gemma2Config, Gemma2ForCausalLM, TokenizersBackend

from shieldgate.prompt import TEMPLATES

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
WORDS = (
    "the quick brown fox jumps over a lazy dog while seven wizards brew tea and count stars "
    "Yes No bread threat weapon kind word number 0 1 2 3 4 5 6 7 8 9 naïve café 東京 no yes"
).split()

# The chat template of google/gemma-2-2b-it.
GEMMA_CHAT_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)


def gemma_tokenizer(*, markers_special: bool = True) -> TokenizersBackend:
    """Train a tokenizer shaped like Gemma's: space as ▁, newline runs as tokens, byte fallback.

    With `markers_special=False` the turn markers are ordinary added tokens, as in some
    checkpoints.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=[*SPECIAL, *(f"<0x{i:02X}>" for i in range(256))],
        show_progress=False,
    )
    texts = [*(t.for_prompt for t in TEMPLATES.values()), " ".join(WORDS), *["Yes", "No"] * 50]
    tokenizer.train_from_iterator(texts, trainer)
    as_json = tokenizer.to_str()
    tokenizer = Tokenizer.from_str(_without_byte_specials(as_json, markers_special))
    tokenizer.add_tokens([AddedToken("\n" * n, normalized=False) for n in range(2, 9)])
    return TokenizersBackend(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def _without_byte_specials(as_json: str, markers_special: bool) -> str:
    """Keep the byte tokens in the vocabulary without matching them in text, as Gemma does."""
    data: dict[str, Any] = json.loads(as_json)
    kept = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    for token in kept:
        if "turn" in token["content"]:
            token["special"] = markers_special
    data["added_tokens"] = kept
    return json.dumps(data)


def save_hot_checkpoint(folder: Path, *, heat: float = 6.0, **config: Any) -> Path:
    """Save a hot Gemma 2: 4 layers, 128 wide, grouped heads, a window of 64 tokens.

    `heat` sharpens the attention; at 6 even rounding to bf16 moves scores visibly.
    """
    tokenizer = gemma_tokenizer()
    shape: dict[str, Any] = {
        "vocab_size": 1280,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 512,
        "query_pre_attn_scalar": 32,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 64,
        "initializer_range": 0.08,
        "max_position_embeddings": 8192,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(**(shape | config)))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= heat
            layer.self_attn.k_proj.weight *= heat
        model.model.norm.weight += 20
        embedding = model.model.embed_tokens.weight
        yes, no = tokenizer.convert_tokens_to_ids(["Yes", "No"])
        embedding[no] = embedding[yes] + 0.06 * embedding[no]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_deeper_checkpoint(folder: Path, shallow: Path, *, extra: int, weight: float) -> Path:
    """Save a checkpoint with `extra` more layers, which say nearly the same at a small `weight`."""
    small = Gemma2ForCausalLM.from_pretrained(shallow)
    layers = small.config.num_hidden_layers
    config = small.config.to_dict() | {"num_hidden_layers": layers + extra}
    config.pop("layer_types")
    torch.manual_seed(1)
    deep = Gemma2ForCausalLM(Gemma2Config(**config))
    deep.load_state_dict(small.state_dict(), strict=False)
    with torch.no_grad():
        for layer in deep.model.layers[layers:]:
            for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
                norm.weight.fill_(weight - 1)
    deep.save_pretrained(folder)
    TokenizersBackend.from_pretrained(shallow).save_pretrained(folder)
    return folder


def calm_config(vocab_size: int = 1280) -> Gemma2Config:
    """Describe a small Gemma 2 that can learn something in a second."""
    return Gemma2Config(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=64,
        max_position_embeddings=512,
        initializer_range=0.1,
    )


def save_calm_checkpoint(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Save a checkpoint of that kind."""
    torch.manual_seed(0)
    Gemma2ForCausalLM(calm_config()).to(dtype).save_pretrained(folder)
    gemma_tokenizer().save_pretrained(folder)
    return folder
