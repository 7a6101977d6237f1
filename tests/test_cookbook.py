"""The pages of the cookbook, pasted block by block: they print what the pages say."""

from collections.abc import Iterator

import pytest
from newcomer import ROOT, Newcomer, blocks, newcomer

COOKBOOK = ROOT / "docs/cookbook"
# The thresholds that the last two write are for all that comes after.
PAGES = (
    *("moderate-a-forum.md", "guard-a-chat-app.md", "guard-an-agent.md"),
    *("a-policy-of-your-own.md", "evaluate-and-calibrate.md"),
)
SETUP = "docs/cookbook/README.md"
INSTALLS = "pip install"  # the tests' own environment has it, and a registry is not asked


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    """Somebody who has done what stands before the first page."""
    for reading in newcomer(tmp_path_factory.mktemp("clone")):
        for block in blocks(SETUP):
            reading.paste("\n".join(li for li in block.text.splitlines() if INSTALLS not in li))
        yield reading


@pytest.mark.parametrize("page", PAGES)
def test_a_page_prints_what_it_says(reader: Newcomer, page: str) -> None:
    for block in blocks(f"docs/cookbook/{page}"):
        reader.follow(block)


def test_every_page_and_program_is_in_the_cookbook_and_run() -> None:
    text = "".join((COOKBOOK / page).read_text("utf-8") for page in ("README.md", *PAGES))
    for file in COOKBOOK.iterdir():
        if file.suffix == ".md":
            assert file.name in ("README.md", *PAGES)
        elif file.is_file():
            assert f"({file.name})" in text or f"cookbook/{file.name}" in text, file.name
