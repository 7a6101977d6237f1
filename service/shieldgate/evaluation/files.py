"""Writes what was found: figures as data, and as a page."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.compare import Comparison
from shieldgate.evaluation.report import Report, wanted_rows
from shieldgate.types import Exchange


def write_json(found: Report | Comparison, path: Path) -> None:
    """Write figures as data, which hold no text of the dataset; raise ConfigurationError."""
    _write(path, json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n")


def write_html(report: Report, path: Path, texts: Mapping[int, Exchange] | None = None) -> None:
    """Write a report as one page that needs no network; raise ConfigurationError.

    `texts` are the dataset's rows for the mistakes (see `wanted_rows`); None leaves them out.
    """
    shown = None
    if texts is not None:
        shown = {str(row): asdict(texts[row]) for row in sorted(wanted_rows(report))}
    data = json.dumps(asdict(report) | {"texts": shown}, ensure_ascii=False)
    # Inside a script element only "<" could end the data; the page shows texts as text nodes.
    data = data.replace("<", "\\u003c")
    page = files(__package__).joinpath("report.html").read_text("utf-8")
    _write(path, page.replace("{{ report }}", data))


def _write(path: Path, text: str) -> None:
    try:
        put(path, text.encode())
    except OSError as refused:
        raise ConfigurationError(
            f"{path}: can't be written: {refused.strerror}. The scores are saved: make room, and "
            "the same command writes it without scoring again."
        ) from refused


def put(path: Path, content: bytes) -> None:
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
