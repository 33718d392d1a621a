"""Plugin declarations. Importing this loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentkit.contracts import BuildContext, Config, Loss, LossSpec
from latentkit.hooks import hookimpl


class PerceptualConfig(Config):
    """Options of the loss `perceptual`."""

    net: Literal["lpips-vgg", "lpips-alex", "st-lpips-vgg", "st-lpips-alex"] = Field(
        "lpips-vgg",
        description=(
            "LPIPS 0.1, or ST-LPIPS, which small shifts don't disturb; on the features of VGG16 or"
            " AlexNet"
        ),
    )
    model: str | None = Field(
        None,
        description=(
            "file of weights, .safetensors or .pth: torchvision's vgg16 or alexnet, or a whole"
            " LPIPS network; left out with st-lpips: the one inside the installed package"
            " stlpips-pytorch"
        ),
    )
    heads: str | None = Field(
        None,
        description=(
            "file of the linear heads, where model hasn't them; left out: the one inside the"
            " installed package lpips"
        ),
    )


def _build(config: PerceptualConfig, context: BuildContext) -> Loss:
    from latentkit_perceptual.loss import open_perceptual

    return open_perceptual(config, context)


@hookimpl
def latentkit_losses() -> LossSpec:
    """Declare the loss `perceptual`."""
    return LossSpec(
        "perceptual",
        "distance of deep features, LPIPS or ST-LPIPS, from local weights",
        PerceptualConfig,
        _build,
    )
