"""How shieldgate is deployed. What is allowed and what is not stands in the policies.

Every field is a setting with a flag and an environment twin: `max_inputs` is `--max-inputs` and
`SHIELDGATE_MAX_INPUTS`; those of `GatewaySettings` are variables only. A flag wins over the
environment, the environment over the default. One environment may serve several commands, so a
name means the same to all of them.
"""

from shieldgate.settings.base import PREFIX, Settings
from shieldgate.settings.keeping import KeptTextsSettings
from shieldgate.settings.listening import ListenSettings
from shieldgate.settings.scoring import (
    OF_ONE_MODEL,
    Device,
    Dtype,
    EngineKind,
    GatewaySettings,
    ScoringSettings,
)
from shieldgate.settings.serving import ServeSettings, WorkerSettings

__all__ = [
    "OF_ONE_MODEL",
    "PREFIX",
    "Device",
    "Dtype",
    "EngineKind",
    "GatewaySettings",
    "KeptTextsSettings",
    "ListenSettings",
    "ScoringSettings",
    "ServeSettings",
    "Settings",
    "WorkerSettings",
]
