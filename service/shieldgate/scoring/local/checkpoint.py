"""Find a checkpoint, refuse what can't be a scorer, and load it as the hardware allows."""

import hashlib
import logging
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from shieldgate.errors import ModelError, first_line
from shieldgate.plural import counted
from shieldgate.prompt import Template
from shieldgate.scoring.hub import locate
from shieldgate.scoring.local.adapted import is_adapted, load_adapted
from shieldgate.scoring.local.attention import PACKED
from shieldgate.scoring.local.contents import (
    check_adapter,
    check_config,
    check_numbers,
    check_tensors,
    stored_tensors,
)
from shieldgate.scoring.local.dtype import choose_dtype
from shieldgate.scoring.local.families import ModelFamily, find_family
from shieldgate.scoring.local.gguf import alone, read_gguf
from shieldgate.scoring.local.quantization import Quantization, linear_layers
from shieldgate.scoring.local.row_blocks import use_blocks
from shieldgate.scoring.tokenizer_files import TEMPLATE, own_template

LANGUAGES = "languages"
"""The key of config.json under which tuning keeps which languages a checkpoint knows."""

_WANTED = ("*.json", "*.safetensors", "*.jinja", TEMPLATE)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model with its tokenizer; `weights` identifies the content.

    `quantization` names how its weights are held in memory in fewer bits, if they are. `template`
    is what it was trained to be asked, and `languages` are those that it knows, where its folder
    says so.
    """

    name: str
    weights: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    quantization: str | None = None
    template: Template | None = None
    languages: Sequence[str] | None = None

    @property
    def precision(self) -> str:
        """Name what it computes in, as `bfloat16` or `bfloat16+torchao-int8`."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return f"{dtype}+{self.quantization}" if self.quantization else dtype


FindFamily = Callable[[PretrainedConfig], tuple[ModelFamily, PretrainedConfig]]


def load_checkpoint(
    model: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    find: FindFamily = find_family,
) -> Checkpoint:
    """Load `starter`, `small`, a local folder or GGUF file, or a hub id.

    `device` is cpu, cuda, mps or auto; `dtype` float32, bfloat16 or auto. With several GPUs the
    layers are spread over them. `quantize` is how the weights are to be held in fewer bits; `none`
    leaves them as they are stored, and None refuses those that are stored so. `find` raises
    ValueError for a family that can't serve, before weights are read. Raises ModelError, in one
    sentence that says how to mend it, and ConfigurationError where a library is missing.
    """
    source, commit = locate(model, revision, _WANTED)
    weights = commit or _digest(source)
    family, config, stored = _config(source, model, find)
    place = _device(device)
    kind, why = choose_dtype(dtype, place, config)
    quantization = _quantization(model, source, stored, quantize)
    if not sys.stderr.isatty():
        disable_progress_bar()  # it would stand between the lines of a log
    if family.tensors:  # it lists each tensor of the parts that are left out
        logging.getLogger("transformers.modeling_utils").addFilter(_is_no_load_report)
    if is_adapted(source):
        loaded: Any = load_adapted(source, config, kind, PACKED)
        loaded.to(place)
        with _refusal(model):
            check_numbers(loaded.named_parameters())
    else:
        loaded = _loaded(
            source,
            model,
            family,
            config,
            stored=stored,
            quantization=quantization,
            kind=kind,
            place=place,
        )
    tokenizer = _tokenizer(source, model)
    loaded.eval().requires_grad_(False)
    use_blocks(loaded)
    name = f"{_short(model)}@{weights[:12]}"
    quantized = quantization.name if quantization else None
    log.info(
        "model loaded",
        scorer=name,
        dtype=str(kind).removeprefix("torch."),
        because=why,
        device=str(place),
        **({"quantization": quantized} if quantized else {}),
    )
    return Checkpoint(
        name,
        weights,
        loaded,
        tokenizer,
        quantized,
        own_template(source),
        _languages(config),
    )


def _loaded(
    source: Path,
    model: str,
    family: ModelFamily,
    config: PretrainedConfig,
    *,
    stored: Quantization | None,
    quantization: Quantization | None,
    kind: torch.dtype,
    place: torch.device,
) -> PreTrainedModel:
    """Load and check the weights that a source holds, over all GPUs if there are several."""
    how: dict[str, Any] = {}
    layers: Collection[str] = ()
    spread = place.type == "cuda" and torch.cuda.device_count() > 1
    try:
        if source.is_dir():
            with _refusal(model):
                layers = check_tensors(source, family, config, stored)
        if quantization:
            quantization.check(place, kind)
            if stored:
                config.quantization_config = quantization.config(kind).to_dict()
            else:
                how["quantization_config"] = quantization.config(kind)
        with _files(source) as where:
            # Typed by its first overload only; with the loading info it returns a pair.
            pair: Any = AutoModelForCausalLM.from_pretrained(
                **where,
                **how,
                config=config,
                dtype=kind,
                attn_implementation=PACKED,
                device_map="auto" if spread else {"": place},
                local_files_only=True,
                output_loading_info=True,
                key_mapping=dict(family.tensors) or None,
            )
        loaded, report = pair
    except (OSError, SafetensorError) as missing:
        raise ModelError(
            f"{model}: the weights can't be read: {first_line(missing)} "
            "The folder must hold model.safetensors, or its shards with their index."
        ) from missing
    if report["missing_keys"] or report["mismatched_keys"]:
        lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise ModelError(
            f"{model}: the weights lack {counted(len(lacking), 'tensor')} of this architecture, "
            f"{lacking[0]} first. Fetch the checkpoint again."
        )
    with _refusal(model):
        if quantization:
            quantization.check_layers(loaded, layers if stored else linear_layers(loaded).keys())
            check_numbers(stored_tensors(source, family))
        else:
            check_numbers(loaded.named_parameters())
    weights: PreTrainedModel = loaded
    return weights


def _quantization(
    model: str, source: Path, stored: Quantization | None, wanted: str | None
) -> Quantization | None:
    """Settle on how the weights are held; raise ModelError where that isn't what is `wanted`."""
    if wanted is None and stored:
        raise ModelError(
            f"{model} is quantised ({stored.name}), and only a scorer takes such weights. Use the "
            "checkpoint that it was made from."
        )
    if stored or wanted in (None, "none", "int8"):
        if stored and wanted not in ("none", stored.name):
            raise ModelError(
                f"{model} is quantised already ({stored.name}). Leave --quantize out, or use the "
                "checkpoint that it was made from."
            )
        return stored
    if source.is_file() or is_adapted(source):
        raise ModelError(
            f"{model}: weights from GGUF aren't quantised again. Leave --quantize out, or use the "
            "checkpoint that they were made from."
        )
    return Quantization(wanted)


def _files(source: Path) -> AbstractContextManager[dict[str, Any]]:
    """Say to transformers where a checkpoint's files are."""
    if source.is_file():
        return alone(source)
    return nullcontext({"pretrained_model_name_or_path": source, "use_safetensors": True})


@contextmanager
def _refusal(model: str) -> Iterator[None]:
    """Turn a ValueError, the end of a sentence about the checkpoint, into a ModelError."""
    try:
        yield
    except ValueError as refused:
        raise ModelError(f"{model} {refused}") from refused


def _is_no_load_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def load_gguf_tokenizer(file: str) -> tuple[PreTrainedTokenizerBase, int]:
    """Load the tokenizer of a GGUF file without its weights; gives the model's context, too.

    Raises ModelError.
    """
    source, _ = locate(file, None, ())
    _, config, _ = _config(source, file)
    return _tokenizer(source, file), int(config.max_position_embeddings)


def _tokenizer(source: Path, model: str) -> PreTrainedTokenizerBase:
    try:
        with _files(source) as where:
            loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                **where, local_files_only=True
            )
    except Exception as broken:  # the tokenizers library raises nothing narrower
        raise ModelError(
            f"{model}: its tokenizer can't be read: {first_line(broken)} Fetch it again."
        ) from broken
    return loaded


def _digest(source: Path) -> str:
    """Digest all files that decide a score, by name and content; a file alone by its content."""
    if source.is_file():
        with source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    names = sorted({p for pattern in _WANTED for p in source.glob(pattern)})
    for path in names:
        with path.open("rb") as file:
            whole.update(
                f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode()
            )
    return whole.hexdigest()


def _config(
    folder: Path, model: str, find: FindFamily = find_family
) -> tuple[ModelFamily, PretrainedConfig, Quantization | None]:
    if folder.is_file():
        with _refusal(model):
            return *find(read_gguf(folder)), None
    with _refusal(model):
        check_adapter(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{model}: the folder {folder} holds no config.json, so it is no checkpoint. "
            "Give the folder that has config.json, tokenizer.json and the weights."
        )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise ModelError(f"{model}: the folder {folder} lacks {name}. Fetch it again.")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as broken:  # what contradicts itself raises whatever it comes upon
        raise ModelError(
            f"{model}: its config.json can't be read: {first_line(broken)}"
        ) from broken
    with _refusal(model):
        found = find(config)
        return *found, check_config(folder, config)


def _languages(config: PretrainedConfig) -> list[str] | None:
    found = getattr(config, LANGUAGES, None)
    return found if isinstance(found, list) and all(type(one) is str for one in found) else None


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available[wanted]:
        raise ModelError(
            f"The device {wanted} is not available to this build of PyTorch. Use --device auto."
        )
    return torch.device("cuda", 0) if wanted == "cuda" else torch.device(wanted)


def _short(model: str) -> str:
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model
