"""Ray Data: which actors there are, and how parts reach them and results come back."""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from shieldgate.errors import ConfigurationError, ScorerUnavailable, first_line, needed

with needed("Scoring on a cluster", "ray"):
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.util.annotations import RayDeprecationWarning

from shieldgate.batch.actor import Job, PartScorer
from shieldgate.batch.pool import Pool

log = structlog.get_logger(__name__)

# How often a part whose actor died is scored anew: one that kills each of them must end the run.
_RETRIES = 3


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Hold a connection with the cluster at an address, or at RAY_ADDRESS, or one of this machine.

    Raises ConfigurationError.
    """
    # A Ray that is started here tells nobody of it, unless its own variable says so.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Its core warns of how Ray Data makes actors, which is nothing that users can mend.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with _standard_error_closed():
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as refused:
        reason = first_line(refused)
        raise ConfigurationError(
            f"--address {address}: {reason} Give the address of a running cluster, as HOST:6379, "
            "or leave it out to use this machine."
        ) from refused
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _standard_error_closed() -> Iterator[None]:
    """Take nothing on standard error, where Ray's core says at which level it logs."""
    ours = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(ours, 2)
        os.close(ours)


def _nodes() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return found


def results(job: Job, todo: Sequence[int], pool: Pool) -> Iterator[dict[str, Any]]:
    """Have parts scored, and give what `PartScorer` says of each, once, as they are done.

    Raises ScorerUnavailable where actors keep dying; a defect comes as Ray's own error.
    """
    nodes = [node["Resources"] for node in _nodes() if node["Alive"]]
    fitted = pool.fitted(nodes, elsewhere="://" in job.settings.model)
    if not any(
        node.get("CPU", 0) >= (fitted.cpus or 0) and node.get("GPU", 0) >= (fitted.gpus or 0)
        for node in nodes
    ):
        log.warning("no node has room for an actor; waiting for one", nodes=len(nodes))
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    least, most = (min(count or 1, len(todo)) for count in (fitted.least, fitted.most))
    parts = ray.data.from_items(
        [{"part": number} for number in todo], override_num_blocks=len(todo)
    )
    with warnings.catch_warnings():
        # That options of actors are to go, in 2.64; nothing else ends a part that kills them all.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        scored = parts.map_batches(
            PartScorer,
            fn_constructor_args=(job,),
            batch_size=1,
            # One part at a time, so that the last ones don't wait behind each other.
            compute=ActorPoolStrategy(
                min_size=least, max_size=most, max_tasks_in_flight_per_actor=1
            ),
            num_cpus=fitted.cpus,
            num_gpus=fitted.gpus,
            max_task_retries=_RETRIES,
        )
    try:
        yield from scored.iter_rows()
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as failure:
        reason = str(failure).strip().split("\n")[-1][:300]
        raise ScorerUnavailable(
            f"The cluster gave up: {reason} An actor that dies again and again mostly lacks "
            "memory: fewer --actors, or a smaller --max-batch-tokens."
        ) from failure
