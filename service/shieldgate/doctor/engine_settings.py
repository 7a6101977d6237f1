"""What moves scores in the parameters of a Modelfile, or in a checkpoint's config.json."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from shieldgate.doctor.findings import Finding
from shieldgate.doctor.modelfile import Modelfile

_CONTEXT = 8192
# What leaves the logits as they are.
_NEUTRAL = {"repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
# As Ollama and llama.cpp name weights in fewer bits.
_BITS = re.compile(r"\b(?:i?q\d\w*|int[48]|fp8|nf4|awq|gptq)\b", re.IGNORECASE)
# What Gemma 2's own config.json says.
_CAPS = {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}


def modelfile_findings(modelfile: Modelfile) -> Iterator[Finding]:
    """Look through the parameters of a Modelfile; findings name their lines."""
    last = {i.key.lower(): i for i in modelfile.all("parameter")}
    temperature = last.get("temperature")
    drawn = "0.8, Ollama's default" if temperature is None else temperature.value
    if _number(drawn) != 0:
        yield Finding.of(
            "sampled", line=temperature.line if temperature else None, temperature=drawn
        )
    for name, neutral in _NEUTRAL.items():
        found = last.get(name)
        if found and _number(found.value) != neutral:
            yield Finding.of(
                "penalty", line=found.line, name=name, value=found.value, neutral=neutral
            )
    for stop in modelfile.all("parameter"):
        if stop.key.lower() == "stop" and _stops_answer(stop.value):
            yield Finding.of("stop-word", line=stop.line, word=stop.value)
    context = last.get("num_ctx")
    if context is None:
        yield Finding.of("context-default", certain=False)
    elif (_number(context.value) or 0) < _CONTEXT:
        yield Finding.of("context", line=context.line, tokens=context.value)
    for message in modelfile.all("message")[:1]:
        yield Finding.of("example-turns", line=message.line)
    origin = modelfile.last("from")
    name = origin.value.rpartition("/")[2] if origin else ""
    bits = _BITS.search(name.replace("_", "-").replace("-", " "))
    if bits or (origin and re.fullmatch(r"shieldgemma(:(latest|2b|9b|27b))?", name)):
        told = bits[0] if bits else f"{name} is Q4 at Ollama"
        yield Finding.of(
            "quantised", line=origin.line if origin else None, certain=False, bits=told
        )


def config_findings(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Look through the config.json of a checkpoint that is asked as ShieldGemma."""
    for name, value in _CAPS.items():
        if config.get("model_type") == "gemma2" and config.get(name, value) != value:
            yield Finding.of("no-softcap", name=name, value=value)
    if str(config.get("dtype", config.get("torch_dtype"))) in ("float16", "torch.float16"):
        yield Finding.of("float16")
    for name in config.get("architectures") or ():
        if "ForSequenceClassification" in str(name):
            yield Finding.of("random-head", name=name)
    quantised = config.get("quantization_config")
    if isinstance(quantised, Mapping):
        method = quantised.get("quant_method", "by its quantization_config")
        yield Finding.of("quantised", certain=False, bits=method)


def _stops_answer(word: str) -> bool:
    """Tell whether an answer of Yes or No holds a stop word, or one of white space ends it."""
    word = word.replace(r"\n", "\n").strip()
    return any(word in answer for answer in ("Yes", "No"))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
