"""A plugin whose source has a name that is not kebab-case."""

from __future__ import annotations

from latentkit.contracts import BuildContext, Config, SourceSpec
from latentkit.hooks import hookimpl


class EmptyConfig(Config):
    """No options."""


def build(config: Config, context: BuildContext) -> object:
    return config


@hookimpl
def latentkit_sources() -> SourceSpec:
    return SourceSpec("Bad_Name", "never seen", EmptyConfig, build)
