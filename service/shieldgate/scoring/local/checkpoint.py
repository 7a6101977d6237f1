"""Find a checkpoint, refuse what can't be a scorer, and load it as the hardware allows."""

import hashlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import huggingface_hub
import structlog
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
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

from shieldgate.errors import ModelError
from shieldgate.prompt import Template, find_template
from shieldgate.scoring.local.adapted import is_adapted, load_adapted
from shieldgate.scoring.local.attention import PACKED
from shieldgate.scoring.local.contents import (
    check_adapter,
    check_config,
    check_numbers,
    check_tensors,
)
from shieldgate.scoring.local.families import ModelFamily, find_family
from shieldgate.scoring.local.feedforward import use_blocks

SHIPPED = ("starter", "small")

# In a checkpoint's folder: what it was trained to be asked (docs/templates.md).
TEMPLATE = "template.yaml"
_WANTED = ("*.json", "*.safetensors", "*.jinja", TEMPLATE)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model with its tokenizer; `weights` identifies the content.

    `template` is what it was trained to be asked, where its folder says so.
    """

    name: str
    weights: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template | None = None


FindFamily = Callable[[PretrainedConfig], tuple[ModelFamily, PretrainedConfig]]


def load_checkpoint(
    model: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    find: FindFamily = find_family,
) -> Checkpoint:
    """Load `starter`, `small`, a local folder, or a hub id such as `google/shieldgemma-2b`.

    `device` is cpu, cuda, mps or auto; `dtype` float32, bfloat16 or auto. With several GPUs the
    layers are spread over them. `find` raises ValueError for a family that can't serve, before
    weights are read. Raises ModelError, in one sentence that says how to
    mend it.
    """
    folder, commit = _locate(model, revision, _WANTED)
    weights = commit or _digest(folder)
    family, config = _config(folder, model, find)
    place = _device(device)
    kind = _dtype(dtype, place)
    if not sys.stderr.isatty():
        disable_progress_bar()  # it would stand between the lines of a log
    if family.tensors:  # it lists each tensor of the parts that are left out
        logging.getLogger("transformers.modeling_utils").addFilter(_is_no_load_report)
    if is_adapted(folder):
        loaded: Any = load_adapted(folder, config, kind, PACKED)
        loaded.to(place)
    else:
        loaded = _loaded(folder, model, family, config, kind=kind, place=place)
    with _refusal(model):
        check_numbers(loaded)
    tokenizer = _tokenizer(folder, model)
    loaded.eval().requires_grad_(False)
    use_blocks(loaded)
    name = f"{_short(model)}@{weights[:12]}"
    log.info("model loaded", scorer=name, dtype=str(kind).removeprefix("torch."), device=str(place))
    loaded.name_or_path = str(folder)
    return Checkpoint(name, weights, loaded, tokenizer, _template(folder))


def _loaded(
    folder: Path,
    model: str,
    family: ModelFamily,
    config: PretrainedConfig,
    *,
    kind: torch.dtype,
    place: torch.device,
) -> PreTrainedModel:
    """Load the weights that a folder holds, over all GPUs if there are several."""
    spread = place.type == "cuda" and torch.cuda.device_count() > 1
    try:
        with _refusal(model):
            check_tensors(folder, family, config)
        # Typed by its first overload only; with the loading info it returns a pair.
        pair: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=kind,
            attn_implementation=PACKED,
            device_map="auto" if spread else {"": place},
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            key_mapping=dict(family.tensors) or None,
        )
        loaded, report = pair
    except (OSError, SafetensorError) as missing:
        raise ModelError(
            f"{model}: the weights can't be read: {_first_line(missing)} "
            "The folder must hold model.safetensors, or its shards with their index."
        ) from missing
    if report["missing_keys"] or report["mismatched_keys"]:
        lacking = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise ModelError(
            f"{model}: the weights lack {len(lacking)} tensors of this architecture, "
            f"{lacking[0]} first. Fetch the checkpoint again."
        )
    weights: PreTrainedModel = loaded
    return weights


@contextmanager
def _refusal(model: str) -> Iterator[None]:
    """Turn a ValueError, the end of a sentence about the checkpoint, into a ModelError."""
    try:
        yield
    except ValueError as refused:
        raise ModelError(f"{model} {refused}") from refused


def _is_no_load_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def load_tokenizer(
    model: str, *, revision: str | None = None
) -> tuple[PreTrainedTokenizerBase, int, Template | None]:
    """Load a checkpoint's tokenizer without its weights.

    Gives the model's context in tokens and its own template, too. Raises ModelError.
    """
    folder, _ = _locate(model, revision, ("*.json", "*.jinja", TEMPLATE))
    _, config = _config(folder, model)
    return _tokenizer(folder, model), int(config.max_position_embeddings), _template(folder)


def _template(folder: Path) -> Template | None:
    """Read what a checkpoint was trained to be asked, if its folder holds that."""
    file = folder / TEMPLATE
    return find_template(str(file)) if file.is_file() else None


def _tokenizer(folder: Path, model: str) -> PreTrainedTokenizerBase:
    try:
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True
        )
    except Exception as broken:  # the tokenizers library raises nothing narrower
        raise ModelError(
            f"{model}: its tokenizer can't be read: {_first_line(broken)} Fetch it again."
        ) from broken
    return loaded


def _locate(model: str, revision: str | None, wanted: Sequence[str]) -> tuple[Path, str | None]:
    """Find the folder that has the `wanted` files; from the hub also the commit, fetched if new."""
    if model in SHIPPED:
        return Path(str(files("shieldgate") / model)), None
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder, None
    if folder.is_absolute() or model.startswith(("./", "../", "~")) or model.count("/") != 1:
        raise ModelError(
            f"{model}: there is no such folder. Give 'starter', 'small', the folder of a "
            "checkpoint, or a hub id such as google/shieldgemma-2b."
        )
    return _fetch(model, revision, wanted)


def _fetch(model: str, revision: str | None, wanted: Sequence[str]) -> tuple[Path, str]:
    try:
        path = Path(
            huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=list(wanted))
        )
    except GatedRepoError as refused:
        raise ModelError(
            f"{model} is gated. Accept its licence on its page at the hub, then set HF_TOKEN to a "
            "token of that account, or run `hf auth login`."
        ) from refused
    except RevisionNotFoundError as refused:
        raise ModelError(f"{model} has no revision {revision!r}.") from refused
    except RepositoryNotFoundError as refused:
        raise ModelError(
            f"The hub has no model {model}, or it is private. Check the spelling; for a private "
            "model, set HF_TOKEN."
        ) from refused
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as refused:
        raise ModelError(
            f"{model} is not in the local cache and the hub can't be reached. Connect once to "
            "download it, or give the path of a folder that holds it."
        ) from refused
    # A snapshot's folder is named after the commit, which identifies its content.
    return path, path.name


def _digest(folder: Path) -> str:
    """Digest all files that decide a score, by name and content."""
    whole = hashlib.sha256()
    names = sorted({p for pattern in _WANTED for p in folder.glob(pattern)})
    for path in names:
        with path.open("rb") as file:
            whole.update(
                f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode()
            )
    return whole.hexdigest()


def _config(
    folder: Path, model: str, find: FindFamily = find_family
) -> tuple[ModelFamily, PretrainedConfig]:
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
            f"{model}: its config.json can't be read: {_first_line(broken)}"
        ) from broken
    with _refusal(model):
        found = find(config)
        check_config(folder, config)
    return found


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


def _dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Choose bfloat16 where the hardware has it, else float32; float16 overflows in Gemma."""
    if wanted == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]


def _short(model: str) -> str:
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
