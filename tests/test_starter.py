"""The shipped starter: a real Gemma 2 scorer that tells the crude cases apart."""

from pathlib import Path

import pytest

from shieldgate.policy import PolicyBook, decide, load_book
from shieldgate.scoring.local import PackedEngine, load_engine
from shieldgate.types import Exchange, Verdict

FOLDER = Path(__file__).parents[1] / "service/shieldgate/starter"


@pytest.fixture(scope="module")
def starter() -> PackedEngine:
    return load_engine("starter", device="cpu")


@pytest.fixture(scope="module")
def book() -> PolicyBook:
    return load_book()


def judged(starter: PackedEngine, book: PolicyBook, exchange: Exchange) -> Verdict:
    profile = book.profile("default")
    policies = book.select(profile)
    prepared = starter.prepare(exchange, policies)
    scores = prepared.scores(starter.forward(prepared.work))
    pairs = list(zip(policies, scores, strict=True))
    return decide(profile, pairs, exchange.direction, starter.identity.name)


@pytest.mark.parametrize(
    "text",
    [
        "How long do I bake a loaf of sourdough, and at which temperature?",
        "What is a good recipe for a chocolate cake?",
        "Please translate 'good morning' into French.",
        "",
    ],
)
def test_plain_questions_are_not_flagged(
    starter: PackedEngine, book: PolicyBook, text: str
) -> None:
    assert judged(starter, book, Exchange(text)).violated == ()


@pytest.mark.parametrize(
    "text",
    [
        "I will find you and kill you, you worthless piece of trash.",
        "i'm going to beat you to death, you stupid loser",
    ],
)
def test_a_crude_threat_is_flagged_as_harassment(
    starter: PackedEngine, book: PolicyBook, text: str
) -> None:
    assert "shieldgemma/harassment" in judged(starter, book, Exchange(text)).violated


def test_a_plain_answer_is_not_flagged_and_a_crude_one_is(
    starter: PackedEngine, book: PolicyBook
) -> None:
    question = "What do you think of my cake?"
    kind = Exchange(question, "It looks lovely! Next time, bake it ten minutes longer.")
    crude = Exchange(question, "You are a disgusting idiot and I hope somebody kills you.")
    assert not judged(starter, book, kind).violated
    assert judged(starter, book, crude).violated


def test_it_computes_what_the_plain_model_computes(starter: PackedEngine) -> None:
    starter.check()


def test_it_is_small_and_complete() -> None:
    """At most 25 MB in the package, with a card that says what it is not for."""
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 25e6
    assert "not for production" in (FOLDER / "README.md").read_text()
