"""A checkpoint made trainable, asked as for scoring, and saved as a checkpoint again."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from shieldgate.errors import ConfigurationError, needed
from shieldgate.policy import Policy
from shieldgate.scoring.local import PackedEngine
from shieldgate.scoring.local.checkpoint import LANGUAGES
from shieldgate.scoring.local.decoder import sliding_window
from shieldgate.scoring.local.dtype import choose_dtype
from shieldgate.scoring.pack import Pack
from shieldgate.tuning.attention import PADDED, Padded, by_size
from shieldgate.types import Exchange

Method = Literal["full", "lora"]
# Parameters from which the optimizer's copies of all weights no longer fit one GPU.
LARGE = 500_000_000
RANK = 16
_ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "template.yaml",
)


def method_for(model: PreTrainedModel) -> Method:
    """Choose by size: all weights of a small model, low-rank adapters of a large one."""
    return "lora" if sum(p.numel() for p in model.parameters()) >= LARGE else "full"


@dataclass(frozen=True, slots=True)
class TrainableScorer:
    """A scorer in training: prompts, tokens, packs and margins are the scorer's own.

    A pass holds about `tokens` tokens, padding counted, and multiplies in `dtype`.
    """

    scorer: PackedEngine
    method: Method
    tokens: int
    dtype: torch.dtype

    @classmethod
    def of(
        cls, scorer: PackedEngine, method: Method, *, tokens: int, seed: int
    ) -> "TrainableScorer":
        """Make a scorer's model trainable, in place; the seed draws what adapters start from.

        Adapters are fp32 beside weights of any dtype (LoRA, arXiv 2106.09685). For full training
        the weights should be fp32; products are in bf16 all the same where the hardware has it
        (mixed precision, arXiv 1710.03740). Raises ConfigurationError where peft is missing, or the
        model is spread over several devices.
        """
        torch.manual_seed(seed)
        model = scorer.model
        if len({parameter.device for parameter in model.parameters()}) > 1:
            raise ConfigurationError(
                "The base is spread over several GPUs, and training takes one. "
                "Set CUDA_VISIBLE_DEVICES=0."
            )
        model.set_attn_implementation(PADDED)
        model.train()
        if method == "full":
            model.requires_grad_(True)
        else:
            _add_adapters(model)
            # One layer's activations at a time; the others are computed again going backwards.
            model.activation_checkpointing_enable()
        dtype, _ = choose_dtype("auto", model.device, model.config, narrow=0)
        return cls(scorer, method, tokens, dtype)

    def passes(
        self, asked: Sequence[tuple[Exchange, Sequence[Policy]]]
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Ask of each exchange its policies; yields the margins of each pass, fp32 [branches].

        Beside them stand the indices of the exchanges they belong to, in their order. The margin
        of a text in several windows is the highest, as in scoring.
        """
        work = [self.scorer.prepare(exchange, policies).work for exchange, policies in asked]
        whole = [index for index, packs in enumerate(work) if len(packs) == 1]
        for group in by_size([work[index][0] for index in whole], self.tokens):
            indices = [whole[i] for i in group]
            yield indices, self._margins([work[index][0] for index in indices])
        for index, packs in enumerate(work):
            if len(packs) > 1:
                yield [index], self._margins(packs).view(len(packs), -1).amax(0)

    @torch.no_grad()
    def ask(self, asked: Sequence[tuple[Exchange, Sequence[Policy]]]) -> list[list[float]]:
        """Score exchanges as they stand; the margins of each exchange's policies, in order."""
        found: list[list[float]] = [[] for _ in asked]
        for indices, margins in self.passes(asked):
            flat = iter(margins.tolist())
            for index in indices:
                found[index] = [next(flat) for _ in asked[index][1]]
        return found

    def save(self, folder: Path) -> None:
        """Save a checkpoint like the base's, in its dtype, with its tokenizer; ends training."""
        model: Any = self.scorer.model  # its own types hide what it is after peft
        base = Path(model.name_or_path)
        if self.method == "lora":
            _merge_adapters(model)
        kind = AutoConfig.from_pretrained(base, local_files_only=True).dtype or torch.float32
        model.activation_checkpointing_disable()
        if self.scorer.identity.languages is not None:
            setattr(model.config, LANGUAGES, list(self.scorer.identity.languages))
        # As the decoder that it is now, even if it was loaded as a part of a larger model.
        model.to(kind).save_pretrained(folder, save_original_format=False)
        for weights in folder.glob("*.safetensors"):
            # Their writer lets nobody else read them, such as the user that serves.
            shutil.copymode(folder / "config.json", weights)
        for name in _COPIED:
            if (base / name).is_file():
                shutil.copyfile(base / name, folder / name)

    def _margins(self, packs: Sequence[Pack]) -> Tensor:
        model = self.scorer.model
        layout = Padded.of(packs, sliding_window(model)).to(model.device)
        mixed = model.dtype == torch.float32 and self.dtype == torch.bfloat16
        with torch.autocast(model.device.type, torch.bfloat16, enabled=mixed):
            return self.scorer.margins(layout)


def _add_adapters(model: PreTrainedModel) -> None:
    with needed("Training a large model", "tune"):
        from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(_ADAPTED))
    inject_adapter_in_model(config, model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # peft made them like the weights beside them


def _merge_adapters(model: PreTrainedModel) -> None:
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.get_base_layer())
