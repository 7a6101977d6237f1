"""Runs the commands of the watermark, and shows what came out."""

import json
from functools import partial
from pathlib import Path

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from shieldgate.cli.score import read_text
from shieldgate.errors import ConfigurationError, ModelError
from shieldgate.plural import counted
from shieldgate.prompt import GEMMA_CONTROL_TOKENS
from shieldgate.scoring.encoding import PromptEncoder
from shieldgate.scoring.local import load_checkpoint
from shieldgate.scoring.tokenizer_files import load_tokenizer
from shieldgate.statistics import Estimate
from shieldgate.telemetry import configure_logging
from shieldgate.worker.generation import SamplingParams
from shieldgate.worker.generator import GemmaGenerator, find_gemma2
from shieldgate.worker.watermark.calibration import (
    FEWEST,
    SHORTEST,
    Calibration,
    Judgement,
    gather,
    load_calibration,
    write_calibration,
)
from shieldgate.worker.watermark.keys import WatermarkKeys
from shieldgate.worker.watermark.synthid import SynthIDWatermark
from shieldgate.worker.watermark.texts import PROMPTS, write_texts


def calibrate(
    keys: WatermarkKeys,
    out: Path,
    *,
    generator: str,
    revision: str | None,
    prompts: Path | None,
    texts: int,
    tokens: int,
    sampling: SamplingParams,
    rate: float,
    seed: int,
    device: str,
) -> None:
    """Write texts of both kinds, keep their scores, and print error rates by length.

    Raises ConfigurationError.
    """
    configure_logging("warning", as_json=False)
    about = PROMPTS
    if prompts:
        lines = read_text(str(prompts)).splitlines()
        about = tuple(line.strip() for line in lines if line.strip())
        if not about:
            raise ConfigurationError(f"--prompts {prompts}: there is no line with text in it.")
    if not out.parent.is_dir():  # better now than when all is written
        raise ConfigurationError(f"--out {out}: there is no folder {out.parent}.")
    digest = load_tokenizer(generator, revision=revision).digest
    console = Console(stderr=True)
    with console.status(f"loading {generator}"):
        checkpoint = load_checkpoint(
            generator, revision=revision, device=device, dtype="auto", find=find_gemma2
        )
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    watermark = SynthIDWatermark(keys)
    scores: list[list[list[float]]] = []
    with bar:
        for kind, marks in (("unmarked", None), ("marked", keys)):
            writer = GemmaGenerator(checkpoint, watermark=marks)
            task = bar.add_task(f"{kind} texts", total=texts)
            written = write_texts(
                writer,
                about,
                texts=texts,
                max_tokens=tokens,
                sampling=sampling,
                seed=seed + bool(marks),
                wrote=partial(bar.advance, task),
            )
            # As a reader gets them: encoded again from their text.
            scores.append([watermark.token_scores(writer.encode([text])) for text in written])
    lengths = gather(*scores)
    if not lengths:
        raise ConfigurationError(
            f"Of the unmarked texts, fewer than {FEWEST} have {SHORTEST} tokens that could carry a "
            "mark. Write more with --texts, longer ones with --tokens, or about something that "
            "makes the model write more with --prompts."
        )
    calibration = Calibration(
        generator=generator,
        revision=revision,
        tokenizer=digest,
        keys=keys.fingerprint,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=seed,
        lengths=tuple(lengths),
    )
    _show_rates(calibration, rate)
    write_calibration(out, calibration)
    Console().print(f"Wrote {out}.", highlight=False, markup=False, soft_wrap=True)


def _show_rates(calibration: Calibration, rate: float) -> None:
    console = Console()
    console.print(
        f"{calibration.generator}, keys {calibration.keys}, temperature "
        f"{calibration.temperature:g}, top-p {calibration.top_p:g}, top-k {calibration.top_k}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    table = Table(
        title=f"Where a p-value of {rate:g} or less counts as marked",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("tokens", "unmarked", "taken for marked", "marked", "found"):
        table.add_column(name, justify="right", no_wrap=True)
    for at in calibration.lengths:
        table.add_row(
            f"{at.tokens:,}",
            f"{len(at.unmarked):,}",
            _percent(at.false_positives(rate)),
            f"{len(at.marked):,}",
            _percent(at.found(rate)),
        )
    console.print(table)


def _percent(share: Estimate) -> str:
    if share.value is None or share.low is None or share.high is None:
        return "unknown"
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"


def detect(
    file: str,
    keys: WatermarkKeys,
    calibration: Path,
    *,
    tokenizer: str | None,
    rate: float,
    as_json: bool,
) -> int:
    """Print how likely a text is marked; returns the exit code. Raises ConfigurationError."""
    configure_logging("warning", as_json=False)
    found = load_calibration(calibration, keys)
    text = read_text(file)
    try:
        if tokenizer:
            files = load_tokenizer(tokenizer)
        else:
            files = load_tokenizer(found.generator, revision=found.revision)
    except ModelError as missing:
        raise ConfigurationError(
            f"The generator's tokenizer can't be read: {missing} Give it with --tokenizer."
        ) from None
    if files.digest != found.tokenizer:
        raise ConfigurationError(
            f"{files.model}: its tokenizer is another than the one of the calibration "
            f"({found.generator}). Marks are found in the tokens they were made in: give that one "
            "with --tokenizer."
        )
    encoder = PromptEncoder(files.tokenizer, GEMMA_CONTROL_TOKENS)
    [tokens] = encoder.encode([[text]])
    judgement = found.judge(SynthIDWatermark(keys).token_scores(tokens))
    if as_json:
        typer.echo(json.dumps(_as_json(judgement, rate), indent=2))
    else:
        _show(judgement, found, rate)
    if judgement.p_value is None:
        return 3
    return 0 if judgement.p_value <= rate else 1


def _verdict(judgement: Judgement, rate: float) -> str:
    if judgement.p_value is None:
        return "too short"
    return "marked" if judgement.p_value <= rate else "no mark found"


def _as_json(judgement: Judgement, rate: float) -> dict[str, object]:
    at = judgement.against
    return {
        "verdict": _verdict(judgement, rate).replace(" ", "_"),
        "p_value": judgement.p_value,
        "score": judgement.score,
        "tokens": judgement.tokens,
        "false_positive_rate": rate,
        "calibrated_tokens": at and at.tokens,
        "share_of_marked_found": at and at.found(rate).value,
    }


def _show(judgement: Judgement, calibration: Calibration, rate: float) -> None:
    console = Console()

    def say(line: str, style: str = "") -> None:
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)

    at = judgement.against
    say(_verdict(judgement, rate).upper(), "bold")
    words = counted(judgement.tokens, "token that can", "tokens that can") + " carry a mark"
    if at is None or judgement.p_value is None or judgement.score is None:
        least = min(length.tokens for length in calibration.lengths)
        say(f"The text has {words}, and nothing can be said of fewer than {least}.")
        return
    say(
        f"p-value {judgement.p_value:.2g}: that share of unmarked texts of {calibration.generator} "
        f"would score {judgement.score:.4f} or more."
    )
    say(f"The text has {words}; 0.5 is the mean score without one.")
    say(
        f"Of texts of {at.tokens:,} tokens, at p-values of {rate:g} or less: "
        f"{_percent(at.found(rate))} of the marked are found, and "
        f"{_percent(at.false_positives(rate))} of the unmarked are taken for marked.",
        "dim",
    )
