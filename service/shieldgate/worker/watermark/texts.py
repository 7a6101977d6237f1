"""Texts of a generator, to calibrate its watermark on."""

from collections.abc import Callable, Sequence
from random import Random

from shieldgate.worker.chat_template import gemma_prompt
from shieldgate.worker.generation import SamplingParams
from shieldgate.worker.generator import GemmaGenerator, TokenSequence

_AT_ONCE = 8

# What makes a model write for long, on different matters and in different manners.
PROMPTS: Sequence[str] = (
    "Write a short story about a lighthouse keeper who finds a letter.",
    "Explain how a refrigerator works to a curious twelve-year-old.",
    "What should I consider before I adopt a dog? Please be thorough.",
    "Describe a walk through an old town on a rainy morning.",
    "Compare trains and planes for travelling within Europe.",
    "Write an email to my landlord about a leaking tap, and explain what I have tried.",
    "Give me a recipe for vegetable soup, with variations.",
    "Summarise the causes of the First World War.",
    "How do I begin to learn the guitar as an adult?",
    "Write a review of an imaginary film about deep-sea divers.",
    "Explain the difference between a virus and a bacterium, with examples.",
    "Plan three days in Lisbon for a family with small children.",
    "Write a speech for a colleague who retires after thirty years.",
    "What are good and bad sides of working from home?",
    "Tell a fairy tale in which the dragon is the hero.",
    "How does a bill become a law in the United States?",
)


def write_texts(
    generator: GemmaGenerator,
    prompts: Sequence[str],
    *,
    texts: int,
    max_tokens: int,
    sampling: SamplingParams,
    seed: int,
    wrote: Callable[[], None],
) -> list[str]:
    """Write as many texts, on one prompt after another; `wrote` is called after each."""
    seeds = Random(seed)  # noqa: S311
    encoded = [generator.encode(gemma_prompt([("user", prompt)])) for prompt in prompts]
    waiting = iter(range(texts))
    running: list[TokenSequence] = []
    written: list[str] = []
    while len(written) < texts:
        while len(running) < _AT_ONCE and (number := next(waiting, None)) is not None:
            running += generator.begin(
                encoded[number % len(encoded)],
                max_tokens=max_tokens,
                sampling=sampling,
                seeds=[seeds.getrandbits(63)],
            )
        new = generator.step(running)
        for text, tokens in zip(list(running), new, strict=True):
            if tokens and (generator.ends(tokens[-1]) or len(text.tokens) == text.max_length):
                running.remove(text)
                written.append(generator.decode(text.tokens[text.prompt :]))
                wrote()
    return written
