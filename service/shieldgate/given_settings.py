"""Builds settings from flags and variables, and says what is wrong with those that were given."""

import difflib
import os
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from shieldgate.errors import ConfigurationError
from shieldgate.settings import PREFIX, GatewaySettings, ServeSettings, Settings, WorkerSettings

S = TypeVar("S", bound=Settings)


def variable(field: str) -> str:
    """Name the environment variable of a setting."""
    return PREFIX + field.upper()


def flag(field: str) -> str:
    """Name the command line flag of a setting."""
    return "--" + field.replace("_", "-")


def is_secret(model: type[Settings], field: str) -> bool:
    """Tell whether a setting is nothing to be shown."""
    return "SecretStr" in str(model.model_fields[field].annotation)


def load(model: type[S], flags: Mapping[str, Any]) -> S:
    """Build settings from the flags given, the environment and the defaults.

    Raises ConfigurationError with every bad key, its value and the reason; a variable with our
    prefix that is no setting is refused too, because a misspelt limit is a missing limit.
    """
    _refuse_unknown_variables(model)
    flags, warnings = _by_new_names(model, flags)
    try:
        settings = model(**flags)
    except ValidationError as error:
        raise ConfigurationError(
            "\n".join(
                _explain(str(e["loc"][0]), e["msg"], model, flags)
                for e in error.errors(include_context=False, include_url=False)
            )
        ) from None
    settings._warnings = warnings
    return settings


def _by_new_names(
    model: type[Settings], flags: Mapping[str, Any]
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Give what has an old name its new one, where that is not given too; and say so."""
    environment = _environment()
    given, warnings = dict(flags), []
    news = [new for new in model.renamed.values() if new in flags or environment.get(variable(new))]
    for old, new in model.renamed.items():
        already = new in news
        if old in flags:
            warnings.append(f"{flag(old)} is now {flag(new)}")
            value = given.pop(old)
        # Who uses one new name means another command's setting by the old variables.
        elif value := environment.get(variable(old)) if not news else None:
            warnings.append(f"{variable(old)} is now {variable(new)}")
        if value and not already:
            given[new] = value
    return given, tuple(
        f"{renamed}; the old name goes with the next release" for renamed in warnings
    )


def _explain(field: str, reason: str, model: type[Settings], flags: Mapping[str, Any]) -> str:
    key = flag(field) if field in flags else variable(field)
    given = str(flags[field]) if field in flags else _environment().get(variable(field), "")
    kind = str(model.model_fields[field].annotation)
    is_url = "HttpUrl" in kind
    secret = is_secret(model, field) or ((is_url or "://" in given) and "@" in given)
    value = "" if secret else f" {given!r}"
    reason = reason.removeprefix("Value error, ")
    # But not "uRL".
    reason = reason if reason[1:2].isupper() else f"{reason[0].lower()}{reason[1:]}"
    sentence = f"{key}{value} is refused: {reason}."
    if is_url and not secret and "://" not in given:
        sentence += f" Did you mean http://{given.lstrip('/')}?"
    if given.startswith("tcp://"):
        sentence += f" {_SERVICE_LINKS}"
    return sentence


def _refuse_unknown_variables(model: type[Settings]) -> None:
    # One environment serves all commands, so the settings of all of them are known to each.
    known = {
        variable(field)
        for settings in (model, ServeSettings, WorkerSettings, GatewaySettings)
        for field in (*settings.model_fields, *settings.renamed)
    }
    unknown = sorted(n for n in _environment() if n.startswith(PREFIX) and n not in known)
    if not unknown:
        return
    name = unknown[0]
    near = difflib.get_close_matches(name, known, n=1)
    if "_SERVICE_" in name or "_TCP" in name:
        mend = _SERVICE_LINKS
    elif near:
        mend = f"Did you mean {near[0]}?"
    else:
        mend = f"Known: {', '.join(sorted(known))}."
    raise ConfigurationError(f"The environment variable {name} is no setting. {mend}")


def _environment() -> dict[str, str]:
    return {name.upper(): value for name, value in os.environ.items()}


# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE_LINKS = (
    "Kubernetes sets such variables for a Service named shieldgate: "
    "put `enableServiceLinks: false` into the pod's spec."
)
