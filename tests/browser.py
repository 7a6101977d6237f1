"""A headless Chromium whose pages fail the test on what they must not do."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page


@asynccontextmanager
async def chromium() -> AsyncIterator["Browser"]:
    """The system's Chromium; without it, or without playwright, the test skips."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.async_api import async_playwright
    except ModuleNotFoundError:
        pytest.skip("needs playwright: pip install playwright")
    if not found:
        pytest.skip("needs Chromium on the PATH")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        await browser.close()


@asynccontextmanager
async def opened(
    browser: "Browser",
    url: str,
    *,
    width: int = 1280,
    height: int = 900,
    expected: tuple[int, ...] = (),
    **context: Any,
) -> AsyncIterator["Page"]:
    """A page at `url` that may ask its own server only, and say nothing in the console's log.

    `expected` are statuses of failed requests that belong to the test. What the page's policy
    (CSP) forbids is a line in that log, too.
    """
    wrong: list[str] = []
    loaded = [f"the server responded with a status of {status}" for status in expected]
    own = url.split("#", maxsplit=1)[0].rpartition("/")[0] + "/"
    in_window = await browser.new_context(viewport={"width": width, "height": height}, **context)
    page = await in_window.new_page()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console",
        lambda said: any(known in said.text for known in loaded) or wrong.append(said.text),
    )
    page.on(
        "request",
        lambda request: request.url.startswith((own, "data:")) or wrong.append(request.url),
    )
    page.set_default_timeout(10_000)
    await page.goto(url)
    yield page
    await in_window.close()
    assert wrong == []
