"""How long the parts of a deployment take, as they were measured."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Times:
    """Seconds of work, measured on one machine; `source` says which, when and how.

    A forward pass takes `pass_seconds`, `pass_token` for each token, `pass_pair` for each pair of
    them in one text, as attention does, and `pass_pair_of_all` for each pair in the pass, because
    what is large falls out of caches. Under all policies a text has `prompt_tokens` besides its
    own.

    `scorer` is what a scorer process does for a text besides; `cached`, `scored` and `refused` what
    a gateway does for a request whose text is cached, is new, or gets a 429; `client` what who asks
    does, where that shares the machine; `way` what a request waits that is nobody's work.
    `redis_find` and `redis_keep` are Redis' own work, `redis_client` that of a gateway for both,
    and `redis_way` is what is left of a round trip.

    `speeds` says how fast each core is while one, two, … of them are busy, where all processes
    share a machine; without it, each has a machine of its own.
    """

    source: str
    scorer_name: str
    pass_seconds: float
    pass_token: float
    pass_pair: float
    pass_pair_of_all: float
    prompt_tokens: int
    context: int
    scorer: float
    cached: float
    scored: float
    refused: float
    way: float
    redis_find: float
    redis_keep: float
    redis_way: float
    redis_client: float
    client: float = 0.0
    speeds: tuple[float, ...] = ()

    @classmethod
    def read(cls, name: str) -> Self:
        """Read a file, by its path or as one of those beside this module by its name."""
        path = Path(name) if name.endswith(".json") else HERE / f"{name}.json"
        if not path.exists():
            raise SystemExit(f"{path} is not there. Beside the model are: {', '.join(shipped())}.")
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["speeds"] = tuple(fields.get("speeds", ()))
        try:
            return cls(**fields)
        except TypeError as wrong:
            raise SystemExit(
                f"{path} is not what benchmarks.scaling.measure writes: {wrong}"
            ) from None

    def write(self, path: Path) -> None:
        """Write what `read` reads."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def forward(self, sizes: Sequence[int]) -> float:
        """Give the seconds of a forward pass over texts of so many tokens."""
        parts = (
            self.pass_seconds,
            self.pass_token,
            self.pass_pair,
            self.pass_pair_of_all,
        )
        return sum(part * amount for part, amount in zip(parts, amounts(sizes), strict=True))


def amounts(sizes: Sequence[int]) -> tuple[int, int, int, int]:
    """Count what a forward pass takes time for: itself, tokens, their pairs in texts and in all."""
    tokens = sum(sizes)
    return 1, tokens, sum(size * size for size in sizes), tokens * tokens


def shipped() -> list[str]:
    """List the names of the files beside this module."""
    return sorted(path.stem for path in HERE.glob("*.json"))
