"""How many actors a cluster has room for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shieldgate.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Pool:
    """How many actors score, and what each reserves; None where it follows from the cluster.

    With GPUs an actor takes one of them, and there are as many; else there is one a node, and those
    of a node share all of its processors. A scorer elsewhere, which only waits here, takes one.
    """

    least: int | None = None
    most: int | None = None
    cpus: float | None = None
    gpus: float | None = None

    def fitted(self, nodes: Sequence[Mapping[str, float]], *, elsewhere: bool) -> "Pool":
        """Fill in what was left open, by the nodes' resources."""
        workers = [node for node in nodes if node.get("CPU", 0) >= 1]
        here = sum(node.get("GPU", 0) for node in nodes)
        gpus = self.gpus if self.gpus is not None else float(here >= 1 and not elsewhere)
        if self.cpus is not None:
            cpus = self.cpus
        elif gpus or elsewhere:
            cpus = 1.0
        else:
            cpus = min((node["CPU"] for node in workers), default=1.0)
            shared = math.ceil((self.most or self.least or 1) / max(1, len(workers)))
            cpus = cpus // shared or cpus / shared
        if elsewhere:
            natural = 1
        elif gpus:
            natural = max(1, int(here // gpus))
        else:
            natural = max(1, sum(int(node["CPU"] // cpus) for node in workers if cpus))
        least = self.least or natural
        return Pool(least, max(least, self.most or least), cpus, gpus)


def parse_pool(actors: str | None, *, cpus: float | None, gpus: float | None) -> Pool:
    """Read `N` or `LEAST:MOST`; raise ConfigurationError."""
    if actors is None:
        return Pool(cpus=cpus, gpus=gpus)
    least, _, most = actors.partition(":")
    try:
        pool = Pool(int(least), int(most or least), cpus, gpus)
    except ValueError:
        pool = None
    if pool is None or not 1 <= (pool.least or 0) <= (pool.most or 0):
        raise ConfigurationError(f"--actors {actors}: write a number of actors, or two as in 1:8.")
    return pool
