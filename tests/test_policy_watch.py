"""The book in force, while its files change."""

import asyncio
import errno
import os
import shutil
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from watchfiles._rust_notify import WatchfilesRustInternalError

from shieldgate.errors import PolicyError
from shieldgate.policy import LiveBook, PolicyBook, load_book, shipped_policies, watch


class ToldBook(LiveBook):
    """A live book that tells when it has reloaded."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, load_book(path))
        self.reloaded = asyncio.Event()

    async def reload(self) -> None:
        await super().reload()
        self.reloaded.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not holds():
                await self.reloaded.wait()
                self.reloaded.clear()


@asynccontextmanager
async def followed(path: Path) -> AsyncIterator[ToldBook]:
    """Give a book whose files are watched."""
    live = ToldBook(path)
    task = asyncio.create_task(live.watch())
    await asyncio.sleep(0)  # lets the task run to its first wait: from here on it sees everything
    yield live
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return shutil.copytree(shipped_policies(), tmp_path / "policies")


@pytest.fixture
def live(directory: Path) -> ToldBook:
    return ToldBook(directory)


@pytest.fixture
async def watched(directory: Path) -> AsyncIterator[ToldBook]:
    async with followed(directory) as live:
        yield live


def strict(live: LiveBook) -> float:
    return live.current.profiles["strict"].max_thresholds["shieldgemma/hate", "prompt"]


def edit(file: Path, old: str, new: str) -> None:
    """Replace a file as editors do: a new one is renamed over it."""
    draft = file.with_suffix(".draft")
    draft.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    draft.rename(file)


def test_there_is_no_first_book_from_bad_files(tmp_path: Path):
    with pytest.raises(PolicyError, match="holds no"):
        LiveBook.load(tmp_path)


def test_without_a_path_the_shipped_book_is_in_force():
    assert LiveBook.load().current.version == load_book().version


async def test_a_changed_file_is_in_force_without_being_asked(watched: ToldBook, directory: Path):
    before = watched.current
    edit(directory / "profiles.yaml", "shieldgemma/hate: 0.3", "shieldgemma/hate: 0.2")
    await watched.until(lambda: strict(watched) == 0.2)
    assert before.profiles["strict"].max_thresholds["shieldgemma/hate", "prompt"] == 0.3
    assert before.version != watched.current.version


async def test_a_bad_file_keeps_the_old_book_and_a_good_one_heals(
    watched: ToldBook, directory: Path
):
    before = watched.current
    edit(directory / "profiles.yaml", "shieldgemma/hate: 0.3", "shieldgemma/hate: 3")
    await watched.until(lambda: watched.last_error is not None)
    assert watched.current is before
    assert "profiles.yaml:74: profiles.strict.max_thresholds.shieldgemma/hate: 3: " in (
        watched.last_error or ""
    )
    edit(directory / "profiles.yaml", "shieldgemma/hate: 3", "shieldgemma/hate: 0.4")
    await watched.until(lambda: watched.last_error is None)
    assert strict(watched) == 0.4


async def test_added_and_removed_files_are_noticed(watched: ToldBook, directory: Path):
    extra = directory / "acme.yml"
    extra.write_text("family: acme\npolicies: {x: {title: X, guideline: {prompt: p, response: r}}}")
    await watched.until(lambda: "acme/x" in watched.current.policies)
    extra.unlink()
    await watched.until(lambda: "acme/x" not in watched.current.policies)


async def test_kubernetes_swap_of_links_is_noticed(tmp_path: Path):
    mount = tmp_path / "mount"
    shutil.copytree(shipped_policies(), mount / "..one")
    shutil.copytree(shipped_policies(), mount / "..two")
    edit(mount / "..two" / "profiles.yaml", "shieldgemma/hate: 0.3", "shieldgemma/hate: 0.2")
    (mount / "..data").symlink_to("..one")
    for file in (mount / "..one").iterdir():
        (mount / file.name).symlink_to(Path("..data", file.name))
    async with followed(mount) as live:
        assert strict(live) == 0.3
        (mount / "..new").symlink_to("..two")
        (mount / "..new").rename(mount / "..data")
        await live.until(lambda: strict(live) == 0.2)


async def test_a_book_of_one_file_is_followed_through_its_replacement(tmp_path: Path):
    file = tmp_path / "book.conf"
    file.write_text("".join(f.read_text() for f in sorted(shipped_policies().glob("[ps]*.yaml"))))
    async with followed(file) as live:
        edit(file, "shieldgemma/hate: 0.3", "shieldgemma/hate: 0.2")
        await live.until(lambda: strict(live) == 0.2)


async def test_sighup_reloads_whether_or_not_the_file_is_good(live: ToldBook, directory: Path):
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, lambda: asyncio.ensure_future(live.reload()))
    try:
        edit(directory / "profiles.yaml", "shieldgemma/hate: 0.3", "shieldgemma/hat: 0.2")
        os.kill(os.getpid(), signal.SIGHUP)
        await live.until(lambda: live.last_error is not None)
        assert strict(live) == 0.3
        edit(directory / "profiles.yaml", "shieldgemma/hat: 0.2", "shieldgemma/hate: 0.2")
        os.kill(os.getpid(), signal.SIGHUP)
        await live.until(lambda: live.last_error is None)
        assert strict(live) == 0.2
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


async def test_files_are_read_beside_requests_and_not_between_them(
    live: ToldBook, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    served = threading.Event()

    def read(*what: Any) -> PolicyBook:
        assert served.wait(10)  # for ever, if the loop that sets it waited for this
        return load_book(*what)

    monkeypatch.setattr(watch, "load_book", read)
    edit(directory / "profiles.yaml", "shieldgemma/hate: 0.3", "shieldgemma/hate: 0.2")
    reloading = asyncio.create_task(live.reload())
    await asyncio.sleep(0)
    served.set()
    await reloading
    assert strict(live) == 0.2


async def test_a_reload_is_logged_with_the_reason_or_with_both_versions(
    live: ToldBook, directory: Path
):
    old = live.current.version
    with capture_logs() as logs:
        await live.reload()
        edit(directory / "profiles.yaml", "shieldgemma/hate: 0.3", "shieldgemma/hate: 3")
        await live.reload()
        edit(directory / "profiles.yaml", "shieldgemma/hate: 3", "shieldgemma/hate: 0.3")
        await live.reload()
        edit(directory / "profiles.yaml", "shieldgemma/hate: 0.3", "shieldgemma/hate: 0.2")
        await live.reload()
    # The first one changed nothing, so it isn't worth a line; what was refused is, once mended.
    refused, mended, replaced = logs
    assert (mended["event"], mended["old"], mended["new"]) == ("policies_replaced", old, old)
    assert (refused["event"], refused["log_level"]) == ("policies_refused", "error")
    assert (refused["kept"], "profiles.yaml:74: " in refused["why"]) == (old, True)
    assert (replaced["event"], replaced["old"]) == ("policies_replaced", old)
    assert replaced["new"] == live.current.version


async def test_a_directory_that_vanished_keeps_the_book(watched: ToldBook, directory: Path):
    before = watched.current
    shutil.rmtree(directory)
    await watched.until(lambda: watched.last_error is not None)
    assert watched.current is before


def copied_anew(directory: Path, draft: Path) -> None:
    shutil.rmtree(directory)
    shutil.copytree(draft, directory)


def renamed(directory: Path, draft: Path) -> None:
    directory.rename(directory.with_name("before"))
    draft.rename(directory)


def linked(directory: Path, draft: Path) -> None:
    link = directory.with_name("link")
    link.symlink_to(draft.name)
    link.rename(directory)


@pytest.mark.parametrize("swap", [copied_anew, renamed, linked])
async def test_a_directory_in_the_place_of_the_first_is_followed(
    swap: Callable[[Path, Path], None], directory: Path, tmp_path: Path
):
    draft = shutil.copytree(directory, tmp_path / "draft")
    if swap is linked:
        directory = tmp_path / "current"
        directory.symlink_to("policies")
    async with followed(directory) as live:
        edit(draft / "profiles.yaml", "hate: 0.3", "hate: 0.2")
        swap(directory, draft)
        await live.until(lambda: strict(live) == 0.2)
        await live.until(lambda: live.last_error is None)
        edit(directory / "profiles.yaml", "hate: 0.2", "hate: 0.1")
        await live.until(lambda: strict(live) == 0.1)


@pytest.mark.parametrize(
    "refused",
    [
        OSError(errno.ENOSPC, "OS file watch limit reached."),
        # Of no more instances of inotify, which all containers of a user share.
        WatchfilesRustInternalError("Error creating recommended watcher: Too many open files"),
    ],
)
async def test_where_nothing_can_be_watched_that_is_said_and_reload_still_works(
    refused: Exception, live: ToldBook, directory: Path, monkeypatch: pytest.MonkeyPatch
):
    async def exhausted(*_: object, **__: object) -> AsyncIterator[None]:
        raise refused
        yield

    monkeypatch.setattr("shieldgate.policy.watch.awatch", exhausted)
    with capture_logs() as logs:
        async with asyncio.timeout(30):
            await live.watch()
    assert [log["event"] for log in logs] == ["files_not_watched"]
    edit(directory / "profiles.yaml", "shieldgemma/hate: 0.3", "shieldgemma/hate: 0.2")
    await live.reload()
    assert strict(live) == 0.2
