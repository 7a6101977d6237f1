"""A real PostgreSQL on a Unix socket of its own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# It refuses to run as root; its package makes this user.
_USER = "postgres" if os.geteuid() == 0 else None


def _program(name: str) -> str:
    """Find a program on the PATH, or where Debian has it, the newest version's."""
    found = [shutil.which(name), *sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))]
    return str(found[-1] or "") or pytest.skip("needs PostgreSQL's server")


@contextmanager
def postgres_server() -> Iterator[str]:
    """Run a server, gone when it ends; gives the URL of a database."""
    initdb, server = _program("initdb"), _program("postgres")
    with tempfile.TemporaryDirectory(prefix="pg-") as name:
        folder = Path(name)
        if _USER:
            shutil.chown(folder, _USER)
        options = ("--username", "shieldgate", "--auth", "trust", "--no-sync", "--encoding", "UTF8")
        subprocess.run(
            [initdb, *options, folder / "data"], check=True, stdout=subprocess.DEVNULL, user=_USER
        )
        listening = ("-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}")
        process = subprocess.Popen(
            [server, "-D", folder / "data", "-F", *listening],
            stderr=subprocess.PIPE,
            text=True,
            user=_USER,
            cwd=folder,
        )
        try:
            assert process.stderr
            for line in process.stderr:
                if "ready to accept connections" in line:
                    break
            yield f"postgresql://shieldgate@/postgres?host={folder}"
        finally:
            process.terminate()
            process.communicate(timeout=20)
