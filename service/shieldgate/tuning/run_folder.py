"""The folder of a run, which can go on and is never mixed with another."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.files import replace_file
from shieldgate.tuning.loop import saving

R = TypeVar("R")


class RunFolder:
    """Keeps `report.json`, what was run and what came out, and while it runs the file `state`.

    `run` is all that decides what comes out. `made_by` names what makes such folders; the two
    files lie in `inner`.
    """

    def __init__(
        self, out: Path, run: Mapping[str, Any], *, made_by: str, inner: str = "."
    ) -> None:
        """Name the folder; nothing is touched yet."""
        self._out, self._made_by = out, made_by
        self._run = json.loads(json.dumps(run))
        self._report = out / inner / "report.json"
        self.state = out / inner / "state.pt"

    def claim(self, read: Callable[[dict[str, Any]], R | None]) -> R | None:
        """Take the folder for the run; where there is a report, give what is `read` of it.

        Raises ConfigurationError where the folder holds something else, or can't be written.
        """
        try:
            if self._report.is_file():
                found = json.loads(self._report.read_bytes())
                self._refuse_other(found["run"])
                return read(found)
            if self._out.exists() and any(self._out.iterdir()):
                raise ConfigurationError(
                    f"{self._out} holds files that no {self._made_by} left there. Choose another "
                    "--out."
                )
            self._report.parent.mkdir(parents=True, exist_ok=True)
            self._write({})
        except OSError as refused:
            raise ConfigurationError(
                f"{self._out}: can't be written: {refused.strerror}. Choose another --out."
            ) from refused
        except (ValueError, KeyError, TypeError):
            raise ConfigurationError(
                f"{self._report} is damaged. Remove {self._out}, or choose another --out."
            ) from None
        return None

    def finish(self, found: Mapping[str, Any]) -> None:
        """Write what came out, and remove what only a stopped run would need."""
        with saving(self._report):
            self._write(found)
        self.state.unlink(missing_ok=True)

    def _refuse_other(self, held: Mapping[str, Any]) -> None:
        old, new = dict(_flat(held)), dict(_flat(self._run))
        changes = [
            f"{key}: {old.get(key)} -> {new.get(key)}"
            for key in dict.fromkeys([*old, *new])
            if old.get(key) != new.get(key)
        ]
        if changes:
            raise ConfigurationError(
                f"{self._out} belongs to another run:\n  "
                + "\n  ".join(changes)
                + "\nChoose another --out, or remove the folder."
            )

    def _write(self, found: Mapping[str, Any]) -> None:
        content = json.dumps({"run": self._run, **found}, indent=1)
        replace_file(self._report, f"{content}\n".encode())


def _flat(content: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, object]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{within}{key}.")
        else:
            yield f"{within}{key}", value
