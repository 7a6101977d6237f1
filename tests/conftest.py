"""Fixtures that many tests share."""

import logging
import os
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from fakes import FakeScorer
from front import Open, opening
from hypothesis import settings
from serving import Gateway, gateway

if TYPE_CHECKING:
    from test_packed_engine import Expecting

# The models of tests are so small that threads of one pass wait for each other longer than they
# compute, all the more where tests run side by side. Torch reads it when it is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says more of the machine, which tests share, than of the code.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

# Structlog as it comes draws a traceback with the variables of all its frames, for seconds.
structlog.dev.ConsoleRenderer.get_active().exception_formatter = structlog.dev.plain_traceback

NO_SKIPS = os.environ.get("SHIELDGATE_NO_SKIPS")
PEERS = {
    "TRANSFORMERS_SERVE": "transformers' own server",
    "OPENAI_AGENTS": "openai-agents",
    "VLLM": "vLLM",
    "LLAMA_SERVER": "llama.cpp's llama-server",
    "LITELLM": "LiteLLM's proxy",
    "NEMO_GUARDRAILS": "NeMo Guardrails",
    "AZURE_CONTENT_SAFETY": "azure-ai-contentsafety",
    "PORTKEY": "Portkey's gateway",
    "CLIENTS": "LangChain and pydantic-ai",
    "CLIENTS_OPENAI_2": "LlamaIndex and instructor",
    "AI_SDK": "the AI SDK",
}
GIVEN = {name: os.environ.get(f"SHIELDGATE_{name}") for name in PEERS}


@pytest.fixture(scope="session", autouse=True)
def only_settings() -> None:
    """Take away what the program would refuse: variables with its prefix that are no settings.

    No sooner, because the processes of pytest-xdist inherit what the first one has.
    """
    for name in ("NO_SKIPS", "TOPOLOGY", *PEERS):
        os.environ.pop(f"SHIELDGATE_{name}", None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that skips because it "needs" something, where SHIELDGATE_NO_SKIPS is set."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
        if "needs " in reason and NO_SKIPS:
            report.outcome = "failed"
            report.longrepr = f"{reason} (SHIELDGATE_NO_SKIPS is set)"
    return report


@pytest.fixture(scope="session")
def hot_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Gemma 2 checkpoint on which a wrong engine shows."""
    from checkpoints import save_hot_checkpoint

    return save_hot_checkpoint(tmp_path_factory.mktemp("hot"))


@pytest.fixture(scope="session")
def expected(hot_checkpoint: Path) -> "Expecting":
    """What the plain model says with that checkpoint, each prompt computed once."""
    from test_packed_engine import expecting

    return expecting(hot_checkpoint)


def peer(name: str) -> Any:
    """Make a fixture of a program, or of the Python of an environment, beside ours."""

    @pytest.fixture(scope="session")
    def given() -> str:
        if GIVEN[name] == "absent":
            pytest.skip(f"{PEERS[name]} can't be had on this machine")
        return GIVEN[name] or pytest.skip(f"needs {PEERS[name]}: SHIELDGATE_{name}, see .ci/run")

    return given


transformers_serve = peer("TRANSFORMERS_SERVE")
openai_agents = peer("OPENAI_AGENTS")
vllm_python = peer("VLLM")
llama_program = peer("LLAMA_SERVER")
litellm_proxy = peer("LITELLM")
nemo_guardrails = peer("NEMO_GUARDRAILS")
azure_content_safety = peer("AZURE_CONTENT_SAFETY")
portkey_folder = peer("PORTKEY")
clients = peer("CLIENTS")
clients_openai_2 = peer("CLIENTS_OPENAI_2")
ai_sdk = peer("AI_SDK")


@pytest.fixture
def scorer() -> FakeScorer:
    """A scorer that finds threats in texts with `crude` in them, and spam in those with `buy`."""
    return FakeScorer({("crude", "test/threat"): 3.0, ("buy", "test/spam"): 2.0})


@pytest.fixture
async def served(scorer: FakeScorer) -> AsyncIterator[Gateway]:
    """A running gateway around `scorer`."""
    async with gateway(scorer) as running:
        yield running


@pytest.fixture
def front(scorer: FakeScorer) -> Open:
    """Opens a gateway around `scorer`, before a scripted model."""
    return opening(scorer)


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """For tests that configure the logging of the whole process: put it back afterwards."""
    root = logging.getLogger()
    loggers = [root, logging.getLogger("httpx"), logging.getLogger("shieldgate")]
    handlers, levels = root.handlers, [logger.level for logger in loggers]
    root.handlers = []
    yield
    root.handlers = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    structlog.reset_defaults()
