"""A Gemma 2 checkpoint as a GGUF file in fp32, as llama.cpp's own converter lays it out."""

import json
from pathlib import Path

import gguf
from safetensors.numpy import load_file
from transformers import AutoConfig

_TYPES = {"<unk>": gguf.TokenType.UNKNOWN}


def save_gguf(checkpoint: Path, file: Path) -> Path:
    """Write the weights and the vocabulary; its merges are left out, as ids are all it is sent."""
    config = AutoConfig.from_pretrained(checkpoint)
    writer = gguf.GGUFWriter(file, "gemma2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)
    _add_vocabulary(writer, checkpoint, config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA2, config.num_hidden_layers)
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        # llama.cpp multiplies by the weights of a norm, and Gemma by 1 + them.
        values = tensor + 1 if name.endswith("norm.weight") else tensor
        writer.add_tensor(names.get_name(name, (".weight",)), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_vocabulary(writer: gguf.GGUFWriter, checkpoint: Path, size: int) -> None:
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    vocabulary = dict(tokenizer["model"]["vocab"])
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    by_id = {i: token for token, i in {**vocabulary, **added}.items()}
    tokens = [by_id.get(i, f"<unused{i}>") for i in range(size)]
    kinds = [_kind(token, token in added) for token in tokens]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(size)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(tokens.index("<bos>"))
    writer.add_eos_token_id(tokens.index("<eos>"))
    writer.add_unk_token_id(tokens.index("<unk>"))
    writer.add_pad_token_id(tokens.index("<pad>"))
    writer.add_add_space_prefix(False)


def _kind(token: str, added: bool) -> gguf.TokenType:
    if token.startswith("<0x"):
        return gguf.TokenType.BYTE
    if token.startswith("<unused"):
        return gguf.TokenType.UNUSED
    return _TYPES.get(token, gguf.TokenType.CONTROL if added else gguf.TokenType.NORMAL)
