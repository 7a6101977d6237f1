"""All that it takes to serve, put together."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from shieldgate.settings.generating import ChatSettings, GeneratorSettings
from shieldgate.settings.keeping import (
    AuditSettings,
    CacheSettings,
    HistorySettings,
    KeepingSettings,
)
from shieldgate.settings.listening import AccessSettings, LimitSettings, ListenSettings
from shieldgate.settings.scoring import OF_ONE_MODEL, ComputeSettings, ScoringSettings
from shieldgate.settings.shadow import ShadowSettings

# How many texts a second scorer elsewhere is sent at a time, which may be the first one's server.
_SHADOW_TEXTS = 4


class ServeSettings(
    ShadowSettings,
    KeepingSettings,
    AuditSettings,
    HistorySettings,
    CacheSettings,
    LimitSettings,
    AccessSettings,
    ChatSettings,
    ListenSettings,
    ScoringSettings,
):
    """What it takes to serve."""

    panel = "Server"

    root_path: str = Field(
        "",
        pattern=r"^((/[^/\s]+)+)?$",
        description="The prefix of all paths where a proxy serves this under one, such as "
        "/moderation. Whether the proxy takes it away makes no difference.",
    )
    processes: int = Field(
        1,
        ge=1,
        description="Gateway processes that share the port and one scorer, which then has a "
        "process of its own; 1 does all in one.",
    )

    def shadow_scorer(self) -> ScoringSettings | None:
        """Give the settings of the second scorer; None where it is the first one, in this process.

        One elsewhere has connections of its own, so that it takes no place of the first one's, and
        a key of its own, because the first one's is nothing that another server should see.
        """
        others = ("policies", "profile", "share")
        own = {name: v for name, v in self.shadow_settings().items() if name not in others}
        if not (own or (self.shadows and self.servers)):
            return None
        changes: dict[str, object] = {"cascade": None, "model_texts": _SHADOW_TEXTS}
        if "model" in own:
            changes |= {**OF_ONE_MODEL, "engine": "auto", "model_key": self.shadow_model_key}
        if own.keys() & {"revision", "quantize", "served_model"}:
            changes |= {"scorer_name": None}
        return self.model_copy(update=changes | own)


class WorkerSettings(GeneratorSettings, ListenSettings, ComputeSettings):
    """What it takes to serve a generator."""

    panel = "Generator"
    renamed: ClassVar[Mapping[str, str]] = {
        "model": "generator",
        "revision": "generator_revision",
        "max_waiting": "max_queued",
    }

    generator: str = Field(
        "google/gemma-2-2b-it",
        min_length=1,
        description="The generator: google/gemma-2-2b-it, -9b-it or -27b-it, or the path of a "
        "Gemma 2 checkpoint.",
    )
    port: int = Field(
        8001, ge=0, le=65535, description="The port to listen on; 0 takes a free one."
    )
    max_running: int = Field(8, ge=1, description="Most texts that are written at the same time.")
    max_queued: int = Field(
        32, ge=0, description="Most texts that wait for their turn; then comes a 429."
    )
