"""Clients at their defaults: what their users see is what docs/clients.md says."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import official_clients
import pytest
from scenarios import KIND, PROMPTS, Guard
from serving import gateway
from upstream import serving
from what_is_seen import all_seen

from shieldgate.policy import Streaming
from shieldgate.upstream import Upstream

PAGE = Path(__file__).parents[1] / "docs" / "clients.md"
HERE = Path(__file__).parent

# Where each runs: the fixture of its Python, its folder, or a program beside its Python; and ours.
PROGRAMS = {
    "LangChain": ("clients", "langchain_peer.py"),
    "pydantic-ai": ("clients", "pydantic_ai_peer.py"),
    "LlamaIndex": ("clients_openai_2", "llama_index_peer.py"),
    "instructor": ("clients_openai_2", "instructor_peer.py"),
    "LiteLLM": ("litellm_proxy", "litellm_peer.py"),
    "AI SDK": ("ai_sdk", "ai_sdk_peer.mjs"),
}
OFFICIAL = {"openai", "anthropic"}
CLIENTS = ["official clients", *PROGRAMS]
# So that some of each answer has left when it is blocked.
CLOSELY = Streaming(first=1, growth=1.0, most=40)
AS_IT_COMES, AS_CONTENT = "As it comes", "With the refusal as content"
READABLE = {"on_block": "refusal", "refusal_field": "content"}
# Of the model, the scorer, and embeddings.
GOOD = (KIND, "it is baked", "0.00", "[0.5, -1.0]")
REFUSAL = "I can't help with that."
BLOCKED = {name: PROMPTS[name] for name in ("blocked prompt", "blocked answer")}


@dataclass(frozen=True)
class Cell:
    """What the page says of one client's way to ask, and of what became of the prompt."""

    table: str
    client: str
    way: str
    prompt: str
    says: str

    def __str__(self) -> str:
        return f"{self.table}: {self.client}, {self.way}: {self.prompt}: {self.says}"


def cells() -> Iterator[Cell]:
    table, header = "", []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        table = line.lstrip("# ") if line.startswith("##") else table
        if not line.startswith("| ") or table not in (AS_IT_COMES, AS_CONTENT):
            continue
        first, *rest = (cell.strip() for cell in line.strip("|").split(" | "))
        if first == "client":
            header = rest
        elif first.strip("-"):
            client, ways = re.fullmatch(r"([^`]*)(`.*)", first).groups()  # type: ignore[union-attr]
            for way in re.findall("`(.*?)`", ways):
                for prompt, says in zip(header, rest, strict=True):
                    name = "official clients" if client.strip() in OFFICIAL else client.strip()
                    if says != "–":
                        yield Cell(table, name, way, prompt, says)


CELLS = list(cells())


def differs(cell: Cell, found: Mapping[str, Any], requests: int) -> bool:
    """Tell whether a client shows something else: each `word` is shown, or it shows nothing."""
    everything = "\n".join(f"{name}: {value}" for name, value in found.items())
    words = re.findall("`(.*?)`", cell.says)
    asked = re.search(r"asked (\d+) times", cell.says)
    quiet = "raised" not in found and not found["shown"].strip()
    begun = found["shown"].startswith("kind words")
    # What is shown after other words is set apart.
    follows = f"`kind words`, then `{REFUSAL}`" in cell.says
    return (
        not all(word in everything for word in words)
        or quiet != ("nothing" in cell.says)
        or begun != ("kind words" in words)
        or (follows and f"\n\n{REFUSAL}" not in found["shown"])
        or (cell.prompt == "blocked answer" and "crude" in everything)
        or requests != (int(asked[1]) if asked else 1)
    )


def test_the_page_knows_no_other_client() -> None:
    assert {cell.client for cell in CELLS} == set(CLIENTS)


async def ask(client: str, prompts: Mapping[str, Mapping[str, str]], given: str) -> Any:
    """Have a client ask each gateway its prompts; what its user saw, by gateway, way and prompt."""
    program = HERE / PROGRAMS[client][1]
    if program.suffix == ".mjs":
        # What it imports is looked for where it stands.
        node = Path(given) / "node_modules" / ".bin" / "node"
        source = program.read_text(encoding="utf-8")
        command = [str(node), "--input-type=module", "--eval", source, "--"]
    else:
        command = [str(Path(given).with_name("python")), str(program)]
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    environment.pop("PYTHONPATH", None)
    process = await asyncio.create_subprocess_exec(
        *command,
        json.dumps(prompts),
        cwd=given if program.suffix == ".mjs" else None,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return json.loads(out)


async def ask_officially(prompts: Mapping[str, Mapping[str, str]]) -> Any:
    found = {}
    for url, asked in prompts.items():
        async with official_clients.ways(url.removesuffix("/v1")) as ways:
            found[url] = await all_seen(ways, asked)
    return found


@asynccontextmanager
async def guarded(profile: Mapping[str, Any]) -> AsyncIterator[tuple[str, Guard]]:
    """A gateway before a model: its URL for clients, and the guard that counts what is asked."""
    guard = Guard()
    async with (
        serving(guard.model) as url,
        gateway(guard, upstream=Upstream(url), profile={"streaming": CLOSELY, **profile}) as served,
    ):
        yield f"{served.url}/v1", guard


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_user_sees_what_the_page_says(client: str, request: pytest.FixtureRequest) -> None:
    given = request.getfixturevalue(PROGRAMS[client][0]) if client in PROGRAMS else ""
    wrong = []
    async with guarded({}) as (plain, guard), guarded(READABLE) as (readable, other):
        prompts = {plain: PROMPTS, readable: BLOCKED}
        found = await (ask(client, prompts, given) if given else ask_officially(prompts))
    for way, answers in found[plain].items():
        for good in (answers["good"], answers["tool"]):
            if "raised" in good or good["shown"] not in GOOD:
                wrong.append(f"{way}: {good}")
    tables = {AS_IT_COMES: (found[plain], guard), AS_CONTENT: (found[readable], other)}
    cells = [cell for cell in CELLS if cell.client == client]
    for cell in cells:
        answers, counting = tables[cell.table]
        answer = answers[cell.way][cell.prompt]
        requests = counting.requests(PROMPTS[cell.prompt], cell.way)
        if differs(cell, answer, requests):
            wrong.append(f"{cell}\n    saw {answer}, asked {requests} times")
    assert not wrong, "\n".join(wrong)
    assert {cell.way for cell in cells if cell.table == AS_IT_COMES} == set(found[plain])
