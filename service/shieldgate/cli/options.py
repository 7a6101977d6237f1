"""Flags that are made from the settings, so that the two can't differ."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from pydantic.fields import FieldInfo

from shieldgate.settings import Settings, flag, load, variable


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one flag for each field of its parameter `settings`.

    Values are not judged here: `settings.load` does that for flags and variables alike, and
    raises ConfigurationError.
    """
    hints = get_type_hints(command, include_extras=True)
    model: type[Settings] = hints.pop("settings")
    own = [
        p.replace(annotation=hints[p.name])
        for p in inspect.signature(command).parameters.values()
        if p.name != "settings"
    ]
    flags = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                bool | None if field.annotation is bool else str | None, _option(name, field)
            ],
        )
        for name, field in model.model_fields.items()
    ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        given = {name: values.pop(name) for name in model.model_fields}
        settings = load(model, {k: v for k, v in given.items() if v is not None})
        command(settings=settings, **values)

    signature = inspect.Signature([*own, *flags])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return run


def _option(name: str, field: FieldInfo) -> Any:
    notes = []
    if get_origin(field.annotation) is Literal:
        notes.append(" | ".join(get_args(field.annotation)))
    if field.default not in (None, False):
        notes.append(f"default: {field.default}")
    return typer.Option(
        flag(name),
        metavar=None if field.annotation is bool else "N" if field.annotation is int else "TEXT",
        help=f"{field.description} ({'; '.join(notes)})" if notes else field.description,
        rich_help_panel=f"Settings ({flag('model')} is also {variable('model')}, and so on)",
    )
