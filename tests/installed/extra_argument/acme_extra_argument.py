"""A plugin whose hook asks for an argument that hooks don't have, beside a hook without a mark."""

from __future__ import annotations

from latentkit.contracts import BuildContext, Config, LossSpec, SourceSpec
from latentkit.hooks import hookimpl


class EmptyConfig(Config):
    """No options."""


def build(config: Config, context: BuildContext) -> object:
    return config


@hookimpl
def latentkit_sources(recipe: object) -> SourceSpec:
    return SourceSpec("extra-argument", "never seen", EmptyConfig, build)


def latentkit_losses() -> LossSpec:
    return LossSpec("unmarked", "never seen: @hookimpl was forgotten", EmptyConfig, build)
