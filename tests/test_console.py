"""The console: how it is served, and what people can do with it, in a real browser."""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import responding
import test_messages
from browser import chromium, opened
from fakes import FakeScorer, FixedPolicies
from serving import Gateway, gateway
from structlog.testing import capture_logs
from test_keys import entry, written
from upstream import Script, delta, serving, streamed, whole

from shieldgate import language
from shieldgate.errors import ScorerUnavailable
from shieldgate.gateway.console import PATHS
from shieldgate.policy import Streaming, load_book
from shieldgate.upstream import Upstream

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page, Route

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "sg-canary-91c7"
TEXT = "a crude canary-text"
VIEWS = ("Try", "Chat", "Policies", "Now", "Review", "Connect")
DOCS = Path(__file__).parents[1] / "docs"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator["Browser"]:
    async with chromium() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def served(scorer: FakeScorer) -> AsyncIterator[Gateway]:
    async with gateway(scorer) as running:
        yield running


async def judge(page: "Page", prompt: str, answer: str = "") -> None:
    await page.get_by_label("Prompt").fill(prompt)
    await page.get_by_label("Answer, if you like").fill(answer)
    await page.get_by_role("button", name="Judge").click()
    await page.locator(".verdict").wait_for()


async def judgements(page: "Page", text: str = "First text") -> dict[str, list[str]]:
    """What is said of each policy, line by line."""
    lines = page.get_by_role("group", name=f"{text}: what the policies say").locator("li")
    said = [line.split("\n") for line in await lines.all_inner_texts()]
    return {name: [word for word in words if word] for name, *words in said}


# -- how it is served ------------------------------------------------------------------------------


async def test_the_page_and_its_files_come_with_a_policy_that_allows_them_alone(
    served: Gateway,
) -> None:
    for path in PATHS:
        reply = await served.client.get(path)
        assert reply.status_code == 200, path
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
    page = await served.client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert (await served.client.head("/")).status_code == 200
    for name in re.findall(r'"console/([\w.]+)"', page.text):
        assert f"/console/{name}" in PATHS
    module = await served.client.get("/console/console.js")
    assert module.headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize("name", ["none.js", "__init__.py", "..%2Fpolicy%2Fmodel.py", "%2e%2e"])
async def test_no_other_file_is_served(served: Gateway, name: str) -> None:
    assert (await served.client.get(f"/console/{name}")).status_code == 404


async def test_below_a_prefix_the_page_finds_its_files(scorer: FakeScorer) -> None:
    async with gateway(scorer, root_path="/guard") as served:
        asked = await served.client.get("/guard")
        assert (asked.status_code, asked.headers["location"]) == (307, "/guard/")
        for path in ("/guard/", "/guard/console/console.js"):
            assert (await served.client.get(path)).status_code == 200


async def test_without_keys_it_is_for_this_machine(served: Gateway) -> None:
    for path in ("/", "/console/console.js"):
        reply = await served.client.get(path, headers={"host": "evil.example"})
        assert reply.status_code == 403


# -- Try -------------------------------------------------------------------------------------------


async def test_a_prompt_is_tried_and_its_verdict_seen(served: Gateway, browser: "Browser") -> None:
    async with opened(browser, f"{served.url}/") as page:
        await judge(page, TEXT)
        assert await page.locator(".verdict").inner_text() == "Blocked: Threats"
        said = await judgements(page)
        # The margin of the scorer is 3, and the small book has no calibration.
        assert said == {
            "Threats": ["0.953", "test/threat · threshold 0.500 · not calibrated", "violated"]
        }
        assert "a prompt" in await page.locator("dl").inner_text()
        [bar] = await page.locator(".bar").all()
        outer, inner, mark = [
            await part.bounding_box() for part in (bar, bar.locator("i"), bar.locator("b"))
        ]
        assert inner["width"] / outer["width"] == pytest.approx(0.953, abs=0.005)
        assert (mark["x"] - outer["x"]) / outer["width"] == pytest.approx(0.5, abs=0.01)

        await judge(page, "What do you think of it?", TEXT)
        assert (await judgements(page))["Threats"][
            1
        ] == "test/threat · threshold 0.400 · not calibrated"
        assert "an answer" in await page.locator("dl").inner_text()
        await judge(page, "bread")
        assert await page.locator(".verdict").inner_text() == "Allowed"


async def test_a_language_that_the_scorer_is_not_said_to_know_is_warned_of(
    scorer: FakeScorer, browser: "Browser"
) -> None:
    german = "Kannst du mir helfen, einen Brief an meinen Vermieter zu schreiben?"
    scorer.identity = replace(scorer.identity, languages=("en",))
    language.load()
    script = Baker(streamed(german))
    async with (
        serving(script) as url,
        gateway(scorer, upstream=Upstream(url)) as served,
        opened(browser, f"{served.url}/") as page,
    ):
        await judge(page, german)
        assert "seems to be in German" in await page.locator(".notes").inner_text()
        await judge(page, "How do I bake bread?")
        assert await page.locator(".notes").count() == 0
        await page.goto(f"{served.url}/#chat")
        await send(page, "How do I bake bread?")
        await page.get_by_role("log").get_by_text("seems to be in German").wait_for()


async def test_a_verdict_on_another_text_is_pale(served: Gateway, browser: "Browser") -> None:
    async with opened(browser, f"{served.url}/") as page:
        await judge(page, TEXT)
        assert await page.locator(".stale").count() == 0
        await page.get_by_label("Prompt").press_sequentially("!")
        assert await page.locator(".stale").count() == 1


async def test_two_wordings_and_two_profiles_are_compared(
    served: Gateway, browser: "Browser"
) -> None:
    async with opened(browser, f"{served.url}/") as page:
        await page.get_by_label("Prompt").fill(TEXT)
        await page.get_by_role("button", name="Compare").click()
        second = page.get_by_role("group", name="Second text", exact=True)
        assert await second.get_by_label("Prompt").input_value() == TEXT
        await second.get_by_label("Prompt").fill("bread to buy")
        await second.get_by_label("Profile").select_option("strict")
        await page.get_by_role("button", name="Judge").click()
        await page.locator(".value small").nth(1).wait_for()
        assert await page.locator(".verdict").all_inner_texts() == [
            "Blocked: Threats",
            "Blocked: Spam",
        ]
        said = await judgements(page, "Second text")
        assert said["Threats"] == ["−0.950 0.002", "test/threat · threshold 0.100 · not calibrated"]
        assert said["Spam"] == [
            "only here 0.881",
            "test/spam · threshold 0.500 · not calibrated",
            "violated",
        ]

        await page.get_by_role("button", name="Remove the second").click()
        assert page.url == f"{served.url}/#try"
        assert await page.locator(".verdict").count() == 1


async def test_a_policy_of_ones_own_is_judged_beside_the_others(
    served: Gateway, browser: "Browser"
) -> None:
    # How a policy is named that only one request has.
    served.scorer.margins["loaf", "questions[0]"] = 1.0
    async with opened(browser, f"{served.url}/#try?profile=strict") as page:
        await page.get_by_text("A policy of your own").click()
        await page.get_by_label("What is true of a text").fill("The text speaks of bread.")
        await judge(page, "my loaf")
        said = await judgements(page)
        assert list(said) == ["Threats", "Spam", "Your policy"]
        assert said["Your policy"] == ["0.731", "not calibrated"]
        assert await page.locator(".verdict").inner_text() == "Allowed"
        await judge(page, "What do you think?", "Of my loaf?")
        exchange, policies = served.scorer.calls[-1]
        assert (exchange.prompt, exchange.response) == ("What do you think?", "Of my loaf?")
        assert policies == ("test/threat", "test/spam", "questions[0]")


async def test_words_that_carried_a_score_are_marked_by_how_much(
    served: Gateway, browser: "Browser"
) -> None:
    text = f"<b>🖕 {TEXT}</b>, buy\nit"
    served.scorer.margins = {("crude", "test/threat"): 3.0, ("buy", "test/spam"): 2.0}
    async with opened(browser, f"{served.url}/#try?profile=strict") as page:
        await judge(page, text)
        assert await page.locator(".words").count() == 0
        await page.get_by_role("switch", name="Which words?").check()
        await judge(page, text)
        threats = page.get_by_role("region", name="Words: Threats")
        assert await threats.locator(".heat").inner_text() == text
        assert await threats.locator("mark").all_inner_texts() == ["crude"]
        assert await threats.locator("mark").get_attribute("title") == (
            "the margin loses 9.00 without it"
        )
        assert "The whole text." in await threats.inner_text()
        said = "crude 9.00. The margin is 3.00, without the word that carries most −6.00"
        assert said in await threats.inner_text()
        # Seen without colour, too.
        line = "getComputedStyle(document.querySelector('.heat mark')).textDecorationThickness"
        assert await page.evaluate(line) == "3.5px"
        spam = page.get_by_role("region", name="Words: Spam")
        assert await spam.locator("mark").all_inner_texts() == ["buy"]

        await judge(page, "What do you think?", "A ｃｒｕｄｅ one")
        assert await threats.locator(".heat").inner_text() == "A crude one"
        assert "Another reading of the text" in await threats.inner_text()
        await page.get_by_text("A policy of your own").click()
        await page.get_by_label("What is true of a text").fill("It speaks of bread.")
        await judge(page, "my loaf")
        await page.get_by_text("No words are shown beside a policy of your own.").wait_for()


async def test_a_link_holds_the_setting_and_neither_it_nor_the_log_the_text(
    served: Gateway, browser: "Browser"
) -> None:
    with capture_logs() as logged:
        async with opened(browser, f"{served.url}/") as page:
            await page.get_by_text("A policy of your own").click()
            await page.get_by_label("What is true of a text").fill("canary-words")
            await judge(page, TEXT, "canary-answer")
            await page.get_by_role("button", name="Compare").click()
            second = page.get_by_role("group", name="Second text", exact=True)
            await second.get_by_label("Profile").select_option("strict")
            link = page.url
            assert link == f"{served.url}/#try?profile=&profile=strict"
            kept = "[JSON.stringify(localStorage), JSON.stringify(sessionStorage), document.cookie]"
            assert await page.evaluate(kept) == ["{}", "{}", ""]
    assert "canary" not in str(logged)
    async with opened(browser, link) as page:
        await page.get_by_role("group", name="Second text", exact=True).wait_for()
        assert await page.get_by_label("Profile").last.input_value() == "strict"
        assert await page.get_by_label("Prompt").last.input_value() == ""


async def test_a_link_to_a_profile_that_is_not_there_says_so(
    served: Gateway, browser: "Browser"
) -> None:
    async with opened(browser, f"{served.url}/#try?profile=stict") as page:
        await page.get_by_text("the profile “stict”, which this server does not have").wait_for()


async def test_what_fails_is_said_in_the_servers_words(served: Gateway, browser: "Browser") -> None:
    served.scorer.failure = ScorerUnavailable("The scorer failed.")
    async with opened(browser, f"{served.url}/", expected=(503,)) as page:
        await page.get_by_label("Prompt").fill("bread")
        await page.get_by_role("button", name="Judge").click()
        said = await page.get_by_role("alert").inner_text()
        assert "The scorer failed." in said
        assert "moderation_unavailable · req_" in said
        await page.get_by_label("Profile").select_option("open")
        await page.get_by_role("button", name="Judge").click()
        await page.get_by_text("Passed unjudged: The scorer failed.").wait_for()


async def test_what_comes_late_leaves_the_address_to_the_view_that_is_shown(
    served: Gateway, browser: "Browser"
) -> None:
    go_on = asyncio.Event()

    async def late(route: "Route") -> None:
        await go_on.wait()
        await route.continue_()

    async with opened(browser, f"{served.url}/") as page:
        await page.route("**/v1/policies", late)
        await page.goto(f"{served.url}/?late#try?profile=strict")
        await page.get_by_role("link", name="Connect").click()
        go_on.set()
        await page.locator("#view-try select").wait_for(state="attached")
        assert page.url.endswith("#connect")
        await page.get_by_role("link", name="Try").click()
        await page.wait_for_url("**#try?profile=strict")


# -- people ----------------------------------------------------------------------------------------


async def test_all_of_it_can_be_done_by_keyboard(served: Gateway, browser: "Browser") -> None:
    focused = "document.activeElement.innerText || document.activeElement.labels?.[0]?.innerText"
    outline = "getComputedStyle(document.activeElement).outline"
    async with opened(browser, f"{served.url}/") as page:
        await page.get_by_label("Prompt").wait_for()
        passed: list[str] = []
        while "Prompt" not in passed:
            await page.keyboard.press("Tab")
            passed.append(await page.evaluate(focused))
            assert (await page.evaluate(outline)).endswith(" solid 2px"), passed
        assert passed == ["shieldgate", *VIEWS, "a question", "a threat", "an answer", "Prompt"]
        await page.keyboard.type(TEXT)
        await page.keyboard.press("Tab")
        await page.keyboard.press("Tab")
        await page.keyboard.press("ArrowDown")  # the profile: from the server's own to default
        await page.wait_for_url("**#try?profile=default")
        await page.keyboard.press("Control+Enter")
        await page.get_by_text("Blocked: Threats").wait_for()
        await page.keyboard.press("Tab")
        assert await page.evaluate(focused) == "Which words?"
        await page.keyboard.press("Tab")
        assert await page.evaluate(focused) == "A policy of your own"
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        assert await page.evaluate(focused) == "What is true of a text that violates it"
        await page.get_by_role("link", name="Connect").press("Enter")
        await page.locator("#view-connect").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_phone_shows_it_without_scrolling_sideways(
    served: Gateway, browser: "Browser", scheme: Any
) -> None:
    widths = "[document.documentElement.scrollWidth, innerWidth]"
    phone = {"width": 360, "height": 740, "color_scheme": scheme, "has_touch": True}
    async with opened(browser, f"{served.url}/#try?profile=&profile=strict", **phone) as page:
        await page.get_by_label("Prompt").first.fill("unbroken" * 40)
        await page.get_by_label("Prompt").last.fill(TEXT)
        await page.get_by_role("button", name="Judge").click()
        await page.locator(".verdict").nth(1).wait_for()
        background = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]
        for view in VIEWS:
            await page.get_by_role("link", name=view, exact=True).click()
            await page.locator(f"#view-{view.lower()}").wait_for()
            await page.eval_on_selector_all(
                "details", "all => all.forEach(each => each.open = true)"
            )
            assert await page.evaluate(widths) == [360, 360], view


async def test_with_keys_one_is_asked_for_and_kept_in_the_tab(
    scorer: FakeScorer, browser: "Browser", tmp_path: Path
) -> None:
    file = written(tmp_path, entry("web", SECRET, profile="strict"))
    with capture_logs() as logged:
        async with (
            gateway(scorer, keys=file) as served,
            opened(browser, f"{served.url}/", expected=(401,)) as page,
        ):
            dialog = page.get_by_role("dialog")
            await dialog.get_by_label("API key").fill("sg-wrong")
            await page.keyboard.press("Enter")
            await dialog.get_by_text("The API key is not one of this server's.").wait_for()
            await page.keyboard.press("Escape")
            await page.get_by_role("alert").wait_for()
            await page.get_by_role("button", name="Try again").click()
            await dialog.get_by_label("API key").fill(SECRET)
            await dialog.get_by_role("button", name="Use it").click()
            await judge(page, TEXT)
            assert "strict" in await page.locator("dl").inner_text()
            assert SECRET not in page.url

            await page.reload()
            await judge(page, TEXT)
            assert await page.evaluate("localStorage.length") == 0
            await page.get_by_role("button", name="Forget the API key").click()
            await dialog.wait_for()
            assert await page.evaluate("sessionStorage.length") == 0
    assert SECRET not in str(logged)


# -- Chat ------------------------------------------------------------------------------------------


class Baker(Script):
    """A model that lists itself, and answers as its body says."""

    def reply(self, request: dict[str, Any] | None) -> Any:
        return self.body if request else {"data": [{"id": "baker"}]}


async def send(page: "Page", message: str) -> None:
    await page.get_by_label("Message").fill(message)
    await page.get_by_role("button", name="Send").click()


async def test_a_chat_shows_what_is_held_released_and_blocked(
    scorer: FakeScorer, browser: "Browser"
) -> None:
    go_on, answer = asyncio.Event(), "Bread is flour, water, salt and time. " * 3
    script = Baker(
        [delta(answer), go_on, delta("held back "), delta("and a crude end", finish="stop")]
    )
    async with (
        serving(script) as url,
        gateway(scorer, upstream=Upstream(url)) as served,
        opened(browser, f"{served.url}/#chat") as page,
    ):
        await send(page, "How do I bake <img src=x onerror=alert(1)>?")
        log = page.get_by_role("log")
        await log.get_by_text("Held: what comes next").wait_for()
        assert await log.locator(".text").last.inner_text() == answer
        go_on.set()
        await log.get_by_text("Blocked: Threats").wait_for()
        told = await log.inner_text()
        assert "I can't help with that." in told
        assert "held back" not in told
        assert "crude" not in told
        await log.get_by_text("What left when").click()
        steps = await log.locator("ol li").all_inner_texts()
        assert [step.split(": ")[1] for step in steps] == [
            f"{len(answer)} characters judged, and released",
            "a check stopped it, and nothing after that left",
        ]
        assert await page.locator("img").count() == 1  # the shield beside the name

        # What was blocked is no part of what the model is told next.
        script.body = streamed("A kind answer.")
        await send(page, "And rolls?")
        await log.get_by_text("A kind answer.").wait_for()
        await send(page, "And buns?")
        await log.get_by_text("A kind answer.").nth(1).wait_for()
        sent = [request["body"] for request in script.requests if request["body"]]
        assert [m["content"] for m in sent[-1]["messages"]] == [
            "And rolls?",
            "A kind answer.",
            "And buns?",
        ]
        assert {body["model"] for body in sent} == {"baker"}


async def test_a_blocked_prompt_asks_no_model_and_an_unlisted_one_is_said(
    scorer: FakeScorer, browser: "Browser"
) -> None:
    script = Script({"data": []})
    async with (
        serving(script) as url,
        gateway(scorer, upstream=Upstream(url)) as served,
        opened(browser, f"{served.url}/#chat", expected=(400,)) as page,
    ):
        await page.get_by_text("None is listed").wait_for()
        await page.get_by_label("Model").fill("baker")
        await page.get_by_label("Profile").select_option("strict")
        await send(page, "things to buy")
        await page.get_by_text("The prompt was blocked, and the model was not asked.").wait_for()
        assert await page.locator("#view-chat .verdict").all_inner_texts() == ["Blocked: Spam"]
        assert page.url.endswith("#chat?model=baker&profile=strict")
    assert [r["path"] for r in script.requests] == ["/v1/models"]


async def test_text_that_leaves_unjudged_is_pale_until_a_check_has_come_so_far(
    scorer: FakeScorer, browser: "Browser"
) -> None:
    go_on = asyncio.Event()
    script = Baker([delta("soon "), go_on, delta("after", finish="stop")])
    streaming = {"mode": "async", "first": 100, "growth": 2.0, "most": 1000}
    async with (
        serving(script) as url,
        gateway(scorer, upstream=Upstream(url), profile={"streaming": Streaming(**streaming)}) as s,
        opened(browser, f"{s.url}/#chat") as page,
    ):
        await send(page, "bread")
        await page.locator(".unjudged").get_by_text("soon").wait_for()
        go_on.set()
        await page.locator("#view-chat .verdict").nth(1).wait_for()
        assert await page.locator(".unjudged").count() == 0


async def test_without_a_model_the_chat_says_how_to_have_one(
    served: Gateway, browser: "Browser"
) -> None:
    async with opened(browser, f"{served.url}/#chat?model=baker", expected=(503,)) as page:
        await send(page, "bread")
        await page.get_by_role("alert").get_by_text("--upstream").wait_for()


# -- Connect ---------------------------------------------------------------------------------------


class Willing(Script):
    """A model with all three APIs that chats speak."""

    def reply(self, request: dict[str, Any] | None) -> Any:
        said = "Knead it."
        return {
            "/v1/chat/completions": whole(said),
            "/v1/responses": responding.response(responding.message(said)),
            "/v1/messages": test_messages.whole(said),
        }.get(self.requests[-1]["path"], {"data": []})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lines(browser: "Browser") -> AsyncIterator[dict[str, str]]:
    """What Connect says of each client, by its name, while the server that it names runs."""
    shipped = FixedPolicies(load_book())
    async with (
        serving(Willing()) as url,
        gateway(FakeScorer(), upstream=Upstream(url), policies=shipped) as served,
        opened(browser, f"{served.url}/#connect") as page,
    ):
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await page.get_by_text("Claude Code").click()
        await page.get_by_role("button", name="Copy").click()
        await page.get_by_role("button", name="Copied").wait_for()
        copied = await page.evaluate("navigator.clipboard.readText()")
        shown = "client => [client.firstChild.textContent, client.querySelector('pre').textContent]"
        found = dict(await page.eval_on_selector_all(".client", f"all => all.map({shown})"))
        assert copied == found["Claude Code"]
        yield found


async def test_what_is_to_be_pasted_into_python_runs(lines: dict[str, str]) -> None:
    clients = (
        *("OpenAI for Python", "Decisions: questions about a text", "shieldgate's own library"),
        *("OpenAI for Python, chats", "OpenAI's Responses", "Anthropic for Python"),
    )
    said: list[str] = []
    for client in clients:
        code = compile(lines[client], client, "exec")
        await asyncio.to_thread(
            exec, code, {"print": lambda *words: said.append(" ".join(map(str, words)))}
        )
    flagged, asked, own, *rest = said
    assert flagged.startswith("False 0.00")
    assert (asked[:15], own[:9]) == ("harassment 0.00", "None 0.00")
    assert rest == ["()", *["Knead it."] * 3]


@pytest.mark.parametrize(
    ("client", "says"),
    [("curl", '"flagged":false'), ("curl, with an answer and all the reasons", '"response"')],
)
async def test_what_is_to_be_pasted_into_a_shell_runs(
    lines: dict[str, str], client: str, says: str
) -> None:
    running = await asyncio.create_subprocess_shell(lines[client], stdout=subprocess.PIPE)
    said, _ = await running.communicate()
    assert says in said.decode()


async def test_what_other_gateways_are_told_is_what_the_docs_say(lines: dict[str, str]) -> None:
    said = "\n".join((DOCS / name).read_text() for name in ("guards.md", "decisions.md"))
    plain = said.replace("https://", "http://").replace("localhost:8000", "shieldgate:8000")
    for client in (
        *("LiteLLM", "NeMo Guardrails", "FMS detectors, TrustyAI", "agentgateway"),
        *("Azure AI Content Safety's clients", "What asks Llama Guard by chat"),
        *("Kong (Enterprise), AI Custom Guardrail", "LiteLLM's decision_model"),
    ):
        here = re.sub(r"127\.0\.0\.1(:|, port: )\d+", r"shieldgate\g<1>8000", lines[client])
        assert here in plain, client
    for line in lines["Portkey"].splitlines():
        assert re.sub(r"127\.0\.0\.1:\d+", "shieldgate:8000", line) in plain
