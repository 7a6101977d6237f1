"""`shieldgate policies`: check, list, and start one's own."""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from shieldgate.errors import ConfigurationError, PolicyError, ScoringError
from shieldgate.given_settings import load
from shieldgate.plural import counted
from shieldgate.policy import (
    PolicyBook,
    lax_thresholds,
    load_book,
    policy_files,
    shipped_policies,
)
from shieldgate.schemas import PoliciesReply
from shieldgate.scoring.factory import open_prompts, open_scorer
from shieldgate.settings import ScoringSettings
from shieldgate.types import DIRECTIONS, Direction

app = typer.Typer(
    help="Check, list and start policy files: what is allowed, and for whom.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@app.command()
def check(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="PATH",
            envvar="SHIELDGATE_POLICIES",
            help="A policy file, or a directory of them. Default: the shipped ones.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Check, too, that each guideline leaves room for texts in this scorer: 'starter', "
            "a hub id or the path of a checkpoint, of which only the tokenizer is loaded; or an "
            "engine's URL, with the settings of 'serve' as variables."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="With an engine's URL: the tokenizer of what it serves."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a model from the hub.")
    ] = None,
    template: Annotated[
        str, typer.Option(help="The prompt format that the scorer is served with.")
    ] = "chat",
) -> None:
    """Say whether a policy book is in order; exit 1 with every problem, one a line.

    Each problem reads *file:line: key: value: why; how to mend it*. Where a profile's threshold
    is above a calibrated one, that is a warning.

    Example: `shieldgate policies check policies/ --model google/shieldgemma-2b`
    """
    book = _load(path)
    if model is not None:
        given = {"model": model, "tokenizer": tokenizer, "revision": revision, "template": template}
        settings = load(ScoringSettings, {k: v for k, v in given.items() if v is not None})
        try:
            refused = asyncio.run(_no_room(settings, book))
        except ScoringError as failure:
            _refuse(f"Error: {failure}")
        if refused:
            _refuse(refused)
    for line in lax_thresholds(book):
        typer.echo(f"Warning: {line}", err=True)
    typer.echo(
        f"{path or 'The shipped policies'}: {counted(len(book.policies), 'policy', 'policies')}, "
        f"{counted(len(book.profiles), 'profile')}, version {book.version}"
    )


async def _no_room(settings: ScoringSettings, book: PolicyBook) -> str:
    """Say which guidelines leave no room for texts; raise ConfigurationError, ScoringError."""
    policies = book.policies.values()
    if settings.servers:
        async with open_scorer(settings, max_batch_tokens=1, max_waiting=1) as scorer:
            try:
                await scorer.check(policies)
            except ConfigurationError as refused:
                return str(refused)
        return ""
    prompts = open_prompts(settings.model, revision=settings.revision, template=settings.template)
    try:
        prompts.check(policies)
    except ConfigurationError as refused:
        return str(refused)
    return ""


@app.command("list")
def list_(
    policies: Annotated[
        Path | None,
        typer.Option(
            envvar="SHIELDGATE_POLICIES",
            help="A policy file, or a directory of them. Default: the shipped ones.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON, for machines.")] = False,
) -> None:
    """Show the policies and profiles of a book.

    Example: `shieldgate policies list --json | jq '.policies[].id'`
    """
    book = _load(policies)
    if as_json:
        typer.echo(PoliciesReply.of(book).model_dump_json(indent=2))
        return
    console = Console()
    console.print(_policy_table(book), *_calibration_tables(book), _profile_table(book), sep="\n")


@app.command()
def init(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to write; made if it isn't there.")
    ],
) -> None:
    """Copy the shipped policy files, as a start for your own; nothing is overwritten.

    Example: `shieldgate policies init my-policies`
    """
    copies = [(file, directory / file.name) for file in policy_files(shipped_policies())]
    for _, copy in copies:
        if copy.exists():
            _refuse(f"{copy} is there already; choose another directory, or move it away")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, copy in copies:
            copy.write_bytes(file.read_bytes())
            typer.echo(f"wrote {copy}")
    except OSError as refused:
        _refuse(f"{refused.filename}: {refused.strerror}; choose a directory that can be written")
    typer.echo(f"Edit them, then: shieldgate policies check {directory}")
    typer.echo(f"Serve with them:  shieldgate serve --policies {directory}")


def _load(path: Path | None) -> PolicyBook:
    try:
        return load_book(path)
    except PolicyError as refused:
        _refuse(str(refused))


def _refuse(why: str) -> NoReturn:
    typer.echo(why, err=True)
    raise typer.Exit(1)


def _policy_table(book: PolicyBook) -> Table:
    table = _table(f"Policies, version {book.version}")
    table.add_column("policy", no_wrap=True)
    table.add_column("title", overflow="fold")
    table.add_column("threshold", overflow="fold")
    table.add_column("OpenAI category", no_wrap=True)
    for policy in book.policies.values():
        threshold = _by_direction(policy.thresholds)
        table.add_row(policy.id, policy.title, threshold, "\n".join(policy.openai))
    return table


def _calibration_tables(book: PolicyBook) -> Iterator[Table]:
    """Show each scorer's fitted thresholds, which hold in place of the policies' own."""
    dtypes: dict[str, set[str]] = {}
    for policy in book.policies.values():
        for (scorer, _), made in policy.calibrations.items():
            dtypes.setdefault(scorer, set()).update([made.dtype] if made.dtype else [])
    for scorer, known in dtypes.items():
        computed = f" in {', '.join(sorted(known))}" if known else ""
        table = _table(f"Thresholds calibrated for {scorer}{computed}")
        table.add_column("policy", no_wrap=True)
        for direction in DIRECTIONS:
            table.add_column(direction)
        for policy in book.policies.values():
            fitted = [policy.calibrations.get((scorer, direction)) for direction in DIRECTIONS]
            if any(fitted):
                table.add_row(policy.id, *(f"{f.threshold:g}" if f else "" for f in fitted))
        yield table


def _profile_table(book: PolicyBook) -> Table:
    table = _table("Profiles")
    table.add_column("profile", no_wrap=True)
    table.add_column("mode")
    table.add_column("on failure")
    table.add_column("policies, and thresholds of its own", overflow="fold")
    for profile in book.profiles.values():
        rows = []
        own = {at: f"{threshold:g}" for at, threshold in profile.thresholds.items()}
        for at, most in profile.max_thresholds.items():
            own[at] = f"{own[at]}, at most {most:g}" if at in own else f"at most {most:g}"
        for id in dict.fromkeys((*profile.policies, *(id for id, _ in own))):
            here = {d: own[id, d] for d in DIRECTIONS if (id, d) in own}
            rows.append(f"{id} {_by_direction(here)}".rstrip())
        table.add_row(
            profile.name, profile.mode, _by_direction(profile.on_failure), "\n".join(rows)
        )
    return table


def _table(title: str) -> Table:
    # Else a title wider than its columns is broken.
    return Table(
        title=title,
        min_width=len(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )


def _by_direction(values: Mapping[Direction, object]) -> str:
    """Write one value where it stands for both directions, else each with its direction."""
    if len(values) == len(DIRECTIONS) and len(set(values.values())) == 1:
        return str(values["prompt"])
    return ", ".join(f"{direction} {value}" for direction, value in values.items())
