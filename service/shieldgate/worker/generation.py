"""What is to be generated, and what comes of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a token is sampled; temperature 0 takes the likeliest, `top_k` 0 considers all."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What is to be written: `choices` texts of at most `max_tokens` tokens each, on one prompt.

    Equal seeds give equal texts; without one they differ each time.
    """

    prompt: Sequence[int]
    max_tokens: int
    sampling: SamplingParams = SamplingParams()
    choices: int = 1
    stop: Sequence[str] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """What one choice goes on with: text, the number of tokens, and why it ends where it does."""

    choice: int
    text: str
    tokens: int
    finish: FinishReason | None = None
