"""`/docs` in a real browser that reaches nothing but the server."""

from browser import chromium, opened
from fakes import FakeScorer
from serving import gateway


async def test_the_page_draws_itself_and_tries_a_route_without_a_network(
    scorer: FakeScorer,
) -> None:
    async with (
        gateway(scorer, root_path="/guard") as served,
        chromium() as browser,
        opened(browser, f"{served.url}/guard/docs") as page,
    ):
        screen = page.locator("#operations-default-screen_v1_screen_post")
        await screen.locator(".opblock-summary").click()
        await screen.get_by_role("button", name="Try it out").click()
        await screen.get_by_role("button", name="Execute").click()
        await screen.locator(".live-responses-table .response-col_status").first.wait_for()
        said = await screen.locator(".live-responses-table").inner_text()
    assert "200" in said
    assert '"allowed"' in said
