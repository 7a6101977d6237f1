"""`shieldgate review`: a person's labels for what is worth a look."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shieldgate.cli.options import DATA, AdapterFlag, MapFlag, with_settings
from shieldgate.errors import ConfigurationError, StoreFailed, UnknownName, needed
from shieldgate.given_settings import flag, variable
from shieldgate.plural import counted
from shieldgate.policy import PolicyBook, load_book
from shieldgate.settings import KeptTextsSettings

if TYPE_CHECKING:
    from shieldgate.kept_texts.store import TextStore
    from shieldgate.review.kept import KeptTexts

_CHOICE = "What is asked"


@with_settings
def review(
    settings: KeptTextsSettings,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATASET",
            help="Rows that were scored, with --scores. Default: the texts that a gateway kept "
            "(--keep-texts).",
        ),
    ] = None,
    *,
    scores: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DIR",
            help="Their scores: a scores.jsonl of `shieldgate evaluate`, or the folder that "
            "`shieldgate batch` wrote.",
            rich_help_panel=DATA,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DIR",
            help="Another scorer's, or another wording's: where the two disagree is asked.",
            rich_help_panel=DATA,
        ),
    ] = None,
    adapter: AdapterFlag = None,
    map_: MapFlag = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Where labelled rows go, with their texts. What is in it is not asked again.",
            rich_help_panel=DATA,
        ),
    ] = Path("labelled.jsonl"),
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="Ask about this policy only. May be repeated. Default: all that were judged.",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    policies: Annotated[
        Path | None,
        typer.Option(
            envvar=variable("policies"),
            help="Policy file, or directory of them. Default: those that are shipped.",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    profile: Annotated[
        str,
        typer.Option(
            envvar=variable("profile"),
            help="The profile whose thresholds decide on scored rows.",
            rich_help_panel=_CHOICE,
        ),
    ] = "default",
    near: Annotated[
        float,
        typer.Option(
            min=0,
            help="Ask where a probability is as near to its threshold, in logits; 0 asks nowhere "
            "for that. 1 is from 0.27 to 0.73 around 0.5.",
            rich_help_panel=_CHOICE,
        ),
    ] = 1.0,
    near_probability: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="The same in probability: 0.1 is from 0.4 to 0.6 around 0.5. In place of --near.",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    disagree: Annotated[
        list[str] | None,
        typer.Option(
            metavar="POLICY=POLICY",
            help="Ask where just one of these two policies is violated. May be repeated.",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Ask about this share of all the rest, drawn at random: what estimates of the "
            "whole rest on. Default: 0.05 of scored rows, all of what a gateway kept.",
            rich_help_panel=_CHOICE,
        ),
    ] = None,
    limit: Annotated[
        int,
        typer.Option(
            min=1,
            help="Ask about at most so many texts, drawn at random from those that are chosen.",
            rich_help_panel=_CHOICE,
        ),
    ] = 1000,
    seed: Annotated[
        int,
        typer.Option(help="Draws the share and the order.", rich_help_panel=_CHOICE),
    ] = 0,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Ask also about labels that the rows came with.",
            rich_help_panel=_CHOICE,
        ),
    ] = False,
    show_scores: Annotated[
        bool,
        typer.Option(
            "--show-scores",
            help="Show probability and threshold, too. Who sees them leans towards them.",
            rich_help_panel=_CHOICE,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Say how much would be asked, and why, and ask nothing.",
            rich_help_panel=_CHOICE,
        ),
    ] = False,
    export: Annotated[
        bool,
        typer.Option(
            "--export",
            help="Ask nothing: add to --out what was labelled in the console of the gateway that "
            "keeps texts.",
        ),
    ] = False,
    forget: Annotated[
        str | None,
        typer.Option(
            metavar="CALLER",
            help="Ask nothing: delete all texts of the API key of this name, those kept and those "
            "in --out.",
        ),
    ] = None,
) -> None:
    """Label what is worth a look, by one key each, in rows that evaluate, calibrate and tune read.

    Asked are texts near a threshold, texts on which scorers or policies disagree, and a random
    share of the rest; each row says why it was chosen, and in `weight` for how many it stands, so
    that estimates need not be biased. Each answer is on the disk before the next question, and
    the same command goes on where it was left.

    Keys: y the text violates the policy, n it does not, a nor any of the policies that follow,
    s skip, u undo, space and b to page, q quit.

    The exit code is 0 when it ended or was left by q, 2 when a setting or file is wrong, 130 after
    Ctrl-C.

    For example:

    - `shieldgate review rows.jsonl --scores runs/mine/scores.jsonl`

    - `shieldgate review comments.parquet --scores scored --share 0.001 --policy shieldgemma/hate`

    - `shieldgate review rows.jsonl --scores runs/2b/scores.jsonl --against runs/9b/scores.jsonl
    --near 0`

    - `shieldgate review --keep-texts review.db --keep-texts-key-file key --out labelled.jsonl`

    - `shieldgate review --keep-texts review.db --keep-texts-key-file key --export`

    - `shieldgate review --keep-texts review.db --forget web-app --out labelled.jsonl`
    """
    if dry_run and (export or forget is not None):
        raise ConfigurationError("--dry-run is for asking. --export and --forget ask nothing.")
    if export and forget is not None:
        raise ConfigurationError("--export and --forget are two commands. Give one at a time.")
    if forget is not None:
        _forget(forget, settings, out)
        return
    with needed("Reviewing", "eval"):
        # Here, because they import numpy, which serving does without.
        from shieldgate.cli.review_run import ReviewCommand, export_labels  # noqa: PLC0415
        from shieldgate.review.candidates import Search  # noqa: PLC0415
        from shieldgate.review.choice import Choice  # noqa: PLC0415
        from shieldgate.review.kept import SHARE  # noqa: PLC0415
    if data is None and (scores or against or adapter or map_):
        raise ConfigurationError(
            "--scores, --against, --adapter and --map are of a DATASET. Give it first."
        )
    if export:
        if data is not None:
            raise ConfigurationError("--export writes what a gateway kept, and takes no DATASET.")
        with _kept(settings) as kept:
            export_labels(kept, out)
        return
    book = load_book(policies)
    try:
        thresholds, asked = book.profile(profile), book.find(policy or book.policies)
    except UnknownName as unknown:
        raise ConfigurationError(str(unknown)) from None
    share = share if share is not None else SHARE if data is None else 0.05
    pairs = [_pair(given, book) for given in disagree or ()]
    command = ReviewCommand(
        book,
        thresholds,
        Search(
            Choice(near, near_probability, pairs, share, seed),
            [found.id for found in asked],
            limit,
            again,
        ),
        out,
        show_scores,
        dry_run,
    )
    if data is None:
        with _kept(settings) as kept:
            command.review_kept(kept)
    elif scores is None:
        raise ConfigurationError(
            "--scores is missing: the scores.jsonl that `shieldgate evaluate` wrote of these rows, "
            "or the folder of `shieldgate batch`."
        )
    else:
        command.review_rows(data, scores, against, adapter=adapter, columns=map_ or ())


def _pair(given: str, book: PolicyBook) -> tuple[str, str]:
    a, _, b = given.partition("=")
    try:
        book.find((a, b))
    except UnknownName as unknown:
        raise ConfigurationError(f"--disagree {given}: write POLICY=POLICY. {unknown}") from None
    return a, b


@contextmanager
def _kept(settings: KeptTextsSettings) -> "Iterator[KeptTexts]":
    """Open the texts that a gateway kept, but for expired ones; raise ConfigurationError."""
    from shieldgate.kept_texts.seal import Seal  # noqa: PLC0415

    with _stored(settings) as store:
        # Here, because its database is an extra.
        from shieldgate.kept_texts.labels import LabelStore  # noqa: PLC0415
        from shieldgate.review.kept import KeptTexts  # noqa: PLC0415

        labels = LabelStore(store.database)
        seal = Seal.of(settings.keep_texts_key, settings.keep_texts_key_file)
        labels.expire(now := time.time())
        if expired := store.expire(now):
            typer.echo(f"{expired:,} texts have expired and are deleted", err=True)
        yield KeptTexts(store, labels, seal)


@contextmanager
def _stored(settings: KeptTextsSettings) -> "Iterator[TextStore]":
    if settings.keep_texts is None:
        raise ConfigurationError(
            f"There is nothing to review: give rows and their --scores, or {flag('keep_texts')} "
            "where a gateway keeps texts."
        )
    with needed("Reading kept texts", "review"):
        from shieldgate.kept_texts.store import TextStore  # noqa: PLC0415

    store = TextStore.at(settings.keep_texts.get_secret_value(), make=False)
    try:
        yield store
    except StoreFailed as failure:
        raise ConfigurationError(f"{store.name}: {failure}") from None
    finally:
        store.close()


def _forget(caller: str, settings: KeptTextsSettings, out: Path) -> None:
    """Delete a caller's texts, wherever they are; raise ConfigurationError."""
    from shieldgate.review.labelled_file import LabelledFile  # noqa: PLC0415

    with _stored(settings) as store:
        from shieldgate.kept_texts.labels import LabelStore  # noqa: PLC0415

        kept = store.forget(caller)
        LabelStore(store.database).expire(time.time())
    typer.echo(f"deleted {counted(kept, 'kept text')} of {caller} from {store.name}")
    if out.exists():
        with LabelledFile(out) as file:
            rows = file.remove(lambda row: row.get("caller") == caller)
        typer.echo(f"deleted {counted(rows, 'labelled row')} of {caller} from {out}")
