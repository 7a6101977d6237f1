"""Writes calibrations into a policy file and leaves every other byte of it as it was."""

import difflib
import io
import tempfile
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from shieldgate.errors import ConfigurationError, PolicyError
from shieldgate.evaluation.files import replace_file
from shieldgate.policy import Calibration, PolicyBook, load_book, policy_files
from shieldgate.types import Direction
from shieldgate.yaml_document import Document

# By policy id and direction.
Calibrations = Mapping[tuple[str, Direction], Calibration]


@dataclass(frozen=True, slots=True)
class Edit:
    """A policy file's bytes before and after."""

    path: Path
    old: bytes
    new: bytes

    def diff(self) -> str:
        """Write the change as a unified diff."""
        old, new = (b.decode().splitlines(keepends=True) for b in (self.old, self.new))
        return "".join(difflib.unified_diff(old, new, f"{self.path} (now)", str(self.path)))

    def save(self) -> None:
        """Replace the file in one step; raise ConfigurationError where it can't be written."""
        try:
            replace_file(self.path.resolve(), self.new)  # a link stays a link
        except OSError as refused:
            raise ConfigurationError(
                f"{self.path}: can't be written: {refused.strerror}; nothing was changed"
            ) from refused


def policies_in(file: Path) -> frozenset[str]:
    """List the ids of the policies that a file defines; raise PolicyError if it can't be read."""
    return frozenset(_names(_read(file)))


def edit(file: Path, book_path: Path, scorer: str, fitted: Calibrations) -> Edit:
    """Put calibrations into a file of the book at `book_path`, and check the book that results.

    They stand under `calibrated`, by scorer and direction, at the end of their policy. Raises
    ConfigurationError where the file can't be edited without changing something else.
    """
    if not any(part.samefile(file) for part in policy_files(book_path)):
        raise ConfigurationError(
            f"{file} is no part of the policy book {book_path}; give the book that it belongs to"
        )
    old = file.read_bytes()
    new = _edited(_read(file), old.decode(), scorer, fitted).encode()
    made = Edit(file, old, new)
    expected = _calibrated(load_book(book_path), scorer, fitted)
    try:
        result = _book_with(made, book_path)
    except PolicyError:
        result = None
    if result is None or (result.policies, result.profiles) != (
        expected.policies,
        expected.profiles,
    ):
        raise ConfigurationError(
            f"{file}: the thresholds can't be added without changing something else. Write each "
            "key of its policies on a line of its own, without braces."
        )
    return made


def _read(file: Path) -> Document:
    document = Document(file)
    document.read()
    if document.report():
        raise PolicyError("\n".join(document.report()))
    return document


def _names(document: Document) -> dict[str, str]:
    """Map the ids of a file's policies to their keys."""
    family = document.written(("family",))
    return {
        f"{family}/{at[1]}": str(at[1])
        for at in document.places
        if len(at) == 2 and at[0] == "policies"
    }


def _edited(document: Document, text: str, scorer: str, fitted: Calibrations) -> str:
    """Splice each policy's `calibrated` into the text, from the last policy to the first."""
    lines = text.splitlines(keepends=True)
    newline = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += newline
    names = _names(document)
    by_policy: dict[str, dict[Direction, Calibration]] = defaultdict(dict)
    for (policy, direction), calibration in fitted.items():
        by_policy[names[policy]][direction] = calibration
    line_of = {name: document.places["policies", name].line - 1 for name in by_policy}
    for name in sorted(by_policy, key=line_of.__getitem__, reverse=True):
        start = end = _end(lines, line_of[name])
        if ("policies", name, "calibrated") in document.places:
            start = document.places["policies", name, "calibrated"].line - 1
            end = _end(lines, start)
        block = _block("".join(lines[start:end]), scorer, by_policy[name])
        margin = _margin(lines[document.places["policies", name, "title"].line - 1])
        block = textwrap.indent(block, " " * margin)
        lines[start:end] = [block.replace("\n", newline)]
    return "".join(lines)


def _end(lines: Sequence[str], start: int) -> int:
    """Find the line after the last that belongs to the key on line `start`."""
    end = start + 1
    for number in range(start + 1, len(lines)):
        line = lines[number].strip()
        if _margin(lines[number]) > _margin(lines[start]):
            end = number + 1 if line else end
        elif line and not line.startswith("#"):
            break
    return end


def _margin(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _block(text: str, scorer: str, fitted: Mapping[Direction, Calibration]) -> str:
    """Write the `calibrated` key anew, with the comments and scorers that it already had."""
    yaml = YAML()
    yaml.width = 1000
    content = yaml.load(textwrap.dedent(text)) if text else CommentedMap()
    calibrated = content.setdefault("calibrated", CommentedMap())
    by_direction = calibrated.setdefault(scorer, CommentedMap())
    for direction, calibration in fitted.items():
        by_direction[direction] = _entry(calibration)
    out = io.StringIO()
    yaml.dump(content, out)
    return out.getvalue()


def _entry(calibration: Calibration) -> CommentedMap:
    entry = CommentedMap(threshold=calibration.threshold)
    if (calibration.temperature, calibration.bias) != (1.0, 0.0):
        entry.update(temperature=calibration.temperature, bias=calibration.bias)
    entry["provenance"] = CommentedMap(
        {key: one_line(value) for key, value in calibration.provenance.items()}
    )
    if scores := calibration.scores:
        counts = [int(count) if count == int(count) else count for count in scores.counts]
        of = {"of": scores.of} if scores.of else {}
        entry["scores"] = one_line({**of, "lowest": scores.lowest, "counts": counts})
    return entry


def one_line(value: object) -> object:
    """Keep small mappings and lists on one line."""
    flow: CommentedMap | CommentedSeq
    if isinstance(value, Mapping):
        flow = CommentedMap({key: one_line(inner) for key, inner in value.items()})
    elif isinstance(value, list):
        flow = CommentedSeq(value)
    else:
        return value
    flow.fa.set_flow_style()
    return flow


def _calibrated(book: PolicyBook, scorer: str, fitted: Calibrations) -> PolicyBook:
    policies = dict(book.policies)
    for (id, direction), calibration in fitted.items():
        policy = policies[id]
        calibrations = {**policy.calibrations, (scorer, direction): calibration}
        policies[id] = replace(policy, calibrations=calibrations)
    return replace(book, policies=policies)


def _book_with(made: Edit, book_path: Path) -> PolicyBook:
    """Load the book as it would be, from a copy."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for file in policy_files(book_path):
            new = file.samefile(made.path)
            (copy / file.name).write_bytes(made.new if new else file.read_bytes())
        return load_book(copy / book_path.name if book_path.is_file() else copy)
