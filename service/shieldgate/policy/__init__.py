"""What is allowed: YAML files in, an immutable PolicyBook and verdicts out."""

from shieldgate.policy.book import PolicyBook, Rules
from shieldgate.policy.in_force import ThresholdInForce, lax_thresholds, threshold_in_force
from shieldgate.policy.join import AddedScreening, join_profiles, screening_rules
from shieldgate.policy.load import (
    Draft,
    book_of,
    define_policy,
    load_book,
    policy_files,
    shipped_policies,
)
from shieldgate.policy.model import Calibration, Passages, Policy, Profile, Streaming
from shieldgate.policy.verdicts import decide, fail
from shieldgate.policy.watch import LiveBook, changes

__all__ = [
    "AddedScreening",
    "Calibration",
    "Draft",
    "LiveBook",
    "Passages",
    "Policy",
    "PolicyBook",
    "Profile",
    "Rules",
    "Streaming",
    "ThresholdInForce",
    "book_of",
    "changes",
    "decide",
    "define_policy",
    "fail",
    "join_profiles",
    "lax_thresholds",
    "load_book",
    "policy_files",
    "screening_rules",
    "shipped_policies",
    "threshold_in_force",
]
