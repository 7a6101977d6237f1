"""What somebody does who pastes the blocks of our pages, in a fresh clone that is installed."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import create_server
from urllib.request import urlopen

ROOT = Path(__file__).parents[1]
# What a block starts that runs until it is stopped, and where that answers.
STARTS = {"make serve": "8000/readyz", "forum:app": "8100/docs", "model.py": "8200/v1/models"}
_DECIMAL = re.compile(r"\d+\.\d+")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and what the page says it prints: the block after it."""

    language: str
    text: str
    prints: str | None = None


def blocks(page: str) -> list[Block]:
    """Give the blocks of a page, without those that show what another one prints."""
    fenced = re.findall(
        r"^```(\w*)\n(.*?)^```$(\n\n(?=```\n))?", (ROOT / page).read_text("utf-8"), re.M | re.S
    )
    found = []
    for number, (language, text, before_another) in enumerate(fenced):
        if language:
            shown = fenced[number + 1][1] if before_another else None
            found.append(Block(language, text, shown))
    return found


def commands(block: Block) -> list[str]:
    """Give the commands of a block, each with its lines."""
    found: list[str] = []
    pending = ""
    for line in block.text.splitlines(keepends=True):
        pending += line
        if _complete(pending):
            found.append(pending)
            pending = ""
    assert not pending, pending
    return found


def _complete(text: str) -> bool:
    if text.endswith("\\\n"):
        return False
    try:
        shlex.split(text, comments=True)
    except ValueError:  # a quotation is open
        return False
    return True


def differs(said: str, expected: str) -> str | None:
    """Say how the two differ: `…` stands for anything, decimals may be 0.03 off, spaces more.

    Scores differ between processors in their last digits.
    """
    said, expected = (
        "\n".join(" ".join(li.split()) for li in t.strip().splitlines()) for t in (said, expected)
    )
    parts = [_DECIMAL.sub("\0", re.escape(p).replace(r"\.", ".")) for p in expected.split("…")]
    pattern = ".*?".join(parts).replace("\0", r"(\d+\.\d+)")
    found = re.fullmatch(pattern, said, re.S)
    if not found:
        return f"expected:\n{expected}\nbut it says:\n{said}"
    decimals = zip(_DECIMAL.findall(expected), found.groups(), strict=True)
    far = [(a, b) for a, b in decimals if abs(float(a) - float(b)) > 0.03]
    return f"{far} in:\n{said}" if far else None


class Newcomer:
    """A clone, the addresses of its servers on free ports, and what was exported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for entry in ROOT.iterdir():
            if entry.name not in (".venv", ".git", "my-policies", "runs"):
                (folder / entry.name).symlink_to(entry)
        (folder / ".venv").mkdir()
        for entry in Path(sys.prefix).iterdir():
            (folder / ".venv" / entry.name).symlink_to(entry)
        for installed in ("local", "dev"):  # pip has nothing left to do
            marker = folder / ".venv" / f"installed-{installed}"
            marker.unlink(missing_ok=True)
            marker.touch()
        self.ports = dict(zip(("8000", "8100", "8200"), _free_ports(3), strict=True))
        self.environment = {
            **os.environ,
            "PATH": f"{folder / '.venv/bin'}:{os.environ['PATH']}",
            "PORT": self.ports["8000"],
            "COLUMNS": "80",
        }
        self._started: list[subprocess.Popen[bytes]] = []

    def here(self, text: str) -> str:
        """Give a text with the ports of this clone."""
        return re.sub(r"\b(8000|8100|8200)\b", lambda port: self.ports[port[0]], text)

    def paste(self, text: str, language: str = "sh") -> str:
        """Run what is pasted, or start it if it is a server; gives what it prints."""
        started = [at for command, at in STARTS.items() if command in text]
        if started:
            return self._start(text, started[0])
        shell = ["bash", "-euo", "pipefail", "-c"]
        command = shell if language == "sh" else [".venv/bin/python", "-c"]
        ran = subprocess.run(
            [*command, self.here(text)],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert ran.returncode == 0, f"{text}\n{ran.stdout}\n{ran.stderr}"
        exports = re.findall(r"^export (.*)$", self.here(text), re.M)
        self.environment |= dict(pair.split("=", 1) for line in exports for pair in line.split())
        return ran.stdout

    def follow(self, block: Block) -> None:
        """Paste a block, and hold it to what the page says it prints."""
        end = time.monotonic() + 10
        while True:
            said = self.paste(block.text, block.language)
            wrong = differs(said, block.prints) if block.prints else None
            if not wrong:
                return
            # A server takes a moment to see that its policies changed, and so does a reader.
            assert "/v1/screen" in block.text, wrong
            assert time.monotonic() < end, wrong
            time.sleep(0.2)

    def stop(self) -> None:
        """End what was started."""
        for process in self._started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _start(self, text: str, answers_at: str) -> str:
        log = self.folder / f"{len(self._started)}.log"
        with log.open("wb") as out:
            self._started.append(
                subprocess.Popen(
                    ["bash", "-euc", self.here(text)],
                    cwd=self.folder,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            )
        end = time.monotonic() + 90
        while not self._answers(answers_at):
            assert self._started[-1].poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        return ""

    def _answers(self, at: str) -> bool:
        try:
            with urlopen(f"http://localhost:{self.here(at)}", timeout=10) as reply:
                return reply.status == 200
        except OSError:
            return False


def _free_ports(count: int) -> list[str]:
    listeners = [create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@contextmanager
def newcomer(folder: Path) -> Iterator[Newcomer]:
    """A newcomer, whose servers end with the block."""
    someone = Newcomer(folder)
    try:
        yield someone
    finally:
        someone.stop()
