"""What transformers knows of a checkpoint's tokenizer, made into prompts."""

from collections.abc import Collection

import structlog
from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from shieldgate.errors import ModelError
from shieldgate.prompt import Template, adopt
from shieldgate.scoring.encoding import PromptEncoder
from shieldgate.types import Exchange

log = structlog.get_logger(__name__)


def prompt_encoder(
    tokenizer: PreTrainedTokenizerBase, control_tokens: Collection[str]
) -> PromptEncoder:
    """Build an encoder from a tokenizer; raise ModelError when it can't serve."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ModelError(
            "The checkpoint has no fast tokenizer. Add its tokenizer.json to the folder."
        )
    return PromptEncoder(backend, control_tokens, tokenizer.all_special_tokens)


def adopted(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    scorer: str,
    own: Template | None = None,
) -> Template:
    """Prefer the checkpoint's `own` words, or its tokenizer's chat template if it moderates.

    Only for the template `chat`, the default. `scorer` is named in the log where the two differ.
    """
    if template.name == "chat" and own:
        return own
    source = tokenizer.chat_template
    if template.name != "chat" or not isinstance(source, str) or "guideline" not in source:
        return template

    def rendered(exchange: Exchange, guideline: str) -> str:
        messages = [{"role": "user", "content": exchange.prompt}]
        if exchange.response is not None:
            messages.append({"role": "assistant", "content": exchange.response})
        return str(tokenizer.apply_chat_template(messages, guideline=guideline, tokenize=False))

    try:
        chosen, difference = adopt(rendered, template)
    except TemplateError as broken:
        chosen, difference = template, f"It can't be rendered, so ours is used: {broken}"
    if difference:
        log.warning("chat template differs", scorer=scorer, detail=difference)
    return chosen
