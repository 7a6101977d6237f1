"""The console's view of kept texts: people label them by one key or button, in a real browser."""

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import opened
from fakes import FakeScorer
from serving import gateway
from structlog.testing import capture_logs
from test_console import browser
from test_kept_texts import CANARY, KEY, kept, new_key, put
from test_review_desk import SPAM, THREAT, away, both, desk_at, fill, rows

from shieldgate.kept_texts.seal import Seal
from shieldgate.review.desk import Desk

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

__all__ = ["browser"]  # a fixture

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return desk_at(str(tmp_path / "review.db"), KEY, clock=time.time)


async def asks(page: "Page", policy: str, text: str) -> None:
    """Wait until the page asks whether a text violates a policy."""
    await page.locator(".kept", has_text=text).get_by_text(text).first.wait_for()
    await page.get_by_role("heading", name=policy).wait_for()


async def press(page: "Page", *keys: str) -> None:
    """Press keys, each once the one before has its answer."""
    for key in keys:
        await page.keyboard.press(key)
        await page.locator(".review[aria-busy=false]").wait_for()


async def test_a_person_labels_by_keys_takes_back_and_goes_on_after_a_reload(  # noqa: PLR0915 - a page is opened once
    desk: Desk, browser: "Browser"
) -> None:
    fill(desk, "d1", prompt=f"{CANARY} one\u202e\u200b<b>bold</b>", judgements=both(0.62))
    fill(desk, "d2", prompt="What?", response=f"{CANARY} two")
    fill(desk, "d3", prompt=f"{CANARY} three")
    with capture_logs() as logged:
        async with (
            gateway(FakeScorer({}), desk=desk) as served,
            opened(browser, f"{served.url}/#review") as page,
        ):
            await asks(page, "Threats", f"{CANARY} one")
            text = page.locator(".kept")
            assert await text.inner_text() == f"{CANARY} one<U+202E><U+200B><b>bold</b>"
            assert await text.locator("mark").all_inner_texts() == ["<U+202E>", "<U+200B>"]
            await page.get_by_text("No threats in prompts.").wait_for()
            await page.get_by_text("3 of 3 kept texts lack a label").wait_for()
            assert "0.6" not in await page.locator("main").inner_text(), "who sees it leans to it"
            assert await page.get_by_role("button", name="Undo").is_disabled()
            await page.get_by_label("Show scores").check()
            await page.get_by_text(
                "Probability 0.620, threshold 0.5. Kept because it is"
            ).wait_for()
            await page.get_by_label("Show scores").uncheck()

            await press(page, "y")
            assert rows(desk) == {"d1": {THREAT: 1}}, "before the next question"
            await asks(page, "Spam", f"{CANARY} one")
            await press(page, "u")
            await page.keyboard.down("y")
            await asks(page, "Spam", f"{CANARY} one")
            await page.keyboard.down("y")  # held, and not pressed once more
            await page.keyboard.up("y")
            await press(page, "Control+n", "x")
            await page.get_by_label("Ask about").focus()
            await page.keyboard.press("n")  # which looks for an entry there
            await page.locator(".kept").focus()
            assert rows(desk) == {"d1": {THREAT: 1}}, "none of these is an answer"
            await press(page, "n")
            await asks(page, "Threats", f"{CANARY} two")
            assert (await page.locator(".kept").inner_text()).startswith("The prompt, for context")
            await page.get_by_text("No threats in responses.").wait_for()
            await page.get_by_text("2 of 3 kept texts lack a label · 2 labels given").wait_for()

            await press(page, "s", "n")
            await asks(page, "Threats", f"{CANARY} three")
            await page.reload()
            await asks(page, "Threats", f"{CANARY} three")
            await press(page, "a")
            await page.get_by_role("heading", name="That was the last one").wait_for()
            await page.get_by_text("1 text still lacks a label").wait_for()
            assert rows(desk) == {
                "d1": {THREAT: 1, SPAM: 0},
                "d2": {SPAM: 0},
                "d3": {THREAT: 0, SPAM: 0},
            }
            await press(page, "u")
            await asks(page, "Threats", f"{CANARY} three")
            assert "d3" not in rows(desk)
            await page.reload()
            await asks(page, "Threats", f"{CANARY} three")
            await press(page, "y", "y")
            await page.get_by_role("button", name="Go through them again").click()
            await asks(page, "Threats", f"{CANARY} two")
            await press(page, "y")
            await page.get_by_role("heading", name="All that is kept is labelled").wait_for()

            async with page.expect_download() as saving:
                await page.get_by_role("button", name="Download labels").click()
            saved = await saving.value
            assert saved.suggested_filename == "labelled.jsonl"
            lines = (await saved.path()).read_text().splitlines()
            assert {row["id"]: row["labels"] for row in map(json.loads, lines)} == rows(desk)
            assert len(lines) == 3
            stored = "JSON.stringify([{...localStorage}, {...sessionStorage}, location.href])"
            assert "canary" not in await page.evaluate(stored)
    assert "canary" not in str(logged)


async def test_two_people_at_once_and_who_leaves_gives_back(desk: Desk, browser: "Browser") -> None:
    fill(desk, "d1", "d2")
    async with gateway(FakeScorer({}), desk=desk) as served:
        url = f"{served.url}/#review?policy=test%2Fspam"
        async with opened(browser, url, expected=(409,)) as anna:
            await asks(anna, "Spam", "d1")
            async with opened(browser, url) as bert:
                await asks(bert, "Spam", "d2")
                await bert.get_by_text("2 of 2 kept texts lack a label · 1 with others").wait_for()
                await bert.goto(f"{served.url}/docs")
                async with asyncio.timeout(10):
                    while desk.standing("anyone-0123456789").elsewhere > 1:
                        await asyncio.sleep(0.02)
            await press(anna, "s")
            await asks(anna, "Spam", "d2")
            desk._labels.give_back(await reviewer(anna))
            desk.next("bert-0123456789abcdef", "d1", [SPAM], [SPAM])
            await press(anna, "y")
            await anna.get_by_role("alert").get_by_text("Meanwhile somebody else").wait_for()
            await anna.get_by_role("heading", name="That was the last one").wait_for()
            assert rows(desk) == {}
            await press(anna, "u")
            await asks(anna, "Spam", "d1")
            await press(anna, "y")
            assert rows(desk) == {"d1": {SPAM: 1}}, "and not the other policy"


async def reviewer(page: "Page") -> str:
    stored = await page.evaluate("sessionStorage.getItem('shieldgate.review')")
    return str(json.loads(stored)["reviewer"])


async def test_on_a_phone_it_is_answered_by_buttons_that_stay_in_reach(
    desk: Desk, browser: "Browser"
) -> None:
    fill(desk, "d1", prompt="\n\n".join([f"{CANARY} {'unbroken' * 40}"] * 40))
    phone = {"width": 390, "height": 420, "has_touch": True}
    async with (
        gateway(FakeScorer({}), desk=desk) as served,
        opened(browser, f"{served.url}/#review", **phone) as page,
    ):
        await asks(page, "Threats", CANARY)
        assert await page.evaluate("document.documentElement.scrollWidth") == 390
        for name in ("Violates it", "Does not", "No to the rest", "Skip", "Undo"):
            box = await page.get_by_role("button", name=name).bounding_box()
            assert box
            assert box["height"] >= 44
            assert box["y"] + box["height"] <= 420, name
        await page.get_by_role("button", name="Violates it").tap()
        await asks(page, "Spam", CANARY)
        await page.get_by_role("button", name="Undo").tap()
        await asks(page, "Threats", CANARY)
        await page.get_by_role("button", name="No to the rest").tap()
        await page.get_by_role("heading", name="All that is kept is labelled").wait_for()
        assert rows(desk) == {"d1": {THREAT: 0, SPAM: 0}}


async def test_what_there_is_to_do_is_said_where_there_is_nothing_to_ask(
    desk: Desk, browser: "Browser"
) -> None:
    async with (
        gateway(FakeScorer({})) as served,
        opened(browser, f"{served.url}/#review") as page,
    ):
        await page.get_by_role("heading", name="This server keeps no texts").wait_for()
        await page.get_by_text("shieldgate serve --keep-texts review.db").wait_for()
        assert not await page.get_by_role("button", name="Violates it").is_visible()
        assert not await page.get_by_label("Show scores").is_visible()
    async with (
        gateway(FakeScorer({}), desk=desk) as served,
        opened(browser, f"{served.url}/#review", expected=(503,)) as page,
    ):
        await page.get_by_role("heading", name="Nothing is kept yet").wait_for()
        put(desk._texts, kept("d0"), seal=Seal([new_key()]))
        await page.get_by_role("button", name="Look again").click()
        await page.get_by_role("heading", name="No key of this server opens").wait_for()
        fill(desk, "d1")
        await page.get_by_role("button", name="Look again").click()
        await asks(page, "Threats", CANARY)
        await page.get_by_text("1 not opened by this server's keys").wait_for()
        connected = desk._texts.database.connected
        desk._texts.database.connected = away  # type: ignore[method-assign]
        await press(page, "y")
        await page.get_by_role("alert").get_by_text("the database refused").wait_for()
        await asks(page, "Threats", CANARY)
        desk._texts.database.connected = connected  # type: ignore[method-assign]
        await press(page, "y")
        await asks(page, "Spam", CANARY)
        assert await page.get_by_role("alert").count() == 0
        assert rows(desk) == {"d1": {THREAT: 1}}


async def test_a_hostile_text_is_drawn_in_parts(desk: Desk, browser: "Browser") -> None:
    fill(desk, "d1", prompt="a\u200b" * 3000)
    fill(desk, "d2", prompt="🎈 word " * 5000)
    async with (
        gateway(FakeScorer({}), desk=desk) as served,
        opened(browser, f"{served.url}/#review") as page,
    ):
        await asks(page, "Threats", "a<U+200B>a")
        assert await page.locator(".kept mark").count() == 1000
        await page.get_by_role("button", name="more characters").click()
        assert await page.locator(".kept mark").count() == 2000
        await press(page, "s", "s")
        await asks(page, "Threats", "🎈 word")
        left = page.get_by_role("button", name="more characters")
        assert (await page.locator(".kept").inner_text()).count("🎈 word") < 3000
        await left.click()
        assert (await page.locator(".kept").inner_text()).count("🎈 word") == 5000
        assert await left.count() == 0
