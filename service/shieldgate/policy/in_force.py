"""Where the thresholds in force come from, for people to see."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from shieldgate.policy.book import PolicyBook
from shieldgate.policy.model import Policy, Profile
from shieldgate.types import Direction

ThresholdSource = Literal["profile", "calibration", "policy", "cap"]


@dataclass(frozen=True, slots=True)
class ThresholdInForce:
    """The probability from which on a policy is violated, and who says so.

    It is the `profile`'s own, that of the scorer's `calibration`, or the `policy`'s default;
    `cap` where the profile's `max_thresholds` lowers what one of them says, which is `uncapped`.
    """

    threshold: float
    source: ThresholdSource
    uncapped: float


def threshold_in_force(
    profile: Profile, policy: Policy, direction: Direction, scorer: str
) -> ThresholdInForce:
    """Explain what `profile.threshold` gives for the scorer of a name."""
    at = policy.id, direction
    source: ThresholdSource
    if (own := profile.thresholds.get(at)) is not None:
        source, uncapped = "profile", own
    elif fitted := policy.calibration(scorer, direction):
        source, uncapped = "calibration", fitted.threshold
    else:
        source, uncapped = "policy", policy.thresholds[direction]
    threshold = profile.threshold(policy, direction, scorer)
    return ThresholdInForce(threshold, "cap" if threshold < uncapped else source, uncapped)


def lax_thresholds(book: PolicyBook) -> Iterator[str]:
    """Say where a profile lets pass what the threshold fitted for a scorer would stop."""
    for profile in book.profiles.values():
        for policy in book.policies.values():
            for (scorer, direction), fitted in policy.calibrations.items():
                threshold = profile.threshold(policy, direction, scorer)
                if threshold > fitted.threshold:
                    yield (
                        f"profiles.{profile.name}.thresholds.{policy.id}: {threshold:g} is above "
                        f"the {fitted.threshold:g} calibrated for {scorer} ({direction}); write it "
                        "under max_thresholds, and the lower of the two counts"
                    )
