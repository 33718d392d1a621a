"""A plugin that takes the name of a source of latentkit's own."""

from __future__ import annotations

from latentkit.contracts import BuildContext, Config, SourceSpec
from latentkit.hooks import hookimpl


class EmptyConfig(Config):
    """No options."""


def build(config: Config, context: BuildContext) -> object:
    return config


@hookimpl
def latentkit_sources() -> SourceSpec:
    return SourceSpec("folder", "not the one you know", EmptyConfig, build)
