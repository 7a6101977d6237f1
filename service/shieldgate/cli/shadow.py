"""`shieldgate shadow`: what a candidate would have decided otherwise."""

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
from shieldgate.errors import needed
from shieldgate.shadow.records import STREAM, ShadowRecord
from shieldgate.telemetry.record_reader import RecordReader

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
    logs: LogsArgument = None,
    *,
    since: SinceFlag = None,
    as_json: JsonFlag = False,
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
    redis_url: RedisFlag = None,
    audit_stream: StreamFlag = None,
) -> None:
    """Say what a candidate would have decided otherwise, by policy and direction.

    Each share has its 95 % interval (Clopper and Pearson). Who was in force and who the candidate
    was is said for each pair of them that the records know. There are no texts in the records; by
    their ids, a text that was kept is found. In Redis they are in a stream of their own, whose name
    has :shadow after that of --audit-stream.

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
        # Here, because they import numpy, which serving does without.
        from shieldgate.cli.shadow_report import show  # noqa: PLC0415
        from shieldgate.shadow.report import report as compare  # noqa: PLC0415
    reader = RecordReader(ShadowRecord, since_time(since))
    source = RecordSource(logs, redis_url, audit_stream, suffix=STREAM)
    found = compare(source.read(reader))
    show(found, as_json=as_json)
    if max_disagreement is not None and any(
        pair.otherwise.high is None or pair.otherwise.high > max_disagreement for pair in found
    ):
        raise typer.Exit(3)
