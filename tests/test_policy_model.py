"""What a verdict is, given scores; and which policies are judged."""

import math
from dataclasses import replace

import pytest

from shieldgate.errors import UnknownName
from shieldgate.policy import Calibration, Policy, PolicyBook, Profile, decide, fail
from shieldgate.types import Action, Direction, Score

WORDS: dict[Direction, str] = {"prompt": "No spam in prompts.", "response": "No spam in answers."}
SPAM = Policy("acme/spam", "Spam", WORDS, {"prompt": 0.5, "response": 0.7})
LEAKS = Policy("acme/leaks", "Leaks", WORDS, {"prompt": 0.5, "response": 0.5})
FITTED = replace(
    SPAM, calibrations={("scorer@1", "prompt"): Calibration(0.3, temperature=2.0, bias=-0.5)}
)
DEFAULT = Profile("default", ("acme/spam",))
BOOK = PolicyBook({p.id: p for p in (SPAM, LEAKS)}, {"default": DEFAULT}, "1")


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def judge(policy: Policy, margin: float, profile: Profile = DEFAULT, **how: str):
    direction: Direction = "response" if how.get("direction") == "response" else "prompt"
    scores = [(policy, Score(margin))]
    verdict = decide(profile, scores, direction, how.get("scorer", "scorer@1"))
    (judgement,) = verdict.judgements
    return verdict, judgement


@pytest.mark.parametrize("margin", [-1e4, -60.0, -1.0, 0.0, 1.0, 60.0, 1e4])
def test_a_margin_becomes_a_probability_whatever_its_size(margin: float):
    expected = {-1e4: 0.0, 1e4: 1.0}.get(margin) if abs(margin) == 1e4 else sigmoid(margin)
    assert Calibration(0.5).probability(margin) == pytest.approx(expected, abs=1e-15)


def test_temperature_divides_the_margin_and_bias_is_added_after():
    assert Calibration(0.5, 2.0, -0.5).probability(3.0) == pytest.approx(sigmoid(3.0 / 2.0 - 0.5))


def test_a_probability_at_the_threshold_is_a_violation_and_one_below_is_not():
    assert judge(SPAM, 0.0)[1].violated
    assert not judge(SPAM, -1e-9)[1].violated


def test_each_direction_has_its_own_threshold():
    margin = logit(0.6)
    assert judge(SPAM, margin, direction="prompt")[0].action is Action.BLOCKED
    assert judge(SPAM, margin, direction="response")[0].action is Action.ALLOWED


def test_what_was_fitted_for_the_scorer_wins_over_the_policys_default():
    _, judgement = judge(FITTED, 1.0)
    assert (judgement.threshold, judgement.calibrated) == (0.3, True)
    assert judgement.probability == pytest.approx(sigmoid(0.0))


@pytest.mark.parametrize(
    ("scorer", "direction", "threshold"),
    [("scorer@2", "prompt", 0.5), ("scorer@1", "response", 0.7)],
)
def test_a_calibration_counts_for_no_other_scorer_and_no_other_direction(
    scorer: str, direction: str, threshold: float
):
    _, judgement = judge(FITTED, 1.0, scorer=scorer, direction=direction)
    assert (judgement.threshold, judgement.calibrated) == (threshold, False)
    assert judgement.probability == pytest.approx(sigmoid(1.0))


def test_the_profiles_threshold_wins_over_what_was_fitted_but_keeps_the_fitted_probability():
    profile = replace(DEFAULT, thresholds={("acme/spam", "prompt"): 0.9})
    _, judgement = judge(FITTED, 1.0, profile)
    assert (judgement.threshold, judgement.calibrated) == (0.9, True)
    assert judgement.probability == pytest.approx(sigmoid(0.0))
    assert judge(FITTED, 1.0, profile, direction="response")[1].threshold == 0.7


@pytest.mark.parametrize(
    ("most", "own", "scorer", "threshold"),
    [
        (0.2, None, "scorer@1", 0.2),
        (0.4, None, "scorer@1", 0.3),
        (0.4, None, "scorer@2", 0.4),
        (0.6, None, "scorer@2", 0.5),
        (0.4, 0.9, "scorer@1", 0.4),
        (0.4, 0.1, "scorer@1", 0.1),
    ],
)
def test_a_highest_threshold_lowers_what_is_in_force_and_never_raises_it(
    most: float, own: float | None, scorer: str, threshold: float
):
    at = ("acme/spam", "prompt")
    profile = replace(
        DEFAULT, max_thresholds={at: most}, thresholds={} if own is None else {at: own}
    )
    assert judge(FITTED, 1.0, profile, scorer=scorer)[1].threshold == threshold
    assert judge(FITTED, 1.0, profile, direction="response")[1].threshold == 0.7


def test_one_violated_policy_blocks_and_every_policy_is_reported_in_order():
    verdict = decide(DEFAULT, [(LEAKS, Score(-5.0)), (SPAM, Score(5.0, 3))], "prompt", "scorer@1")
    assert verdict.action is Action.BLOCKED
    assert verdict.violated == ("acme/spam",)
    assert [j.policy for j in verdict.judgements] == ["acme/leaks", "acme/spam"]
    assert verdict.judgements[1].score == Score(5.0, 3)


def test_a_monitoring_profile_says_what_it_would_have_blocked_and_stops_nothing():
    verdict, _ = judge(SPAM, 5.0, replace(DEFAULT, mode="monitor"))
    assert verdict.action is Action.WOULD_BLOCK
    assert not verdict.action.stops
    assert judge(SPAM, -5.0, replace(DEFAULT, mode="monitor"))[0].action is Action.ALLOWED


def test_a_failed_guard_is_decided_per_direction():
    profile = replace(DEFAULT, on_failure={"prompt": "closed", "response": "open"})
    assert fail(profile, "prompt").action is Action.FAILED_CLOSED
    assert fail(profile, "response").action is Action.FAILED_OPEN
    assert fail(profile, "prompt").judgements == ()


def test_a_failed_guard_lets_nothing_pass_unless_the_profile_says_so():
    assert fail(DEFAULT, "prompt").action.stops
    assert fail(DEFAULT, "response").action.stops


def test_a_monitoring_profile_fails_open_whatever_it_says():
    profile = replace(
        DEFAULT, mode="monitor", on_failure={"prompt": "closed", "response": "closed"}
    )
    assert fail(profile, "prompt").action is Action.FAILED_OPEN


def test_what_is_judged_is_what_is_mandatory_and_what_was_asked_each_once():
    assert BOOK.select(DEFAULT) == (SPAM,)
    assert BOOK.select(DEFAULT, ["acme/leaks"]) == (SPAM, LEAKS)
    assert BOOK.select(DEFAULT, ["acme/leaks", "acme/spam", "acme/leaks"]) == (SPAM, LEAKS)


def test_an_unknown_policy_or_profile_is_refused_with_the_known_ones():
    with pytest.raises(UnknownName, match=r"no policy named 'acme/x'\. Known: acme/leaks, acme/sp"):
        BOOK.select(DEFAULT, ["acme/x"])
    with pytest.raises(UnknownName, match=r"no profile named 'x'\. Known: default\."):
        BOOK.profile("x")
    assert BOOK.profile("default") is DEFAULT


def test_a_policy_goes_by_the_part_after_its_family_where_only_one_has_it():
    assert BOOK.select(DEFAULT, ["leaks", "spam"]) == (SPAM, LEAKS)
    other = replace(SPAM, id="other/spam")
    two = replace(BOOK, policies={**BOOK.policies, other.id: other})
    assert two.find(["acme/spam", "leaks"]) == (SPAM, LEAKS)
    assert two.select(DEFAULT, ["spam"]) == (SPAM,)
    assert two.find(["spam"], ["other/x"]) == (other,)
    with pytest.raises(UnknownName, match=r"'spam': acme/spam, other/spam\. Name one"):
        two.find(["spam"])


@pytest.mark.parametrize(("written", "meant"), [("spma", "spam"), ("acme/leak", "acme/leaks")])
def test_a_name_that_is_nearly_a_policys_is_suggested(written: str, meant: str):
    with pytest.raises(UnknownName, match=f"named '{written}'. Did you mean '{meant}'[?] Known: "):
        BOOK.find([written])


def test_nothing_to_judge_is_refused_rather_than_allowed():
    with pytest.raises(UnknownName, match="nothing to judge"):
        BOOK.select(Profile("empty", ()))
    assert BOOK.select(Profile("empty", ()), ["acme/leaks"]) == (LEAKS,)
