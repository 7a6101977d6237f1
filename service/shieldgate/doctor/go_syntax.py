"""The syntax of Go's text/template, as far as prompts for Ollama use it: source in, parts out.

Contract: Go's text/template and text/template/parse.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shieldgate.errors import ConfigurationError

_ACTION = re.compile(
    r"""\{\{(?P<left>-(?=\s))?(?P<body>(?:"(?:\\.|[^"\\\n])*"|`[^`]*`|.)*?)(?P<right>(?<=\s)-)?\}\}""",
    re.DOTALL,
)
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<quoted>"(?:\\.|[^"\\])*") | (?P<raw>`[^`]*`) | (?P<number>-?\d+)
        | (?P<path>\$\w*(?:\.\w+)* | (?:\.\w+)+ | \.)
        | (?P<word>\w+) | (?P<sign>:=|[=,|()])
    )""",
    re.VERBOSE,
)
_VALUES = {"true": True, "false": False, "nil": None}

# ("value", x), ("path", a variable, "" or an expression, names) or ("call", function, arguments)
Expression = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A text, an action, or a body that depends on one; by `kind`, the action's first word."""

    kind: str
    line: int
    text: str = ""
    asks: Expression = ("value", None)
    names: tuple[str, ...] = ()
    body: "tuple[Part, ...]" = ()
    otherwise: "tuple[Part, ...]" = ()


class Reader:
    """Source in, parts out; `fields` are the names that the template asks for."""

    def __init__(self, source: str, at: int) -> None:
        self.fields: set[str] = set()
        self._at = at
        self._pieces = list(self._split(source))
        self._next = 0
        self._line = at
        self._words: list[tuple[str, str]] = []

    def _split(self, source: str) -> Iterator[tuple[int, str | None, str]]:
        """Cut into (line, text, "") and (line, None, action), trimmed as the dashes say."""
        end, trim = 0, False
        for action in _ACTION.finditer(source):
            text = source[end : action.start()]
            text = text.lstrip(" \t\r\n") if trim else text
            line = self._at + source.count("\n", 0, end)
            yield line, text.rstrip(" \t\r\n") if action["left"] else text, ""
            yield self._at + source.count("\n", 0, action.start()), None, action["body"].strip()
            end, trim = action.end(), bool(action["right"])
        text = source[end:]
        if "{{" in text:
            line = self._at + source.count("\n", 0, end + text.index("{{"))
            raise unreadable(line, "{{ without its }}")
        line = self._at + source.count("\n", 0, end)
        yield line, text.lstrip(" \t\r\n") if trim else text, ""

    def body(self, within: str = "") -> tuple[Part, ...]:
        """Read up to the `end` or `else` of what it is within, which is left to be read."""
        parts: list[Part] = []
        while self._next < len(self._pieces):
            self._line, text, action = self._pieces[self._next]
            if text is not None:
                parts.append(Part("text", self._line, text))
            elif within and action.split(maxsplit=1)[0:1] in (["end"], ["else"]):
                return tuple(parts)
            elif not action.startswith("/*"):
                parts.append(self._part(action))
            self._next += 1
        if within:
            raise unreadable(self._line, f"{within} without its end")
        return tuple(parts)

    def _part(self, action: str) -> Part:
        line = self._line
        self._words = list(_tokens(action, line))
        first = self._words[0] if self._words else ("", "")
        match first:
            case ("word", "if" | "range" | "with" as kind):
                self._words.pop(0)
                return self._branch(kind, line)
            case ("word", "break" | "continue" as kind):
                return Part(kind, line)
        names = self._names()
        return Part("set" if names else "print", line, asks=self._pipe(), names=names)

    def _branch(self, kind: str, line: int) -> Part:
        names = self._names()
        asks = self._pipe()
        self._next += 1
        body = self.body(kind)
        ending = self._pieces[self._next][2].split(maxsplit=1)
        otherwise: tuple[Part, ...] = ()
        if ending[0] == "else" and len(ending) == 2:
            otherwise = (self._part(ending[1]),)  # which reads on to the end of both
        elif ending[0] == "else":
            self._next += 1
            otherwise = self.body(kind)
        return Part(kind, line, "", asks, names, body, otherwise)

    def _names(self) -> tuple[str, ...]:
        """Take `$a =`, `$a :=` or `$i, $a :=` from the front, if it is there."""
        signs = [text for kind, text in self._words[:4] if kind == "sign"]
        size = 2 if signs[:1] in ([":="], ["="]) else 4 if signs[:2] == [",", ":="] else 0
        taken, self._words = self._words[:size], self._words[size:]
        return tuple(text for kind, text in taken if kind == "path")

    def _pipe(self, closing: bool = False) -> Expression:
        """Read commands with | between them: each is the last argument of the next."""
        found: Expression | None = None
        while True:
            command = self._command()
            if found is not None:
                if command[0] != "call":
                    raise unreadable(self._line, "a | before what is no function")
                command = ("call", command[1], (*command[2], found))
            found = command
            sign = self._words.pop(0) if self._words else None
            if sign != ("sign", "|"):
                break
        if sign != (("sign", ")") if closing else None):
            raise unreadable(self._line, "an expression of another form")
        return found

    def _command(self) -> Expression:
        operands: list[Expression] = []
        function = ""
        while self._words and self._words[0] not in (("sign", "|"), ("sign", ")")):
            kind, text = self._words.pop(0)
            match kind:
                case "word" if text in _VALUES:
                    operands.append(("value", _VALUES[text]))
                case "word" if not operands and not function:
                    function = text
                case "path":
                    base, *names = text.split(".")
                    self.fields.update(names)
                    operands.append(("path", base, tuple(name for name in names if name)))
                case "of" if operands:
                    names = text.split(".")[1:]
                    self.fields.update(names)
                    operands.append(("path", operands.pop(), tuple(names)))
                case "quoted" | "number":
                    operands.append(("value", ast.literal_eval(text)))
                case "raw":
                    operands.append(("value", text[1:-1]))
                case "sign" if text == "(":
                    operands.append(self._pipe(closing=True))
                case _:
                    raise unreadable(self._line, repr(text))
        if function:
            return ("call", function, tuple(operands))
        if len(operands) != 1:
            raise unreadable(self._line, "an expression of another form")
        return operands[0]


def _tokens(action: str, line: int) -> Iterator[tuple[str, str]]:
    """Cut an action into (kind, text); a field of what is in parentheses is of the kind `of`."""
    at = 0
    while at < len(action):
        found = _TOKEN.match(action, at)
        if not found:
            raise unreadable(line, repr(action[at:].strip()[:20]))
        kind = str(found.lastgroup)
        attached = found.start(kind) == at > 0 and action[at - 1] == ")"
        yield "of" if kind == "path" and attached else kind, found[kind]
        at = found.end()


def unreadable(line: int, what: str) -> ConfigurationError:
    """Say what can't be read, and what to give instead."""
    return ConfigurationError(
        f"line {line}: {what} can't be read here: only a part of Go's templates is. Give the "
        "prompt that Ollama makes of it; docs/doctor.md says how to have it shown."
    )
