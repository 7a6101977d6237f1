"""What features are said to stand for: Neuronpedia's export, or a plain JSON object."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shieldgate.errors import ConfigurationError

_LAYER = re.compile(r"(\d+)-.*")


def load_labels(path: Path, *, layer: int | None, features: int) -> dict[int, str]:
    """Read labels by the index of their feature, of several the first; raise ConfigurationError.

    The file is JSON, `{index: text}` or a list of Neuronpedia's explanations, which have an `index`
    and a `description`, or lines of them; it may be gzipped. Refused are labels of features that
    there are not, and explanations that name another `layer`.
    """
    try:
        found: dict[int, str] = {}
        for index, text in _pairs(_objects(path), layer):
            found.setdefault(index, text)
        if not found:
            raise ValueError("has no labels in it.")
        if max(found) >= features or min(found) < 0:
            wrong = max(found) if max(found) >= features else min(found)
            raise ValueError(
                f"has a label for feature {wrong:,}, and the autoencoder has features 0 to "
                f"{features - 1:,}. Give the labels of this autoencoder."
            )
    except ValueError as refused:
        raise ConfigurationError(f"{path} {refused}") from None
    return found


def _objects(path: Path) -> list[Any]:
    """Read the JSON of a file, a document or one a line; raise ValueError."""
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise ValueError("is damaged: gzip can't read it. Fetch it again.") from None
    except OSError as refused:
        raise ValueError(f"can't be read: {refused.strerror}.") from None
    try:
        return [json.loads(content)]
    except ValueError:
        try:
            return [json.loads(line) for line in content.splitlines() if line.strip()]
        except ValueError:
            raise ValueError(
                'is no JSON. Give {"index": "text"}, or Neuronpedia\'s explanations.'
            ) from None


def _pairs(objects: list[Any], layer: int | None) -> Iterator[tuple[int, str]]:
    if len(objects) == 1:
        [whole] = objects
        if isinstance(whole, dict) and not {"index", "description"} <= whole.keys():
            objects = [{"index": index, "description": text} for index, text in whole.items()]
        elif isinstance(whole, list):
            objects = whole
    for number, entry in enumerate(objects, start=1):
        if not isinstance(entry, dict):
            raise ValueError(f"has an entry {number} that is no JSON object.")
        index, text = entry.get("index"), entry.get("description")
        if not str(index).isdecimal() or not isinstance(text, str | None):
            raise ValueError(
                f"has an entry {number} without a number as its index and a text as its "
                'description. Give {"index": "text"}, or Neuronpedia\'s explanations.'
            )
        named = _LAYER.fullmatch(str(entry.get("layer", "")))
        if named and layer is not None and int(named[1]) != layer:
            raise ValueError(
                f"is for layer {named[1]} ({entry['layer']}), and the autoencoder for layer "
                f"{layer}. Give the labels of this autoencoder."
            )
        if text and text.strip():
            yield int(str(index)), text.strip()
