"""What transformers knows of a checkpoint's tokenizer, made into prompts."""

from collections.abc import Collection

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from shieldgate.errors import ModelError
from shieldgate.prompt import Template
from shieldgate.scoring.encoding import PromptEncoder
from shieldgate.scoring.tokenizer_files import Messages, prefer_own


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
    """Prefer the checkpoint's `own` words, or its tokenizer's chat template if it moderates."""

    def render(messages: Messages, guideline: str) -> str:
        conversation = list(map(dict, messages))
        return str(tokenizer.apply_chat_template(conversation, guideline=guideline, tokenize=False))

    return prefer_own(template, tokenizer.chat_template, render, scorer, own)
