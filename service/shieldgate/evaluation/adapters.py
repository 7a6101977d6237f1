"""Records in their published columns in, examples in our words out."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from shieldgate.errors import ConfigurationError, first_line
from shieldgate.evaluation.label_rules import Rule, number
from shieldgate.types import Exchange, Label

Fields = Mapping[str, Any]


class RowError(Exception):
    """A record can't be used; says why, without its text."""


@dataclass(frozen=True, slots=True)
class Example:
    """What is judged, and what its labels say; a label that is missing is unknown.

    `labels` is keyed by the dataset's words, which `labels.Labelling` turns into policies.
    """

    exchange: Exchange
    id: str | None = None
    labels: Mapping[str, Label] = field(default_factory=dict)
    harmful: Label | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """Reads the records of one dataset; `columns` are those by which it is recognised.

    `read` gives the examples of a record, and raises RowError.
    """

    name: str
    columns: frozenset[str]
    read: Callable[[Fields], Iterable[Example]]


def _get(fields: Fields, column: str) -> Any:
    """Take a value, or None where it is missing, which pandas writes as NaN."""
    value = fields.get(column)
    return None if isinstance(value, float) and math.isnan(value) else value


def text(fields: Fields, column: str) -> str:
    """Take a text that may be empty; raise RowError."""
    value = fields.get(column)
    if not isinstance(value, str):
        raise RowError(
            f"{column!r} is not text" if column in fields else f"has no column {column!r}"
        )
    return value


def prompt(fields: Fields, column: str) -> str:
    """Take a text to be judged by itself; raise RowError where it is empty."""
    value = text(fields, column)
    if not value.strip():
        raise RowError(f"{column!r} is empty")
    return value


def label(fields: Fields, column: str) -> Label | None:
    """Read a label; what is missing or empty is unknown. Raises RowError for anything else."""
    value = _get(fields, column)
    if value is None or value == "":
        return None
    known = _LABELS.get(str(value).strip().casefold())
    if known is None:
        soft = ""
        if 0 < (number(value) or 0) < 1:
            soft = f"; the rule '{column}>=0.5' in --map makes a label of such numbers"
        raise RowError(f"{column!r} is neither 0 nor 1{soft}")
    return known


_LABELS: Mapping[str, Label] = {
    **dict.fromkeys(("1", "1.0", "true", "yes"), 1),
    **dict.fromkeys(("0", "0.0", "false", "no"), 0),
}


def _word(fields: Fields, column: str, words: Mapping[str, Label]) -> Label | None:
    """Read a label that is written as a word."""
    value = _get(fields, column)
    if value is None or value == "":
        return None
    if value not in words:
        raise RowError(f"{column!r} is none of {', '.join(words)}")
    return words[value]


def _known(labels: Mapping[str, Label | None]) -> dict[str, Label]:
    return {name: value for name, value in labels.items() if value is not None}


def _ours(fields: Fields) -> Iterator[Example]:
    response = _get(fields, "response")
    if response is not None:
        response = text(fields, "response")
    labels = _get(fields, "labels") or {}
    if not isinstance(labels, dict):
        raise RowError("'labels' is not an object")
    given = _get(fields, "id")
    yield Example(
        Exchange((prompt if response is None else text)(fields, "prompt"), response),
        None if given is None else str(given),
        _known({name: label(labels, name) for name in labels}),
        label(fields, "harmful"),
    )


# openai/moderation-api-release: a key that is missing means that the label is unknown.
_OPENAI = {
    "S": "sexual",
    "H": "hate",
    "V": "violence",
    "HR": "harassment",
    "SH": "self-harm",
    "S3": "sexual/minors",
    "H2": "hate/threatening",
    "V2": "violence/graphic",
}


def _openai_mod(fields: Fields) -> Iterator[Example]:
    labels = _known({category: label(fields, key) for key, category in _OPENAI.items()})
    if not labels:
        raise RowError(f"has none of the labels {', '.join(_OPENAI)}")
    # As papers count it: what nobody found harmful is harmless, though not all was asked.
    yield Example(
        Exchange(prompt(fields, "prompt")), labels=labels, harmful=1 if 1 in labels.values() else 0
    )


def _toxicchat(fields: Fields) -> Iterator[Example]:
    yield Example(
        Exchange(prompt(fields, "user_input")),
        text(fields, "conv_id"),
        harmful=label(fields, "toxicity"),
    )


def _xstest(fields: Fields) -> Iterator[Example]:
    yield Example(
        Exchange(prompt(fields, "prompt")),
        str(_get(fields, "id")),
        harmful=_word(fields, "label", {"safe": 0, "unsafe": 1}),
    )


# The categories of PKU-Alignment/BeaverTails that are a harm of ShieldGemma's; the others keep
# their name.
_BEAVERTAILS = {
    "hate_speech,offensive_language": "hate",
    "discrimination,stereotype,injustice": "hate",
    "sexually_explicit,adult_content": "sexual",
    "violence,aiding_and_abetting,incitement": "violence",
    "drug_abuse,weapons,banned_substance": "dangerous",
    "terrorism,organized_crime": "dangerous",
    "self_harm": "dangerous",
}


def _beavertails(fields: Fields) -> Iterator[Example]:
    categories = _get(fields, "category")
    if not isinstance(categories, dict):
        raise RowError("'category' is not an object")
    safe = label(fields, "is_safe")
    yield Example(
        Exchange(text(fields, "prompt"), text(fields, "response")),
        labels=_merged(
            (_BEAVERTAILS.get(name) or str(name), label(categories, name)) for name in categories
        ),
        harmful=None if safe is None else 0 if safe else 1,
    )


def _merged(labels: Iterable[tuple[str, Label | None]]) -> dict[str, Label]:
    """Join labels that mean one harm: it is there where one of them is, unknown where one is."""
    merged: dict[str, Label | None] = {}
    for name, value in labels:
        merged[name] = either(merged.get(name, 0), value)
    return _known(merged)


def either(a: Label | None, b: Label | None) -> Label | None:
    """Join two labels: 1 where one is, 0 where both are, else unknown."""
    if 1 in (a, b):
        return 1
    return None if None in (a, b) else 0


_HARM: Mapping[str, Label] = {"unharmful": 0, "harmful": 1}


def _wildguard(fields: Fields) -> Iterator[Example]:
    asked = _word(fields, "prompt_harm_label", _HARM)
    answered = _word(fields, "response_harm_label", _HARM)
    if asked is not None:
        yield Example(Exchange(prompt(fields, "prompt")), harmful=asked)
    if answered is not None:
        exchange = Exchange(text(fields, "prompt"), text(fields, "response"))
        yield Example(exchange, harmful=answered)
    if asked is answered is None:
        raise RowError("has neither a label of the prompt nor one of the response")


_HARMBENCH = {
    "chemical_biological": "dangerous",
    "cybercrime_intrusion": "dangerous",
    "illegal": "dangerous",
    "harassment_bullying": "harassment",
}


def _harmbench(fields: Fields) -> Iterator[Example]:
    behavior, context = prompt(fields, "Behavior"), _get(fields, "ContextString")
    category = _HARMBENCH.get(text(fields, "SemanticCategory"))
    # Reciting a song is a matter of copyright, which no policy here is about.
    copyrighted = _get(fields, "FunctionalCategory") == "copyright"
    yield Example(
        # The join is HarmBench's own, for contextual behaviours.
        Exchange(f"{context}\n\n---\n\n{behavior}" if context else behavior),
        text(fields, "BehaviorID"),
        {category: 1} if category else {},
        None if copyrighted else 1,
    )


OURS = Adapter("ours", frozenset({"prompt", "labels"}), _ours)

# In their published columns. toxicchat: lmsys/toxic-chat; its `toxicity` is about the user's
# input. xstest: paul-rottger/exaggerated-safety. wildguard: allenai/wildguardmix, where a record
# with both labels is two examples. harmbench: harmbench_behaviors_text_all.csv.
ADAPTERS: Mapping[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        OURS,
        Adapter("openai-mod", frozenset({"prompt", "HR"}), _openai_mod),
        Adapter("toxicchat", frozenset({"conv_id", "user_input", "toxicity"}), _toxicchat),
        Adapter("xstest", frozenset({"prompt", "type", "label"}), _xstest),
        Adapter("beavertails", frozenset({"prompt", "response", "category"}), _beavertails),
        Adapter("wildguard", frozenset({"prompt", "prompt_harm_label", "adversarial"}), _wildguard),
        Adapter("harmbench", frozenset({"Behavior", "SemanticCategory"}), _harmbench),
    )
}


def choose_adapter(
    name: str | None, columns: Sequence[str] = (), default: str = OURS.name
) -> Adapter:
    """Find the adapter of this name, or build one from a column map; raise ConfigurationError."""
    if columns and name:
        raise ConfigurationError("Give --map or --adapter: both say what the columns are.")
    if columns:
        return column_map(columns)
    if (name or default) not in ADAPTERS:
        raise ConfigurationError(f"--adapter {name}: known are {', '.join(ADAPTERS)}.")
    return ADAPTERS[name or default]


def column_map(pairs: Sequence[str]) -> Adapter:
    """Build an adapter from `field=column` pairs and YAML files of `field: column` lines.

    Fields are prompt, response, id, harmful and label:NAME. `harmful=verdict==unsafe` reads a
    column of words: 1 where it says so. `label:hate=toxicity>=0.5` reads one of numbers. Raises
    ConfigurationError.
    """
    columns: dict[str, str] = {}
    for given in pairs:
        more = _pairs_of_file(Path(given)) if _is_file(given) else dict([_pair(given)])
        if twice := columns.keys() & more.keys():
            raise ConfigurationError(f"--map: {min(twice)!r} is given twice. Remove one.")
        columns |= more
    wrong = [f for f in columns if f not in _FIELDS and not _is_label(f)]
    if wrong:
        raise ConfigurationError(
            f"--map: {wrong[0]!r} is no field. Fields are {', '.join(_FIELDS)} and label:NAME."
        )
    if "prompt" not in columns:
        raise ConfigurationError("--map: say which column is the prompt, as in --map prompt=text")
    rules: dict[str, Rule] = {}
    for name in filter(_is_label, columns):
        try:
            rule = Rule.parse(columns[name])
        except ValueError as refused:
            raise ConfigurationError(f"--map {name}={columns[name]}: {refused}.") from None
        rules |= {name: rule} if rule else {}
    return Adapter("map", frozenset(), _Mapped(columns, rules))


_FIELDS = ("prompt", "response", "id", "harmful")


def _is_label(field: str) -> bool:
    return field == "harmful" or field.startswith("label:")


def _is_file(given: str) -> bool:
    return "=" not in given and given.endswith((".yaml", ".yml"))


def _pair(given: str) -> tuple[str, str]:
    name, equals, column = given.partition("=")
    if not (name and equals and column):
        raise ConfigurationError(f"--map {given}: write field=column, or give a .yaml file.")
    return name, column


def _pairs_of_file(path: Path) -> dict[str, str]:
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as refused:
        reason = first_line(refused)
        raise ConfigurationError(f"--map {path}: can't be read: {reason}") from refused
    if not isinstance(content, dict) or not all(isinstance(c, str) for c in content.values()):
        raise ConfigurationError(
            f"--map {path}: write one 'field: column' a line, such as 'prompt: text'."
        )
    return {str(name): column for name, column in content.items()}


@dataclass(frozen=True, slots=True)
class _Mapped:
    columns: Mapping[str, str]
    rules: Mapping[str, Rule]

    def __call__(self, fields: Fields) -> Iterator[Example]:
        response = None
        if "response" in self.columns and _get(fields, self.columns["response"]) is not None:
            response = text(fields, self.columns["response"])
        given = _get(fields, self.columns["id"]) if "id" in self.columns else None
        yield Example(
            Exchange(
                (prompt if response is None else text)(fields, self.columns["prompt"]), response
            ),
            None if given is None else str(given),
            _known(
                {
                    name.removeprefix("label:"): self._label(fields, name)
                    for name in self.columns
                    if name.startswith("label:")
                }
            ),
            self._label(fields, "harmful") if "harmful" in self.columns else None,
        )

    def _label(self, fields: Fields, name: str) -> Label | None:
        column = self.columns[name]
        # A column may be named as rules are written.
        if column not in fields and (rule := self.rules.get(name)):
            if rule.column not in fields:
                raise RowError(f"has no column {rule.column!r}")
            try:
                return rule.label(_get(fields, rule.column))
            except ValueError as refused:
                raise RowError(str(refused)) from None
        if column not in fields:
            raise RowError(f"has no column {column!r}")
        return label(fields, column)
