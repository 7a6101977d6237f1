"""`shieldgate batch` on a real Ray: what it writes, what it survives, and what it refuses."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.score_file import read_scores

parquet = pytest.importorskip("pyarrow.parquet")

ROWS = 60
POLICIES = ("--policy", "shieldgemma/hate", "--policy", "shieldgemma/dangerous")
OURS = [sys.executable, "-m", "shieldgate.cli"]


def rows(count: int = ROWS) -> list[dict[str, Any]]:
    return [
        {
            "id": f"r{n}",
            "prompt": f"zebra number {n} " + "the quick brown fox " * (n % 4),
            "response": "an answer" if n % 5 == 0 else None,
            "harmful": n % 2,
            "labels": {"hate": n % 2},
        }
        for n in range(count)
    ]


def write(path: Path, given: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray on this machine, which all tests share: one start takes as long as a test."""
    if find_spec("ray") is None:
        pytest.skip("needs Ray: pip install 'shieldgate[ray]', see .ci/run")
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    home = tmp_path_factory.mktemp("ray")
    # Sockets' names are short, and a name of pytest's is not.
    short = Path("/tmp") / f"ray-{os.getpid()}"
    started = subprocess.run(
        [
            *(*ray, "start", "--head", "--port=0", "--num-cpus=2", "--include-dashboard=false"),
            *("--disable-usage-stats", f"--temp-dir={short}", "--object-store-memory=100000000"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=home,
    )
    assert started.returncode == 0, started.stdout + started.stderr
    yield (short / "ray_current_cluster").read_text().strip()
    subprocess.run([*ray, "stop"], check=False, capture_output=True)


def command(data: str | Path, out: Path, model: Path, *more: str) -> list[str]:
    return [*OURS, "batch", str(data), "--out", str(out), "--model", str(model), *POLICIES, *more]
