"""How a dataset's labels reach policies."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.examples import Example, either
from shieldgate.policy import Policy
from shieldgate.types import Label


@dataclass(frozen=True, slots=True)
class Labelling:
    """Which policies each label of a dataset speaks for; those in `unmatched` speak for none.

    With `unknown_is_negative`, what is unknown is counted as harmless, as some papers do.
    """

    policies: Mapping[str, tuple[str, ...]]
    unmatched: tuple[str, ...] = ()
    unknown_is_negative: bool = False

    @classmethod
    def of(
        cls,
        names: Iterable[str],
        policies: Sequence[Policy],
        *,
        chosen: Mapping[str, Sequence[str]] | None = None,
        unknown_is_negative: bool = False,
    ) -> "Labelling":
        """Match labels with the policies that are evaluated.

        `chosen` decides first; else a label speaks for the policy whose id or last part of the id
        it is, and for those that speak for the OpenAI category of that name. Raises
        ConfigurationError when `chosen` names a label or policy that isn't there.
        """
        chosen = chosen or {}
        names = sorted(names)
        for name, wanted in chosen.items():
            if name not in names:
                raise ConfigurationError(
                    f"--label {name}: the data has no such label. It has: {', '.join(names)}."
                )
            if missing := [policy for policy in wanted if not _named(policy, policies)]:
                raise ConfigurationError(
                    f"--label {name}={missing[0]}: no such policy is evaluated. "
                    f"Evaluated: {', '.join(policy.id for policy in policies)}."
                )
        matched = {
            name: tuple(id for policy in chosen.get(name, ()) for id in _named(policy, policies))
            or _speaks_for(name, policies)
            for name in names
        }
        return cls(
            {name: found for name, found in matched.items() if found},
            tuple(name for name, found in matched.items() if not found),
            unknown_is_negative,
        )

    def labels(self, example: Example) -> dict[str, Label]:
        """Give an example's labels by policy; several that speak for one policy are joined."""
        found: dict[str, Label | None] = {}
        for name, ids in self.policies.items():
            for policy in ids:
                found[policy] = either(found.get(policy, 0), example.labels.get(name))
        if self.unknown_is_negative:
            return {policy: value or 0 for policy, value in found.items()}
        return {policy: value for policy, value in found.items() if value is not None}

    def harmful(self, example: Example) -> Label | None:
        """Give what the dataset says of the whole, else what all of its labels together say."""
        harmful = example.harmful
        if harmful is None and example.labels:
            harmful = 0
            for name in (*self.policies, *self.unmatched):
                harmful = either(harmful, example.labels.get(name))
        return 0 if harmful is None and self.unknown_is_negative else harmful


def parse_labels(pairs: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Read pairs `LABEL=POLICY` as policies by label; raise ConfigurationError."""
    chosen: dict[str, tuple[str, ...]] = {}
    for pair in pairs:
        name, equals, policy = pair.rpartition("=")
        if not (name and equals and policy):
            raise ConfigurationError(f"--label {pair}: write LABEL=POLICY.")
        chosen[name] = (*chosen.get(name, ()), policy)
    return chosen


def _speaks_for(name: str, policies: Sequence[Policy]) -> tuple[str, ...]:
    named = _named(name, policies)
    return tuple(p.id for p in policies if p.id in named or name in p.openai)


def _named(name: str, policies: Sequence[Policy]) -> tuple[str, ...]:
    """List the ids that this is, or the last part of."""
    return tuple(p.id for p in policies if name in (p.id, p.id.rpartition("/")[2]))
