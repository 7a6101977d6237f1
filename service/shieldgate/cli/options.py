"""Flags that commands share; those of settings are made from them, so that they can't differ."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from pydantic.fields import FieldInfo

from shieldgate.errors import ConfigurationError, UnknownName
from shieldgate.given_settings import flag, load, variable
from shieldgate.policy import PolicyBook, Profile
from shieldgate.settings import ScoringSettings, Settings

DATA = "Data"

AdapterFlag = Annotated[
    str | None,
    typer.Option(
        help="The published columns that the data has: ours, openai-mod, toxicchat, xstest, "
        "beavertails, wildguard or harmbench. Default: ours, which is {id, prompt, response, "
        "labels: {policy: 0|1}, harmful}; a label that is missing is unknown.",
        rich_help_panel=DATA,
    ),
]
MapFlag = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="FIELD=COLUMN",
        help="For columns of your own: prompt=text, response=answer, id=key, harmful=toxic, "
        "label:hate=is_hate, harmful=verdict==unsafe, 'label:hate=toxicity>=0.5'; or a YAML file "
        "of such lines with ': '. May be repeated.",
        rich_help_panel=DATA,
    ),
]
LabelFlag = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LABEL=POLICY",
        help="Let a label speak for this policy. Default: for the policies of that name, and for "
        "those that speak for the OpenAI category of that name. May be repeated.",
        rich_help_panel=DATA,
    ),
]
StrictFlag = Annotated[
    bool, typer.Option("--strict", help="Stop at the first bad row.", rich_help_panel=DATA)
]
LimitFlag = Annotated[
    int | None,
    typer.Option(min=1, help="Read only the first N good rows.", rich_help_panel=DATA),
]
JsonFlag = Annotated[
    bool, typer.Option("--json", help="Write what was found as JSON, for programs.")
]

# What to judge, as `score` and `features` take it.
TextArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="TEXT|-|FILE",
        help="The text: a file where there is one of that name, `-` for standard input, else the "
        "text itself. What looks like the name of a file must be one.",
    ),
]
TextFlag = Annotated[str | None, typer.Option(help="Take this text, whatever it looks like.")]
FileFlag = Annotated[
    str | None, typer.Option(metavar="FILE|-", help="Take the content of this file.")
]
LinesFlag = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|-",
        help="Take each line of this file as a text of its own; blank ones are left out.",
    ),
]
ResponseFlag = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT|-|FILE",
        help="Judge this answer of a model, with what is given as the prompt before it.",
    ),
]
BesideFlag = Annotated[
    list[str] | None,
    typer.Option(
        help="Judge this policy too, beside the profile's: hate, or shieldgemma/hate. May be "
        "repeated."
    ),
]


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one flag for each field of its parameter `settings`.

    Values are not judged here: `load` does that for flags and variables alike, and
    raises ConfigurationError.
    """
    hints = get_type_hints(command, include_extras=True)
    model: type[Settings] = hints.pop("settings")
    own = [
        p.replace(annotation=hints[p.name])
        for p in inspect.signature(command).parameters.values()
        if p.name != "settings"
    ]
    options = {
        **{name: _option(model, name, field) for name, field in model.model_fields.items()},
        **{old: Annotated[str | None, typer.Option(hidden=True)] for old in model.renamed},
    }
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in options.items()
    ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        given = {name: values.pop(name) for name in options}
        settings = load(model, {k: v for k, v in given.items() if v is not None})
        command(settings=settings, **values)

    signature = inspect.Signature([*own, *flags])
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    example = "device" if "device" in options else next(iter(options))
    twin = f"`{flag(example)}` is `{variable(example)}`"
    run.__doc__ = f"{command.__doc__}\n    Each setting is an environment variable, too: {twin}."
    return run


def _option(model: type[Settings], name: str, field: FieldInfo) -> Any:
    """Annotate a flag, under the panel of the class that brings the setting."""
    owners = (c for c in reversed(model.__mro__) if issubclass(c, Settings))
    panel = next(owner.panel for owner in owners if name in owner.model_fields)
    boolean = field.annotation is bool
    notes = []
    if get_origin(field.annotation) is Literal:
        notes.append(" | ".join(get_args(field.annotation)))
    if field.default not in (None, False):
        notes.append(f"default: {field.default}")
    option = typer.Option(
        flag(name),
        metavar=None if boolean else "N" if field.annotation is int else "TEXT",
        help=f"{field.description} ({'; '.join(notes)})" if notes else field.description,
        rich_help_panel=panel,
    )
    return Annotated[bool | None if boolean else str | None, option]


def asking(settings: ScoringSettings, model: str) -> ScoringSettings:
    """Give the settings for another model, which servers may be; raise ConfigurationError.

    A key goes only to the servers that it was given for: those of the settings' own model, or,
    where that is none, the one that is asked.
    """
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    other = load(ScoringSettings, {**given, "model": model})
    if not settings.servers or {*other.servers} <= {*settings.servers}:
        return other
    return other.model_copy(update={"model_key": None})


def chosen_profile(book: PolicyBook, settings: ScoringSettings) -> Profile:
    """Find the profile for callers who name none; raise ConfigurationError."""
    try:
        return book.profile(settings.profile)
    except UnknownName as unknown:
        raise ConfigurationError(
            f"{flag('profile')} or {variable('profile')} names no profile of the policy files. "
            f"{unknown}"
        ) from None
