"""`shieldgate watermark` and `detect-watermark`: keys, error rates, and is a text marked."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from shieldgate.cli.options import JsonFlag
from shieldgate.errors import needed
from shieldgate.worker.watermark.keys import load_watermark_keys, new_keys

app = typer.Typer(
    help="Make a watermark's keys, and measure how well it is found.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

_Keys = Annotated[
    Path,
    typer.Option(
        envvar="SHIELDGATE_WATERMARK_KEYS",
        metavar="FILE",
        help="The file of the keys, as 'shieldgate watermark new' makes it.",
    ),
]
_Rate = Annotated[
    float,
    typer.Option(
        min=1e-9,
        max=0.5,
        help="Of unmarked texts, this share may be taken for marked. It is the largest p-value "
        "that counts as marked.",
    ),
]


@app.command()
def new(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="The file to write, which must not be there yet."),
    ],
) -> None:
    """Make a file of random keys that only you may read.

    Who has the keys can tell which texts are marked, and can write texts that seem so. The exit
    code is 0, or 2 where the file can't be written.

    Example: `shieldgate watermark new watermark-keys.json`
    """
    keys = new_keys(file)
    typer.echo(f"Wrote {file}, keys {keys.fingerprint}. Keep a copy: nothing else finds its marks.")


@app.command()
def calibrate(
    *,
    generator: Annotated[
        str,
        typer.Option(
            envvar="SHIELDGATE_GENERATOR",
            metavar="MODEL",
            help="The Gemma 2 that writes: google/gemma-2-2b-it, or the path of a checkpoint.",
        ),
    ],
    watermark_keys: _Keys,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Where the calibration goes, for detect-watermark.")
    ],
    generator_revision: Annotated[
        str | None,
        typer.Option(
            envvar="SHIELDGATE_GENERATOR_REVISION",
            help="Branch, tag or commit of a generator from the Hugging Face Hub.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What to write about, a prompt a line; best some of your own. Default: 16 that "
            "are shipped.",
        ),
    ] = None,
    texts: Annotated[int, typer.Option(min=20, help="How many texts to write of each kind.")] = 128,
    tokens: Annotated[int, typer.Option(min=32, help="Most tokens of a text.")] = 450,
    temperature: Annotated[
        float, typer.Option(min=0.01, max=2, help="As your callers ask; at 0 nothing is marked.")
    ] = 1.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="As your callers ask.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="As your callers ask; 0: all tokens.")] = 0,
    false_positive_rate: _Rate = 0.01,
    seed: Annotated[int, typer.Option(help="Draws the texts.")] = 0,
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where the model computes.")
    ] = "auto",
) -> None:
    """Write unmarked and marked texts with the generator, and measure how surely they differ.

    It prints, by length, how many unmarked texts are taken for marked and how many marked ones are
    found, with 95 % intervals. detect-watermark judges by the scores that it keeps in FILE: no
    texts, and nothing of the keys but their fingerprint.

    The exit code is 0 when it is done, 2 when a setting or file is wrong or the texts were too
    short.

    Example: `shieldgate watermark calibrate --generator google/gemma-2-2b-it
    --watermark-keys watermark-keys.json --out watermark.json`
    """
    keys = load_watermark_keys(watermark_keys)
    with needed("Calibrating a watermark", "local"):
        # Here, because they import torch, which most commands do without.
        from shieldgate.cli.watermark_run import calibrate as run  # noqa: PLC0415
        from shieldgate.worker.generation import SamplingParams  # noqa: PLC0415
    run(
        keys,
        out,
        generator=generator,
        revision=generator_revision,
        prompts=prompts,
        texts=texts,
        tokens=tokens,
        sampling=SamplingParams(temperature, top_p, top_k),
        rate=false_positive_rate,
        seed=seed,
        device=device,
    )


def detect_watermark(
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="The text, or - for standard input.")
    ],
    *,
    watermark_keys: _Keys,
    calibration: Annotated[
        Path,
        typer.Option(metavar="FILE", help="What 'shieldgate watermark calibrate' wrote."),
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The tokenizer of the generator, a hub id or a folder. Default: the generator "
            "that was calibrated.",
        ),
    ] = None,
    false_positive_rate: _Rate = 0.01,
    as_json: JsonFlag = False,
) -> None:
    """Say how likely it is that a text was written by the generator under these keys.

    The p-value is the chance that an unmarked text of the same model scores as high. A text that
    was rewritten, translated, or written at temperature 0 bears no mark: what is not found may
    still be the model's.

    The exit code is 0 where the text is marked, 1 where no mark was found, 2 where a setting or
    file is wrong, 3 where the text is too short to tell.

    For example:

    - `shieldgate detect-watermark answer.txt --watermark-keys watermark-keys.json
    --calibration watermark.json`

    - `pbpaste | shieldgate detect-watermark - --calibration watermark.json --json`, with the
    keys' file in `SHIELDGATE_WATERMARK_KEYS`
    """
    keys = load_watermark_keys(watermark_keys)
    with needed("Detecting a watermark", "local"):
        from shieldgate.cli.watermark_run import detect  # noqa: PLC0415
    raise typer.Exit(
        detect(
            file,
            keys,
            calibration,
            tokenizer=tokenizer,
            rate=false_positive_rate,
            as_json=as_json,
        )
    )
