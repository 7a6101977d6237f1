"""What is allowed: YAML files in, an immutable PolicyBook and verdicts out."""

from shieldgate.policy.join import AddedScreening, join_profiles, screening_rules
from shieldgate.policy.load import define_policy, load_book, policy_files, shipped_policies
from shieldgate.policy.model import (
    Calibration,
    Passages,
    Policy,
    PolicyBook,
    Profile,
    Rules,
    Streaming,
    decide,
    fail,
)
from shieldgate.policy.watch import LiveBook, changes

__all__ = [
    "AddedScreening",
    "Calibration",
    "LiveBook",
    "Passages",
    "Policy",
    "PolicyBook",
    "Profile",
    "Rules",
    "Streaming",
    "changes",
    "decide",
    "define_policy",
    "fail",
    "join_profiles",
    "load_book",
    "policy_files",
    "screening_rules",
    "shipped_policies",
]
