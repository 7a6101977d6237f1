"""A scorer elsewhere is one file and one entry; every command then takes it as its `--model`."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from elsewhere import open_elsewhere, server_of_words
from typer.testing import CliRunner

from shieldgate.cli import app
from shieldgate.scoring import factory

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The server's URL; it runs in a thread, as the commands have event loops of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[web.AppRunner, int]:
        runner = web.AppRunner(server_of_words())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, runner.addresses[0][1]

    runner, port = asyncio.run_coroutine_threadsafe(start(), loop).result()
    yield f"http://127.0.0.1:{port}"
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def model(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(factory.REMOTE, "elsewhere+", open_elsewhere)  # the one entry
    return f"elsewhere+{server}"


def test_score_asks_it(model: str):
    for text, action in (("a zork", "blocked"), ("a loaf", "allowed")):
        result = CliRunner().invoke(app, ["score", text, "--model", model, "--json"])
        assert result.exit_code == 0, result.output
        reply = json.loads(result.stdout)
        assert reply["scorer"]["name"] == "elsewhere@1"
        assert reply["results"][0]["action"] == action


def test_evaluate_asks_it_and_goes_on(model: str, tmp_path: Path):
    data = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": f"{'zork' if n % 3 else 'loaf'} {n}", "harmful": n % 3 > 0} for n in range(9)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    command = ["evaluate", str(data), "--model", model, "--out", str(out)]
    assert CliRunner().invoke(app, command).exit_code == 0
    scores = (out / "scores.jsonl").read_bytes()
    (out / "scores.jsonl").write_bytes(scores[: len(scores) // 2])
    assert CliRunner().invoke(app, command).exit_code == 0
    assert (out / "scores.jsonl").read_bytes() == scores
    report = json.loads((out / "report.json").read_text())
    assert report["header"]["scorer"] == "elsewhere@1"


def test_the_library_asks_it_without_torch(server: str):
    here = Path(__file__).parent
    code = (
        f"import sys; sys.path.insert(0, {str(here)!r})\n"
        "import shieldgate\n"
        "from elsewhere import open_elsewhere\n"
        "from shieldgate.scoring.factory import REMOTE\n"
        "REMOTE['elsewhere+'] = open_elsewhere\n"
        f"with shieldgate.open_scorer('elsewhere+{server}') as scorer:\n"
        "    print(scorer.judge('a zork').action, scorer.judge('a loaf').action)\n"
        "print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout == "blocked allowed\n[]\n", done.stderr
