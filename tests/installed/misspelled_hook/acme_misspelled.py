"""A plugin with one hook spelt wrong, and one right."""

from __future__ import annotations

from latentkit.contracts import BuildContext, Config, LossSpec, SourceSpec
from latentkit.hooks import hookimpl


class EmptyConfig(Config):
    """No options."""


def build(config: Config, context: BuildContext) -> object:
    return config


@hookimpl
def latentkit_source() -> SourceSpec:
    return SourceSpec("misspelled-source", "never seen", EmptyConfig, build)


@hookimpl
def latentkit_losses() -> LossSpec:
    return LossSpec("beside-misspelled", "the hook spelt right still counts", EmptyConfig, build)
