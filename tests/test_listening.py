"""The sockets that the programs listen on."""

import socket

from shieldgate.cli.listening import listen
from shieldgate.settings import ListenSettings


def test_no_part_of_a_reply_waits_until_the_one_before_is_acknowledged() -> None:
    with (
        listen(ListenSettings(port=0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
