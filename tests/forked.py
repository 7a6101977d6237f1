"""The program as a fork of a process that has imported it, which takes seconds each time."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "shieldgate.cli.serve",
        "shieldgate.scoring.local",
        "transformers.models.gemma2.modeling_gemma2",
    ]
)


class Forked:
    """What tests need of a `subprocess.Popen` whose standard error is a pipe of text.

    What the program looks up while it is imported it finds in the environment of the tests.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        ours, theirs = _FORKS.Pipe(duplex=False)
        with ours, theirs:
            given = (list(command), dict(environment), theirs)
            self._process = _FORKS.Process(target=_run, args=given)
            self._process.start()
            self.stderr = os.fdopen(os.dup(ours.fileno()), encoding="utf-8")
        self.pid: int = self._process.pid

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *_: object) -> None:
        self.stderr.close()
        self.wait()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("the program", timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        """Give what is left of standard error, once the process has ended."""
        rest = self.stderr.read()
        self.wait(timeout)
        return None, rest


def _run(command: list[str], environment: dict[str, str], stderr: Connection) -> None:
    from shieldgate.cli import main

    os.dup2(stderr.fileno(), 2)
    stderr.close()
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    main()
