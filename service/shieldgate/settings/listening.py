"""Where a server listens, who may call it, and how much it takes."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from shieldgate.settings.base import Settings


class ListenSettings(Settings):
    """What it takes to answer over HTTP."""

    panel = "Server"

    host: str = Field("127.0.0.1", min_length=1, description="The address to listen on.")
    port: int = Field(
        8000, ge=0, le=65535, description="The port to listen on; 0 takes a free one."
    )
    uds: Path | None = Field(
        None, description="A Unix socket to listen on, in place of an address and a port."
    )
    keep_alive_seconds: int = Field(
        75,
        ge=1,
        description="How long a connection may stay idle between requests, in seconds: longer "
        "than a load balancer before it keeps them, which is mostly 60.",
    )
    max_body_bytes: int = Field(
        1_048_576, ge=1, description="Longest request body, in bytes; a longer one gets a 413."
    )
    receive_seconds: float = Field(
        30,
        gt=0,
        allow_inf_nan=False,
        description="How long a request's head, and then its body, may take to arrive, and how "
        "long a reply may wait for its reader, in seconds.",
    )
    drain_seconds: int = Field(
        20,
        ge=0,
        description="How long a stopping server waits for the requests in progress; then "
        "they get a 503, and streams an error event.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least severe log lines that are written."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="How log lines are written: for people or for machines."
    )


class AccessSettings(Settings):
    """Who may call."""

    panel = "Access"

    keys: Path | None = Field(
        None,
        description="The file of the API keys, which 'shieldgate keys new' fills. Default: none, "
        "and who reaches the server may use it.",
    )
    keyless: bool = Field(
        False,
        description="Serve without API keys beyond this machine, for whoever reaches it, by "
        "whatever name.",
    )
    cors_origins: str | None = Field(
        None,
        pattern=r"^(\*|https?://[^\s,/]+(\s*,\s*https?://[^\s,/]+)*)$",
        description="The web pages that may call from a browser, by origin, parted by commas: "
        "https://app.example, for example; * for all. Default: none.",
    )

    @property
    def origins(self) -> tuple[str, ...]:
        """List the origins."""
        return tuple(re.split(r"\s*,\s*", self.cors_origins)) if self.cors_origins else ()


class LimitSettings(Settings):
    """How much is taken at once, and how long it may take."""

    panel = "Limits"

    max_text_chars: int = Field(
        200_000,
        ge=1,
        description="Longest text that is judged for a caller, in characters; a longer one gets a "
        "413.",
    )
    max_inputs: int = Field(
        32, ge=1, description="Most texts or exchanges in one request; more get a 400."
    )
    max_batch_tokens: int = Field(
        16_384, ge=1, description="Most tokens in one forward pass, unless one text alone has more."
    )
    max_waiting: int = Field(
        256,
        ge=1,
        description="Most texts that are being scored or wait for it; then comes a 429, for those "
        "who have most of them here.",
    )
    guard_seconds: float = Field(
        30,
        gt=0,
        allow_inf_nan=False,
        description="Longest time in which what a request sends is judged, in seconds, waiting "
        "included, however many texts it holds; and so for its answer, or each check of a streamed "
        "one. Then the profile's on_failure decides. A text that takes longer by itself gets a "
        "413. A large scorer on a CPU needs more.",
    )
    prefix_bytes: int = Field(
        2**30,
        ge=0,
        description="Most memory for what was computed of answers that still grow, in bytes (with "
        "the 2B 104 KiB a token in bfloat16, twice that in float32); 0 computes all at each check.",
    )
