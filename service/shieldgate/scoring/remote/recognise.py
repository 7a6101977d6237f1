"""Which engine a server is, what it serves, and so how it is asked."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from shieldgate.errors import ConfigurationError, ScorerUnavailable
from shieldgate.given_settings import flag, variable
from shieldgate.scoring.remote.connection import Connection, NothingSpent, RequestRefused
from shieldgate.scoring.remote.engine import EngineApi, Labels, Served
from shieldgate.scoring.remote.llama_cpp import LlamaCpp
from shieldgate.scoring.remote.openai_completions import OpenAICompletions, Vllm
from shieldgate.scoring.remote.sglang import Sglang
from shieldgate.settings import ScoringSettings

# What servers write as the owner of their models.
_OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}


async def recognise(connection: Connection, settings: ScoringSettings, labels: Labels) -> EngineApi:
    """Ask a server what it is; raise ConfigurationError, or ScorerUnavailable for now."""
    entry = await _entry(connection, settings)
    owner = str(entry.get("owned_by", ""))
    kind = _OWNERS.get(owner, "openai") if settings.engine == "auto" else settings.engine
    connection.engine = kind
    match kind:
        case "vllm":
            return Vllm(await _vllm(connection, entry), labels)
        case "sglang":
            return Sglang(await _sglang(connection, entry), labels)
        case "llama.cpp":
            return LlamaCpp(await _llama_cpp(connection, entry), labels)
    name = {"tensorrt_llm": "TensorRT-LLM"}.get(owner, owner or "the server")
    served = Served("openai", "", str(entry["id"]), _facts(entry, "root"), _count(entry))
    return OpenAICompletions(served, labels, name)


async def _entry(connection: Connection, settings: ScoringSettings) -> Mapping[str, Any]:
    """Read what the server says of the model to ask."""
    try:
        listed = await connection.get("/v1/models")
    except NothingSpent:
        raise
    except ScorerUnavailable as failure:
        if settings.engine != "auto" and settings.served_model:
            return {"id": settings.served_model}  # all that there is to know, then
        if isinstance(failure, RequestRefused):
            raise _refusal(connection, failure) from None
        raise
    entries = _entries(listed)
    if any(entry.get("owned_by") == "shieldgate" for entry in entries):
        raise ConfigurationError(
            f"{connection.name} is a shieldgate itself, not an engine. 'shieldgate evaluate --url' "
            "measures it as it serves."
        )
    return _chosen(entries, settings, connection.name)


def _entries(listed: Any) -> list[Mapping[str, Any]]:
    data = listed.get("data") if isinstance(listed, dict) else None
    return [one for one in data or () if isinstance(one, dict) and "id" in one]


def _chosen(
    entries: Sequence[Mapping[str, Any]], settings: ScoringSettings, server: str
) -> Mapping[str, Any]:
    """Find the model to ask; raise ConfigurationError."""
    names = [str(entry["id"]) for entry in entries]
    wanted = settings.served_model
    if not names:
        raise ConfigurationError(
            f"{server} lists no models under /v1/models. Give the URL of an engine's OpenAI API, "
            "such as http://vllm:8000/v1."
        )
    if wanted is None and len(names) == 1:
        return entries[0]
    if wanted not in names:
        raise ConfigurationError(
            f"{server} serves {', '.join(names)}: say which one with {flag('served_model')}."
        )
    return entries[names.index(wanted)]


def _facts(entry: Mapping[str, Any], *keys: str) -> dict[str, str]:
    """Take what tells weights apart; a server's own clock does not."""
    return {key: str(entry[key]) for key in keys if entry.get(key) is not None}


def _count(entry: Mapping[str, Any], key: str = "max_model_len") -> int | None:
    value = entry.get(key)
    return value if isinstance(value, int) else None


async def _vllm(connection: Connection, entry: Mapping[str, Any]) -> Served:
    version = await _told(connection, "/version")
    return Served(
        "vllm",
        str(version.get("version", "")),
        str(entry["id"]),
        _facts(entry, "root", "parent"),
        _count(entry),
    )


async def _sglang(connection: Connection, entry: Mapping[str, Any]) -> Served:
    model = await _told(connection, "/model_info") or await _told(connection, "/get_model_info")
    server = await _told(connection, "/server_info") or await _told(connection, "/get_server_info")
    facts = {
        **_facts(entry, "root"),
        **_facts(model, "model_path", "weight_version"),
        **_facts(server, "revision", "dtype", "quantization", "kv_cache_dtype"),
    }
    return Served("sglang", str(server.get("version", "")), str(entry["id"]), facts, _count(entry))


async def _llama_cpp(connection: Connection, entry: Mapping[str, Any]) -> Served:
    properties = await _told(connection, "/props")
    meta = entry.get("meta")
    facts = _facts(meta if isinstance(meta, dict) else {}, "n_params", "n_vocab", "n_embd", "size")
    facts |= _facts(properties, "model_path")
    connection.limit(_count(properties, "total_slots") or 1)
    defaults = properties.get("default_generation_settings")
    return Served(
        "llama.cpp",
        str(properties.get("build_info", "")),
        str(entry["id"]),
        facts,
        _count(defaults if isinstance(defaults, dict) else {}, "n_ctx"),
    )


async def _told(connection: Connection, path: str) -> Mapping[str, Any]:
    """Read what a server tells beyond the API it must have; a router before it may not."""
    with suppress(ScorerUnavailable):
        found = await connection.get(path)
        if isinstance(found, dict):
            return found
    return {}


def _refusal(connection: Connection, refused: RequestRefused) -> ConfigurationError:
    if refused.status in (401, 403):
        return ConfigurationError(
            f"{connection.name} wants a key, or another one (status {refused.status}): give it as "
            f"{variable('model_key')}, which goes to the servers of {flag('model')} alone, or as "
            f"{variable('cascade_model_key')} where it is a cascade's first scorer, "
            f"{variable('shadow_model_key')} where it is a candidate."
        )
    return ConfigurationError(
        f"{connection.name}/v1/models can't be read (status {refused.status}). Give the URL of an "
        "engine's OpenAI API, such as http://vllm:8000/v1."
    )
