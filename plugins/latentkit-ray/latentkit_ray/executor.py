"""Executor `ray`: the driver gives units to actors on the cluster when they ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from latentkit.contracts import Unit, UnitResult, Worker
from latentkit.kit import Progress, choose_device, free_memory
from latentkit_ray.cluster import check_that_worker_fits, connect_to_cluster, list_nodes, share_of
from latentkit_ray.plugin import RayConfig
from latentkit_ray.worker_pool import WorkerPool


class RayExecutor:
    """Runs workers on a Ray cluster.

    `device` is the device that the driver measures on: its first GPU, unless workers have none.
    """

    def __init__(self, config: RayConfig) -> None:
        self.config = config
        self.num_processes = 1
        self.device = "cpu" if config.gpus_per_worker == 0 else choose_device()

    def run(
        self, units: Sequence[Unit], make_worker: Callable[[str], Worker]
    ) -> Iterable[UnitResult]:
        """Yield the results of all units, as they arrive.

        Raises:
            RecipeError: the cluster can't be reached, or no worker fits on it.
            LatentkitError: a worker failed, or workers were lost repeatedly.
        """
        if not units:
            return
        free_memory(
            self.device
        )  # of batches that were measured here: a worker on the same GPU needs it
        with connect_to_cluster(self.config.address):
            share = share_of(self.config, list_nodes())
            check_that_worker_fits(share, list_nodes())
            # A unit's rows are samples, or the shards of a stream: either way the entries of the
            # source.
            with Progress(
                sum(unit.stop - unit.start for unit in units), "entries", _is_shown(make_worker)
            ) as progress:
                worker_pool = WorkerPool(self.config, share, make_worker)
                self.num_processes = worker_pool.num_wanted
                for result in worker_pool.run(units):
                    if (
                        getattr(result, "job", 0) == 0
                    ):  # of several encoders that share a pass, one is counted
                        progress.update(
                            result.unit.stop - result.unit.start,
                            result.waited_seconds / worker_pool.num_wanted,
                        )
                    yield result


def _is_shown(make_worker: Callable[[str], Worker]) -> bool:
    """Return whether to print the progress line: the job's setting, if the worker has a job."""
    parts = [
        part
        for given in getattr(make_worker, "args", ())
        for part in (given if isinstance(given, list | tuple) else [given])
    ]
    return all(getattr(part, "show_progress", True) for part in parts)
