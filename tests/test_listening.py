"""The sockets that the programs listen on."""

import asyncio
import socket

from structlog.testing import capture_logs

from shieldgate.cli.listening import follow_hangups, listen
from shieldgate.settings import ListenSettings


def test_no_part_of_a_reply_waits_until_the_one_before_is_acknowledged() -> None:
    with (
        listen(ListenSettings(port=0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_what_is_asked_for_while_files_are_read_is_one_more_reading() -> None:
    hung_up, entered, released = asyncio.Event(), asyncio.Semaphore(0), asyncio.Semaphore(0)
    readings = 0

    async def reload() -> None:
        nonlocal readings
        readings += 1
        entered.release()
        await released.acquire()
        if readings == 2:
            raise RuntimeError("secret")

    with capture_logs() as lines:
        following = asyncio.create_task(follow_hangups(hung_up, reload))
        hung_up.set()
        await entered.acquire()
        for _ in range(300):
            hung_up.set()
        released.release()
        await entered.acquire()
        released.release()
        while not lines:
            await asyncio.sleep(0)
        assert readings == 2
        hung_up.set()  # what went wrong once is tried again
        await entered.acquire()
        following.cancel()
    assert readings == 3
    assert [line["event"] for line in lines] == ["unexpected error outside of a request"]
