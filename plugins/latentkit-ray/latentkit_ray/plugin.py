"""Plugin declarations. Importing this loads neither ray nor torch."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from latentkit.contracts import BuildContext, Config, Executor, ExecutorSpec, neutral
from latentkit.hooks import hookimpl


class RayConfig(Config):
    """Options of the executor `ray`."""

    address: str | None = neutral(
        None,
        description=(
            "the cluster: host:port, auto or ray://host:port; left out: RAY_ADDRESS, else this"
            " machine's, started if need be"
        ),
    )
    num_workers: int | None = neutral(
        None, ge=1, description="most workers; left out: as many as fit on the cluster"
    )
    gpus_per_worker: float | None = neutral(
        None,
        ge=0,
        description=(
            "GPUs of one worker, also a part of one; left out: 1 where any node has a GPU, else 0"
        ),
    )
    cpus_per_worker: float | None = neutral(
        None,
        gt=0,
        description=(
            "CPUs of one worker; left out: 1 beside a GPU, else all of the smallest node, so one"
            " worker per machine"
        ),
    )
    retries: int = neutral(
        3,
        ge=0,
        description=(
            "how many workers, per running worker, may be lost without a unit being finished in"
            " between; one more ends the run"
        ),
    )

    @model_validator(mode="after")
    def _check_gpus(self) -> Self:
        if (
            self.gpus_per_worker is not None
            and self.gpus_per_worker > 1
            and not self.gpus_per_worker.is_integer()
        ):
            raise ValueError(
                "gpus_per_worker: expected a part of one GPU or a whole number of them, got"
                f" {self.gpus_per_worker:g}"
            )
        return self


def _build(config: RayConfig, context: BuildContext) -> Executor:
    from latentkit_ray.executor import RayExecutor

    return RayExecutor(config)


@hookimpl
def latentkit_executors() -> ExecutorSpec:
    """Declare the executor `ray`."""
    return ExecutorSpec(
        "ray",
        "actors on a Ray cluster, one per GPU or share of CPUs; units of lost ones go to others",
        RayConfig,
        _build,
    )
