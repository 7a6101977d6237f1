"""A file in, the prompts that it asks and how its engine is set out."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shieldgate.doctor.engine_settings import config_findings, modelfile_findings
from shieldgate.doctor.findings import Finding
from shieldgate.doctor.go_template import GoTemplate
from shieldgate.doctor.modelfile import looks_like_modelfile, read_modelfile
from shieldgate.doctor.prompts import Asked, find_fields
from shieldgate.errors import ConfigurationError
from shieldgate.prompt import find_template
from shieldgate.scoring.tokenizer_files import named_special_tokens, render_chat_template
from shieldgate.types import DIRECTIONS, Direction

# What is written for the special tokens where a template stands alone.
_GEMMA_NAMES = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Source:
    """What a file was read as: `kind` for people, its prompts, and what its settings say."""

    kind: str
    prompts: Sequence[Asked]
    settings: Sequence[Finding] = ()


def read_source(name: str, text: str | None = None) -> Source:
    """Read a file by what it is, a checkpoint's folder, or `text` that was given otherwise.

    Raises ConfigurationError for what can't be read, or where the text to be judged isn't found.
    """
    path = Path(name).expanduser()
    if text is None and path.is_dir():
        return _folder(path)
    text = _read(path) if text is None else text
    read = _READERS.get(path.suffix)
    if read is not None:
        return read(path, text)
    if looks_like_modelfile(path, text):
        return _modelfile(path, text)
    asked = find_fields(text)
    if "{prompt}" not in asked.spans and "{guideline}" not in asked.spans:
        raise ConfigurationError(
            f"{name}: neither the text to be judged nor a guideline was found in it. Give a prompt "
            "for ShieldGemma, and mark in it what changes from call to call, as {prompt}, "
            "{response} and {guideline}."
        )
    return Source("a prompt", [asked])


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as refused:
        raise ConfigurationError(
            f"{path}: can't be read: {refused.strerror}. Give a prompt, a chat template, a "
            "Modelfile, a tokenizer_config.json or a checkpoint's folder, or - for standard input."
        ) from None
    except UnicodeDecodeError as wrong:
        raise ConfigurationError(
            f"{path} is not UTF-8 text (at byte {wrong.start}). Convert it first, with iconv."
        ) from None


def _object(path: Path, text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as broken:
        raise ConfigurationError(f"{path}: not JSON: {broken}.") from None
    if not isinstance(found, dict):
        raise ConfigurationError(f"{path}: must be an object, as a tokenizer_config.json is.")
    return found


def _folder(folder: Path) -> Source:
    """Read a checkpoint: its chat template, and what its config.json says of the model."""
    tokenizer = folder / "tokenizer_config.json"
    jinja, config = folder / "chat_template.jinja", folder / "config.json"
    own = folder / "template.yaml"
    settings = _object(tokenizer, _read(tokenizer)) if tokenizer.is_file() else {}
    found = list(config_findings(_object(config, _read(config)))) if config.is_file() else []
    if own.is_file():
        source = _own(own, "")
    elif jinja.is_file():
        names = {**_GEMMA_NAMES, **named_special_tokens(settings)}
        source = Source("a checkpoint", _jinja(jinja, _read(jinja), names))
    elif "chat_template" in settings:
        source = _tokenizer(tokenizer, settings)
    else:
        raise ConfigurationError(
            f"{folder}: has no chat template, neither in tokenizer_config.json nor as "
            "chat_template.jinja. Give a prompt as it is sent, in a text file."
        )
    return replace(source, settings=[*source.settings, *found])


def _tokenizer(path: Path, settings: Mapping[str, Any]) -> Source:
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by their names
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get("template") for e in named if e.get("name") == "default"), None)
    if not isinstance(template, str):
        raise ConfigurationError(
            f"{path}: has no chat_template. Newer tokenizers have it beside, as "
            "chat_template.jinja; give that, or the folder."
        )
    names = {**_GEMMA_NAMES, **named_special_tokens(settings)}
    return Source("a tokenizer's chat template", _jinja(path, template, names))


def _chat_template(path: Path, text: str) -> Source:
    return Source("a chat template (Jinja)", _jinja(path, text, _GEMMA_NAMES))


def _tokenizer_config(path: Path, text: str) -> Source:
    return _tokenizer(path, _object(path, text))


def _ollama_template(path: Path, text: str) -> Source:
    return Source("an Ollama template (Go)", _go(path, text, 1, None))


def _jinja(path: Path, source: str, names: Mapping[str, str]) -> list[Asked]:
    def rendered(messages: Messages, guideline: str | None) -> str:
        try:
            return render_chat_template(source, messages, guideline, names)
        except Exception as broken:  # templates raise all sorts
            raise ConfigurationError(f"{path}: can't be rendered: {broken}.") from None

    def with_system(messages: Messages) -> str:
        return rendered([{"role": "system", "content": "{guideline}"}, *messages], None)

    def with_variable(messages: Messages) -> str:
        return rendered(messages, "{guideline}")

    # The guideline is a variable; since August 2024 it may be a system message, too.
    if "guideline" not in source:
        with suppress(ConfigurationError):
            return list(_both(with_system, adds_bos=False))
    return list(_both(with_variable, adds_bos=False))


def _go(path: Path, source: str, line: int, system: str | None) -> list[Asked]:
    def render(messages: Messages) -> str:
        given = {"role": "system", "content": "{guideline}" if system is None else system}
        return template.render([given, *messages])

    try:
        template = GoTemplate(source, line)
        prompts = list(_both(render, adds_bos=True))
    except ConfigurationError as unreadable:
        raise ConfigurationError(f"{path}: {unreadable}") from None
    if prompts[0].text.strip() in ("{prompt}", "{guideline}\n\n{prompt}"):
        raise ConfigurationError(
            f"{path}: the template passes on what it is sent, so that the caller makes the prompt. "
            "Give that prompt instead."
        )
    return prompts


def _both(render: Callable[[Messages], str], *, adds_bos: bool) -> Iterator[Asked]:
    """Render a prompt, and an answer where the template has words of its own after it."""
    user = {"role": "user", "content": "{prompt}"}
    yield find_fields(render([user]), "prompt", adds_bos)
    try:
        text = render([user, {"role": "assistant", "content": "{response}"}])
    except ConfigurationError:
        return
    if "{response}" in text and not text.endswith("{response}"):
        yield find_fields(text, "response", adds_bos)


def _modelfile(path: Path, text: str) -> Source:
    modelfile = read_modelfile(path, text)
    template, system = modelfile.last("template"), modelfile.last("system")
    if template is None:
        origin = modelfile.last("from")
        raise ConfigurationError(
            f"{path}: has no TEMPLATE, so that its prompt is the one of FROM "
            f"{origin.value if origin else ''}. Have it written out, and give that file: "
            "ollama show --modelfile NAME"
        )
    prompts = _go(path, template.value, template.inside, system.value if system else None)
    return Source("an Ollama Modelfile", prompts, list(modelfile_findings(modelfile)))


def _own(path: Path, _: str) -> Source:
    """Read a template of ours (docs/templates.md), which finds its own lines."""
    template = find_template(str(path))
    prompts = []
    texts: Mapping[Direction, str | None] = dict(
        zip(DIRECTIONS, (template.for_prompt, template.for_response), strict=True)
    )
    for direction, source in texts.items():
        if source is not None:
            prompts.append(find_fields(source, direction, adds_bos=False))
    found = []
    if (template.positive, template.negative) != ("Yes", "No"):
        answers = f"{template.positive!r} and {template.negative!r}"
        found.append(Finding.of("answers", answers=answers))
    return Source("a template of shieldgate's", prompts, found)


_READERS: Mapping[str, Callable[[Path, str], Source]] = {
    **dict.fromkeys((".yaml", ".yml"), _own),
    ".json": _tokenizer_config,
    **dict.fromkeys((".jinja", ".jinja2", ".j2"), _chat_template),
    **dict.fromkeys((".gotmpl", ".tmpl"), _ollama_template),
}
