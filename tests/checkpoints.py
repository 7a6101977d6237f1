"""Small checkpoints made from config, on which a wrong engine shows.

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
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    TokenizersBackend,
)

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


# What the families have besides the shape that all hot checkpoints share.
_WINDOW = {"sliding_window": 64}
_UPPER_HALF_SLIDES = {**_WINDOW, "use_sliding_window": True, "max_window_layers": 2}
_GEMMA_3 = {**_WINDOW, "query_pre_attn_scalar": 32, "sliding_window_pattern": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "gemma2": {
        **_WINDOW,
        "query_pre_attn_scalar": 32,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3": _GEMMA_3,
    "gemma3_text": _GEMMA_3,
    "llama": {},
    "ministral": {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "mistral": _WINDOW,
    "qwen2": _UPPER_HALF_SLIDES,
    "qwen3": _UPPER_HALF_SLIDES,
}


def make_model(family: str, **config: Any) -> Any:
    """Make a small model of a family: 4 layers, 128 wide, grouped heads, untrained."""
    shape: dict[str, Any] = {
        "vocab_size": 1280,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 512,
        "initializer_range": 0.08,
        "max_position_embeddings": 8192,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    shape |= SHAPES[family] | config
    if family == "gemma3":
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        vision |= {"num_attention_heads": 1, "image_size": 14, "patch_size": 14}
        shape = {"text_config": shape, "vision_config": vision, "mm_tokens_per_image": 1}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape))


def save_hot_checkpoint(
    folder: Path, *, family: str = "gemma2", heat: float | None = None, **config: Any
) -> Path:
    """Save a hot model, with a window of 64 tokens if its family has one.

    `heat` sharpens the attention: at 6, Gemma 2's, even rounding to bf16 moves scores visibly;
    at 2 that of families without a soft-cap is as sharp.
    """
    heat = heat or (6.0 if family == "gemma2" else 2.0)
    tokenizer = gemma_tokenizer()
    model = make_model(family, **config)
    decoder = model.get_decoder()
    with torch.no_grad():
        for layer in decoder.layers:
            attention = layer.self_attn
            if hasattr(attention, "q_norm"):  # it would undo what is done to the projections
                attention.q_norm.weight += heat - 1
                attention.k_norm.weight += heat - 1
            else:
                attention.q_proj.weight *= heat
                attention.k_proj.weight *= heat
        decoder.norm.weight += 20
        head = model.get_output_embeddings().weight
        yes, no = tokenizer.convert_tokens_to_ids(["Yes", "No"])
        head[no] = head[yes] + 0.06 * head[no]
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


def save_spelling_checkpoint(folder: Path) -> Path:
    """Save one of that kind whose tokens are characters: its texts encode to what it wrote."""
    characters = [chr(i) for i in (*range(32, 127), *range(0x4E00, 0x4E00 + 400))]
    vocab = {token: i for i, token in enumerate((*SPECIAL, *characters))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=True))
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    tokenizer.decoder = decoders.Fuse()
    torch.manual_seed(0)
    Gemma2ForCausalLM(calm_config(len(vocab))).save_pretrained(folder)
    TokenizersBackend(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    return folder


def save_calm_checkpoint(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Save a checkpoint of that kind."""
    torch.manual_seed(0)
    Gemma2ForCausalLM(calm_config()).to(dtype).save_pretrained(folder)
    gemma_tokenizer().save_pretrained(folder)
    return folder
