"""A plugin whose hook dies after its first declaration."""

from __future__ import annotations

from collections.abc import Iterator

from latentkit.contracts import BuildContext, Config, LossSpec, SourceSpec
from latentkit.hooks import hookimpl


class EmptyConfig(Config):
    """No options."""


def build(config: Config, context: BuildContext) -> object:
    return config


@hookimpl
def latentkit_sources() -> Iterator[SourceSpec]:
    yield SourceSpec(
        "before-the-end", "never seen: a hook counts whole or not at all", EmptyConfig, build
    )
    raise KeyError("ACME_TOKEN")


@hookimpl
def latentkit_losses() -> LossSpec:
    return LossSpec("beside-late", "another hook of the same plugin", EmptyConfig, build)
