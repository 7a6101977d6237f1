"""What all settings have in common."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import PrivateAttr
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "SHIELDGATE_"


class Settings(BaseSettings):
    """What the settings of all commands have in common.

    `panel` heads in --help the settings that a class adds. `renamed` has the new names of settings
    by their old ones, which are taken for one more release.
    """

    panel: ClassVar[str]
    renamed: ClassVar[Mapping[str, str]] = {}
    _warnings: tuple[str, ...] = PrivateAttr(())

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Say which old names were given, a sentence each."""
        return self._warnings
