"""Without keys, and without leave to answer anybody, only this machine is answered."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import FakeScorer
from serving import gateway
from test_keys import entry, written

ASKED = {"json": {"prompt": "bread"}}


async def status(scorer: FakeScorer, headers: Any, **settings: Any) -> int:
    async with gateway(scorer, **settings) as served:
        reply = await served.client.post("/v1/screen", **ASKED, headers=headers)
        if reply.status_code == 403:
            error = reply.json()["error"]
            assert error["code"] == "not_allowed"
            assert "Without API keys" in error["message"]
            assert "evil" not in reply.text
            assert reply.headers["x-request-id"]
            assert scorer.calls == []
        return reply.status_code


LOCAL = [
    *("localhost", "localhost:8000", "LOCALHOST:1", "localhost.", "api.localhost:80"),
    *(
        "127.0.0.1",
        "127.0.0.1:8000",
        "127.8.9.1:8000",
        "[::1]",
        "[::1]:8000",
        "[0:0:0:0:0:0:0:1]:1",
    ),
]
FOREIGN = [
    *("evil.example", "evil.example:8000", "localhost.evil.example", "evil-localhost"),
    *(
        "127.0.0.1.evil.example",
        "10.0.0.1:8000",
        "0.0.0.0",
        "[::2]",
        "[::1",
        "",
        "localhost@evil.example",
    ),
]


@pytest.mark.parametrize("host", LOCAL)
async def test_names_of_this_machine_are_answered(scorer: FakeScorer, host: str) -> None:
    assert await status(scorer, {"host": host}) == 200


@pytest.mark.parametrize("host", FOREIGN)
async def test_any_other_name_is_refused(scorer: FakeScorer, host: str) -> None:
    """The page that had it point here would read the reply, and spend upstream's key."""
    assert await status(scorer, {"host": host}) == 403


async def test_a_second_name_does_not_hide_behind_the_first(scorer: FakeScorer) -> None:
    async with gateway(scorer) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(served.url).port)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n\r\n")
        assert (await reader.readline()).split()[1] in (b"400", b"403")
        writer.close()


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/v1/models", "/nowhere"])
async def test_nothing_at_all_is_told_to_others(scorer: FakeScorer, path: str) -> None:
    async with gateway(scorer) as served:
        reply = await served.client.get(path, headers={"host": "evil.example"})
        assert reply.status_code == 403
        route = {"route": "unknown", "status": "403", "outcome": "refused"}
        assert served.metric("shieldgate_requests_total", **route) == 1


@pytest.mark.parametrize("host", ["evil.example", "10.0.0.1:8000"])
async def test_with_keyless_keys_or_a_unix_socket_any_name_is_answered(
    scorer: FakeScorer, tmp_path: Path, host: str
) -> None:
    assert await status(scorer, {"host": host}, keyless=True) == 200
    assert await status(scorer, {"host": host}, uds=tmp_path / "socket") == 200
    keys = written(tmp_path, entry("web", "sg-1"))
    assert await status(scorer, {"host": host, "authorization": "Bearer sg-1"}, keys=keys) == 200


@pytest.mark.parametrize("header", ["host", "origin"])
async def test_keyless_tells_pages_of_others_nothing_of_the_callers(
    scorer: FakeScorer, header: str
) -> None:
    async with gateway(scorer, keyless=True) as served:
        for path in ("/admin/decisions", "/admin/figures", "/admin/policies/files"):
            reply = await served.client.get(path, headers={header: "evil.example"})
            assert reply.status_code == 403
        assert (await served.client.get("/admin/figures")).status_code == 200


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("https://evil.example", 403),
        ("null", 403),
        ("http://localhost.evil.example", 403),
        ("http://localhost:3000", 200),
        ("http://[::1]:3000", 200),
        ("https://app.example", 200),
        ("http://app.example", 403),
    ],
)
async def test_of_pages_those_of_this_machine_and_those_named_may_ask(
    scorer: FakeScorer, origin: str, expected: int
) -> None:
    found = await status(scorer, {"origin": origin}, cors_origins="https://app.example")
    assert found == expected
    assert await status(scorer, {"origin": origin}, cors_origins="*") == 200


async def test_pages_that_are_named_may_ask_from_a_browser(
    scorer: FakeScorer, tmp_path: Path
) -> None:
    origin = {"origin": "https://app.example"}
    preflight = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    keys = written(tmp_path, entry("web", "sg-1"))
    async with gateway(
        scorer, keys=keys, cors_origins="https://app.example,https://b.example"
    ) as served:
        leave = await served.client.options("/v1/screen", headers=origin | preflight)
        assert leave.status_code == 200
        assert leave.headers["access-control-allow-origin"] == "https://app.example"
        assert leave.headers["access-control-allow-headers"] == "authorization"
        refused = await served.client.post("/v1/screen", **ASKED, headers=origin)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://app.example"
        exposed = refused.headers["access-control-expose-headers"]
        assert "x-request-id" in exposed
        assert "x-ratelimit-remaining-requests" in exposed
        other = await served.client.options(
            "/v1/screen", headers={"origin": "https://c.example", **preflight}
        )
        assert "access-control-allow-origin" not in other.headers


async def test_without_pages_named_none_is_given_leave(scorer: FakeScorer) -> None:
    async with gateway(scorer) as served:
        reply = await served.client.post(
            "/v1/screen", **ASKED, headers={"origin": "http://localhost"}
        )
        assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "origins", ["app.example", "https://a.example/", "https://a b", "https://a,,b", "*,https://a"]
)
async def test_origins_that_are_none_are_refused(scorer: FakeScorer, origins: str) -> None:
    with pytest.raises(ValueError, match="cors_origins"):
        async with gateway(scorer, cors_origins=origins):
            pass
