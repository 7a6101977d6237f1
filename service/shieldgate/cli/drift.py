"""`shieldgate drift`: whether scores come as they did when thresholds were calibrated."""

from pathlib import Path
from typing import Annotated

import typer

from shieldgate.cli.options import JsonFlag
from shieldgate.cli.records import (
    LogsArgument,
    RecordSource,
    RedisFlag,
    SinceFlag,
    StreamFlag,
    since_time,
)
from shieldgate.errors import ConfigurationError, UnknownName, needed
from shieldgate.evaluation.decision_records import DecisionRecord
from shieldgate.given_settings import variable
from shieldgate.policy import book_of, load_book
from shieldgate.telemetry.record_reader import RecordReader

_ACCEPT = "What to expect from now on"


def drift(
    logs: LogsArgument = None,
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
    since: SinceFlag = None,
    as_json: JsonFlag = False,
    redis_url: RedisFlag = None,
    audit_stream: StreamFlag = None,
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
    if dry_run and accept is None:
        raise ConfigurationError("--dry-run is for --accept FILE, which alone writes anything.")
    if as_json and accept:
        raise ConfigurationError("--json is for comparing. It can't go with --accept.")
    if accept and not accept.is_file():
        raise ConfigurationError(f"--accept {accept}: there is no file of that name.")
    book_path = policies or (accept and book_of(accept))
    book = load_book(book_path)
    try:
        only = [found.id for found in book.find(policy or ())]
    except UnknownName as unknown:
        raise ConfigurationError(f"--policy: {unknown}") from None
    reader = RecordReader(DecisionRecord, since_time(since))
    command = DriftCommand(book, only, reader)
    command.add(RecordSource(logs, redis_url, audit_stream).read(reader))
    if accept and book_path:
        command.accept(accept, book_path, dry_run=dry_run)
    else:
        raise typer.Exit(command.report(as_json=as_json))
