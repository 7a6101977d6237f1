"""Runs the command line where no file can grow beyond a limit: writes fail as on a full disk."""

import subprocess
import sys

PROGRAM = """
import resource, sys
from shieldgate.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
main()
"""


def limited(limit: int, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run `shieldgate WORDS` with files of at most `limit` bytes."""
    command = [sys.executable, "-c", PROGRAM, str(limit), *words]
    return subprocess.run(command, check=False, capture_output=True, text=True)
