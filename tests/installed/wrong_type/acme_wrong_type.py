"""A plugin whose hooks return what they must not: a class, a text, and a spec of another kind."""

from __future__ import annotations

from latentkit.contracts import BuildContext, Config, LossSpec, SourceSpec
from latentkit.hooks import hookimpl


class EmptyConfig(Config):
    """No options."""


def build(config: Config, context: BuildContext) -> object:
    return config


@hookimpl
def latentkit_sources() -> object:
    return 7


@hookimpl
def latentkit_modalities() -> object:
    return "image"


@hookimpl
def latentkit_losses() -> object:
    return [
        LossSpec("in-bad-company", "never seen", EmptyConfig, build),
        SourceSpec("no-loss", "never seen", EmptyConfig, build),
    ]
