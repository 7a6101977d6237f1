"""Settings come from flags, the environment and defaults, and a bad one stops the start."""

import pytest
from pydantic import SecretStr, ValidationError

from shieldgate.errors import ConfigurationError
from shieldgate.given_settings import flag, load, variable
from shieldgate.settings import ScoringSettings, ServeSettings, Settings, WorkerSettings

# For each setting a value that is not its default, as a flag or a variable spells it.
VALUES = {
    "model": "some/where",
    "tokenizer": "google/shieldgemma-2b",
    "engine": "vllm",
    "served_model": "guard",
    "scorer_name": "shieldgemma-2b-may",
    "languages": "en,de",
    "model_key": "sk-engine",
    "model_seconds": "2.5",
    "model_texts": "8",
    "revision": "main",
    "device": "cpu",
    "dtype": "bfloat16",
    "quantize": "torchao-int8",
    "template": "paper",
    "policies": "some/policies",
    "profile": "strict",
    "host": "0.0.0.0",
    "port": "9000",
    "upstream": "http://localhost:11434/v1",
    "upstream_key": "sk-upstream",
    "upstream_headers": "x-team=search, openai-beta",
    "upstream_proxy": "http://proxy:3128",
    "upstream_seconds": "60",
    "generator": "google/gemma-2-9b-it",
    "generator_revision": "main",
    "assistant": "google/gemma-2-2b-it",
    "watermark_keys": "keys.json",
    "ping_seconds": "2.5",
    "uds": "some/socket",
    "keep_alive_seconds": "61",
    "root_path": "/moderation",
    "cors_origins": "https://app.example, http://localhost:3000",
    "max_body_bytes": "1000",
    "max_inputs": "5",
    "guard_seconds": "2.5",
    "prefix_bytes": "4096",
    "max_batch_tokens": "2000",
    "max_running": "2",
    "max_waiting": "7",
    "max_queued": "6",
    "keys": "some/keys.yaml",
    "keyless": "True",
    "max_text_chars": "1000",
    "cache_entries": "0",
    "audit_stream": "records",
    "audit_stream_length": "1000",
    "audit_secret": "0123456789abcdef",
    "cache_secret": "0123456789abcdef",
    "receive_seconds": "2.5",
    "keep_texts": "review.db",
    "keep_texts_key": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
    "keep_texts_key_file": "some/key",
    "keep_texts_days": "7.0",
    "keep_texts_share": "0.5",
    "keep_texts_near": "2.0",
    "keep_texts_bytes": "1000",
    "keep_labels_days": "8.0",
    "shadow_policies": "candidate",
    "shadow_profile": "strict",
    "shadow_model": "small",
    "shadow_revision": "v2",
    "shadow_quantize": "int8",
    "shadow_template": "paper",
    "shadow_tokenizer": "some/tokenizer",
    "shadow_served_model": "candidate",
    "shadow_scorer_name": "candidate@2",
    "shadow_model_key": "sk-candidate",
    "shadow_share": "0.5",
    "redis_url": "redis://localhost:6379/0",
    "redis_seconds": "0.2",
    "redis_keep_seconds": "60",
    "history_bytes": "1000",
    "history_seconds": "60",
    "cascade": "cascade.yaml",
    "cascade_model_key": "sk-first",
    "drain_seconds": "3",
    "processes": "2",
    "log_level": "debug",
    "log_format": "json",
}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in VALUES:
        monkeypatch.delenv(variable(field), raising=False)


def written(settings: Settings, field: str) -> str:
    value = getattr(settings, field)
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


@pytest.mark.parametrize(
    ("model", "field"),
    [(model, field) for model in (ServeSettings, WorkerSettings) for field in model.model_fields],
)
def test_every_setting_can_be_given_by_flag_and_by_variable_and_the_flag_wins(
    model: type[Settings], field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = written(load(model, {}), field)
    assert default != VALUES[field]
    assert written(load(model, {field: VALUES[field]}), field) == VALUES[field]
    monkeypatch.setenv(variable(field), VALUES[field])
    assert written(load(model, {}), field) == VALUES[field]
    if default != "None":
        assert written(load(model, {field: default}), field) == default


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", "65536"),
        ("port", "http"),
        ("device", "tpu"),
        ("dtype", "int8"),
        ("max_inputs", "0"),
        ("cache_entries", "-1"),
        ("log_format", "yaml"),
        ("log_level", "loud"),
        ("upstream", "localhost"),
    ],
)
def test_a_bad_value_is_refused_with_key_and_value(
    field: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match=f"^{flag(field)} '{value}' is refused: .+"):
        load(ServeSettings, {field: value})
    monkeypatch.setenv(variable(field), value)
    with pytest.raises(ConfigurationError, match=f"^{variable(field)} '{value}' is refused: .+"):
        load(ServeSettings, {})


@pytest.mark.parametrize(
    "value", ["localhost", "localhost:9117/v1", "127.0.0.1:8000/v1", "//h/v1", "vllm.example/v1"]
)
def test_a_url_without_a_scheme_is_offered_with_one(value: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load(ServeSettings, {"upstream": value})
    sentence = str(refused.value)
    assert sentence.endswith(f". Did you mean http://{value.lstrip('/')}?")
    assert "uRL" not in sentence
    offered = sentence.rsplit(maxsplit=1)[-1].removesuffix("?")
    assert load(ServeSettings, {"upstream": offered}).upstream


def test_of_a_url_that_is_refused_a_password_is_not_shown() -> None:
    with pytest.raises(ConfigurationError, match=r"^--upstream is refused: URL scheme") as refused:
        load(ServeSettings, {"upstream": "user:hunter2@h/v1"})
    assert "hunter2" not in str(refused.value)


def test_all_bad_values_are_named_at_once() -> None:
    with pytest.raises(ConfigurationError) as refused:
        load(ServeSettings, {"port": "x", "max_inputs": "y"})
    assert [line.split()[0] for line in str(refused.value).splitlines()] == [
        "--port",
        "--max-inputs",
    ]


def test_a_misspelt_variable_is_refused_and_the_right_one_suggested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHIELDGATE_MAX_INPUT", "8")
    with pytest.raises(ConfigurationError, match="Did you mean SHIELDGATE_MAX_INPUTS"):
        load(ScoringSettings, {})


def test_variables_of_other_commands_and_empty_ones_are_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHIELDGATE_PORT", "9000")
    monkeypatch.setenv("SHIELDGATE_REVISION", "")
    assert load(ScoringSettings, {}).revision is None


@pytest.mark.parametrize("name", ["SHIELDGATE_PORT", "SHIELDGATE_PORT_8000_TCP_ADDR"])
def test_what_kubernetes_sets_for_a_service_of_our_name_is_explained(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.1:8000")
    with pytest.raises(ConfigurationError, match="enableServiceLinks: false"):
        load(ServeSettings, {})


RENAMED = [(old, new) for old, new in WorkerSettings.renamed.items()]


@pytest.mark.parametrize(("old", "new"), RENAMED)
def test_an_old_name_is_still_taken_and_warned_of(
    old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(WorkerSettings, {old: VALUES[new]})
    assert written(settings, new) == VALUES[new]
    [warning] = settings.warnings
    assert warning.startswith(f"{flag(old)} is now {flag(new)}")
    monkeypatch.setenv(variable(old), VALUES[new])
    settings = load(WorkerSettings, {})
    assert written(settings, new) == VALUES[new]
    [warning] = settings.warnings
    assert warning.startswith(f"{variable(old)} is now {variable(new)}")


@pytest.mark.parametrize(("old", "new"), RENAMED)
def test_the_new_name_wins_and_the_variable_of_another_command_is_no_old_name(
    old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(WorkerSettings, {old: "9", new: VALUES[new]})
    assert written(settings, new) == VALUES[new]
    assert settings.warnings
    monkeypatch.setenv(variable(old), "9")
    monkeypatch.setenv(variable(new), VALUES[new])
    settings = load(WorkerSettings, {})
    assert written(settings, new) == VALUES[new]
    assert not settings.warnings


def test_who_uses_one_new_name_means_other_commands_by_the_old_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHIELDGATE_REVISION", "of-the-scorer")
    monkeypatch.setenv("SHIELDGATE_MAX_WAITING", "7")
    for given in ({"generator": "gemma"}, {}):
        if not given:
            monkeypatch.setenv("SHIELDGATE_GENERATOR", "gemma")
        settings = load(WorkerSettings, given)
        assert (settings.generator_revision, settings.max_queued) == (None, 32)
        assert not settings.warnings


def test_a_name_means_the_same_to_all_commands() -> None:
    """Where it doesn't, one environment can't serve them all. The port's default differs."""
    serve, worker = ServeSettings.model_fields, WorkerSettings.model_fields
    for field in (serve.keys() & worker.keys()) - {"port", "generator"}:
        assert repr(serve[field]) == repr(worker[field]), field


def test_a_secret_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHIELDGATE_CACHE_SECRET", "too short")
    with pytest.raises(ConfigurationError, match="SHIELDGATE_CACHE_SECRET is refused") as refused:
        load(ServeSettings, {})
    assert "too short" not in str(refused.value)
    assert VALUES["cache_secret"] not in repr(
        load(ServeSettings, {"cache_secret": VALUES["cache_secret"]})
    )


def test_settings_do_not_change() -> None:
    settings = load(ServeSettings, {})
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]
