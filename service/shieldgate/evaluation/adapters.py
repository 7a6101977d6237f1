"""Records in their published columns in, examples in our words out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.column_map import column_map
from shieldgate.evaluation.examples import (
    Adapter,
    Example,
    Fields,
    RowError,
    cell,
    either,
    exchange,
    identifier,
    known_labels,
    label,
    prompt,
    text,
    word,
)
from shieldgate.types import Exchange, Label


def _ours(fields: Fields) -> Iterator[Example]:
    judged = exchange(fields, "prompt", "response")
    labels = cell(fields, "labels") or {}
    if not isinstance(labels, dict):
        raise RowError("'labels' is not an object")
    yield Example(
        judged,
        identifier(fields, "id"),
        known_labels({name: label(labels, name) for name in labels}),
        label(fields, "harmful"),
    )


# openai/moderation-api-release: a key that is missing means that the label is unknown.
_OPENAI = {
    "S": "sexual",
    "H": "hate",
    "V": "violence",
    "HR": "harassment",
    "SH": "self-harm",
    "S3": "sexual/minors",
    "H2": "hate/threatening",
    "V2": "violence/graphic",
}


def _openai_mod(fields: Fields) -> Iterator[Example]:
    labels = known_labels({category: label(fields, key) for key, category in _OPENAI.items()})
    if not labels:
        raise RowError(f"has none of the labels {', '.join(_OPENAI)}")
    # As papers count it: what nobody found harmful is harmless, though not all was asked.
    yield Example(
        Exchange(prompt(fields, "prompt")), labels=labels, harmful=1 if 1 in labels.values() else 0
    )


def _toxicchat(fields: Fields) -> Iterator[Example]:
    yield Example(
        Exchange(prompt(fields, "user_input")),
        text(fields, "conv_id"),
        harmful=label(fields, "toxicity"),
    )


def _xstest(fields: Fields) -> Iterator[Example]:
    yield Example(
        Exchange(prompt(fields, "prompt")),
        str(cell(fields, "id")),
        harmful=word(fields, "label", {"safe": 0, "unsafe": 1}),
    )


# The categories of PKU-Alignment/BeaverTails that are a harm of ShieldGemma's; the others keep
# their name.
_BEAVERTAILS = {
    "hate_speech,offensive_language": "hate",
    "discrimination,stereotype,injustice": "hate",
    "sexually_explicit,adult_content": "sexual",
    "violence,aiding_and_abetting,incitement": "violence",
    "drug_abuse,weapons,banned_substance": "dangerous",
    "terrorism,organized_crime": "dangerous",
    "self_harm": "dangerous",
}


def _beavertails(fields: Fields) -> Iterator[Example]:
    categories = cell(fields, "category")
    if not isinstance(categories, dict):
        raise RowError("'category' is not an object")
    safe = label(fields, "is_safe")
    yield Example(
        Exchange(text(fields, "prompt"), text(fields, "response")),
        labels=_merged(
            (_BEAVERTAILS.get(name) or str(name), label(categories, name)) for name in categories
        ),
        harmful=None if safe is None else 0 if safe else 1,
    )


def _merged(labels: Iterable[tuple[str, Label | None]]) -> dict[str, Label]:
    """Join labels that mean one harm: it is there where one of them is, unknown where one is."""
    merged: dict[str, Label | None] = {}
    for name, value in labels:
        merged[name] = either(merged.get(name, 0), value)
    return known_labels(merged)


_HARM: Mapping[str, Label] = {"unharmful": 0, "harmful": 1}


def _wildguard(fields: Fields) -> Iterator[Example]:
    asked = word(fields, "prompt_harm_label", _HARM)
    answered = word(fields, "response_harm_label", _HARM)
    if asked is not None:
        yield Example(Exchange(prompt(fields, "prompt")), harmful=asked)
    if answered is not None:
        exchange = Exchange(text(fields, "prompt"), text(fields, "response"))
        yield Example(exchange, harmful=answered)
    if asked is answered is None:
        raise RowError("has neither a label of the prompt nor one of the response")


_HARMBENCH = {
    "chemical_biological": "dangerous",
    "cybercrime_intrusion": "dangerous",
    "illegal": "dangerous",
    "harassment_bullying": "harassment",
}


def _harmbench(fields: Fields) -> Iterator[Example]:
    behavior, context = prompt(fields, "Behavior"), cell(fields, "ContextString")
    category = _HARMBENCH.get(text(fields, "SemanticCategory"))
    # Reciting a song is a matter of copyright, which no policy here is about.
    copyrighted = cell(fields, "FunctionalCategory") == "copyright"
    yield Example(
        # The join is HarmBench's own, for contextual behaviours.
        Exchange(f"{context}\n\n---\n\n{behavior}" if context else behavior),
        text(fields, "BehaviorID"),
        {category: 1} if category else {},
        None if copyrighted else 1,
    )


OURS = Adapter("ours", frozenset({"prompt", "labels"}), _ours)

# In their published columns. toxicchat: lmsys/toxic-chat; its `toxicity` is about the user's
# input. xstest: paul-rottger/exaggerated-safety. wildguard: allenai/wildguardmix, where a record
# with both labels is two examples. harmbench: harmbench_behaviors_text_all.csv.
ADAPTERS: Mapping[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        OURS,
        Adapter("openai-mod", frozenset({"prompt", "HR"}), _openai_mod),
        Adapter("toxicchat", frozenset({"conv_id", "user_input", "toxicity"}), _toxicchat),
        Adapter("xstest", frozenset({"prompt", "type", "label"}), _xstest),
        Adapter("beavertails", frozenset({"prompt", "response", "category"}), _beavertails),
        Adapter("wildguard", frozenset({"prompt", "prompt_harm_label", "adversarial"}), _wildguard),
        Adapter("harmbench", frozenset({"Behavior", "SemanticCategory"}), _harmbench),
    )
}


def choose_adapter(
    name: str | None, columns: Sequence[str] = (), default: str = OURS.name
) -> Adapter:
    """Find the adapter of this name, or build one from a column map; raise ConfigurationError."""
    if columns and name:
        raise ConfigurationError("Give --map or --adapter: both say what the columns are.")
    if columns:
        return column_map(columns)
    if (name or default) not in ADAPTERS:
        raise ConfigurationError(f"--adapter {name}: known are {', '.join(ADAPTERS)}.")
    return ADAPTERS[name or default]
