"""`/docs` in a real browser that reaches nothing but the server."""

import shutil

import pytest
from fakes import FakeScorer
from serving import gateway


async def test_the_page_draws_itself_and_tries_a_route_without_a_network(
    scorer: FakeScorer,
) -> None:
    playwright = pytest.importorskip("playwright.async_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs Chromium on the PATH")
    wrong: list[str] = []
    async with gateway(scorer, root_path="/guard") as served, playwright.async_playwright() as run:
        browser = await run.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = await browser.new_page(viewport={"width": 1200, "height": 900})
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda asked: (
                None if asked.url.startswith((served.url, "data:")) else wrong.append(asked.url)
            ),
        )
        await page.goto(f"{served.url}/guard/docs")
        screen = page.locator("#operations-default-screen_v1_screen_post")
        await screen.locator(".opblock-summary").click()
        await screen.get_by_role("button", name="Try it out").click()
        await screen.get_by_role("button", name="Execute").click()
        await screen.locator(".live-responses-table .response-col_status").first.wait_for()
        said = await screen.locator(".live-responses-table").inner_text()
        await browser.close()
    assert "200" in said
    assert '"allowed"' in said
    assert wrong == []
