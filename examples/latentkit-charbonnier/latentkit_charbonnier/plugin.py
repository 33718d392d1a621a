"""The declarations of the plugin.

Importing this loads no torch, so that `latentkit plugins` answers in a blink.
"""

from __future__ import annotations

from latentkit.contracts import BuildContext, Config, Loss, LossSpec
from latentkit.hooks import hookimpl
from pydantic import Field


class CharbonnierConfig(Config):
    """Options of `charbonnier`."""

    width: float = Field(
        1e-3,
        gt=0,
        description="errors below it count squared, above it as they are; in units of the input",
    )


def _build(config: CharbonnierConfig, context: BuildContext) -> Loss:
    from latentkit_charbonnier.loss import Charbonnier

    return Charbonnier(config.width)


@hookimpl
def latentkit_losses() -> LossSpec:
    """The loss `charbonnier`."""
    return LossSpec(
        "charbonnier",
        "absolute error, rounded off at zero",
        CharbonnierConfig,
        _build,
        role="reconstruction",
    )
