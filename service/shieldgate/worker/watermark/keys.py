"""The keys of a watermark, and the file that holds them."""

import hashlib
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shieldgate.errors import ConfigurationError

DEPTH = 30  # keys of a new file; Google's number
_TOO_OPEN = stat.S_IWGRP | stat.S_IRWXO


class WatermarkKeys(BaseModel):
    """What marks are made and found with, as in transformers' SynthIDTextWatermarkingConfig.

    A token's mark hangs on it and the `ngram_len - 1` before it. Each key is one layer of the
    tournament; keys that are the same modulo `sampling_table_size` are the same layer twice.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    ngram_len: int = Field(ge=2, le=16)
    # Fewer could be guessed from the fingerprint, and are found less surely.
    keys: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=8, max_length=64)]
    context_history_size: int = Field(1024, ge=1)
    sampling_table_size: int = Field(2**16, ge=2**10, le=2**24)
    sampling_table_seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _check_layers(self) -> Self:
        if self.sampling_table_size & (self.sampling_table_size - 1):
            raise ValueError("sampling_table_size is to be a power of two")
        if len({key % self.sampling_table_size for key in self.keys}) < len(self.keys):
            raise ValueError("two of the keys are the same modulo sampling_table_size")
        return self

    def __repr__(self) -> str:
        """Leave the keys out, because this may get into a log."""
        return f"WatermarkKeys({self.fingerprint})"

    __str__ = __repr__

    @property
    def fingerprint(self) -> str:
        """Identify the keys and all else that marks hang on, in 12 hexadecimal digits."""
        content = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


def load_watermark_keys(path: Path) -> WatermarkKeys:
    """Read a file of keys, which nobody but its owner may write or others read.

    Raises ConfigurationError, in which no key is repeated.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read()
    except OSError as refused:
        raise ConfigurationError(
            f"{path}: the watermark's keys can't be read: {refused.strerror}. "
            f"'shieldgate watermark new {path}' makes some."
        ) from None
    if mode & _TOO_OPEN:
        raise ConfigurationError(
            f"{path}: everybody on this machine may read the watermark's keys, or others change "
            f"them (mode {stat.S_IMODE(mode):04o}), and who has them can forge and erase marks. "
            f"Run: chmod 600 {path}"
        )
    try:
        return WatermarkKeys.model_validate_json(content)
    except ValidationError as wrong:
        first = wrong.errors(include_url=False, include_context=False, include_input=False)[0]
        # The place within a list, and never what stands there.
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(
            f"{path}: these are no keys of a watermark: {where + ': ' if where else ''}"
            f'{first["msg"]}. The file is to be JSON such as {{"ngram_len": 5, "keys": [whole '
            "numbers]}; 'shieldgate watermark new' makes one."
        ) from None


def new_keys(path: Path) -> WatermarkKeys:
    """Write a file of random keys that only its owner may read; raise ConfigurationError."""
    table = WatermarkKeys.model_fields["sampling_table_size"].default
    chosen: dict[int, int] = {}
    while len(chosen) < DEPTH:
        key = secrets.randbelow(2**31)
        chosen[key % table] = key
    keys = WatermarkKeys(ngram_len=5, keys=list(chosen.values()))
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "w", encoding="ascii") as file:
            file.write(json.dumps(keys.model_dump(include={"ngram_len", "keys"})) + "\n")
    except FileExistsError:
        raise ConfigurationError(
            f"{path}: there is such a file already. What was marked with its keys is found with "
            "them alone: keep it, and write new ones elsewhere."
        ) from None
    except OSError as refused:
        raise ConfigurationError(f"{path}: can't be written: {refused.strerror}.") from None
    return keys
