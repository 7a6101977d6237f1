"""The sockets that the programs listen on."""

import asyncio
import socket
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs
from test_cli_serve import never_loads, serving

from shieldgate.cli.listening import follow_hangups, is_local, listen, url
from shieldgate.errors import ConfigurationError
from shieldgate.settings import ListenSettings


def test_no_part_of_a_reply_waits_until_the_one_before_is_acknowledged() -> None:
    with (
        listen(ListenSettings(port=0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_unix_socket_is_listened_on_and_what_a_dead_server_left_is_replaced(
    tmp_path: Path,
) -> None:
    path = tmp_path / "socket"
    settings = ListenSettings(uds=path)
    listen(settings).close()
    with listen(settings) as listener:
        assert (url(listener), is_local(listener)) == (f"unix:{path}", True)
        with pytest.raises(ConfigurationError, match="Address already in use"):
            listen(settings)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))


@pytest.mark.parametrize("path", ["file", "no/folder", "x" * 200])
def test_where_no_socket_can_be_is_said(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigurationError, match=r"Can't listen on .+: .+ Choose another --uds"):
        listen(ListenSettings(uds=tmp_path / path))
    assert (tmp_path / "file").read_text() == "kept"


def test_the_program_serves_at_a_unix_socket_and_keeps_idle_connections(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    given = ("--uds", path, "--model", never_loads(tmp_path), "--keep-alive-seconds", "1")
    with serving(*given) as server:
        assert server.line("listening")["url"] == f"unix:{path}"
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://any.name") as client:
            assert client.get("/healthz").status_code == 200
        with socket.socket(socket.AF_UNIX) as idle:
            idle.settimeout(20)
            idle.connect(str(path))
            idle.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
            raw = b"".join(iter(lambda: idle.recv(9999), b""))
        assert raw.startswith(b"HTTP/1.1 200"), "and closed by the server after a second"


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
