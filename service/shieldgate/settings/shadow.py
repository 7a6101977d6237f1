"""What judges a second time."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr

from shieldgate.settings.base import Settings
from shieldgate.settings.scoring import Model, Quantize


class ShadowSettings(Settings):
    """What judges live traffic beside what is in force, and decides nothing."""

    panel = "Second opinion (shadow)"

    shadow_policies: Path | None = Field(
        None,
        description="Judge live traffic a second time by this policy file or directory, and decide "
        "nothing by it: 'shieldgate shadow report' says what it would change.",
    )
    shadow_profile: str | None = Field(
        None,
        min_length=1,
        description="Judge a second time by this profile, of those files or else of --policies. "
        "Default: the one that has the name of the request's.",
    )
    shadow_model: Model | None = Field(
        None,
        min_length=1,
        description="Judge a second time by this scorer: whatever --model takes.",
    )
    shadow_revision: str | None = Field(
        None, min_length=1, description="Branch, tag or commit of that scorer."
    )
    shadow_quantize: Quantize | None = Field(
        None, description="Hold the second scorer's weights in fewer bits."
    )
    shadow_template: str | None = Field(
        None, min_length=1, description="Judge a second time in this prompt format."
    )
    shadow_tokenizer: str | None = Field(
        None, min_length=1, description="The tokenizer of a second scorer elsewhere."
    )
    shadow_served_model: str | None = Field(
        None, min_length=1, description="Which of the server's models is the second scorer."
    )
    shadow_scorer_name: str | None = Field(
        None, pattern=r"^[^\s|]+$", description="What to call a second scorer elsewhere."
    )
    shadow_model_key: Annotated[SecretStr, Field(min_length=1)] | None = Field(
        None,
        description="The API key for the server of --shadow-model. Flags show in process lists: "
        "prefer the variable.",
    )
    shadow_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Of all decisions judge this share a second time, in 0..1, drawn at random.",
    )

    @property
    def shadows(self) -> bool:
        """Tell whether anything judges a second time."""
        return bool(self.shadow_settings().keys() - {"share"})

    def shadow_settings(self) -> dict[str, Any]:
        """Give what is said of that, by the names without `shadow_`; no key."""
        return {
            name.removeprefix("shadow_"): value
            for name in ShadowSettings.model_fields
            if (value := getattr(self, name)) is not None and name != "shadow_model_key"
        }
