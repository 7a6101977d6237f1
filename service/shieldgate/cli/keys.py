"""`shieldgate keys`: make an API key, check the file of them."""

import re
from pathlib import Path
from typing import Annotated

import typer

from shieldgate.access.keys import NAME, digest, load_keys, new_key
from shieldgate.errors import ConfigurationError
from shieldgate.plural import counted
from shieldgate.policy import load_book

app = typer.Typer(
    help="Make and check API keys: who may call, under which profile, and how much.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

_Limit = Annotated[int | None, typer.Option(min=1, help="Default: no limit.")]


@app.command()
def new(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Who gets the key, for the file and the log; for example web-app."
        ),
    ],
    *,
    profile: Annotated[
        str, typer.Option(help="The profile that judges what is sent with the key, and answered.")
    ] = "default",
    requests_per_minute: _Limit = None,
    texts_per_minute: _Limit = None,
    characters_per_minute: _Limit = None,
    concurrent: _Limit = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="It may read /metrics, and all that the console shows.")
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="It may ask which words carried a score, which costs as much as many scores.",
        ),
    ] = False,
) -> None:
    """Make a key: its lines for the file on standard output, the key itself on standard error.

    The key is shown this once. The file holds a digest, from which nobody gets the key back.

    Example: `shieldgate keys new web-app --profile strict --requests-per-minute 600 >> keys.yaml`
    """
    if not re.fullmatch(NAME, name):
        raise typer.BadParameter("at most 64 letters, digits, dots, dashes and underscores")
    secret = new_key()
    lines: dict[str, object] = {"sha256": f'"{digest(secret).hex()}"', "profile": profile}
    if admin:
        lines["admin"] = "true"
    if explain:
        lines["explain"] = "true"
    limits = {
        "requests_per_minute": requests_per_minute,
        "texts_per_minute": texts_per_minute,
        "characters_per_minute": characters_per_minute,
        "concurrent": concurrent,
    }
    lines |= {limit: most for limit, most in limits.items() if most is not None}
    typer.echo(f"{name}:")
    for key, value in lines.items():
        typer.echo(f"  {key}: {value}")
    typer.echo(f"The key of {name}, which is shown only now: {secret}", err=True)


@app.command()
def check(
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE", envvar="SHIELDGATE_KEYS", help="The file of the keys."),
    ],
    *,
    policies: Annotated[
        Path | None,
        typer.Option(
            envvar="SHIELDGATE_POLICIES",
            help="The policy file, or directory of them, with the profiles. Default: the shipped.",
        ),
    ] = None,
) -> None:
    """Say whether a file of keys is in order; exit 1 with every problem, one a line.

    Example: `shieldgate keys check keys.yaml --policies my-policies`
    """
    try:
        keys = load_keys(path, load_book(policies))
    except ConfigurationError as refused:
        typer.echo(str(refused), err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{path}: {counted(len(keys), 'key')}")
