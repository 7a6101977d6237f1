"""`shieldgate batch` on a real Ray of two nodes: what it writes, survives and refuses."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from test_cli_evaluate import done, refusal, scores

from shieldgate.batch.actor import ABOUT, Job, PartScorer, PartSummary
from shieldgate.batch.manifest import MANIFEST, Manifest, Part, part_name, plan
from shieldgate.batch.pool import Pool, parse_pool
from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.adapters import choose_adapter
from shieldgate.evaluation.score_file import wording_digest
from shieldgate.evaluation.sources import list_shards
from shieldgate.evaluation.storage import Folder
from shieldgate.policy import load_book
from shieldgate.settings import ScoringSettings

pytestmark = pytest.mark.usefixtures("restored_logging")

POLICIES = ("--policy", "shieldgemma/hate", "--policy", "shieldgemma/dangerous")


def rows(count: int, *, words: int = 4) -> list[dict[str, Any]]:
    return [
        {
            "id": f"r{n}",
            "prompt": f"zebra number {n} " + "the quick brown fox " * (n % words),
            "response": "an answer" if n % 5 == 0 else None,
            "harmful": n % 2,
            "labels": {"hate": n % 2},
        }
        for n in range(count)
    ]


def written(folder: Path, given: list[dict[str, Any]], *, files: int) -> Path:
    folder.mkdir()
    for n in range(files):
        lines = [json.dumps(row) + "\n" for row in given[n::files]]
        (folder / f"rows-{n}.jsonl").write_text("".join(lines))
    return folder


class Cluster:
    """Two nodes, one processor each, on this machine; only the processes that it has started."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as Nodes

        node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80_000_000}
        self._nodes = Nodes(initialize_head=True, head_node_args=node)
        self._nodes.add_node(num_cpus=1, object_store_memory=80_000_000)
        self.address: str = self._nodes.address

    def close(self) -> None:
        self._nodes.shutdown()

    def actors(self) -> set[int]:
        """The processes that score now."""
        raylets = {
            str(each.process.pid)
            for node in (self._nodes.head_node, *self._nodes.worker_nodes)
            for each in node.all_processes["raylet"]
        }
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                title = (process / "cmdline").read_bytes()
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if parent in raylets and b"PartScorer" in title:
                found.add(int(process.name))
        return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if find_spec("ray") is None:
        pytest.skip("needs Ray, in the extra ray; .ci/run installs it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = Cluster()
        yield started
        started.close()


@pytest.fixture
def command(cluster: Cluster, hot_checkpoint: Path) -> list[str]:
    """The command with all that is the same for every run."""
    ours = [sys.executable, "-m", "shieldgate", "batch"]
    return [*ours, "--address", cluster.address, "--model", str(hot_checkpoint), *POLICIES]


def ran(command: list[str], *more: str | Path) -> subprocess.CompletedProcess[str]:
    words = [*command, *map(str, more)]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=200)


def finished(command: list[str], *more: str | Path) -> str:
    run = ran(command, *more)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def table(out: Path) -> list[dict[str, Any]]:
    """All rows of a folder of scores, in the order of its parts."""
    parts = sorted(out.glob("part-*.parquet"))
    found: list[dict[str, Any]] = pyarrow.concat_tables(map(parquet.read_table, parts)).to_pylist()
    return found


def test_it_scores_as_one_machine_does_and_a_report_can_be_made_of_it(
    command: list[str], hot_checkpoint: Path, tmp_path: Path
) -> None:
    data = written(tmp_path / "data", rows(40), files=3)
    with (data / "rows-2.jsonl").open("a") as file:
        file.write("no JSON\n")
    out = tmp_path / "out"
    run = ran(command, data, "--out", out)
    assert run.returncode == 0, run.stderr
    assert "Wrote the scores of 40 rows" in run.stdout
    bar, note = run.stderr.splitlines()
    assert bar.startswith("scoring")
    why = "is not JSON: Expecting value at character 1"
    assert note == f"Note: 1 bad row was left out: rows-2.jsonl:14 {why}"

    one = ("--model", hot_checkpoint, *POLICIES)
    done(data, *one, "--out", tmp_path / "one")
    done(data, *one, "--scores", out, "--out", tmp_path / "many")
    (header, alone), (there, together) = scores(tmp_path / "one"), scores(tmp_path / "many")
    assert header == there
    assert [replace(row, margins={}) for row in alone] == [
        replace(row, margins={}) for row in together
    ]
    for ours, theirs in zip(alone, together, strict=True):
        assert theirs.margins == pytest.approx(ours.margins, abs=1e-4)

    found = table(out)
    assert [row["id"] for row in found] == [row.id for row in together]
    by_id = {row["id"]: row for row in rows(40)}
    book = load_book(None)
    for row in found:
        given = by_id[row["id"]]
        assert row["prompt_sha256"] == hashlib.sha256(given["prompt"].encode()).hexdigest()
        assert (row["response_sha256"] is None) == (given["response"] is None)
        assert row["direction"] == ("response" if given["response"] else "prompt")
        assert row["scorer"] == header.scorer
        assert row["scorer_identity"] == header.identity
        assert row["dtype"] == "float32"
        assert row["policy_book"] == book.version
        margin = row["shieldgemma/hate.margin"]
        assert row["shieldgemma/hate.probability"] == pytest.approx(1 / (1 + 2.718281828**-margin))


def test_no_row_is_lost_or_doubled_when_an_actor_is_killed_half_way(
    command: list[str], cluster: Cluster, tmp_path: Path
) -> None:
    given = rows(600, words=30)
    data = written(tmp_path / "data", given, files=6)
    out = tmp_path / "out"
    words = [*command, str(data), "--out", str(out), "--actors", "2", "--actor-cpus", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while not list(out.glob("part-*.parquet")):
            assert run.poll() is None, run.communicate()
            time.sleep(0.05)
        before = cluster.actors()
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        assert len(list(out.glob("part-*.parquet"))) < 5
        seen = set(before)
        while run.poll() is None:
            seen |= cluster.actors()
            time.sleep(0.2)
        assert run.returncode == 0, run.communicate()
    assert seen - before, "no actor took the place of the one that was killed"
    found = [row["id"] for row in table(out)]
    assert sorted(found) == sorted(row["id"] for row in given)


def test_a_run_goes_on_with_the_parts_that_are_missing_and_with_the_same_scorer_only(
    command: list[str], tmp_path: Path, hot_checkpoint: Path
) -> None:
    data, out = tmp_path / "rows.parquet", tmp_path / "out"
    columns = pyarrow.table({"text": [row["prompt"] for row in rows(35)]})
    parquet.write_table(columns, data, row_group_size=5)
    # One actor: each is a process more that imports torch.
    more = ("--map", "prompt=text", "--part-rows", "10", "--actors", "1", "--out", out)
    finished(command, data, *more)
    whole = table(out)
    assert [row["id"] for row in whole] == [str(n) for n in range(1, 36)]
    assert len(list(out.glob("part-*"))) == 4

    (out / part_name(2)).unlink()
    kept = (out / part_name(1)).stat().st_mtime_ns
    finished(command, data, *more)
    assert (out / part_name(1)).stat().st_mtime_ns == kept
    assert table(out) == whole

    # Another scorer, which only an actor finds out.
    manifest = Manifest.read(Folder.at(str(out)))
    assert manifest.identity is not None
    replace(manifest, identity=replace(manifest.identity, weights="others")).write(
        Folder.at(str(out))
    )
    (out / part_name(2)).unlink()
    refused = ran(command, data, *more)
    assert refused.returncode == 2
    assert "The run began with the scorer" in refused.stderr
    assert not (out / part_name(2)).exists()


def scored_here(
    data: Path, out: Path, model: Path, *, strict: bool = False
) -> list[dict[str, Any]]:
    """What actors would do, without Ray: score all parts, and write them."""
    book = load_book(None)
    policies = book.find(["shieldgemma/hate"])
    parts = plan(list_shards(str(data)), 10)
    settings = ScoringSettings(model=str(model))
    job = Job(settings, policies, book.version, choose_adapter(None), parts, None, strict, 4096, 8)
    with closing(PartScorer(job)) as actor:
        scored = [actor({"part": [n]}) for n in range(len(parts))]
    results = [{key: value for key, [value] in one.items()} for one in scored]
    for result in results:
        Folder.at(str(out)).write(part_name(result["part"]), result["parquet"])
    return results


def test_an_actor_reports_what_is_wrong_and_goes_on(hot_checkpoint: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "data", rows(20), files=2)
    good, _ = scored_here(data, tmp_path / "out", hot_checkpoint)
    summary = PartSummary.read(good["summary"])
    assert (summary.rows, good["error"]) == (10, "")
    metadata = parquet.read_schema(tmp_path / "out" / part_name(0)).metadata
    assert PartSummary.read(metadata[ABOUT]) == summary

    (data / "rows-0.jsonl").write_bytes(b'{"prompt": 1}\n')
    empty, other = scored_here(data, tmp_path / "out", hot_checkpoint)
    assert PartSummary.read(empty["summary"]).bad == ["rows-0.jsonl:1 'prompt' is not text"]
    assert other["error"] == ""
    strict, other = scored_here(data, tmp_path / "strict", hot_checkpoint, strict=True)
    assert strict["error"].endswith("rows-0.jsonl:1: 'prompt' is not text.")
    assert (strict["mistake"], strict["parquet"], other["error"]) == (True, b"", "")


def test_scores_of_other_texts_policies_or_wordings_are_refused(
    hot_checkpoint: Path, tmp_path: Path
) -> None:
    data, out = written(tmp_path / "data", rows(20), files=2), tmp_path / "out"
    results = scored_here(data, out, hot_checkpoint)
    book = load_book(None)
    manifest = Manifest(
        parts=plan(list_shards(str(data)), 10),
        policies=["shieldgemma/hate"],
        guidelines={},
        book=book.version,
        options={},
        identity=PartSummary.read(results[0]["summary"]).identity,
    )
    manifest.write(Folder.at(str(out)))
    one = ("--policy", "shieldgemma/hate", "--scores", out, "--out", tmp_path / "report")
    assert "shieldgemma/hate was not among its policies" in refusal(data, *one)

    digests = {"shieldgemma/hate": wording_digest(book.policies["shieldgemma/hate"])}
    replace(manifest, guidelines=digests).write(Folder.at(str(out)))
    assert "one of --scores" in refusal(data, *one, "--url", "http://localhost:1")
    other = written(tmp_path / "other", rows(20)[::-1], files=2)
    elsewhere = ("--out", tmp_path / "other report")
    assert "its row 0 is of another text" in refusal(other, *one[:-2], *elsewhere)
    done(data, *one, "--sample", "7")
    assert len(scores(tmp_path / "report")[1]) == 7
    (out / part_name(1)).unlink()
    assert "1 of 2 parts are not scored yet" in refusal(data, *one)


def test_a_folder_takes_no_parts_of_another_run(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path))
    manifest = Manifest([Part("/rows", 3, 5)], ["p"], {"p": "d1"}, "b1", {"adapter": "ours"})
    manifest.write(folder)
    assert Manifest.read(folder) == manifest
    manifest.check_same(manifest, folder)
    for changed, told in (
        (replace(manifest, book="b2"), "book: b1 -> b2"),
        (replace(manifest, guidelines={"p": "d2"}), "guidelines"),
        (replace(manifest, parts=[Part("/rows", 3, 6)]), "parts: 1 parts of 1 files"),
        (replace(manifest, options={"adapter": "xstest"}), "options"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            manifest.check_same(changed, folder)
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.raises(ConfigurationError, match=r"holds no manifest\.json"):
        Manifest.read(folder)


def test_large_parquet_files_are_cut_between_row_groups(tmp_path: Path) -> None:
    columns = pyarrow.table({"prompt": [f"text {n}" for n in range(23)]})
    parquet.write_table(columns, tmp_path / "a.parquet", row_group_size=4)
    (tmp_path / "b.jsonl").write_text('{"prompt": "x"}\n' * 100)
    (tmp_path / "_SUCCESS").touch()
    parts = plan(list_shards(str(tmp_path)), 8)
    assert [part.row_groups for part in parts] == [(0, 2), (2, 4), (4, 6), None]
    assert [Path(part.file).name for part in parts] == [*["a.parquet"] * 3, "b.jsonl"]


@pytest.mark.parametrize(
    ("pool", "nodes", "elsewhere", "expected"),
    [
        (Pool(), [{"CPU": 8}, {"CPU": 4}], False, Pool(3, 3, 4, 0)),
        (Pool(), [{"CPU": 0}, {"CPU": 8, "GPU": 4}], False, Pool(4, 4, 1, 1)),
        (Pool(), [{"CPU": 8, "GPU": 4}], True, Pool(1, 1, 1, 0)),
        (Pool(gpus=0.5), [{"CPU": 8, "GPU": 1}], False, Pool(2, 2, 1, 0.5)),
        (Pool(1, 8, gpus=1), [{"CPU": 0}], False, Pool(1, 8, 1, 1)),
        (Pool(2, 2, 3), [{"CPU": 8}], False, Pool(2, 2, 3, 0)),
        (Pool(1, 6), [{"CPU": 8}, {"CPU": 9}], False, Pool(1, 6, 2, 0)),
        (Pool(4, 4), [{"CPU": 2}], False, Pool(4, 4, 0.5, 0)),
    ],
)
def test_actors_fill_the_cluster_unless_told_otherwise(
    pool: Pool, nodes: list[dict[str, float]], elsewhere: bool, expected: Pool
) -> None:
    assert pool.fitted(nodes, elsewhere=elsewhere) == expected


@pytest.mark.parametrize("given", ["0", "x", "3:2", ":", "-1", "2:x"])
def test_a_wrong_number_of_actors_is_refused(given: str) -> None:
    with pytest.raises(ConfigurationError, match="--actors"):
        parse_pool(given, cpus=None, gpus=None)


def test_without_ray_it_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['ray'] = None; from shieldgate.cli import main; "
        "sys.argv = ['shieldgate', 'batch', 'rows.jsonl', '--out', 'out']; main()"
    )
    words = [sys.executable, "-c", program]
    told = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert told.returncode == 2
    assert "pip install 'shieldgate[ray]'" in told.stderr
