"""Version 2.0 of a distribution that is installed twice."""

from __future__ import annotations

from latentkit.contracts import BuildContext, Config, LossSpec
from latentkit.hooks import hookimpl


class EmptyConfig(Config):
    """No options."""


def build(config: Config, context: BuildContext) -> object:
    return config


@hookimpl
def latentkit_losses() -> LossSpec:
    return LossSpec("shadow", "version 2.0", EmptyConfig, build)
