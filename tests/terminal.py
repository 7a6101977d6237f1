"""A program in a terminal of its own: keys go in, and what a person would see comes out."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

REDRAW = "\x1b[H\x1b[2J"


class Terminal:
    """What a program shows; the screen is what it drew since it last cleared it."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self._master = master
        self.raw = ""

    @property
    def screen(self) -> str:
        drawn = self.raw.rpartition(REDRAW)[2]
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()]B", "", drawn).replace("\r\n", "\n")

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def shows(self, *words: str, redrawn: bool = False, seconds: float = 30) -> str:
        """Wait until the screen has all these words, once it is `redrawn`; gives the screen."""
        end = time.monotonic() + seconds
        before = self.screen
        while (redrawn and self.screen == before) or not all(word in self.screen for word in words):
            assert time.monotonic() < end, f"{words} is not there:\n{self.screen}"
            self._read()
        return self.screen

    def ends(self, seconds: float = 30) -> int:
        """Wait for the exit code."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end, self.screen
            self._read()
        self._read()
        return self.process.returncode

    def modes(self) -> int:
        """Give the local modes of the terminal, which a program puts back when it ends."""
        return termios.tcgetattr(self._master)[3]

    def _read(self) -> None:
        while select.select([self._master], [], [], 0.05)[0]:
            try:
                self.raw += os.read(self._master, 65_536).decode(errors="replace")
            except OSError:  # the other end is closed
                return


def _take_terminal() -> None:
    """Make Ctrl-C a signal, also where a shell that runs tests aside has it ignored."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def terminal(
    command: Sequence[str | Path], *, rows: int = 24, columns: int = 80, **environment: str
) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    given = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        list(map(str, command)),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**given, "TERM": "xterm-256color", **environment},
        start_new_session=True,
        preexec_fn=_take_terminal,  # noqa: PLW1509 - which imports nothing and takes no lock
    )
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(slave)
        os.close(master)
