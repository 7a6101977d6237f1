"""One YAML file as plain Python, with the place of every key, so that a refusal can point at it."""

import difflib
import os
import re
import stat
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode

from shieldgate.errors import FileProblem

# Far more than people write, and little enough to be parsed beside requests.
_MOST_BYTES = 4 * 1024 * 1024

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key or an item stands; `written` is its scalar value as it stands in the file."""

    line: int
    written: str


class Document:
    """A file that was read, and the problems that were found in it so far.

    `content` is made of dicts, lists and YAML 1.2 scalars. `places` has every key and item, by
    its path from the root, even where the value is wrong. `readable` is false when there is no
    content to speak of; the reason is then among the problems.
    """

    def __init__(self, path: Path, text: str | None = None) -> None:
        """Take the path; a `text` stands for what is in the file."""
        self.path = path
        self.text = text
        self.content: Any = None
        self.places: dict[Location, Place] = {}
        self.readable = False
        self._problems: list[tuple[int, str]] = []
        self._yaml = YAML(typ="safe", pure=True)
        self._seen: set[int] = set()

    def read(self) -> None:
        """Read the file; what is wrong with it as YAML becomes a problem, never an exception."""
        try:
            if self.text is None:
                self.text = _text(self.path)
            root = self._yaml.compose(self.text)
        except _Unfit as refused:
            self._add(1, str(refused))
        except OSError as refused:
            self._add(1, f"can't be read: {refused.strerror}; check the path and its permissions")
        except UnicodeDecodeError as refused:
            line = refused.object.count(b"\n", 0, refused.start) + 1
            self._add(line, "is not UTF-8; save it as UTF-8")
        except MarkedYAMLError as refused:
            mark = refused.problem_mark or refused.context_mark
            what = ", ".join(part for part in (refused.context, refused.problem) if part)
            self._add(mark.line + 1 if mark else 1, f"not YAML: {what}; {_mend(what)}")
        except YAMLError as refused:
            self._add(1, f"not YAML: {str(refused).splitlines()[0]}; remove the character")
        except RecursionError:
            self._add(1, "is nested too deeply; a few levels are enough")
        else:
            self.readable = True
            self.content = self._value(root, ()) if root else None

    def written(self, at: Location) -> str:
        """Give the scalar at `at` as it stands in the file; empty where there is none."""
        place = self.places.get(at)
        return place.written if place else ""

    def refuse(self, at: Location, why: str, *, quote: bool = True) -> None:
        """File a problem with the value at `at`, or with the deepest parent that exists.

        `quote` says whether the value may be shown.
        """
        while at and at not in self.places:
            at = at[:-1]
        place = self.places.get(at, Place(1, ""))
        value = textwrap.shorten(place.written, 60, placeholder=" ...") if quote else ""
        self._add(place.line, *filter(None, (_dotted(at), value)), why)

    @property
    def problems(self) -> list[FileProblem]:
        """List the problems in the order of their lines."""
        # A value that stands for both directions is refused twice, in the same words.
        return [FileProblem(self.path, line, what) for line, what in sorted(set(self._problems))]

    def report(self) -> list[str]:
        """Write the problems as `file:line: key: value: why; mend`."""
        return [str(problem) for problem in self.problems]

    def _add(self, line: int, *parts: str) -> None:
        self._problems.append((line, ": ".join(parts)))

    def _value(self, node: Node, at: Location) -> Any:
        if id(node) in self._seen:
            self.refuse(at, "an alias stands for a value from elsewhere; write the value itself")
            return None
        self._seen.add(id(node))
        if isinstance(node, MappingNode):
            return self._mapping(node, at)
        if isinstance(node, ScalarNode):
            return self._scalar(node, at)
        items = []
        for index, item in enumerate(node.value):
            self._note((*at, index), item.start_mark.line + 1, item)
            items.append(self._value(item, (*at, index)))
        return items

    def _mapping(self, node: MappingNode, at: Location) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                self._add(line, "a list or a mapping can't be a key; write 'word: value'")
                continue
            if not _encodable(key.value):
                self._add(line, "a key holds half of a surrogate pair; write the character itself")
                continue
            here = (*at, key.value)
            if here in self.places:
                first = self.places[here].line
                self._add(line, _dotted(here), f"stands on line {first} already; remove one")
                continue
            self._note(here, line, value)
            content[key.value] = self._value(value, here)
        return content

    def _scalar(self, node: ScalarNode, at: Location) -> Any:
        if not _encodable(node.value):
            self.refuse(at, "holds half of a surrogate pair; write the character itself")
            return None
        try:
            return self._yaml.constructor.construct_object(node)
        except (YAMLError, ValueError):
            self.refuse(at, "can't be understood; put it in quotes if text is meant")
            return None

    def _note(self, at: Location, line: int, value: Node) -> None:
        shown = isinstance(value, ScalarNode) and _encodable(value.value)
        written = value.value if shown else ""
        self.places[at] = Place(line, written)


class _Unfit(Exception):
    """A path leads to nothing that can be a document."""


def _text(path: Path) -> str:
    """Read a regular file of bounded size; nothing waits for a pipe's other end."""
    with open(path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _Unfit("is no regular file; put a file of text here")
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise _Unfit(f"is longer than {_MOST_BYTES:,} bytes; that is no file of ours")
    return data.decode("utf-8-sig")


def _mend(what: str) -> str:
    """Say how to mend the slips that people make most, by the parser's words for them."""
    if r"found character '\t'" in what:
        return "indent with spaces, not with tabs"
    if "mapping values are not allowed" in what or "expected <block end>" in what:
        return (
            "indent the line as those beside it; put text that holds ': ' or begins with a "
            "quotation mark on the lines below a '>-'"
        )
    return "mend the syntax here"


def _encodable(text: str) -> bool:
    """Tell whether a text can be written as UTF-8: escapes can spell halves of surrogate pairs."""
    return not re.search("[\ud800-\udfff]", text)


def suggest(name: str, known: Iterable[str]) -> str:
    """Say which known name was probably meant, else list them all."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from: {', '.join(known)}" if known else "there is none to choose from"


def reason(error: ErrorDetails, known: Iterable[str]) -> str:
    """Say why pydantic refused a value, and how to mend it; `known` are the keys of its parent."""
    key = str(error["loc"][-1]) if error["loc"] else ""
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key; {suggest(key, known)}"
        case "missing":
            return f"{key!r} is missing; add it"
        case "model_type" | "dict_type":
            return "must hold 'key: value' lines; write them below it, indented"
        case "list_type":
            return "must be a list; write [one, two], or a '- one' line for each"
        case _:
            return error["msg"]


def _dotted(at: Location) -> str:
    """Write a path the way people do: `profiles.default.policies[2]`.

    What can't be a name is left out: it may be a line of another file, which a link leads to.
    """
    written = (f"[{part}]" if isinstance(part, int) else f".{_named(part)}" for part in at)
    return "".join(written).lstrip(".")


def _named(key: str) -> str:
    return key if re.fullmatch(r"[\w./@+-]{1,64}", key) else "(not a name)"
