"""From labelled data and policies to what is tuned on what."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shieldgate.errors import ConfigurationError, UnknownName
from shieldgate.evaluation.adapters import OURS
from shieldgate.evaluation.datasets import Dataset
from shieldgate.evaluation.examples import Adapter
from shieldgate.evaluation.labels import Labelling
from shieldgate.evaluation.sources import open_source
from shieldgate.policy import Policy, PolicyBook, load_book
from shieldgate.tuning.labelled import Labelled, Splits, counts, split_rows


@dataclass(frozen=True, slots=True)
class RowReader:
    """Reads labelled rows as `shieldgate evaluate` does.

    `labels` are policies by label, where a label speaks for others than those of its name. `note`
    hears sentences on what was read.
    """

    adapter: Adapter = OURS
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    note: Callable[[str], None] = lambda sentence: None

    def read(self, given: str, policies: Mapping[str, Policy]) -> list[Labelled]:
        """Read the rows that label one of the policies; raise ConfigurationError if none does."""
        dataset = Dataset(open_source(given), self.adapter)
        survey = dataset.survey()
        labelling = Labelling.of(survey.labels, list(policies.values()), chosen=self.labels)
        if not labelling.policies:
            has = ", ".join(survey.labels) or "none"
            raise ConfigurationError(
                f"{given}: no label names a policy. Its labels: {has}. The policies: "
                f"{', '.join(policies)}. Say which is which with --label LABEL=POLICY."
            )
        read_as = "; ".join(
            f"{name} as {', '.join(ids)}" for name, ids in labelling.policies.items()
        )
        for note in (f"labels were read so: {read_as}", *survey.notes()):
            self.note(f"{given}: {note}")
        found = ((row.example.exchange, labelling.labels(row.example)) for row in dataset.rows())
        return [
            Labelled(exchange, {policy: bool(value) for policy, value in labels.items()})
            for exchange, labels in found
            if labels
        ]


def prepare(
    reader: RowReader,
    data: str,
    test: str | None,
    book: PolicyBook,
    named: Iterable[str] = (),
    *,
    seed: int = 0,
) -> tuple[dict[str, Policy], Splits]:
    """Choose the policies to tune, those of the rows or of them those `named`, and split the rows.

    Raises ConfigurationError, also where no policy could be measured.
    """
    try:
        chosen = {policy.id for policy in book.find(named)} or book.policies.keys()
    except UnknownName as unknown:
        raise ConfigurationError(str(unknown)) from None
    policies = {id: policy for id, policy in book.policies.items() if id in chosen}
    rows = reader.read(data, policies)
    splits = split_rows(rows, reader.read(test, policies) if test else (), seed=seed)
    labelled, tested = counts(rows), counts(splits.test)
    tuned = {id: policy for id, policy in policies.items() if id in labelled}
    unmeasured = [id for id in tuned if len(tested.get(id, ())) < 2]
    if len(unmeasured) == len(tuned):
        raise ConfigurationError(
            f"{test or data}: no rows are left to measure on: the test part needs rows that "
            f"violate {unmeasured[0]} and rows that don't. Label more."
        )
    return tuned, splits


def kept_policies(tuned: Mapping[str, Policy]) -> list[Policy]:
    """Choose what shall stay as it is: the harms that ShieldGemma knows, but for the tuned."""
    wordings = {words for policy in tuned.values() for words in policy.guidelines.values()}
    return [
        policy
        for id, policy in load_book().policies.items()
        if id.startswith("shieldgemma/")
        and id not in tuned
        and wordings.isdisjoint(policy.guidelines.values())
    ]
