"""Async resources for whoever has no event loop, or another one."""

import asyncio
import os
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, ExitStack, suppress
from typing import Generic, TypeVar

from anyio.from_thread import BlockingPortal

from shieldgate.errors import ConfigurationError

R = TypeVar("R")
T = TypeVar("T")


class Background(Generic[R]):
    """Keeps a resource in an event loop of its own, in a thread, from its first use on.

    It may be shared between threads and tasks. Who stops waiting, as with Ctrl-C, stops the work.
    """

    def __init__(self, opening: Callable[[], AbstractAsyncContextManager[R]]) -> None:
        self._opening = opening
        self._lock = threading.Lock()
        self._state: tuple[BlockingPortal, R] | None = None
        self._process: int | None = None
        self._unclosed: weakref.finalize[[ExitStack, int], Background[R]] | None = None

    def open(self) -> R:
        """Open it, where it isn't; raise what opening raises, ConfigurationError in a fork."""
        return self._opened()[1]

    def close(self) -> None:
        """Close it; a later use opens it again."""
        if self._is_forked():
            return
        with self._lock:
            self._state = self._process = None
            if self._unclosed and (unclosed := self._unclosed.detach()):
                resources, _ = unclosed[2]
                resources.close()

    def run(self, work: Callable[[R], Awaitable[T]]) -> T:
        """Do work on it, and wait; what the work raises is raised."""
        result, ended = self._start(*self._opened(), work)
        try:
            return result.result()
        except BaseException:
            result.cancel()
            ended.result()
            raise

    async def run_async(self, work: Callable[[R], Awaitable[T]]) -> T:
        """Do work on it, awaited in a loop that is the caller's own."""
        result, ended = self._start(*await asyncio.to_thread(self._opened), work)
        try:
            return await asyncio.wrap_future(result)
        except BaseException:
            result.cancel()
            await asyncio.shield(asyncio.wrap_future(ended))
            raise

    @staticmethod
    def _start(
        portal: BlockingPortal, opened: R, work: Callable[[R], Awaitable[T]]
    ) -> tuple[Future[T], Future[None]]:
        """Give what becomes the result, and what is done when the work, cancelled or not, is."""
        ended: Future[None] = Future()

        async def whole() -> T:
            try:
                return await work(opened)
            finally:
                ended.set_result(None)

        return portal.start_task_soon(whole), ended

    def _opened(self) -> tuple[BlockingPortal, R]:
        if self._is_forked():
            raise ConfigurationError(
                "This scorer was opened before the process was forked, and its threads stayed "
                "behind: open one in each process, or start processes by 'spawn'."
            )
        with self._lock:
            if self._state is None:
                self._process = os.getpid()
                resources = ExitStack()
                try:
                    portal = _start_portal(resources)
                    opening = portal.wrap_async_context_manager(self._opening())
                    self._state = portal, resources.enter_context(opening)
                except BaseException:
                    self._process = None
                    resources.close()
                    raise
                self._unclosed = weakref.finalize(self, _close_forgotten, resources, self._process)
            return self._state

    def _is_forked(self) -> bool:
        """Tell whether it was open, or being opened, when this process was forked."""
        return self._process not in (None, os.getpid())


def _start_portal(resources: ExitStack) -> BlockingPortal:
    """Run an event loop in a thread until `resources` are closed.

    anyio's own way is a generator, which a forked process would close, to wait there for ever.
    """
    started: Future[BlockingPortal] = Future()

    async def serve() -> None:
        async with BlockingPortal() as portal:
            started.set_result(portal)
            await portal.sleep_until_stopped()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="shieldgate", daemon=True)
    thread.start()
    resources.callback(thread.join)
    portal = started.result()
    resources.callback(lambda: portal.call(portal.stop))
    return portal


def _close_forgotten(resources: ExitStack, process: int) -> None:
    """Close what nobody closed, when who held it is gone or the program ends."""
    if process != os.getpid():
        return
    # At the end of a program some of it can't be closed any more, and need not be.
    with suppress(RuntimeError):
        resources.close()
