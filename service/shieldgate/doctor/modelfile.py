"""Ollama's Modelfile in, its instructions with their lines out; as Ollama's own parser reads it."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shieldgate.errors import ConfigurationError

_KNOWN = (
    *("from", "license", "template", "system", "adapter", "draft"),
    *("renderer", "parser", "parameter", "message", "requires"),
)
# As people write them, in a file that isn't called Modelfile.
_FIRST = ("FROM", "TEMPLATE", "PARAMETER", "SYSTEM", "LICENSE", "ADAPTER", "MESSAGE")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; `name` is in lower case, and `key` what PARAMETER and MESSAGE name first.

    `line` is where it begins, and `inside` where its value does.
    """

    name: str
    key: str
    value: str
    line: int
    inside: int


@dataclass(frozen=True, slots=True)
class Modelfile:
    """The instructions of a file, in their order."""

    instructions: Sequence[Instruction]

    def last(self, name: str) -> Instruction | None:
        """Give the instruction that counts where only one can."""
        return next((i for i in reversed(self.instructions) if i.name == name), None)

    def all(self, name: str) -> list[Instruction]:
        """Give those that add up: PARAMETER, MESSAGE."""
        return [i for i in self.instructions if i.name == name]


def looks_like_modelfile(path: Path, text: str) -> bool:
    """Tell a Modelfile from a prompt: by its name, or an instruction on its first line."""
    first = re.match(r"\ufeff?(?:\s|#[^\n]*\n)*(\w+)[ \t]+\S", text)
    return "modelfile" in path.name.lower() or bool(first and first[1] in _FIRST)


def read_modelfile(path: Path, text: str) -> Modelfile:
    """Read the instructions; raise ConfigurationError, with the line."""
    return Modelfile(tuple(_instructions(path, text.removeprefix("\ufeff"))))


def _instructions(path: Path, text: str) -> Iterator[Instruction]:
    at = 0
    while at < len(text):
        line = 1 + text.count("\n", 0, at)
        if found := re.compile(r"[ \t\r\n]+|#[^\r\n]*").match(text, at):
            at = found.end()
            continue
        head = re.compile(r"([A-Za-z]+)[ \t]+").match(text, at)
        if not head or head[1].lower() not in _KNOWN:
            raise ConfigurationError(
                f"{path}:{line}: no instruction of a Modelfile; write one of "
                f"{', '.join(word.upper() for word in _KNOWN)}, or # before a comment."
            )
        name, key, at = head[1].lower(), "", head.end()
        if name in ("parameter", "message"):
            named = re.compile(r"(\w+)[ \t]+").match(text, at)
            if not named:
                raise ConfigurationError(f"{path}:{line}: {head[1]} needs a name and a value.")
            key, at = named[1], named.end()
        inside = 1 + text.count("\n", 0, at)
        value, at = _value(path, text, at, line)
        yield Instruction(name, key, value, line, inside)


def _value(path: Path, text: str, at: int, line: int) -> tuple[str, int]:
    """Read a value that is in three quotes, in one, or goes to the end of the line."""
    for quote in ('"""', '"'):
        if text.startswith(quote, at):
            # It ends where the closing quotes are the last thing on their line.
            end = re.compile(re.escape(quote) + r"[ \t]*(?=\r?\n|\Z)").search(text, at + len(quote))
            if not end:
                raise ConfigurationError(
                    f"{path}:{line}: a value that begins with {quote} goes on until a line ends "
                    'so, and none does. Write it between three quotes: """…""".'
                )
            return text[at + len(quote) : end.start()], end.end()
    end_of_line = re.compile(r"[^\r\n]*").match(text, at)
    value = end_of_line[0] if end_of_line else ""
    return value.strip(), at + len(value)
