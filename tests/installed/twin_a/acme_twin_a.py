"""One of two plugins with the same entry point name, and the same name for a source."""

from __future__ import annotations

from collections.abc import Iterator

from latentkit.contracts import BuildContext, Config, SourceSpec
from latentkit.hooks import hookimpl


class EmptyConfig(Config):
    """No options."""


def build(config: Config, context: BuildContext) -> object:
    return config


@hookimpl
def latentkit_sources() -> Iterator[SourceSpec]:
    yield SourceSpec("twin", "both have it", EmptyConfig, build)
    yield SourceSpec("only-a", "only this one has it", EmptyConfig, build)
