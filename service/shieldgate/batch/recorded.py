"""The scores of a folder that a run wrote, in place of a scorer."""

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from itertools import islice

from pyarrow import parquet

from shieldgate.batch.actor import digest
from shieldgate.batch.manifest import Manifest, part_name
from shieldgate.errors import ConfigurationError
from shieldgate.evaluation.datasets import Row
from shieldgate.evaluation.row_scoring import CHUNK, Batch
from shieldgate.evaluation.score_file import wording_digest
from shieldgate.evaluation.storage import Folder
from shieldgate.policy import Policy
from shieldgate.scoring import Identity
from shieldgate.types import Score

_Stored = tuple[str, str | None, list[Score]]


class Recorded:
    """A RowScorer that looks up what `shieldgate batch` wrote, for the rows that it scored.

    Rows are found by their place, and known by the digests of their texts.
    """

    identity: Identity

    def __init__(self, given: str) -> None:
        """Take a folder; raise ConfigurationError where it isn't scored to the end."""
        self._folder = Folder.at(given)
        self._manifest = Manifest.read(self._folder)
        parts = range(len(self._manifest.parts))
        missing = {part_name(number) for number in parts} - self._folder.names()
        if missing or self._manifest.identity is None:
            raise ConfigurationError(
                f"{given}: {len(missing)} of {len(parts)} parts are not scored yet. Give the "
                "'shieldgate batch' command again, which goes on."
            )
        self.identity = self._manifest.identity

    async def score(
        self, rows: Iterable[Row], policies: Sequence[Policy], held: Callable[[int], bool]
    ) -> AsyncGenerator[Batch]:
        """Look up row after row; raise ConfigurationError where they are others."""
        stored = enumerate(self._stored(policies))
        unread = iter(rows)
        while chunk := list(islice(unread, CHUNK)):
            yield [(row, self._find(row, stored)) for row in chunk if not held(row.number)]

    def check(self, policies: Sequence[Policy]) -> None:
        """Raise ConfigurationError where a policy was not scored, or in other words."""
        guidelines = self._manifest.guidelines
        for policy in policies:
            if guidelines.get(policy.id) != wording_digest(policy):
                why = "worded otherwise" if policy.id in guidelines else "not among its policies"
                raise ConfigurationError(
                    f"{self._folder}: {policy.id} was {why} when it was scored. It has: "
                    f"{', '.join(guidelines)}. Choose by --policy, or score again."
                )

    def _find(self, row: Row, stored: "enumerate[_Stored]") -> list[Score]:
        exchange = row.example.exchange
        for number, (prompt, response, scores) in stored:
            if number == row.number:
                if (prompt, response) == (digest(exchange.prompt), digest(exchange.response)):
                    return scores
                break
        raise ConfigurationError(
            f"{self._folder}: its row {row.number} is of another text. Give the data that was "
            "scored, with the same --adapter or --map."
        )

    def _stored(self, policies: Sequence[Policy]) -> Iterator[_Stored]:
        """Read all rows in the order of the data, a few at a time."""
        margins = [f"{policy.id}.margin" for policy in policies]
        names = ["prompt_sha256", "response_sha256", "windows", "prompt_omitted", *margins]
        for number in range(len(self._manifest.parts)):
            with self._folder.file(part_name(number)).open("rb") as file:
                for batch in parquet.ParquetFile(file).iter_batches(4096, columns=names):
                    columns = [batch.column(name).to_pylist() for name in names]
                    for prompt, response, windows, omitted, *row in zip(*columns, strict=True):
                        scores = [Score(margin, windows, omitted) for margin in row]
                        yield prompt, response, scores
