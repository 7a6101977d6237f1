"""`shieldgate drift`: whether scores come as they did when thresholds were calibrated."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from shieldgate.errors import ConfigurationError, UnknownName, needed
from shieldgate.given_settings import flag, variable
from shieldgate.policy import load_book

_REDIS = "In Redis"
_ACCEPT = "What to expect from now on"


def drift(
    given: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE|-",
            help="Records of decisions: the log of `serve --log-format json`, plain or .gz, or - "
            "for standard input. Default: the stream in Redis.",
        ),
    ] = None,
    *,
    policies: Annotated[
        Path | None,
        typer.Option(
            envvar=variable("policies"),
            help="Policy file, or directory of them. Default: those that are shipped.",
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="Compare this policy only. May be repeated. Default: all."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Pass over what was decided before: 2026-11-26, or 2026-11-26T08:00 (UTC, where "
            "it names no other).",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write what was found as JSON, for programs.")
    ] = False,
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
            help="The stream that they append records to.",
            rich_help_panel=_REDIS,
        ),
    ] = None,
    accept: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write these scores into this policy file, as those to expect; thresholds stay.",
            rich_help_panel=_ACCEPT,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show what would be written, and write nothing.",
            rich_help_panel=_ACCEPT,
        ),
    ] = False,
) -> None:
    """Say whether scores come as they did when the thresholds were calibrated, and what to do.

    For each policy and direction it compares the scores in records of decisions with those that
    `calibrate` wrote into the policy file: the population stability index (PSI), less what chance
    makes of it at this number; a Kolmogorov-Smirnov test; and the share that is flagged, then and
    now. No text is needed.

    Traffic is seldom like the rows of a calibration, so the first comparison says how much of a
    calibration carries over. Once you have looked and are content, --accept makes what you see the
    scores to expect, and from then on the comparison tells of changes.

    The exit code is 0 where nothing has drifted, 1 where something has, 2 when a setting or file
    is wrong, 3 where there are too few scores to tell, or none to compare with.

    For example:

    - `shieldgate drift decisions.log`

    - `kubectl logs -l app.kubernetes.io/name=shieldgate --tail=-1 | shieldgate drift - --json`

    - `shieldgate drift --audit-stream shieldgate:audit --since 2026-11-20`, with
    `SHIELDGATE_REDIS_URL`

    - `shieldgate drift decisions.log --accept my-policies/shieldgemma.yaml --dry-run`
    """
    with needed("Measuring drift", "eval"):
        # Here, because they import numpy and SciPy, which serving does without.
        from shieldgate.cli.drift_run import DriftCommand  # noqa: PLC0415
    book_path = policies or (accept.parent if accept else None)
    book = load_book(book_path)
    try:
        only = [found.id for found in book.find(policy or ())]
        after = datetime.fromisoformat(since) if since else None
    except UnknownName as unknown:
        raise ConfigurationError(f"--policy: {unknown}") from None
    except ValueError:
        raise ConfigurationError(
            f"--since: {since!r} is no time; write 2026-11-26 or 2026-11-26T08:00."
        ) from None
    command = DriftCommand(book, only, after)
    if given is not None:
        command.read_file(given)
    elif redis_url and audit_stream:
        command.read_stream(redis_url, audit_stream)
    else:
        raise ConfigurationError(
            "There is nothing to compare: give a file of records, or - for standard input; or "
            f"{flag('audit_stream')} and {variable('redis_url')} where gateways write to Redis."
        )
    if accept and book_path:
        command.accept(accept, book_path, dry_run=dry_run)
    else:
        raise typer.Exit(command.report(as_json=as_json))
