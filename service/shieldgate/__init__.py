"""shieldgate: content moderation with ShieldGemma, in front of any LLM.

What is named here is the library (docs/library.md). It is imported when it is first used, so that
`import shieldgate` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from shieldgate.version import __version__

if TYPE_CHECKING:
    from shieldgate.errors import ConfigurationError, ScoringError, ShieldgateError, UnknownName
    from shieldgate.evaluation.report import Report
    from shieldgate.evaluation.session import EvaluationOptions
    from shieldgate.library import ScorerHandle, open_scorer
    from shieldgate.policy import Policy, PolicyBook, Profile, define_policy, load_book
    from shieldgate.types import Action, Exchange, Judgement, Score, Verdict

_ROOMS = {
    "errors": ("ConfigurationError", "ScoringError", "ShieldgateError", "UnknownName"),
    "evaluation.report": ("Report",),
    "evaluation.session": ("EvaluationOptions",),
    "library": ("ScorerHandle", "open_scorer"),
    "policy": ("Policy", "PolicyBook", "Profile", "define_policy", "load_book"),
    "types": ("Action", "Exchange", "Judgement", "Score", "Verdict"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "Action",
    "ConfigurationError",
    "EvaluationOptions",
    "Exchange",
    "Judgement",
    "Policy",
    "PolicyBook",
    "Profile",
    "Report",
    "Score",
    "ScorerHandle",
    "ScoringError",
    "ShieldgateError",
    "UnknownName",
    "Verdict",
    "__version__",
    "define_policy",
    "load_book",
    "open_scorer",
]


def __getattr__(name: str) -> object:
    """Import what is asked for (PEP 562)."""
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
