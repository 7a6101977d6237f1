"""The console's views of the book, of drafts and of how the server fares, in a real browser."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from browser import opened
from fakes import FakeScorer, FixedPolicies
from prometheus_client import CollectorRegistry
from serving import Gateway, gateway
from structlog.testing import capture_logs
from test_admin import ADMIN, CANARY, POLICIES, PROFILES, screen
from test_console import browser
from test_drift import expected_of_breads, expecting
from test_keys import entry, written
from test_shadow import STRICT, OtherScorer, rig, shadowed

from shieldgate.errors import ScorerUnavailable
from shieldgate.policy import LiveBook
from shieldgate.telemetry import DriftWatch, Telemetry

if TYPE_CHECKING:
    from playwright.async_api import Browser, Locator, Page

__all__ = ["browser"]  # a fixture

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def filed(scorer: FakeScorer, tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway whose book has files."""
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "policies.yaml").write_text(POLICIES)
    (folder / "profiles.yaml").write_text(PROFILES)
    async with gateway(scorer, policies=LiveBook.load(folder)) as served:
        yield served


async def lines(page: "Page", selector: str) -> list[list[str]]:
    """The rows of what a selector finds, cell by cell, without line breaks."""
    rows = page.locator(selector)
    return [
        [" ".join(cell.split()) for cell in await row.locator("td").all_inner_texts()]
        for row in await rows.all()
    ]


# -- Policies ------------------------------------------------------------------------------------


async def test_the_book_is_shown_with_where_its_thresholds_come_from(
    filed: Gateway, browser: "Browser"
) -> None:
    async with opened(browser, f"{filed.url}/#policies?profile=strict") as page:
        table = "#view-policies tbody tr"
        await page.locator(table).first.wait_for()
        assert await lines(page, table) == [
            [
                "Threats test/threat",
                "0.3 capped by the profile, else 0.6",
                "0.3 capped by the profile, else 0.5",
            ],
            ["Spam test/spam", "0.5 the policy's default", "0.2 the profile's own"],
        ]
        said = page.get_by_role("heading", name="What it says itself").locator("+ dl")
        assert (await said.inner_text()).split() == ["mode", "monitor"]
        await page.get_by_role("link", name="Threats").click()
        card = page.locator("details.policy[open]")
        await card.get_by_text("No threats in responses.").wait_for()
        await card.get_by_text("Calibrated for prompts: flagged from 0.6").click()
        await card.get_by_text("dev.jsonl").wait_for()
        await page.get_by_label("Profile", exact=True).select_option("default")
        assert page.url.endswith("#policies?profile=default")
        assert [row[1] for row in await lines(page, table)] == ["0.6 calibrated for this scorer"]


@asynccontextmanager
async def drafting(browser: "Browser", served: Gateway, **how: int) -> AsyncIterator["Page"]:
    async with opened(browser, f"{served.url}/#policies", **how) as page:
        await page.get_by_role("button", name="Begin with the files in force").click()
        await page.get_by_label("The draft stands for").select_option("profiles.yaml")
        yield page


async def check(page: "Page", draft: str, rows: str = "") -> None:
    await page.get_by_label("Draft", exact=True).fill(draft)
    await page.get_by_label("Rows to try it on").fill(rows)
    await page.get_by_role("button", name="Check and try").click()
    await page.locator("#view-policies form h3").first.wait_for()


async def test_a_draft_is_refused_by_lines_that_lead_there(
    filed: Gateway, browser: "Browser"
) -> None:
    async with drafting(browser, filed) as page:
        assert await page.get_by_label("Draft", exact=True).input_value() == PROFILES
        await check(page, PROFILES.replace("[test/threat]", "[test/treat]"))
        await page.get_by_text("did you mean 'test/threat'?").wait_for()
        await page.get_by_role("button", name="profiles.yaml, line 4").click()
        await page.locator("textarea:focus").wait_for()
        at = "document.activeElement"
        assert await page.evaluate(f"{at}.labels[0].innerText") == "Draft"
        selected = await page.evaluate(f"{at}.value.slice({at}.selectionStart, {at}.selectionEnd)")
        assert selected == "    policies: [test/treat]"


async def test_a_draft_is_tried_on_rows_and_says_what_would_change(
    filed: Gateway, browser: "Browser"
) -> None:
    draft = PROFILES.replace("policies: [test/threat]\n", "policies: [test/spam]\n", 1)
    rows = f'bread {CANARY}\nbuy {CANARY}\n{{"prompt": "hello", "response": "crude {CANARY}"}}'
    with capture_logs() as logged:
        async with drafting(browser, filed) as page:
            await check(page, draft, rows)
            assert await lines(page, ".changes tbody tr") == [
                ["profiles.default.policies", "test/threat", "+ test/spam, − test/threat"]
            ]
            said = "2 of 3 rows would be judged otherwise; 1 newly stopped; 1 no longer stopped"
            await page.get_by_role("heading", name=said).wait_for()
            stopped, passed, same = await lines(page, ".tried tbody tr")
            assert stopped[:3] == [f"2 buy {CANARY}", "allowed", "blocked test/spam"]
            assert "test/spam not judged → 0.881 of 0.5" in stopped[3]
            assert passed[:3] == [f"3 crude {CANARY}", "blocked test/threat", "allowed"]
            assert same == [""] * 4  # folded
            await page.get_by_text("1 row as before").click()
            assert (await lines(page, ".tried tbody tr"))[2][1:3] == ["allowed", "allowed"]
            kept = "JSON.stringify([{...localStorage}, {...sessionStorage}, location.href])"
            assert CANARY not in await page.evaluate(kept)
    assert CANARY not in str(logged)


async def test_rows_that_are_none_are_said_before_anything_is_asked(
    filed: Gateway, browser: "Browser", scorer: FakeScorer
) -> None:
    async with drafting(browser, filed) as page:
        await page.get_by_label("Rows to try it on").fill('bread\n\n{"text": "buy"}')
        await page.get_by_role("button", name="Check and try").click()
        await page.get_by_role("alert").get_by_text("Line 3 of the rows begins as JSON").wait_for()
        await page.get_by_label("Rows to try it on").fill("bread\n" * 51)
        await page.get_by_role("button", name="Check and try").click()
        await page.get_by_role("alert").get_by_text("There are 51 rows, and 50").wait_for()
    assert scorer.calls == []


async def test_what_was_written_for_one_file_stays_while_another_is_looked_at(
    filed: Gateway, browser: "Browser"
) -> None:
    async with drafting(browser, filed) as page:
        text, file = (
            page.get_by_label("Draft", exact=True),
            page.get_by_label("The draft stands for"),
        )
        await text.fill("mine")
        await file.select_option("policies.yaml")
        assert await text.input_value() == POLICIES
        await file.select_option("the whole book")
        assert await text.input_value() == ""
        await file.select_option("profiles.yaml")
        assert await text.input_value() == "mine"
        await page.get_by_role("button", name="Start again").click()
        await page.locator("textarea:focus").wait_for()
        assert await text.input_value() == PROFILES


# -- Now -----------------------------------------------------------------------------------------


def tile(page: "Page", name: str) -> "Locator":
    return page.locator(".tile", has=page.get_by_role("heading", name=name, exact=True))


async def test_figures_and_decisions_are_shown_and_follow(
    filed: Gateway, browser: "Browser"
) -> None:
    await screen(filed, "crude", "bread")
    async with opened(browser, f"{filed.url}/#now") as page:
        await page.clock.install()
        await page.reload()
        assert (await tile(page, "Blocked").locator(".value").inner_text()) == "1"
        assert "2 requests" in await tile(page, "Requests a minute").inner_text()
        chart = page.get_by_role(
            "img", name="Violations, in the last 10 minutes: 1 blocked, 0 would"
        )
        await chart.wait_for()
        assert await lines(page, "#view-now tbody tr") == [["test/threat", "1", "1", "0"]]
        assert await page.locator(".decisions > li").count() == 2
        first = page.locator(".decisions details").first
        await first.locator("summary").press("Enter")
        await first.get_by_text("threshold 0.600").wait_for()
        await screen(filed, "crude again")
        await page.clock.fast_forward(3500)
        await page.locator(".decisions > li").nth(2).wait_for()
        # What was unfolded is so, and the focus is where it was.
        assert await page.locator(".decisions details[open]").count() == 1
        assert await page.evaluate("document.activeElement.tagName") == "SUMMARY"
        assert await page.locator(".decisions details[open]").evaluate(
            "open => open.contains(document.activeElement)"
        )
        await page.get_by_role("button", name="Pause").click()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.clock.fast_forward(9000)
        await page.wait_for_timeout(200)
        assert asked == []
        async with page.expect_request("**/admin/figures*"):
            await page.get_by_role("button", name="Go on").click()
        await page.get_by_role("link", name="Connect").click()
        await page.locator("#view-connect").wait_for()
        asked.clear()
        await page.clock.fast_forward(9000)
        await page.wait_for_timeout(200)
        assert not any("/admin/" in url for url in asked)


async def test_decisions_are_filtered_by_a_link_and_paged(
    scorer: FakeScorer, browser: "Browser", tmp_path: Path
) -> None:
    keys = (
        entry("web", "sg-web", profile="strict"),
        entry("ops", "sg-admin", admin="true", profile="monitor"),
    )
    web = {"headers": {"authorization": "Bearer sg-web"}}
    async with gateway(scorer, keys=written(tmp_path, *keys)) as served:
        await screen(served, "crude buy", "buy", **web)
        await screen(served, *["bread"] * 30, headers=ADMIN)
        link = f"{served.url}/#now?caller=web&policy=test%2Fthreat"
        async with opened(browser, link, expected=(401, 403)) as page:
            given = page.get_by_role("dialog").get_by_label("API key")
            await given.fill("sg-web")
            await page.keyboard.press("Enter")
            await page.get_by_role("dialog").get_by_text("admin: true").wait_for()
            await given.fill("sg-admin")
            await page.keyboard.press("Enter")
            decisions = page.locator(".decisions > li")
            await decisions.first.wait_for()
            assert await decisions.count() == 1
            assert "test/threat, test/spam" in await decisions.first.inner_text()
            await page.get_by_label("violates").select_option("test/spam")
            await decisions.nth(1).wait_for()
            assert page.url.endswith("#now?caller=web&policy=test%2Fspam")
            await page.get_by_label("violates").select_option("all")
            await page.get_by_label("caller").select_option("ops")
            await decisions.nth(24).wait_for()
            await page.get_by_role("button", name="Older").click()
            await decisions.nth(24).wait_for(state="detached")
            assert await decisions.count() == 5
            async with page.expect_response("**/admin/figures*"):
                await page.get_by_role("button", name="Pause").click()
                await page.get_by_role("button", name="Go on").click()
            await page.wait_for_timeout(200)
            assert await decisions.count() == 5  # an older page stays
            await page.get_by_role("button", name="Newest").click()
            await decisions.nth(24).wait_for()


async def test_drift_has_a_line_for_each_policy(scorer: FakeScorer, browser: "Browser") -> None:
    scorer.margins[("crude", "test/threat")] = 3.0
    scores = expected_of_breads()
    policies = FixedPolicies(expecting(scores))
    telemetry = Telemetry(CollectorRegistry())
    watch = DriftWatch(telemetry, lambda: policies.current.expected_scores("fake@0"))
    async with gateway(scorer, policies=policies, telemetry=telemetry) as served:
        await screen(served, *["crude"] * 99)
        await watch.compare()
        async with opened(browser, f"{served.url}/#now") as page:
            row = page.locator("h2", has_text="Drift of the scores").locator("+ div tbody tr")
            await row.wait_for()
            assert await row.locator("td").all_inner_texts() == [
                "test/threat",
                "too few to tell (99)",
                "–",
            ]
            await screen(served, "crude")
            await watch.compare()
            await page.reload()
            await row.get_by_text("unlike calibration").wait_for()
            assert "100 scores" in await row.inner_text()
            policies.current = expecting(replace(scores, of="900 decisions"))
            await watch.compare()
            await page.reload()
            await row.locator(".drifted", has_text="has drifted").wait_for()


async def test_what_is_amiss_is_said(scorer: FakeScorer, browser: "Browser") -> None:
    telemetry = Telemetry(CollectorRegistry())
    scorer.failure = ScorerUnavailable("The scorer failed.")
    async with gateway(scorer, telemetry=telemetry) as served:
        await screen(served, "bread")
        telemetry.breaker("scorer", "open")
        telemetry.guard_failed("timeout")
        telemetry.policies_refused(True)
        async with opened(browser, f"{served.url}/#now") as page:
            await page.get_by_text("The breaker of scorer is open").wait_for()
            await page.get_by_text("The policy files are refused").wait_for()
            said = (await tile(page, "Not judged").inner_text()).split("\n")
            assert [line for line in said if line] == ["Not judged", "1", "1 timeout"]
            await page.locator(".decisions .action", has_text="stopped unjudged").wait_for()
            await page.get_by_text("ScorerUnavailable").first.wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_both_fit_a_phone(filed: Gateway, browser: "Browser", scheme: str) -> None:
    await screen(filed, "crude", "bread")
    widths = "[document.documentElement.scrollWidth, innerWidth]"
    async with opened(
        browser, f"{filed.url}/#policies", width=360, height=740, color_scheme=scheme
    ) as page:
        await page.get_by_role("button", name="Begin with the files in force").click()
        await page.get_by_label("The draft stands for").select_option("profiles.yaml")
        draft = PROFILES.replace("[test/threat]", "[test/spam]").replace("0.3", "0.1")
        await check(page, draft, f"buy {'unbroken' * 40}\nbread")
        await page.eval_on_selector_all("details", "all => all.forEach(each => each.open = true)")
        assert await page.evaluate(widths) == [360, 360]
        await page.get_by_role("link", name="Now", exact=True).click()
        await page.locator(".decisions > li").first.wait_for()
        await page.eval_on_selector_all("details", "all => all.forEach(each => each.open = true)")
        assert await page.evaluate(widths) == [360, 360]


async def test_a_second_opinion_is_shown_where_there_is_one(
    scorer: FakeScorer, filed: Gateway, browser: "Browser"
) -> None:
    made = rig(STRICT)
    async with shadowed(made, scorer, OtherScorer({("bread", "test/threat"): 3.0})) as served:
        await screen(served, "bread", "buns", "crude")
        await made.until(judged=3)
        async with opened(browser, f"{served.url}/#now") as page:
            part = page.locator("#view-now section")
            await part.get_by_role("heading", name="Second opinion").wait_for()
            told = "other@1, policy book book-2; judges all decisions, decides nothing."
            await part.get_by_text(told).wait_for()
            values = await part.locator(".tile .value").all_inner_texts()
            assert values == ["3", "33.3 %", "+2 −0", "750 ms"]
            assert await lines(page, "#view-now section tbody tr") == [
                ["test/threat", "prompt", "2", "0"]
            ]
    async with opened(browser, f"{filed.url}/#now") as page:
        await page.get_by_text("Nothing was judged yet.").wait_for()
        assert not await page.get_by_role("heading", name="Second opinion").count()
