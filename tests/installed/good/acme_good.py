"""A plugin with nothing wrong: two sources from a generator, one loss, and an encoder hook that has
nothing to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from latentkit.contracts import BuildContext, Config, LossSpec, SourceSpec
from latentkit.hooks import hookimpl


class CountConfig(Config):
    """Source `good-count`."""

    count: int = Field(3, ge=1, description="number of samples")


def build(config: Config, context: BuildContext) -> Any:
    return config


@hookimpl
def latentkit_sources() -> Iterator[SourceSpec]:
    yield SourceSpec("good-count", "counts", CountConfig, build)
    yield SourceSpec("good-count-too", "counts too", CountConfig, build, version=2)


@hookimpl
def latentkit_losses() -> LossSpec:
    return LossSpec("good-loss", "a loss", CountConfig, build, role="latent")


@hookimpl
def latentkit_encoders() -> None:
    return None
