"""How the commands that read labelled data are told what its columns and labels are."""

from collections.abc import Sequence

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.adapters import ADAPTERS, OURS, Adapter, column_map


def chosen_adapter(name: str | None, columns: Sequence[str], default: str = OURS.name) -> Adapter:
    """Find the adapter that --adapter or --map asks for; raise ConfigurationError."""
    if columns and name:
        raise ConfigurationError("Give --map or --adapter: both say what the columns are.")
    if columns:
        return column_map(columns)
    if (name or default) not in ADAPTERS:
        raise ConfigurationError(f"--adapter {name}: known are {', '.join(ADAPTERS)}.")
    return ADAPTERS[name or default]


def chosen_labels(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read the pairs of --label, as policies by label; raise ConfigurationError."""
    chosen: dict[str, tuple[str, ...]] = {}
    for pair in given:
        name, equals, policy = pair.rpartition("=")
        if not (name and equals and policy):
            raise ConfigurationError(f"--label {pair}: write LABEL=POLICY.")
        chosen[name] = (*chosen.get(name, ()), policy)
    return chosen
