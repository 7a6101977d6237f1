"""A cheap scorer decides where it is sure, and another one the rest."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from shieldgate.errors import ConfigurationError, ScorerUnavailable
from shieldgate.given_settings import load
from shieldgate.moderation import judge
from shieldgate.policy import Calibration, Policy, Profile, load_book
from shieldgate.scoring import Cached, Identity
from shieldgate.scoring.cascade import (
    Band,
    Cascade,
    CascadeFile,
    FirstScorer,
    Sure,
    guideline_digest,
    load_cascade,
)
from shieldgate.settings import ScoringSettings
from shieldgate.types import Exchange, Score

WORDS = {"prompt": "No spam in prompts.", "response": "No spam in answers."}
SPAM = Policy("acme/spam", "Spam", WORDS, {"prompt": 0.5, "response": 0.5})
OTHER = replace(SPAM, id="acme/other", guidelines=dict.fromkeys(WORDS, "Nothing else."))


@dataclass
class Tabled:
    """A scorer that looks the margin of a text up; `asked` are the texts it was asked about."""

    name: str
    margins: dict[str, float]
    asked: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    failure: Exception | None = None

    @property
    def identity(self) -> Identity:
        return Identity(self.name, f"weights of {self.name}", "float32", "chat", "64/8/v1")

    async def score(self, exchange: Exchange, policies: Sequence[Policy]) -> list[Score]:
        text = exchange.prompt if exchange.response is None else exchange.response
        self.asked.append((text, tuple(policy.id for policy in policies)))
        if self.failure:
            raise self.failure
        return [Score(self.margins[text], windows=3) for _ in policies]

    async def check(self, policies: object) -> None:
        """There is always room."""


def band(policy: Policy = SPAM, direction: str = "prompt", **changes: object) -> Band:
    plain = Band(
        guideline=guideline_digest(policy.guidelines[direction]),
        thresholds=(0.0, 1.0),
        safe=Sure(beyond=-2.0, margin=-5.0),
        harmful=Sure(beyond=2.0, margin=6.0),
    )
    return plain.model_copy(update=changes)


def cascade(
    first: Tabled, second: Tabled, bands: dict[str, dict[str, Band]] | None = None
) -> Cascade:
    both = {"prompt": band(), "response": band(direction="response")}
    file = CascadeFile(
        first=FirstScorer(model="a"),
        scorers=("a@1", "b@2"),
        bands={SPAM.id: both} if bands is None else bands,
    )
    return Cascade(first, second, file)


def pair(first: dict[str, float], second: float = 0.25) -> tuple[Tabled, Tabled]:
    return Tabled("a@1", first), Tabled("b@2", dict.fromkeys(first, second))


@pytest.mark.parametrize(
    ("margin", "counts", "asked"),
    [(-2.1, -5.0, False), (-2.0, 0.25, True), (2.0, 0.25, True), (2.1, 6.0, False)],
)
async def test_the_second_is_asked_where_the_first_is_not_sure(
    margin: float, counts: float, asked: bool
) -> None:
    first, second = pair({"text": margin})
    assert await cascade(first, second).score(Exchange("text"), [SPAM]) == [Score(counts, 3)]
    assert bool(second.asked) is asked


async def test_what_has_no_band_is_the_seconds_alone_and_the_order_stays() -> None:
    first, second = pair({"text": -3.0})
    scored = await cascade(first, second).score(Exchange("text"), [OTHER, SPAM, OTHER])
    assert [score.margin for score in scored] == [0.25, -5.0, 0.25]
    assert first.asked == [("text", (SPAM.id,))]
    assert second.asked == [("text", (OTHER.id, OTHER.id))]

    first.asked.clear()
    await cascade(first, second).score(Exchange("text"), [OTHER])
    assert not first.asked


async def test_a_reworded_policy_is_the_seconds_and_that_is_said() -> None:
    first, second = pair({"text": -3.0})
    made = cascade(first, second)
    reworded = replace(SPAM, guidelines={**WORDS, "prompt": "No spam at all."})
    [score] = await made.score(Exchange("text"), [reworded])
    assert score.margin == 0.25
    with capture_logs() as lines:
        await made.check([SPAM, OTHER])
        assert not lines
        await made.check([reworded])
    assert [line["policies"] for line in lines] == [SPAM.id]


async def test_a_growing_answer_stays_with_the_second_once_it_went_there() -> None:
    margins = {"a": -3.0, "a b": 0.0, "a b c": -3.0, "a b c d": -3.0, "z": -3.0}
    first, second = pair(margins)
    made = cascade(first, second)

    async def margin(response: str, prompt: str = "q", growing: bool = True) -> float:
        [score] = await made.score(Exchange(prompt, response, growing=growing), [SPAM])
        return score.margin

    assert await margin("a") == -5.0
    assert await margin("a b") == 0.25
    assert await margin("a b c") == 0.25
    assert await margin("z") == -5.0, "another answer to the same prompt"
    assert await margin("a b c", prompt="p") == -5.0, "the same answer to another prompt"
    assert await margin("a b c d", growing=False) == 0.25
    assert [text for text, _ in first.asked] == ["a", "a b", "z", "a b c"]
    # It has ended, so whoever asks for the same text anew begins anew.
    assert await margin("a b c d") == -5.0


async def test_answers_that_never_end_are_forgotten() -> None:
    answers = [f"{n}" for n in range(2000)]
    first, second = pair(dict.fromkeys(answers, 0.0))
    made = cascade(first, second)
    for answer in answers:
        await made.score(Exchange("q", answer, growing=True), [SPAM])
        await made.score(Exchange(f"q{answer}", answer, growing=True), [SPAM])
    kept = made._growing._prompts
    assert len(kept) == 1024
    assert max(map(len, kept.values())) <= 32


@pytest.mark.parametrize("failing", ["first", "second"])
async def test_nobody_stands_in_for_a_scorer_that_fails(failing: str) -> None:
    first, second = pair({"text": 0.0})
    {"first": first, "second": second}[failing].failure = ScorerUnavailable("gone")
    with pytest.raises(ScorerUnavailable, match="gone"):
        await cascade(first, second).score(Exchange("text"), [SPAM])


def test_the_identity_depends_on_both_scorers_and_on_the_bands() -> None:
    first, second = pair({})
    plain = cascade(first, second).identity
    assert plain.name.startswith("a@1#")
    assert plain.name.endswith(">b@2")
    other = {
        SPAM.id: {
            "prompt": band(safe=Sure(beyond=-2.5, margin=-5.0)),
            "response": band(direction="response"),
        }
    }
    moved = cascade(first, second, other).identity
    assert (moved.key, moved.name) != (plain.key, plain.name)

    class Bf16(Tabled):
        @property
        def identity(self) -> Identity:
            return replace(super().identity, dtype="bfloat16")

    assert cascade(Bf16("a@1", {}), second).identity.key != plain.key
    # What the file tells of its making moves no score.
    told = {
        SPAM.id: {
            "prompt": band(provenance={"rows": 9}),
            "response": band(direction="response"),
        }
    }
    assert cascade(first, second, told).identity == plain


def test_bands_found_for_other_scorers_are_refused() -> None:
    first, second = pair({})
    with pytest.raises(ConfigurationError, match="calibrated for a@1 before b@2, and these are b"):
        cascade(second, first)


async def test_what_was_calibrated_for_the_second_holds_until_something_is_for_the_whole() -> None:
    made = cascade(*pair({"text": 0.0, "calm": -3.0}))
    fitted = {("b@2", "prompt"): Calibration(0.3, temperature=2.0, bias=-1.0)}
    policy = replace(SPAM, calibrations=fitted)
    book = load_book()
    rules = replace(book.rules(Profile("p", (), normalise=False), ["shieldgemma/hate"]))
    rules = replace(rules, policies=(policy,))
    [unsure] = (await judge(made, Exchange("text"), rules)).judgements
    assert unsure.calibrated
    assert unsure.threshold == 0.3
    assert unsure.probability == pytest.approx(fitted["b@2", "prompt"].probability(0.25))
    [sure] = (await judge(made, Exchange("calm"), rules)).judgements
    assert sure.probability == pytest.approx(fitted["b@2", "prompt"].probability(-5.0))

    whole = replace(policy, calibrations={**fitted, (made.identity.name, "prompt"): Calibration(1)})
    assert whole.calibration(made.identity.name, "prompt") == Calibration(1)
    assert policy.calibration("x@0#1>y@1", "prompt") is None
    assert policy.calibration("x@0#1>y@1#2>b@2", "prompt") == fitted["b@2", "prompt"]


async def test_a_cache_around_it_keeps_what_either_said() -> None:
    first, second = pair({"text": 0.0, "calm": -3.0})
    cached = Cached(cascade(first, second), secret=b"0" * 16, max_entries=9)
    for _ in range(2):
        assert [s.margin for s in await cached.score(Exchange("text"), [SPAM])] == [0.25]
        assert [s.margin for s in await cached.score(Exchange("calm"), [SPAM])] == [-5.0]
    assert (len(first.asked), len(second.asked)) == (2, 1)


@pytest.mark.parametrize(("threshold", "margin"), [(0.5, 2.0), (0.9, 6.3944), (1.0, 75.47)])
def test_the_margin_of_a_threshold_has_its_probability(threshold: float, margin: float) -> None:
    fitted = Calibration(0.5, temperature=2.0, bias=-1.0)
    assert fitted.margin(threshold) == pytest.approx(margin, rel=1e-4)
    assert fitted.probability(fitted.margin(threshold)) == pytest.approx(threshold)


def test_a_threshold_outside_of_those_it_was_found_for_is_told() -> None:
    book = load_book()
    policy = book.policies["shieldgemma/hate"]
    name = "b@2"
    low, high = Calibration(0.5).margin(0.3), Calibration(0.5).margin(0.5)
    file = CascadeFile(
        first=FirstScorer(model="a"),
        scorers=("a@1", name),
        bands={policy.id: {"prompt": band(policy, thresholds=(low, high))}},
    )
    assert file.outgrown(book) == []
    laxer = replace(book.profiles["default"], thresholds={(policy.id, "prompt"): 0.7})
    changed = replace(book, profiles={**book.profiles, "default": laxer})
    assert file.outgrown(changed) == ["shieldgemma/hate (prompt)"]


FILE = """\
first:
  model: starter
scorers: [a@1, b@2]
bands:
  acme/spam:
    prompt:
      guideline: "0123"
      thresholds: [0, 1]
      safe: {beyond: -2, margin: -5}
"""


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("model: starter", "modell: starter", "cascade.yaml:2: first.modell: starter: unknown key"),
        ("margin: -5", "margin: 0.5", ":6: .*out of order"),
        ("margin: -5", "margin: 0", ":6: .*out of order"),
        ("margin: -5", "margin: .inf", "finite"),
        ("[a@1, b@2]", "[a@1]", "cascade.yaml:3: scorers"),
        ("prompt:", "prompts:", "prompts"),
        ("first:", "first: [", "not YAML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(
    tmp_path: Path, old: str, new: str, why: str
) -> None:
    path = tmp_path / "cascade.yaml"
    path.write_text(FILE)
    assert load_cascade(path).bands["acme/spam"]["prompt"].safe == Sure(beyond=-2, margin=-5)
    path.write_text(FILE.replace(old, new))
    with pytest.raises(ConfigurationError, match=why):
        load_cascade(path)


def test_the_first_scorer_is_opened_as_the_other_but_for_what_is_said_of_it(tmp_path: Path) -> None:
    path = tmp_path / "cascade.yaml"
    path.write_text(FILE.replace("starter", "b\n  cascade: inner.yaml\n  dtype: float32"))
    given = {"model": "c", "device": "cpu", "dtype": "bfloat16", "revision": "v1"}
    made = load_cascade(path).first.settings(load(ScoringSettings, given))
    assert (made.model, made.device, made.dtype) == ("b", "cpu", "float32")
    assert (made.revision, made.cascade) == (None, tmp_path / "inner.yaml")


def test_both_scorers_may_be_elsewhere_each_with_its_own_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "cascade.yaml"
    path.write_text(FILE.replace("starter", "http://2b/v1\n  tokenizer: acme/2b"))
    given = {"model": "http://9b/v1", "tokenizer": "acme/9b", "scorer_name": "large"}
    made = load_cascade(path).first.settings(load(ScoringSettings, given))
    assert (made.servers, made.tokenizer) == (("http://2b/v1",), "acme/2b")
    assert made.scorer_name is None, "the other one's"


@pytest.mark.parametrize(
    ("first", "sent"),
    [
        ("http://2b/v1", {"model_key": "sk-2b", "engine": "auto"}),
        ("http://2b/v1, http://9b/v1", {"model_key": "sk-2b", "engine": "auto"}),
        ("http://2b/v1\n  engine: sglang", {"model_key": "sk-2b", "engine": "sglang"}),
        ("http://9b/v1\n  served_model: 2b", {"model_key": "sk-9b", "engine": "vllm"}),
        ("starter", {"cascade_model_key": "sk-2b"}),
    ],
)
def test_no_server_is_sent_the_key_of_another(
    tmp_path: Path, first: str, sent: dict[str, str]
) -> None:
    path = tmp_path / "cascade.yaml"
    path.write_text(FILE.replace("starter", first))
    given = {"model": "http://9b/v1, http://9c/v1", "engine": "vllm", "model_key": "sk-9b"}
    settings = load(ScoringSettings, given | {"cascade_model_key": "sk-2b"})
    made = load_cascade(path).first.settings(settings)
    assert {name: written(made, name) for name in sent} == sent


@pytest.mark.parametrize(("first", "sent"), [("http://2b/v1", "None"), ("starter", "sk-2b")])
def test_one_key_is_for_one_first_scorer_of_cascades_in_cascades(first: str, sent: str) -> None:
    settings = load(ScoringSettings, {"model": "http://9b/v1", "cascade_model_key": "sk-2b"})
    middle = FirstScorer(model=first, cascade=Path("inner.yaml")).settings(settings)
    assert written(FirstScorer(model="http://1b/v1").settings(middle), "model_key") == sent


def written(settings: ScoringSettings, name: str) -> str:
    value = getattr(settings, name)
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
