"""`shieldgate shadow`: what a candidate would have decided otherwise."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from shieldgate.errors import ConfigurationError, needed
from shieldgate.given_settings import flag, variable

_REDIS = "In Redis"

app = typer.Typer(
    help="Second opinions: what a candidate that decides nothing says of live traffic.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@app.callback()
def root() -> None:
    """Second opinions: what a candidate that decides nothing says of live traffic.

    `shieldgate serve --shadow-policies DIR` has one judge; so do `--shadow-profile`,
    `--shadow-model` and `--shadow-template`.
    """


@app.command()
def report(
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE|-",
            help="Records: logs of `serve --log-format json`, plain or .gz, or - for standard "
            "input. Default: the stream in Redis.",
        ),
    ] = None,
    *,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Pass over what was judged before: 2026-11-26, or 2026-11-26T08:00 (UTC, where "
            "it names no other).",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write what was found as JSON, for programs.")
    ] = False,
    max_disagreement: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Exit with 3 unless it is sure (95 %) that the candidate decides at most this "
            "share otherwise, in 0..1.",
        ),
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(
            flag("redis_url"),
            metavar="URL",
            envvar=variable("redis_url"),
            help="The Redis of the gateways. Flags show in process lists: prefer the variable.",
            rich_help_panel=_REDIS,
        ),
    ] = None,
    audit_stream: Annotated[
        str | None,
        typer.Option(
            flag("audit_stream"),
            metavar="NAME",
            envvar=variable("audit_stream"),
            help="The stream of the records of decisions; second opinions are in the one of the "
            "same name with :shadow after it.",
            rich_help_panel=_REDIS,
        ),
    ] = None,
) -> None:
    """Say what a candidate would have decided otherwise, by policy and direction.

    Each share has its 95 % interval (Clopper and Pearson). Who was in force and who the candidate
    was is said for each pair of them that the records know. There are no texts in the records; by
    their ids, a text that was kept is found.

    The exit code is 0 when there is a report, 2 when a setting or file is wrong or holds no such
    record, 3 as --max-disagreement says.

    For example:

    - `shieldgate shadow report gateway.log`

    - `kubectl logs deploy/shieldgate | shieldgate shadow report -`

    - `SHIELDGATE_REDIS_URL=redis://localhost shieldgate shadow report --audit-stream
    shieldgate:audit --since 2026-11-26 --json`

    - `shieldgate shadow report gateway.log --max-disagreement 0.01`
    """
    with needed("Reporting", "eval"):
        # Here, because it imports numpy, which serving does without.
        from shieldgate.cli.shadow_report import read_files, read_stream, show  # noqa: PLC0415
    from_when = _time(since) if since else None
    if given:
        found = read_files(given, from_when)
    elif redis_url and audit_stream:
        found = read_stream(redis_url, audit_stream, from_when)
    else:
        raise ConfigurationError(
            "Give the records: a file, - for standard input, or the gateways' stream in Redis by "
            f"{flag('redis_url')} and {flag('audit_stream')}."
        )
    show(found, as_json=as_json)
    if max_disagreement is not None and any(
        pair.otherwise.high is None or pair.otherwise.high > max_disagreement for pair in found
    ):
        raise typer.Exit(3)


def _time(given: str) -> datetime:
    try:
        time = datetime.fromisoformat(given)
    except ValueError:
        raise ConfigurationError(
            f"--since {given!r} is no time. Write 2026-11-26, or 2026-11-26T08:00."
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
