"""Replaces files in one step, so that none is ever half written."""

import os
import shutil
from pathlib import Path

from shieldgate.errors import ConfigurationError


def write_result(path: Path, text: str) -> None:
    """Write what was found beside the scores it was found from; raise ConfigurationError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode())
    except OSError as refused:
        raise ConfigurationError(
            f"{path}: can't be written: {refused.strerror}. The scores are saved: make room, and "
            "the same command writes it without scoring again."
        ) from refused


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file in one step, or leave it as it was and raise OSError."""
    # The name is hidden, so that no reload takes it for a policy file.
    copy = path.with_name(f".{path.name}.new")
    try:
        with copy.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, copy)
        copy.replace(path)
    except OSError:
        copy.unlink(missing_ok=True)
        raise
