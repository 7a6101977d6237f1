"""Columns of one's own, as --map names them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from shieldgate.errors import ConfigurationError, first_line
from shieldgate.evaluation.examples import (
    Adapter,
    Example,
    Fields,
    RowError,
    cell,
    exchange,
    identifier,
    known_labels,
    label,
)
from shieldgate.evaluation.label_rules import Rule
from shieldgate.types import Label


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
        yield Example(
            exchange(fields, self.columns["prompt"], self.columns.get("response")),
            identifier(fields, self.columns["id"]) if "id" in self.columns else None,
            known_labels(
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
                return rule.label(cell(fields, rule.column))
            except ValueError as refused:
                raise RowError(str(refused)) from None
        if column not in fields:
            raise RowError(f"has no column {column!r}")
        return label(fields, column)
