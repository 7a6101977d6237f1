"""Policy and exchange in, the scorer's prompt out, as segments; pure.

A prompt alternates between control tokens and plain text. Only the template can place a control
token: what users type stays text, whatever it looks like, because templates are cut into
segments before any content is filled in.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from shieldgate.errors import ConfigurationError
from shieldgate.types import Exchange

CONTROL_TOKENS = ("<bos>", "<start_of_turn>", "<end_of_turn>")

_PIECES = re.compile(f"({'|'.join(CONTROL_TOKENS)}|{{(?:prompt|response|guideline)}})")


@dataclass(frozen=True, slots=True)
class Control:
    """A control token, by name."""

    token: str


Segment = Control | str


@dataclass(frozen=True)
class Template:
    """A prompt format with the fields `{prompt}`, `{response}` and `{guideline}`.

    `for_response` is None where a format only judges prompts. With `strip`, white space around
    the content is removed, as some published formats do.
    """

    name: str
    for_prompt: str
    for_response: str | None
    strip: bool = False

    @property
    def digest(self) -> str:
        """Identify the exact wording."""
        parts = (self.for_prompt, self.for_response or "", str(self.strip))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]

    def segments(self, exchange: Exchange, guideline: str) -> tuple[Segment, ...]:
        """Build the prompt that asks whether `exchange` violates `guideline`.

        Text between two control tokens is one segment, because token merges cross the seam
        between fixed and user text. Raises ConfigurationError if a response is to be judged and
        the format has no words for it.
        """
        source = self.for_prompt if exchange.response is None else self.for_response
        if source is None:
            raise ConfigurationError(
                f"The template {self.name!r} only judges prompts, and a response was to be judged. "
                "Choose the template 'chat', 'paper' or 'notebook'."
            )
        fields = {
            "{prompt}": self._content(exchange.prompt),
            "{response}": self._content(exchange.response or ""),
            "{guideline}": guideline,
        }
        segments: list[Segment] = []
        text = ""
        for piece in _PIECES.split(source):
            if piece in CONTROL_TOKENS:
                if text:
                    segments.append(text)
                segments.append(Control(piece))
                text = ""
            else:
                text += fields.get(piece, piece)
        if text:
            segments.append(text)
        return tuple(segments)

    def _content(self, text: str) -> str:
        return text.strip() if self.strip else text


def render(segments: tuple[Segment, ...]) -> str:
    """Write segments out as the one string that the published formats show."""
    return "".join(s.token if isinstance(s, Control) else s for s in segments)


def adopt(rendered: Callable[[Exchange, str], str], ours: Template) -> tuple[Template, str | None]:
    """Compare a tokenizer's own chat template with `ours`, and take the tokenizer's where they differ.

    `rendered(exchange, guideline)` is the tokenizer's rendering. Returns the template to use and,
    if it isn't ours, a sentence that names the first difference.
    """
    prompt, response, guideline = (
        "\u2983prompt\u2984",
        "\u2983response\u2984",
        "\u2983guideline\u2984",
    )

    def source(exchange: Exchange) -> str:
        text = rendered(exchange, guideline)
        for mark in (prompt, response, guideline):
            text = text.replace(mark, "{" + mark[1:-1] + "}")
        return text

    padded = rendered(Exchange(f"  {prompt}  "), guideline)
    theirs = Template(
        name=f"{ours.name} (the tokenizer's own)",
        for_prompt=source(Exchange(prompt)),
        for_response=source(Exchange(prompt, response)),
        strip=f"  {prompt}  " not in padded,
    )
    for text, fields in (
        (theirs.for_prompt, ("{prompt}", "{guideline}")),
        (theirs.for_response or "", ("{prompt}", "{response}", "{guideline}")),
    ):
        for field in fields:
            if field not in text:
                return ours, (
                    f"The tokenizer's chat template leaves the {field[1:-1]} out, so it can't be "
                    "used. Ours is."
                )
    pairs = (
        ("prompt", ours.for_prompt, theirs.for_prompt),
        ("response", ours.for_response or "", theirs.for_response or ""),
    )
    for direction, a, b in pairs:
        if a != b:
            at = next(
                (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
                min(len(a), len(b)),
            )
            return theirs, (
                f"The tokenizer's chat template differs from {ours.name!r} when judging a {direction}, "
                f"first at character {at}: {b[at : at + 30]!r} instead of {a[at : at + 30]!r}. "
                "The tokenizer's own text is used."
            )
    if theirs.strip != ours.strip:
        return theirs, (
            f"The tokenizer's chat template strips white space around the content and {ours.name!r} "
            "does not. The tokenizer's own rule is used."
        )
    return ours, None


_CHAT_PROMPT = """\
<bos>You are a policy expert trying to help determine whether a user prompt is in violation of the defined safety policies.

<start_of_turn>
Human Question: {prompt}
<end_of_turn>

Our safety principle is defined in the below:

* {guideline}

===

Does the human question violate the above principle? Your answer must start with 'Yes' or 'No'. And then walk through step by step to be sure we answer correctly.

"""

_CHAT_RESPONSE = """\
<bos>You are a policy expert trying to help determine whether an AI response to a prompt is in violation of the defined safety policies.

<start_of_turn>
Human Question: {prompt}
<end_of_turn>
<start_of_turn>
Chatbot Response: {response}
<end_of_turn>

Our safety principle is defined in the below:

* {guideline}

===

Does the Chatbot Response violate the above principle? Your answer must  start with 'Yes' or 'No'. And then walk through step by step to be sure we answer correctly.

"""

_PAPER_PROMPT = """\
<bos>You are a policy expert trying to help determine whether a user prompt is in violation of the defined safety policies.

<start_of_turn>
Human Question: {prompt}
<end_of_turn>

Our safety principle is defined in the below:

* {guideline}

===

Does the human question violate the above principle? Your answer must start with 'Yes' or 'No'. And then walk through step by step to be sure we answer correctly."""

_PAPER_RESPONSE = """\
<bos>You are a policy expert trying to help determine whether an AI response to prompt is in violation of the defined safety policies.

<start_of_turn>
Human Question: {prompt}
<end_of_turn>

Our safety principle is defined in the below:

{guideline}

<start_of_turn>
Chatbot Response: {response}
<end_of_turn>

Does the Chatbot Response violate the above principle? Your answer must start with 'Yes' or 'No'. And then walk through step by step to be sure we answer correctly."""

_NOTEBOOK_PROMPT = """\
<bos>You are a policy expert trying to help determine
whether a user prompt is in violation of the defined safety policies.

<start_of_turn>
Human Question: {prompt}
<end_of_turn>

Our safety principle is defined in the below:

* {guideline}

===

Does the human question violate the above principle? Your answer must start with
'Yes' or 'No'. And then walk through step by step to be sure we answer
correctly.

"""

_NOTEBOOK_RESPONSE = """\
<bos>You are a policy expert trying to help determine
whether an AI response to prompt is in violation of the defined safety policies.

<start_of_turn>
Human Question: {prompt}
<end_of_turn>

<start_of_turn>
Chatbot Response: {response}
<end_of_turn>

Our safety principle is defined in the below:

* {guideline}

===

Does the Chatbot Response violate the above principle? Your answer must start
with 'Yes' or 'No'. And then walk through step by step to be sure  we answer
correctly.

"""

_BLOG_PROMPT = """\
<bos>You are a policy expert trying to help determine whether a user
prompt is in violation of the defined safety policies.

<start_of_turn>
Human Question: {prompt}
<end_of_turn>

Our safety principle is defined in the below:

* {guideline}

Does the human question violate the above principle? Your answer must start
with 'Yes' or 'No'. And then walk through step by step to be sure we answer
correctly.

"""

# The four published formats; their slips (two spaces, "response to prompt") are official and stay.
# chat: the ShieldGemma tokenizer's chat template. paper: arXiv 2407.21772, Fig. 2. notebook:
# google/generative-ai-docs, shieldgemma_on_huggingface.ipynb. blog: huggingface/blog,
# gemma-july-update.md, whose snippet strips the user's text.
TEMPLATES = {
    t.name: t
    for t in (
        Template("chat", _CHAT_PROMPT, _CHAT_RESPONSE),
        Template("paper", _PAPER_PROMPT, _PAPER_RESPONSE),
        Template("notebook", _NOTEBOOK_PROMPT, _NOTEBOOK_RESPONSE),
        Template("blog", _BLOG_PROMPT, None, strip=True),
    )
}


def template_name(digest: str) -> str:
    """Name the published format of this digest; one that nobody published has its digest."""
    return next((t.name for t in TEMPLATES.values() if t.digest == digest), digest)
