"""What is allowed: YAML files in, an immutable PolicyBook and verdicts out."""

from shieldgate.policy.load import load_book, policy_files, shipped_policies
from shieldgate.policy.model import (
    Calibration,
    History,
    Instructions,
    Mode,
    OnBlock,
    OnFailure,
    Policy,
    PolicyBook,
    Profile,
    PromptCheck,
    Rules,
    Streaming,
    Unscreenable,
    decide,
    fail,
)
from shieldgate.policy.watch import LiveBook, changes

__all__ = [
    "Calibration",
    "History",
    "Instructions",
    "LiveBook",
    "Mode",
    "OnBlock",
    "OnFailure",
    "Policy",
    "PolicyBook",
    "Profile",
    "PromptCheck",
    "Rules",
    "Streaming",
    "Unscreenable",
    "changes",
    "decide",
    "fail",
    "load_book",
    "policy_files",
    "shipped_policies",
]
