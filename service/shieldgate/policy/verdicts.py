"""Where verdicts are decided: pure functions of a profile and scores."""

from collections.abc import Sequence

from shieldgate.policy.model import Calibration, Policy, Profile
from shieldgate.types import Action, Direction, Judgement, Score, Verdict


def decide(
    profile: Profile,
    scores: Sequence[tuple[Policy, Score]],
    direction: Direction,
    scorer: str,
) -> Verdict:
    """Turn scores into a verdict; `scorer` is the name under which calibrations are filed."""
    judgements = tuple(
        _judge(profile, policy, score, direction, scorer) for policy, score in scores
    )
    violated = {j.policy for j in judgements if j.violated}
    if not violated:
        action = Action.ALLOWED
    elif profile.mode == "monitor" or violated <= profile.monitored:
        action = Action.WOULD_BLOCK
    else:
        action = Action.BLOCKED
    return Verdict(direction, action, judgements)


def fail(profile: Profile, direction: Direction) -> Verdict:
    """Decide for an exchange that could not be scored, as the profile's `on_failure` says.

    A profile that only monitors stops nothing, so it fails open whatever it says.
    """
    opens = profile.mode == "monitor" or profile.on_failure[direction] == "open"
    return Verdict(direction, Action.FAILED_OPEN if opens else Action.FAILED_CLOSED, ())


def _judge(
    profile: Profile, policy: Policy, score: Score, direction: Direction, scorer: str
) -> Judgement:
    fitted = policy.calibration(scorer, direction)
    calibration = fitted or Calibration(policy.thresholds[direction])
    threshold = profile.threshold(policy, direction, scorer)
    probability = calibration.probability(score.margin)
    return Judgement(
        policy=policy.id,
        probability=probability,
        threshold=threshold,
        violated=probability >= threshold,
        calibrated=fitted is not None,
        score=score,
    )
