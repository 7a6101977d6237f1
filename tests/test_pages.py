"""What our pages tell people to paste runs, and prints what they say; and their links lead on."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from newcomer import ROOT, Newcomer, blocks, commands, newcomer
from typer.core import TyperGroup

from shieldgate.cli import app

ALL = sorted(
    str(page.relative_to(ROOT))
    for pages in ("*.md", "docs/**/*.md", "deploy/*.md")
    for page in ROOT.glob(pages)
)
# The first hour, whose blocks are run; of the other pages only the flags are looked at.
# Thresholds that the last two of the cookbook write are for all that comes after.
FOLLOWED = (
    *("README.md", "docs/http.md", "docs/policies.md", "docs/evaluation.md", "docs/keys.md"),
    *("docs/decisions.md", "docs/proxy.md"),
    *(f"docs/cookbook/{page}.md" for page in ("moderate-a-forum", "guard-a-chat-app")),
    *(f"docs/cookbook/{page}.md" for page in ("guard-an-agent", "a-policy-of-your-own")),
    "docs/cookbook/evaluate-and-calibrate.md",
)
SETUP = "docs/cookbook/README.md"
# What begins so is not run, and why; that the program knows its flags is looked at all the same.
NOT_RUN = {
    "make serve": "the fixture does, with the cookbook's variables",
    "SHIELDGATE_UPSTREAM=http://localhost:11434/v1 make serve": "the fixture does",
    ".venv/bin/pip install": "the tests' environment has it, and tests ask no registry",
    "export HF_TOKEN=…": "the value is the reader's",
    ".venv/bin/shieldgate serve --model google/shieldgemma-2b": "the weights are gated",
    ".venv/bin/shieldgate evaluate labelled.jsonl": "the rows are the reader's; see the cookbook",
    ".venv/bin/shieldgate calibrate runs/mine/scores.jsonl": "the same",
    "shieldgate serve --keys keys.yaml --host 0.0.0.0": "tests open no port to the network",
    "shieldgate serve --upstream": "the fixture does, by the variable of the same name",
    "shieldgate serve --generator": "the weights are gated",
    "docker run": "asks a registry for Open WebUI",
}
_VARIABLE = re.compile(r"[A-Z_]+=")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    """Somebody who has done what stands before the cookbook's first page."""
    with newcomer(tmp_path_factory.mktemp("clone")) as someone:
        for command in [c for block in blocks(SETUP) for c in commands(block)]:
            if not why_not(command):
                someone.paste(command)
        yield someone


def why_not(command: str) -> str | None:
    return next((why for begins, why in NOT_RUN.items() if _same(command, begins)), None)


def _same(command: str, begins: str) -> bool:
    return command.split()[: len(begins.split())] == begins.split()


@pytest.mark.parametrize("page", FOLLOWED)
def test_what_a_page_says_to_paste_runs_and_prints_what_it_says(
    reader: Newcomer, page: str
) -> None:
    for block in blocks(page):
        if block.language == "sh" and not block.prints:
            for command in commands(block):
                if not why_not(command):
                    reader.paste(command)
        elif block.language == "sh":
            reader.follow(block)
        elif block.language == "python" and page in ("README.md", "docs/decisions.md"):
            reader.paste(block.text, "python")


def test_what_is_not_run_stands_on_a_page() -> None:
    pasted = [c for page in (*FOLLOWED, SETUP) for b in blocks(page) for c in commands(b)]
    for begins in NOT_RUN:
        assert any(_same(command, begins) for command in pasted), begins


@pytest.mark.parametrize("page", ALL)
def test_the_program_knows_the_flags_of_every_page(page: str) -> None:
    for command in [c for b in blocks(page) if b.language == "sh" for c in commands(b)]:
        words = [w for w in shlex.split(command, comments=True) if not _VARIABLE.match(w)]
        if words and Path(words[0]).name == "shieldgate":
            parse(words[1:])


def parse(arguments: list[str]) -> None:
    """Read arguments as the program does, without opening what they name."""
    stop = next((n for n, word in enumerate(arguments) if word in (">", ">>", "|", "&&")), None)
    arguments = arguments[:stop]
    command: Any = typer.main.get_command(app)
    context = typer.Context(command)
    while isinstance(command, TyperGroup) and not arguments[0].startswith("-"):
        command = command.get_command(context, arguments.pop(0))
        context = typer.Context(command, parent=context)
    command.make_parser(context).parse_args(arguments)


@pytest.mark.parametrize("page", ALL)
def test_every_link_to_our_own_files_leads_to_something(page: str) -> None:
    text = re.sub(
        r"^```.*?^```$|`[^`\n]+`", "", (ROOT / page).read_text("utf-8"), flags=re.M | re.S
    )
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if ":" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    """Give the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_the_readme_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for page in ALL:
        if page not in ("README.md", "CHANGELOG.md") and not page.startswith("docs/cookbook/"):
            assert f"]({page})" in text, page
    assert f"]({SETUP})" in text


def test_the_table_of_rooms_is_the_import_contract() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contract = project["tool"]["importlinter"]["contracts"][1]["layers"]
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", (ROOT / "README.md").read_text("utf-8"), re.M)
    floors: dict[int, set[str]] = {}
    for floor, rooms in rows:
        floors.setdefault(int(floor), set()).update(re.findall(r"`(\w+)`", rooms))
    assert [floors[f] for f in sorted(floors, reverse=True)] == [
        set(layer.split(" | ")) for layer in contract
    ]


def test_the_cookbook_has_no_file_that_no_page_names() -> None:
    folder = ROOT / "docs/cookbook"
    text = "".join(page.read_text("utf-8") for page in folder.glob("*.md"))
    for file in folder.iterdir():
        if file.is_file() and file.name != "README.md":
            assert f"({file.name})" in text or f"cookbook/{file.name}" in text, file.name
        if file.suffix == ".md":
            assert str(file.relative_to(ROOT)) in (*FOLLOWED, SETUP)
