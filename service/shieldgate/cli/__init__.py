"""The commands, and the only place where objects are built and wired."""

import codecs
import errno
import io
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from shieldgate.cli import keys, policies, shadow
from shieldgate.cli.batch import batch
from shieldgate.cli.calibrate import calibrate
from shieldgate.cli.doctor import doctor
from shieldgate.cli.drift import drift
from shieldgate.cli.evaluate import evaluate
from shieldgate.cli.features import features, train_features
from shieldgate.cli.options import (
    BesideFlag,
    FileFlag,
    LinesFlag,
    ResponseFlag,
    TextArgument,
    TextFlag,
    with_settings,
)
from shieldgate.cli.review import review
from shieldgate.cli.tune import tune
from shieldgate.cli.watermark import app as watermark
from shieldgate.cli.watermark import detect_watermark
from shieldgate.errors import ConfigurationError
from shieldgate.settings import ScoringSettings, ServeSettings, WorkerSettings
from shieldgate.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(policies.app, name="policies")
app.add_typer(keys.app, name="keys")
app.add_typer(watermark, name="watermark")
app.add_typer(shadow.app, name="shadow")


def main() -> None:
    """Run the command line; a wrong setting or file is one sentence and exit code 2."""
    # What a locale has no letter for is shown by its number.
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error("by_number", _by_number)
        sys.stdout.reconfigure(errors="by_number")
    try:
        app()
    except ConfigurationError as error:
        sys.exit(_refuse(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename:
            raise
        # What is still in the buffer can't be written either, when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_refuse(ConfigurationError(f"the output can't be written: {error.strerror}.")))


def _by_number(failure: UnicodeError) -> tuple[str, int]:
    """Write letters as JSON does, because what is written may be JSON."""
    if not isinstance(failure, UnicodeEncodeError):
        raise failure
    return json.dumps(failure.object[failure.start : failure.end])[1:-1], failure.end


def _refuse(error: ConfigurationError) -> int:
    typer.echo(f"Error: {error}", err=True)
    return 2


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"shieldgate {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Content moderation with ShieldGemma, in front of any LLM.

    Every setting is a flag and an environment variable: `--max-inputs 8` is
    `SHIELDGATE_MAX_INPUTS=8`. A flag wins.

    Start here:

    - `shieldgate score "How do I bake bread?"` judges a text

    - `shieldgate serve` serves verdicts over HTTP

    - `shieldgate serve --upstream URL` stands before an LLM

    - `shieldgate policies list` shows what is judged

    - `shieldgate keys new NAME` makes an API key

    - `shieldgate review` takes labels from a person
    """


@app.command()
@with_settings
def serve(
    settings: ServeSettings,
    *,
    supervised: Annotated[int | None, typer.Option(hidden=True)] = None,
    scorer: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve verdicts over HTTP, and stand before an LLM.

    With `--upstream` or `--generator` it answers chats too, judged on the way in and on the way
    out. It listens at once, and is ready when `/readyz` says so. Policies are read again when their
    files change and on SIGHUP. The exit code is 0 after SIGTERM, 1 when the scorer can't be
    loaded, 2 when a setting is wrong.

    For example:

    - `shieldgate serve`

    - `shieldgate serve --model google/shieldgemma-2b --port 9000`

    - `shieldgate serve --model http://vllm:8000/v1 --tokenizer google/shieldgemma-2b`

    - `shieldgate serve --upstream http://localhost:11434/v1`

    - `shieldgate serve --generator google/gemma-2-2b-it`

    - `SHIELDGATE_POLICIES=my-policies shieldgate serve --profile strict`

    - `curl localhost:8000/v1/moderations -H 'content-type: application/json'
    -d '{"input": "How do I bake bread?"}'`
    """
    # Imported when it runs, so that --help doesn't wait for the web framework.
    from shieldgate.cli.processes import GatewayProcess  # noqa: PLC0415
    from shieldgate.cli.serve import run  # noqa: PLC0415

    run(settings, GatewayProcess.of(supervised, scorer))


# A name that no typing error of "score" leads to.
@app.command("scorer-of-gateways", hidden=True)
@with_settings
def scorer(settings: ServeSettings, *, scorer: Annotated[Path, typer.Option()]) -> None:
    """Score for the gateway processes of `shieldgate serve --processes`, which starts it."""
    from shieldgate.cli.processes import run_scorer  # noqa: PLC0415

    run_scorer(settings, scorer)


@app.command()
@with_settings
def worker(
    settings: WorkerSettings,
    *,
    supervised: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Generate text with Gemma 2, as OpenAI's chat completions.

    `shieldgate serve --generator` starts one by itself; run it alone to put it on another
    machine, and give its address to `shieldgate serve --upstream`. It judges nothing. The exit
    code is 0 after SIGTERM, 1 when the model can't be loaded, 2 when a setting is wrong.

    For example:

    - `shieldgate worker --generator google/gemma-2-9b-it`

    - `shieldgate worker --generator google/gemma-2-27b-it
    --assistant google/gemma-2-2b-it`
    """
    from shieldgate.cli.worker import run  # noqa: PLC0415

    run(settings, supervised=supervised)


@app.command()
@with_settings
def score(
    settings: ScoringSettings,
    given: TextArgument = None,
    *,
    text: TextFlag = None,
    file: FileFlag = None,
    lines: LinesFlag = None,
    response: ResponseFlag = None,
    policy: BesideFlag = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Show which words carried the scores, by leaving them out one by one: as much "
            "work as up to some 60 scores.",
        ),
    ] = False,
    gradient: Annotated[
        bool,
        typer.Option(
            "--gradient",
            help="With --explain, weigh words by one pass back through a model in this process: "
            "three scores' work, and less faithful on short texts.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write what POST /v1/screen answers.")
    ] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 3 when a text would be blocked.")
    ] = False,
) -> None:
    """Judge one text, or each line of a file, and show why.

    The exit code is 0 when there is a verdict, 1 when the scorer failed, 2 when a setting or
    name is wrong or there is no such file.

    For example:

    - `shieldgate score "How do I bake bread?"`

    - `shieldgate score prompt.txt --response answer.txt --policy profanity`

    - `shieldgate score "You worthless idiot." --explain`

    - `shieldgate score --lines comments.txt --exit-code`

    - `git log -1 --format=%B | shieldgate score - --json | jq .results[0].action`
    """
    from shieldgate.cli.score import read_exchanges, run  # noqa: PLC0415

    exchanges = read_exchanges(given, text=text, file=file, lines=lines, response=response)
    if explain and lines is not None:
        raise ConfigurationError("--explain is for one text, so it can't go with --lines.")
    if gradient and not explain:
        raise ConfigurationError("--gradient is a way to explain. Give --explain, too.")
    blocked = run(
        settings,
        exchanges,
        policies=tuple(policy or ()),
        explained="gradient" if gradient else "leaving out" if explain else None,
        as_json=as_json,
    )
    if blocked and exit_code:
        raise typer.Exit(3)


app.command()(batch)
app.command()(evaluate)
app.command()(calibrate)
app.command()(tune)
app.command()(review)
app.command()(doctor)
app.command()(drift)
app.command("detect-watermark")(detect_watermark)
app.command()(features)
app.command("train-features")(train_features)
