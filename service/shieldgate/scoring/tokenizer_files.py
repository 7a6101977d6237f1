"""A checkpoint's tokenizer from its files alone: what builds prompts without torch or transformers.

For a scorer elsewhere, and for checks of policies. What transformers would make of the same files
gives the same token ids; tests hold that.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from tokenizers import AddedToken, Tokenizer

from shieldgate.errors import ModelError, first_line
from shieldgate.prompt import Template, adopt, find_template
from shieldgate.scoring.encoding import PromptEncoder
from shieldgate.scoring.hub import locate
from shieldgate.types import Exchange

# The names under which a tokenizer_config.json lists special tokens.
_NAMED = tuple(f"{kind}_token" for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_LISTED = ("additional_special_tokens", "extra_special_tokens")

# In a checkpoint's folder: what it was trained to be asked (docs/templates.md).
TEMPLATE = "template.yaml"

Messages = Sequence[Mapping[str, str]]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer and what its folder says of it; `digest` identifies its token ids.

    `context` is that of the model beside it, in tokens, where its config.json says so. `own` is
    what that was trained to be asked, where the folder says so (docs/templates.md).
    """

    model: str
    digest: str
    context: int | None
    tokenizer: Tokenizer
    special_tokens: Mapping[str, str]
    chat_template: str | None
    own: Template | None = None

    def encoder(self, template: Template) -> tuple[Template, PromptEncoder]:
        """Give what encodes a template's prompts, and its words: the tokenizer's own, if any.

        Raises ModelError where the tokenizer can't encode them exactly.
        """
        words = prefer_own(template, self.chat_template, self._rendered, self.model, self.own)
        return words, PromptEncoder(self.tokenizer, words.control_tokens)

    def _rendered(self, messages: Messages, guideline: str) -> str:
        return render_chat_template(
            self.chat_template or "", messages, guideline, self.special_tokens
        )


def render_chat_template(
    source: str, messages: Messages, guideline: str | None, special_tokens: Mapping[str, str]
) -> str:
    """Render a chat template as transformers does, without a turn for the model to go on in.

    `special_tokens` are by their names in a tokenizer_config.json. Without a guideline (None) the
    template isn't given one. Raises jinja2's TemplateError.
    """
    # Here, because few tokenizers have a template that is asked for.
    from jinja2 import TemplateError, ext  # noqa: PLC0415
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    def refuse(why: str) -> None:
        raise TemplateError(why)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols]
    )
    environment.globals["raise_exception"] = refuse
    given = {name: special_tokens[name] for name in _NAMED if name in special_tokens}
    if guideline is not None:
        given["guideline"] = guideline
    return environment.from_string(source).render(
        messages=messages, add_generation_prompt=False, **given
    )


def load_tokenizer(model: str, *, revision: str | None = None) -> TokenizerFiles:
    """Read the tokenizer of `starter`, a folder or a hub id; raise ModelError."""
    folder, _ = locate(model, revision, ("*.json", "*.jinja", TEMPLATE))
    file = folder / "tokenizer.json"
    settings = _json(model, folder / "tokenizer_config.json")
    config = _json(model, folder / "config.json") if (folder / "config.json").is_file() else {}
    try:
        content = file.read_bytes()
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as broken:  # the tokenizers library raises nothing narrower
        raise ModelError(
            f"{model}: {file} can't be read as a tokenizer: {first_line(broken)}. Fetch it again."
        ) from None
    special = named_special_tokens(settings)
    _mark_special(tokenizer, special.values())
    context = (config.get("text_config") or config).get("max_position_embeddings")
    jinja = folder / "chat_template.jinja"
    source = jinja.read_text("utf-8") if jinja.is_file() else settings.get("chat_template")
    return TokenizerFiles(
        model=model,
        digest=hashlib.sha256(content).hexdigest()[:12],
        context=context if isinstance(context, int) else None,
        tokenizer=tokenizer,
        special_tokens=special,
        chat_template=source if isinstance(source, str) else None,
        own=own_template(folder),
    )


def own_template(folder: Path) -> Template | None:
    """Read what a checkpoint was trained to be asked, if its folder holds that."""
    file = folder / TEMPLATE
    return find_template(str(file)) if file.is_file() else None


def prefer_own(
    template: Template,
    chat_template: object,
    render: Callable[[Messages, str], str],
    scorer: str,
    own: Template | None = None,
) -> Template:
    """Prefer a checkpoint's `own` words, or its tokenizer's chat template if it moderates.

    Only for the template `chat`, the default. `render(messages, guideline)` renders the
    tokenizer's. `scorer` is named in the log where the two differ.
    """
    if template.name != "chat":
        return template
    if own:
        return own
    if not isinstance(chat_template, str) or "guideline" not in chat_template:
        return template
    from jinja2 import TemplateError  # noqa: PLC0415

    def rendered(exchange: Exchange, guideline: str) -> str:
        messages = [{"role": "user", "content": exchange.prompt}]
        if exchange.response is not None:
            messages.append({"role": "assistant", "content": exchange.response})
        return render(messages, guideline)

    try:
        chosen, difference = adopt(rendered, template)
    except TemplateError as broken:
        chosen, difference = template, f"It can't be rendered, so ours is used: {broken}"
    if difference:
        log.warning("chat template differs", scorer=scorer, detail=difference)
    return chosen


def _mark_special(tokenizer: Tokenizer, names: Iterable[str]) -> None:
    """Make special what only the configuration calls so, as transformers does."""
    added = tokenizer.get_added_tokens_decoder()
    ordinary = [
        name
        for name in names
        if (i := tokenizer.token_to_id(name)) is not None and not (i in added and added[i].special)
    ]
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in ordinary]
    )


def named_special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Read the special tokens of a tokenizer_config.json by their names there."""
    found = {name: _content(settings.get(name)) for name in _NAMED}
    for name in _LISTED:
        listed = settings.get(name) or ()
        values = listed.values() if isinstance(listed, dict) else listed
        found |= {f"{name}[{n}]": _content(token) for n, token in enumerate(values)}
    return {name: token for name, token in found.items() if token}


def _content(token: Any) -> str | None:
    """Give a token that is written as its text, or as an object with its text in it."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _json(model: str, file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as broken:
        raise ModelError(
            f"{model}: {file} can't be read: {first_line(broken)}. Give the folder that has "
            "tokenizer.json, tokenizer_config.json and config.json, or fetch it again."
        ) from None
    return found if isinstance(found, dict) else {}
