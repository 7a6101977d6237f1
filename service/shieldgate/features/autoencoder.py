"""JumpReLU sparse autoencoders in the layouts of Gemma Scope and Gemma Scope 2."""

import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shieldgate.errors import ConfigurationError, first_line
from shieldgate.evaluation.files import replace_file

_PARTS = ("w_enc", "b_enc", "w_dec", "b_dec", "threshold")
_FILES = ("params.npz", "params.safetensors")
_DTYPES = {torch.float32, torch.float16, torch.bfloat16}
# Of 64 rows even a million features take 256 MB for a moment.
_BLOCK_ROWS = 64
# Gemma Scope names folders layer_20/width_16k/…, and Gemma Scope 2 layer_20_width_16k_…
_LAYER = re.compile(r"layer_(\d+)(?:_width_.*)?")
_AFTER_A_LAYER = re.compile(r"(?:\w+\.)*layers\.(\d+)\.output")


@dataclass(frozen=True, slots=True)
class Firing:
    """Which features fire on which rows: three tensors of one length, row by row.

    `values` are activations, above 0.
    """

    rows: Tensor
    features: Tensor
    values: Tensor

    def on(self, rows: Tensor) -> "Firing":
        """Keep what fires on some rows, given as bool [rows]."""
        kept = rows[self.rows]
        return Firing(self.rows[kept], self.features[kept], self.values[kept])

    def of(self, feature: int) -> "Firing":
        """Keep one feature."""
        kept = self.features == feature
        return Firing(self.rows[kept], self.features[kept], self.values[kept])


@dataclass(frozen=True, slots=True)
class SparseAutoencoder:
    """Features of the residual stream after a layer (Gemma Scope, arXiv 2408.05147, eq. 1 and 2).

    `w_enc` is [hidden, features], `b_enc` and `threshold` [features], `w_dec` [features, hidden],
    `b_dec` [hidden]; all fp32. f(x) = H(π - threshold) * relu(π) with π = x @ w_enc + b_enc, where
    H(0) = 0; x is about f @ w_dec + b_dec. Layers count from 0. `digest` is the file's, if it is
    from one.
    """

    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    threshold: Tensor
    layer: int
    digest: str = ""

    @property
    def features(self) -> int:
        """Count the features."""
        return len(self.b_enc)

    @property
    def hidden(self) -> int:
        """Give the width of the states that it takes."""
        return len(self.b_dec)

    def to(self, device: torch.device) -> "SparseAutoencoder":
        """Move it to a device."""
        moved = {name: getattr(self, name).to(device) for name in _PARTS}
        return replace(self, **moved)

    def encode(self, states: Tensor) -> Firing:
        """Find what fires in states [rows, hidden], a block of rows at a time."""
        rows, features, values = [], [], []
        for number, block in enumerate(torch.split(states, _BLOCK_ROWS)):
            found = self._activations(block)
            row, feature = found.nonzero(as_tuple=True)
            rows.append(row + number * _BLOCK_ROWS)
            features.append(feature)
            values.append(found[row, feature])
        return Firing(torch.cat(rows), torch.cat(features), torch.cat(values))

    def reconstruct(self, states: Tensor) -> Tensor:
        """Encode states [rows, hidden] and decode them again, to fp32 of that shape."""
        blocks = torch.split(states, _BLOCK_ROWS)
        return torch.cat([self._activations(b) @ self.w_dec + self.b_dec for b in blocks])

    def _activations(self, states: Tensor) -> Tensor:
        found = states.to(self.w_enc) @ self.w_enc + self.b_enc
        return torch.where(found > self.threshold, found.relu(), 0)

    def save(self, path: Path) -> None:
        """Write it as Gemma Scope's params.npz, in one step; raise OSError."""
        names = {"w_enc": "W_enc", "w_dec": "W_dec"}
        content = io.BytesIO()
        parts = {names.get(name, name): getattr(self, name).cpu().numpy() for name in _PARTS}
        np.savez(content, **parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content.getvalue())


def load_autoencoder(path: Path, *, layer: int | None = None) -> SparseAutoencoder:
    """Load params.npz or params.safetensors, by its path or its folder's; no code in it is run.

    `layer` is the one whose states it is to read. Raises ConfigurationError, in a sentence that
    says how to mend it, where the file is no such autoencoder, or names another layer.
    """
    file = _file(path)
    try:
        parts = _shaped(_read(file))
        named = _named_layer(file)
        place = named if layer is None else layer
        if place is None:
            raise ValueError("doesn't say which layer it was trained on. Give it with --layer.")
        if named not in (None, place):
            raise ValueError(
                f"is for layer {named}, and --layer says {layer}. Features of another layer mean "
                "nothing: leave --layer out, or give the other file."
            )
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except ValueError as refused:
        raise ConfigurationError(f"{file} {refused}") from None
    except OSError as refused:
        raise ConfigurationError(f"{file} can't be read: {refused.strerror}.") from None
    return SparseAutoencoder(**parts, layer=place, digest=digest)


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in _FILES if (path / name).is_file()]
    if len(found) != 1:
        held = "both" if found else "neither"
        raise ConfigurationError(f"{path} holds {held} of {' and '.join(_FILES)}. Give the file.")
    return found[0]


def _read(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by their lower-case names; raise ValueError and OSError."""
    try:
        if file.suffix == ".npz":
            with file.open("rb") as content, np.load(content, allow_pickle=False) as arrays:
                return _lower({name: torch.from_numpy(arrays[name]) for name in arrays.files})
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                return _lower({name: tensors.get_tensor(name) for name in tensors.keys()})  # noqa: SIM118
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as broken:
        if "allow_pickle" in str(broken):
            why = "it holds pickled Python objects, which could run code, and is not read"
        else:
            why = first_line(broken).rstrip(".") or "it is empty"
        raise ValueError(f"can't be read: {why}. Fetch it again.") from None
    except SafetensorError as broken:
        raise ValueError(f"can't be read: {first_line(broken)}. Fetch it again.") from None
    raise ValueError("is neither .npz nor .safetensors. Give Gemma Scope's params file.")


def _lower(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.lower(): tensor for name, tensor in tensors.items()}


def _shaped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Check that they are one autoencoder, and give its parts in fp32; raise ValueError."""
    if "affine_skip_connection" in tensors:
        raise ValueError(
            "is a transcoder (it has an affine_skip_connection). Give an autoencoder of the "
            "residual stream, from a folder resid_post."
        )
    lacking = [name for name in _PARTS if name not in tensors]
    if lacking:
        raise ValueError(
            f"is no JumpReLU autoencoder: it lacks {', '.join(lacking)}, and holds "
            f"{', '.join(sorted(tensors)) or 'nothing'}. Give Gemma Scope's params file."
        )
    parts = {name: tensors[name] for name in _PARTS}
    w_enc = parts["w_enc"]
    if w_enc.ndim != 2 or not w_enc.numel():
        raise ValueError(f"has a W_enc of {list(w_enc.shape)}, and it must be [hidden, features].")
    hidden, features = w_enc.shape
    shapes = {
        "w_enc": [hidden, features],
        "b_enc": [features],
        "w_dec": [features, hidden],
        "b_dec": [hidden],
        "threshold": [features],
    }
    for name, tensor in parts.items():
        if list(tensor.shape) != shapes[name]:
            raise ValueError(
                f"has a {name} of {list(tensor.shape)}, and beside a W_enc of {[hidden, features]} "
                f"it must be {shapes[name]}. The parts don't belong together."
            )
        if tensor.dtype not in _DTYPES:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"stores {name} as {kind}. Gemma Scope's are float32: convert it.")
        if not tensor.isfinite().all():
            raise ValueError(f"has numbers in {name} that are not finite. Fetch it again.")
    return {name: tensor.float() for name, tensor in parts.items()}


def _named_layer(file: Path) -> int | None:
    """Read the layer from the config beside a file, or from its folders; raise ValueError."""
    config = file.with_name("config.json")
    if config.is_file():
        try:
            said = json.loads(config.read_bytes())
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise ValueError(f"stands beside a {config.name} that is no JSON object. Remove it.")
        if "hf_hook_point_in" in said:
            place = str(said["hf_hook_point_in"])
            found = _AFTER_A_LAYER.fullmatch(place)
            if not found or said.get("hf_hook_point_out", place) != place:
                raise ValueError(
                    f"is for {place}, by its config.json, and only what stands after a whole "
                    "layer is shown. Give an autoencoder from a folder resid_post."
                )
            return int(found[1])
    return next(_layers(file.absolute()), None)


def _layers(file: Path) -> Iterator[int]:
    for part in reversed(file.parent.parts):
        if found := _LAYER.fullmatch(part):
            yield int(found[1])
