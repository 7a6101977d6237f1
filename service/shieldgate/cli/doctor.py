"""`shieldgate doctor`: where somebody's prompt for ShieldGemma differs, and what that costs."""

from pathlib import Path
from typing import Annotated

import typer

from shieldgate.cli.options import AdapterFlag, JsonFlag, LabelFlag, MapFlag, with_settings
from shieldgate.errors import ConfigurationError, needed
from shieldgate.settings import ScoringSettings

_COST = "What it costs"


@with_settings
def doctor(
    given: Annotated[
        str,
        typer.Argument(
            metavar="FILE|DIR|URL|-",
            help="A prompt, as it is sent or with {prompt}, {response} and {guideline} in it; a "
            "chat template (.jinja, or tokenizer_config.json); an Ollama Modelfile, or its "
            "template (.gotmpl); a template of shieldgate's (.yaml); a checkpoint's folder; the "
            "URL of an engine, with its --tokenizer; or - for a prompt on standard input.",
        ),
    ],
    settings: ScoringSettings,
    *,
    as_json: JsonFlag = False,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET",
            help="Labelled rows, as for `shieldgate evaluate`: score them under both prompts with "
            "the --model, and compare.",
            rich_help_panel=_COST,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Read only the first N good rows.", rich_help_panel=_COST),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(min=1, help="Score N rows, drawn at random.", rich_help_panel=_COST),
    ] = None,
    max_batch_tokens: Annotated[
        int,
        typer.Option(min=1, help="Most tokens in one forward pass.", rich_help_panel=_COST),
    ] = 4096,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep the scores there, so that a run that was stopped goes on.",
            rich_help_panel=_COST,
        ),
    ] = None,
    adapter: AdapterFlag = None,
    map_: MapFlag = None,
    label: LabelFlag = None,
) -> None:
    """Find where a prompt for ShieldGemma differs from the published one, and what that costs.

    ShieldGemma was trained on one wording, and its scores move with every word, space and line end
    of it. This shows each difference with its place, why it matters, and how to mend it. Without
    `--template` it compares with `chat`, the template of ShieldGemma's own tokenizer, and accepts
    the other published ones as they are.

    An engine that serves ShieldGemma is asked what it does with prompts: whether it adds a `<bos>`,
    cuts them, has other tokens for the answers, or samples.

    With `--data` it scores labelled rows under both prompts and shows AU-PRC, F1 and which rows are
    decided otherwise at the same thresholds.

    The exit code is 0 where the prompt is a published one, 1 where it differs or the scorer failed
    or isn't there, 2 where it can't be read or a setting is wrong.

    For example:

    - `shieldgate doctor prompt.txt`

    - `shieldgate doctor tokenizer_config.json`

    - `ollama show --modelfile shieldgemma:2b > Modelfile; shieldgate doctor Modelfile`

    - `shieldgate doctor http://vllm:8000/v1 --tokenizer google/shieldgemma-2b`

    - `python my_app.py --print-prompt | shieldgate doctor -`

    - `shieldgate doctor prompt.txt --data labelled.jsonl --model google/shieldgemma-2b`
    """
    # Imported when it runs: it reads tokenizers.
    from shieldgate.cli.doctor_run import run  # noqa: PLC0415
    from shieldgate.cli.doctor_server import examine  # noqa: PLC0415

    if given.startswith(("http://", "https://")):
        if data is not None:
            raise ConfigurationError(
                "--data measures what a prompt costs, and this is a server: shieldgate evaluate "
                f"--model {given} says how well it scores."
            )
        raise typer.Exit(examine(given, settings, as_json=as_json))
    rows = None
    if data is not None:
        with needed("Measuring", "eval"):
            from shieldgate.cli.doctor_cost import Rows  # noqa: PLC0415
            from shieldgate.evaluation.labels import parse_labels  # noqa: PLC0415
            from shieldgate.evaluation.session import EvaluationOptions  # noqa: PLC0415
        options = EvaluationOptions(
            adapter=adapter,
            columns=map_ or (),
            labels=parse_labels(label or ()),
            limit=limit,
            sample=sample,
            max_batch_tokens=max_batch_tokens,
        )
        rows = Rows(data, options, out)
    raise typer.Exit(run(given, settings, rows, as_json=as_json))
