"""What `shieldgate doctor` does: reads, compares, measures, and shows what it found."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shieldgate.doctor.diagnosis import Compared, Diagnosis, diagnose
from shieldgate.doctor.findings import Finding, Place
from shieldgate.doctor.sources import read_source
from shieldgate.errors import ConfigurationError, ScoringError
from shieldgate.prompt import TEMPLATES
from shieldgate.settings import ScoringSettings
from shieldgate.telemetry import configure_logging

if TYPE_CHECKING:
    from shieldgate.cli.doctor_cost import Measured, Rows

# Places of one kind that are shown; all are counted.
_SHOWN = 3


def run(given: str, settings: ScoringSettings, rows: "Rows | None", *, as_json: bool) -> int:
    """Print what a source asks otherwise than published, and give the exit code.

    Raises ConfigurationError where it can't be read or measured.
    """
    configure_logging("warning", as_json=False)
    source = read_source(given, _standard_input() if given == "-" else None)
    diagnosis = diagnose(source, _published(settings))
    console = Console()
    if not as_json:
        _show(given, diagnosis, console)
    measured = _measure(given, diagnosis, settings, rows) if rows else None
    if as_json:
        typer.echo(json.dumps(_object(given, diagnosis, measured), indent=1, ensure_ascii=False))
    elif measured:
        measured.show(console)
    elif diagnosis.differs:
        console.print(
            f"What it costs: shieldgate doctor {given} --data labelled.jsonl --model …",
            style="dim",
            highlight=False,
            markup=False,
        )
    return 1 if diagnosis.differs else 0


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as wrong:
        raise ConfigurationError(
            f"Standard input is not UTF-8 text (at byte {wrong.start})."
        ) from None


def _published(settings: ScoringSettings) -> Any:
    """Find the format to compare with, or None where none was chosen."""
    if "template" not in settings.model_fields_set:
        return None
    if settings.template not in TEMPLATES:
        raise ConfigurationError(
            f"--template {settings.template}: prompts are compared with the published ones: "
            f"{', '.join(TEMPLATES)}."
        )
    return TEMPLATES[settings.template]


def _measure(
    given: str, diagnosis: Diagnosis, settings: ScoringSettings, rows: "Rows"
) -> "Measured | None":
    from shieldgate.cli.doctor_cost import measure  # noqa: PLC0415 - torch and numpy

    if not diagnosis.differs:
        typer.echo("Nothing differs, so that there is nothing to measure.", err=True)
        return None
    try:
        return measure(Path(given).name, diagnosis, settings, rows)
    except ScoringError as failure:
        typer.echo(f"Error: {failure}", err=True)
        sys.exit(1)


def _show(given: str, diagnosis: Diagnosis, console: Console) -> None:
    said: list[Finding] = []
    number = 0
    name = "standard input" if given == "-" else given
    for compared in diagnosis.prompts:
        console.print(_heading(name, diagnosis, compared), highlight=False)
        number = _show_all(compared.findings, said, number, console)
        said += compared.findings
    if diagnosis.source.settings:
        console.print(Text.assemble((name, "bold"), ": how its engine is set"))
        _show_all(diagnosis.source.settings, said, number, console)
    certain = sum(finding.certain for finding in diagnosis.findings)
    notes = len(diagnosis.findings) - certain
    counted = [f"{certain} difference{'s' * (certain != 1)}" if certain else "no difference"]
    if notes:
        counted.append(f"{notes} to mind")
    console.print(", ".join(counted), style="bold red" if certain else "bold green")


def _heading(name: str, diagnosis: Diagnosis, compared: Compared) -> Text:
    template, closest = compared.template.name, compared.nearest.name
    text = Text.assemble((name, "bold"), f": {diagnosis.source.kind}, judging a")
    text.append("n answer" if compared.asked.direction == "response" else " prompt")
    if not any(finding.certain for finding in compared.findings):
        return text.append(f", asked as `{template}` was published")
    text.append(f", compared with `{template}`")
    if compared.asked.adds_bos is not None:
        text.append(", as it is rendered")
    if closest != template:
        text.append(f" (nearer to `{closest}`: --template {closest})")
    return text


def _show_all(
    findings: Sequence[Finding], said: Sequence[Finding], number: int, console: Console
) -> int:
    for finding in sorted(findings, key=lambda f: not f.certain):
        if finding in said:
            continue
        number += finding.certain
        mark = f"{number:>3}  " if finding.certain else "  •  "
        where = _where(finding)
        head = Text.assemble((mark, "bold"), (finding.what, "bold"), (where, "dim"))
        console.print(head, highlight=False)
        body = Table.grid(padding=(0, 1))
        body.add_column(style="dim", no_wrap=True)
        body.add_column()
        for place in finding.places[:_SHOWN]:
            _align(place, body)
        body.add_row("why", Text(finding.why))
        body.add_row("mend", Text(finding.mend))
        console.print(Padding(body, (0, 0, 0, 5), expand=False), highlight=False)
        console.print()
    return number


def _where(finding: Finding) -> str:
    if finding.line:
        return f"  line {finding.line}"
    if not finding.places:
        return ""
    places = [f"{p.line}:{p.column}" for p in finding.places[:_SHOWN]]
    more = len(finding.places) - len(places)
    return f"  at {', '.join(places)}" + (f" and {more} more" if more else "")


def _align(place: Place, body: Table) -> None:
    """Write both sides below each other, and mark what differs, without colours too."""
    sides = (
        ("published", place.published, place.differs[0], "green"),
        ("yours", place.theirs, place.differs[1], "red"),
    )
    for name, line, (start, end), style in sides:
        text = Text(line, no_wrap=True, overflow="ellipsis")
        text.stylize(style, start, end)
        body.add_row(name, text)
    widest = max(end - start for _, _, (start, end), _ in sides)
    body.add_row("", Text(" " * place.differs[0][0] + "^" * max(1, widest), style="dim"))


def _object(given: str, diagnosis: Diagnosis, measured: "Measured | None") -> dict[str, Any]:
    return {
        "source": given,
        "kind": diagnosis.source.kind,
        "differs": diagnosis.differs,
        "prompts": [
            {
                "direction": p.asked.direction,
                "template": p.template.name,
                "nearest": p.nearest.name,
                "findings": [asdict(finding) for finding in p.findings],
            }
            for p in diagnosis.prompts
        ],
        "settings": [asdict(finding) for finding in diagnosis.source.settings],
        "cost": measured.figures() if measured else None,
    }
