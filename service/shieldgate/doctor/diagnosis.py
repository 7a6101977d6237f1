"""What is wrong with somebody's prompts, and the template that asks what they ask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from shieldgate.doctor.compare import closest_policy, compare, nearest
from shieldgate.doctor.findings import Finding
from shieldgate.doctor.prompts import Asked
from shieldgate.doctor.sources import Source
from shieldgate.errors import ConfigurationError
from shieldgate.policy import load_book, shipped_policies
from shieldgate.prompt import GEMMA_CONTROL_TOKENS, TEMPLATES, Template
from shieldgate.types import Direction

# Where the words of the guideline are what differs, they are measured as they stand.
_OF_GUIDELINE = frozenset(
    ("guideline", "guideline-wrapped", "guideline-direction", "several-policies")
)


@dataclass(frozen=True, slots=True)
class Compared:
    """A prompt, the published format it was compared with, and what differs.

    `nearest` is the published format that it shares most with.
    """

    asked: Asked
    template: Template
    nearest: Template
    findings: Sequence[Finding]

    @property
    def policy(self) -> str | None:
        """Name the published policy whose guideline is written out in it, if it is one."""
        text = self.asked.value("{guideline}")
        return text and closest_policy(text, published_guidelines())


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a source was found to ask, and what of it differs."""

    source: Source
    prompts: Sequence[Compared]

    @property
    def findings(self) -> list[Finding]:
        """List all that was found, what is said of both directions once."""
        found = [*(f for p in self.prompts for f in p.findings), *self.source.settings]
        return [f for i, f in enumerate(found) if f not in found[:i]]

    @property
    def differs(self) -> bool:
        """Tell whether anything is certain to differ."""
        return any(finding.certain for finding in self.findings)

    @property
    def policies(self) -> tuple[str, ...]:
        """Name the policy that alone can be measured, where a guideline in other words is."""
        kinds = {f.kind for p in self.prompts for f in p.findings}
        own = {p.policy for p in self.prompts if p.policy}
        fixed = kinds & _OF_GUIDELINE - {"several-policies"}
        return tuple(own) if fixed and len(own) == 1 else ()

    def template(self, name: str) -> Template:
        """Make the template that asks as these prompts do, to be scored.

        Without a prompt for prompts, these are asked as published. Raises ConfigurationError where
        one has no place for the text to be judged.
        """
        texts = {p.asked.direction: _written(p) for p in self.prompts}
        for_prompt = texts.get("prompt", self.prompts[0].template.for_prompt)
        for_response = texts.get("response")
        both = for_prompt + (for_response or "")
        tokens = tuple(token for token in GEMMA_CONTROL_TOKENS if token in both)
        return Template(name, for_prompt, for_response, control_tokens=tokens)


def diagnose(source: Source, template: Template | None = None) -> Diagnosis:
    """Compare all prompts of a source with a published format; raise ConfigurationError.

    That is `template`, or without one `chat`, unless a prompt is another to the byte.
    """
    prompts = [_compared(asked, template) for asked in source.prompts]
    rendered = all(p.asked.adds_bos is not None for p in prompts)
    if rendered and all(p.asked.direction == "prompt" for p in prompts):
        source = replace(
            source, settings=[Finding.of("judges-no-response", certain=False), *source.settings]
        )
    return Diagnosis(source, prompts)


def _compared(asked: Asked, template: Template | None) -> Compared:
    if template and asked.direction == "response" and template.for_response is None:
        raise ConfigurationError(
            f"{template.name!r} only judges prompts, and this judges an answer. Compare it with "
            "chat, paper or notebook."
        )
    guidelines = published_guidelines()
    closest = nearest(asked)
    if template is None:
        same = compare(asked, closest, guidelines)
        if not any(f.certain for f in same):
            return Compared(asked, closest, closest, same)
    template = template or TEMPLATES["chat"]
    return Compared(asked, template, closest, compare(asked, template, guidelines))


@cache
def published_guidelines() -> Mapping[str, Mapping[Direction, str]]:
    """Give the guidelines that ShieldGemma was published with, by policy id and direction."""
    policies = load_book(shipped_policies()).policies.values()
    return {p.id: p.guidelines for p in policies if p.id.startswith("shieldgemma/")}


def _written(compared: Compared) -> str:
    """Write a prompt out with its fields, as the model would be given it."""
    asked = compared.asked
    if "{prompt}" not in asked.spans:
        raise ConfigurationError(
            "It has no place for the text to be judged, so that it can't be measured. Mark it as "
            "{prompt}."
        )
    fixed = any(f.kind in _OF_GUIDELINE for f in compared.findings)
    text, end = "", 0
    for field, (start, after) in sorted(asked.spans.items(), key=lambda item: item[1]):
        kept = field == "{guideline}" and fixed
        text += asked.text[end:start] + (asked.text[start:after] if kept else field)
        end = after
    text += asked.text[end:]
    added = asked.adds_bos or (asked.adds_bos is None and not text.startswith("<bos>"))
    return "<bos>" + text if added else text
