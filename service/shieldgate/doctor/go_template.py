"""The part of Go's text/template in which prompts for Ollama are written.

Read are conditions, loops over messages, variables, comparisons, and the values that Ollama gives a
template. Anything else is refused by its line and never guessed. Contracts: Go's text/template, and
`Template.Execute` of Ollama.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
_VALUES = {"true": True, "false": False, "nil": None}

# ("value", x), ("path", base, names) or ("call", function, arguments)
_Expression = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """A text, an action, or a body that depends on one; by `kind`, the action's first word."""

    kind: str
    line: int
    text: str = ""
    asks: _Expression = ("value", None)
    names: tuple[str, ...] = ()
    body: "tuple[_Part, ...]" = ()
    otherwise: "tuple[_Part, ...]" = ()


class GoTemplate:
    """A template of Ollama's that begins on line `at` of its file.

    Raises ConfigurationError, also in `render`, for what can't be read.
    """

    def __init__(self, source: str, at: int = 1) -> None:
        reader = _Reader(source, at)
        self._parts = reader.body()
        self._fields = reader.fields

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Render a chat, each message with `role` and `content`, up to where the model goes on."""
        contents: dict[str, list[str]] = {"system": [], "user": [], "assistant": []}
        for message in messages:
            contents[message["role"]].append(message["content"])
        system, user, assistant = ("\n\n".join(texts) for texts in contents.values())
        values: dict[str, Any] = {
            "System": system,
            "Prompt": user,
            "Response": assistant,
            "Suffix": "",
            "Tools": [],
            "Think": False,
            "IsThinkSet": False,
        }
        if "Messages" in self._fields:
            known = {"Thinking": "", "ToolCalls": [], "ToolName": "", "Images": []}
            values["Messages"] = [
                {"Role": m["role"], "Content": m["content"], **known} for m in messages
            ]
            values["Response"] = values["Prompt"] = ""
            return "".join(_Run(values).write(self._parts))
        parts, answered = _until_answer(self._parts)
        text = "".join(_Run(values).write(parts))
        return text if answered else text + assistant


def _until_answer(parts: Sequence[_Part]) -> tuple[tuple[_Part, ...], bool]:
    """Cut after the first `.Response`, where the model goes on; tell whether there is one."""
    kept: list[_Part] = []
    for part in parts:
        body, found = _until_answer(part.body)
        otherwise, other = ((), False) if found else _until_answer(part.otherwise)
        kept.append(
            _Part(part.kind, part.line, part.text, part.asks, part.names, body, otherwise)
        )
        if found or other or (part.kind == "print" and "Response" in _paths(part.asks)):
            return tuple(kept), True
    return tuple(kept), False


def _paths(asks: _Expression) -> Iterator[str]:
    if asks[0] == "path":
        yield from asks[2]
    elif asks[0] == "call":
        for argument in asks[2]:
            yield from _paths(argument)


class _Reader:
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
            raise _unreadable(line, "{{ without its }}")
        line = self._at + source.count("\n", 0, end)
        yield line, text.lstrip(" \t\r\n") if trim else text, ""

    def body(self, within: str = "") -> tuple[_Part, ...]:
        """Read up to the `end` or `else` of what it is within, which is left to be read."""
        parts: list[_Part] = []
        while self._next < len(self._pieces):
            self._line, text, action = self._pieces[self._next]
            if text is not None:
                parts.append(_Part("text", self._line, text))
            elif within and action.split(maxsplit=1)[0:1] in (["end"], ["else"]):
                return tuple(parts)
            elif not action.startswith("/*"):
                parts.append(self._part(action))
            self._next += 1
        if within:
            raise _unreadable(self._line, f"{within} without its end")
        return tuple(parts)

    def _part(self, action: str) -> _Part:
        line = self._line
        self._words = [
            (str(found.lastgroup), found[found.lastgroup or 0]) for found in _tokens(action, line)
        ]
        first = self._words[0] if self._words else ("", "")
        match first:
            case ("word", "if" | "range" | "with" as kind):
                self._words.pop(0)
                return self._branch(kind, line)
            case ("word", "break" | "continue" as kind):
                return _Part(kind, line)
        names = self._names()
        kind = "set" if names else "print"
        return _Part(kind, line, asks=self._pipe(), names=names)

    def _branch(self, kind: str, line: int) -> _Part:
        names = self._names()
        asks = self._pipe()
        self._next += 1
        body = self.body(kind)
        ending = self._pieces[self._next][2].split(maxsplit=1)
        otherwise: tuple[_Part, ...] = ()
        if ending[0] == "else" and len(ending) == 2:
            otherwise = (self._part(ending[1]),)  # which reads on to the end of both
        elif ending[0] == "else":
            self._next += 1
            otherwise = self.body(kind)
        return _Part(kind, line, "", asks, names, body, otherwise)

    def _names(self) -> tuple[str, ...]:
        """Take `$a =`, `$a :=` or `$i, $a :=` from the front, if it is there."""
        signs = [text for kind, text in self._words[:4] if kind == "sign"]
        size = 2 if signs[:1] in ([":="], ["="]) else 4 if signs[:2] == [",", ":="] else 0
        taken, self._words = self._words[:size], self._words[size:]
        return tuple(text for kind, text in taken if kind == "path")

    def _pipe(self, closing: bool = False) -> _Expression:
        """Read commands with | between them: each is the last argument of the next."""
        found: _Expression | None = None
        while True:
            command = self._command()
            if found is not None:
                if command[0] != "call":
                    raise _unreadable(self._line, "a | before what is no function")
                command = ("call", command[1], (*command[2], found))
            found = command
            sign = self._words.pop(0) if self._words else None
            if sign != ("sign", "|"):
                break
        if sign != (("sign", ")") if closing else None):
            raise _unreadable(self._line, "an expression of another form")
        return found

    def _command(self) -> _Expression:
        operands: list[_Expression] = []
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
                case "quoted" | "number":
                    operands.append(("value", ast.literal_eval(text)))
                case "raw":
                    operands.append(("value", text[1:-1]))
                case "sign" if text == "(":
                    operands.append(self._pipe(closing=True))
                case _:
                    raise _unreadable(self._line, repr(text))
        if function:
            return ("call", function, tuple(operands))
        if len(operands) != 1:
            raise _unreadable(self._line, "an expression of another form")
        return operands[0]


def _tokens(action: str, line: int) -> Iterator[re.Match[str]]:
    at = 0
    while at < len(action):
        found = _TOKEN.match(action, at)
        if not found:
            raise _unreadable(line, repr(action[at:].strip()[:20]))
        yield found
        at = found.end()


class _Leave(Exception):
    """A `break` or a `continue` on its way to the loop."""


class _Run:
    """Writes parts, given the values of a chat."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._dot: Any = values
        self._variables: dict[str, Any] = {"$": values}
        self._line = 0

    def write(self, parts: Sequence[_Part]) -> Iterator[str]:
        """Write them one after the other; raise ConfigurationError for what can't be read."""
        for part in parts:
            self._line = part.line
            match part.kind:
                case "text":
                    yield part.text
                case "break" | "continue":
                    raise _Leave(part.kind)
                case "set":
                    self._variables[part.names[0]] = self._value(part.asks)
                case "print":
                    yield self._written(self._value(part.asks))
                case "if":
                    chosen = part.body if self._bound(part) else part.otherwise
                    yield from self.write(chosen)
                case _:
                    yield from self._over(part)

    def _bound(self, part: _Part) -> Any:
        value = self._value(part.asks)
        for name in part.names:
            self._variables[name] = value
        return value

    def _over(self, part: _Part) -> Iterator[str]:
        """Write a body for each item, or for the value; else what is otherwise."""
        value = self._bound(part)
        if part.kind == "range" and not isinstance(value, list | tuple):
            raise _unreadable(part.line, "a range over what is no list")
        if not value:
            yield from self.write(part.otherwise)
            return
        before = self._dot
        for number, item in enumerate(value if part.kind == "range" else [value]):
            self._dot = item
            if part.kind == "range":
                self._variables.update(zip(reversed(part.names), (item, number), strict=False))
            try:
                yield from self.write(part.body)
            except _Leave as leave:
                if part.kind == "with":
                    raise
                if str(leave) == "break":
                    break
        self._dot = before

    def _value(self, asks: _Expression) -> Any:
        if asks[0] == "value":
            return asks[1]
        if asks[0] == "call":
            return self._call(asks[1], asks[2])
        _, base, names = asks
        if base and base not in self._variables:
            raise _unreadable(self._line, base)
        found = self._variables[base] if base else self._dot
        for name in names:
            if not isinstance(found, Mapping) or name not in found:
                raise _unreadable(self._line, f".{name}")
            found = found[name]
        return found

    def _call(self, function: str, arguments: Sequence[_Expression]) -> Any:
        if function in ("and", "or") and arguments:
            for argument in arguments:
                value = self._value(argument)
                if bool(value) == (function == "or"):
                    break
            return value
        values = [self._value(argument) for argument in arguments]
        try:
            match function, values:
                case "not", [value]:
                    return not value
                case "eq", [first, *others] if others:
                    return first in others
                case ("ne" | "lt" | "le" | "gt" | "ge"), [a, b]:
                    return _COMPARISONS[function](a, b)
                case "len", [value]:
                    return len(value)
                case "index", [value, at]:
                    return value[at]
                case "slice", [value, *ends] if len(ends) < 3:
                    return value[slice(*ends) if len(ends) == 2 else slice(*ends, None)]
                case "printf", [str(form), *others] if not re.search(r"%[^sdv%]", form):
                    return re.sub("%v", "%s", form) % tuple(others)
        except (TypeError, IndexError, KeyError, ValueError):
            pass
        raise _unreadable(self._line, f"{function} of these arguments")

    def _written(self, value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str | int):
            return str(value)
        raise _unreadable(self._line, "a list or an object in the prompt")


def _unreadable(line: int, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"line {line}: {what} can't be read here: only a part of Go's templates is. Give the prompt "
        "that Ollama makes of it; docs/doctor.md says how to have it shown."
    )
