"""The part of Go's text/template in which prompts for Ollama are written.

Read are conditions, loops over messages, variables, comparisons, and the values that Ollama gives a
template. Anything else is refused by its line and never guessed. Contracts: Go's text/template, and
`Template.Execute` of Ollama.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from shieldgate.doctor.go_syntax import Expression, Part, Reader, unreadable


class GoTemplate:
    """A template of Ollama's that begins on line `at` of its file.

    Raises ConfigurationError, also in `render`, for what can't be read.
    """

    def __init__(self, source: str, at: int = 1) -> None:
        reader = Reader(source, at)
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


def _until_answer(parts: Sequence[Part]) -> tuple[tuple[Part, ...], bool]:
    """Cut after the first `.Response`, where the model goes on; tell whether there is one."""
    kept: list[Part] = []
    for part in parts:
        body, found = _until_answer(part.body)
        otherwise, other = ((), False) if found else _until_answer(part.otherwise)
        kept.append(Part(part.kind, part.line, part.text, part.asks, part.names, body, otherwise))
        if found or other or (part.kind == "print" and "Response" in _paths(part.asks)):
            return tuple(kept), True
    return tuple(kept), False


def _paths(asks: Expression) -> Iterator[str]:
    if asks[0] == "path":
        yield from asks[2]
        if isinstance(asks[1], tuple):
            yield from _paths(asks[1])
    elif asks[0] == "call":
        for argument in asks[2]:
            yield from _paths(argument)


def _printf(form: str, *values: object) -> str:
    if re.search(r"%[^sdv%]", form):
        raise ValueError(form)
    return form.replace("%v", "%s") % values


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "not": operator.not_,
    "eq": lambda first, second, *others: first in (second, *others),
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "len": len,
    "index": operator.getitem,
    "slice": lambda value, start=0, end=None: value[start:end],
    "printf": _printf,
}


class _Leave(Exception):
    """A `break` or a `continue` on its way to the loop."""


class _Run:
    """Writes parts, given the values of a chat."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._dot: Any = values
        self._variables: dict[str, Any] = {"$": values}
        self._line = 0

    def write(self, parts: Sequence[Part]) -> Iterator[str]:
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

    def _bound(self, part: Part) -> Any:
        value = self._value(part.asks)
        for name in part.names:
            self._variables[name] = value
        return value

    def _over(self, part: Part) -> Iterator[str]:
        """Write a body for each item, or for the value; else what is otherwise."""
        value = self._bound(part)
        if part.kind == "range" and not isinstance(value, list | tuple):
            raise unreadable(part.line, "a range over what is no list")
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

    def _value(self, asks: Expression) -> Any:
        if asks[0] == "value":
            return asks[1]
        if asks[0] == "call":
            return self._call(asks[1], asks[2])
        _, base, names = asks
        if isinstance(base, tuple):
            found = self._value(base)
        elif base and base not in self._variables:
            raise unreadable(self._line, base)
        else:
            found = self._variables[base] if base else self._dot
        for name in names:
            if not isinstance(found, Mapping) or name not in found:
                raise unreadable(self._line, f".{name}")
            found = found[name]
        return found

    def _call(self, function: str, arguments: Sequence[Expression]) -> Any:
        if function in ("and", "or") and arguments:
            for argument in arguments:
                value = self._value(argument)
                if bool(value) == (function == "or"):
                    break
            return value
        values = [self._value(argument) for argument in arguments]
        try:
            return _FUNCTIONS[function](*values)
        except (TypeError, IndexError, KeyError, ValueError):
            raise unreadable(self._line, f"{function} of these arguments") from None

    def _written(self, value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str | int):
            return str(value)
        raise unreadable(self._line, "a list or an object in the prompt")
