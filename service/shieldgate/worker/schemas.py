"""What the worker takes and gives of OpenAI's chat completions; what it can't do, it refuses."""

from time import time
from typing import Annotated, Any, Literal, Self
from uuid import uuid4

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from shieldgate.openai.text import Text
from shieldgate.worker.generation import FinishReason, SamplingParams

Stop = Annotated[Text, StringConstraints(min_length=1)]


def _only(*nothing: Any, unable: str) -> BeforeValidator:
    """Take values that ask for nothing; the others are what the generator is `unable` to do."""

    def check(given: Any) -> Any:
        if given not in nothing:
            raise PydanticCustomError("unsupported", f"The generator {unable}; leave it out")
        return given

    return BeforeValidator(check)


NoTools = Annotated[Any, _only([], {}, unable="can't call tools")]
NoToolChoice = Annotated[Any, _only("none", "auto", unable="can't call tools")]
NoPenalty = Annotated[Any, _only(0, unable="knows no penalties")]
NoLogprobs = Annotated[Any, _only(False, unable="gives no logprobs")]
TextOnly = Annotated[Any, _only(["text"], unable="writes text only")]
PlainText = Annotated[Any, _only({"type": "text"}, unable="knows no format but text")]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        # Clients write null for what they don't set.
        if isinstance(given, dict):
            return {key: value for key, value in given.items() if value is not None}
        return given


class TextContentPart(_Schema):
    """A piece of a message; there are no others that Gemma 2 could read."""

    type: Literal["text"]
    text: Text


class ChatMessage(_Schema):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextContentPart] = ""
    name: str = ""
    annotations: Annotated[Any, _only([], unable="reads no annotations")] = []
    tool_calls: NoTools = []
    function_call: NoTools = []

    @property
    def text(self) -> str:
        """Join the parts."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class CompletionStreamOptions(_Schema):
    """What a stream is to hold besides text; `continuous_usage_stats` counts in every chunk."""

    include_usage: bool = False
    continuous_usage_stats: bool = False  # vLLM's name for it
    include_obfuscation: bool = False


class ChatCompletionRequest(_Schema):
    """A request for completions.

    `model` may be any name, as there is one model. Fields at the end change nothing: they are
    accepted at the value that asks for nothing, or because they only inform.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    model: str = ""
    stream: bool = False
    stream_options: CompletionStreamOptions = CompletionStreamOptions()
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] = []
    seed: int | None = None
    n: Annotated[int, Field(ge=1)] = 1

    frequency_penalty: NoPenalty = 0
    presence_penalty: NoPenalty = 0
    logit_bias: Annotated[Any, _only({}, unable="takes no biases")] = {}
    logprobs: NoLogprobs = False
    top_logprobs: NoLogprobs = 0
    response_format: PlainText = None
    tools: NoTools = []
    functions: NoTools = []
    tool_choice: NoToolChoice = "none"
    function_call: NoToolChoice = "none"
    modalities: TextOnly = None
    audio: TextOnly = None
    parallel_tool_calls: bool = False
    metadata: dict[str, Any] = {}
    prompt_cache_key: str = ""
    safety_identifier: str = ""
    service_tier: str = ""
    store: bool = False
    user: str = ""

    @model_validator(mode="after")
    def _users_begin(self) -> Self:
        if self.messages[0].role == "assistant":
            raise PydanticCustomError("first_turn", "Gemma 2's conversations begin with a user")
        return self

    @property
    def sampling(self) -> SamplingParams:
        """Say how tokens are chosen."""
        return SamplingParams(self.temperature, self.top_p, self.top_k)

    @property
    def token_limit(self) -> int | None:
        """Give the most tokens that may be written, if the request says so."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stop_strings(self) -> list[str]:
        """List the stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop


class CompletionWriter:
    """Writes one completion out, whole or in chunks."""

    def __init__(self, model: str) -> None:
        self._head = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time()), "model": model}

    def whole(
        self, texts: list[str], finishes: list[FinishReason | None], usage: dict[str, int]
    ) -> dict[str, Any]:
        """Write the reply that is not a stream."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": finish,
            }
            for index, (text, finish) in enumerate(zip(texts, finishes, strict=True))
        ]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage}

    def chunk(
        self, choice: int, delta: dict[str, str], finish: FinishReason | None = None
    ) -> dict[str, Any]:
        """Write a piece of one choice."""
        piece = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head, "object": "chat.completion.chunk", "choices": [piece]}

    def last(self, usage: dict[str, int]) -> dict[str, Any]:
        """Write the chunk that counts the tokens."""
        return {
            **self._head,
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": usage,
        }


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Count tokens as OpenAI does."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
