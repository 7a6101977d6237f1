"""Exchange and guideline in, the scorer's prompt out, as segments."""

from shieldgate.prompt.adoption import adopt
from shieldgate.prompt.published import TEMPLATES, name_suffix, template_name
from shieldgate.prompt.template import (
    GEMMA_CONTROL_TOKENS,
    Control,
    Segment,
    Template,
    render,
)
from shieldgate.prompt.template_file import find_template

__all__ = [
    "GEMMA_CONTROL_TOKENS",
    "TEMPLATES",
    "Control",
    "Segment",
    "Template",
    "adopt",
    "find_template",
    "name_suffix",
    "render",
    "template_name",
]
