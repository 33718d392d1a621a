"""The declarations of the plugin.

Importing this loads no torch, so that `latentkit plugins` answers in a blink.
"""

from __future__ import annotations

from latentkit.contracts import BuildContext, Config, Encoder, EncoderSpec, neutral
from latentkit.hooks import hookimpl


class FeaturesConfig(Config):
    """Options of `features`."""

    model: str = neutral(
        ...,
        description=(
            "folder of a vision model of patches, as transformers saves it (DINOv2, ViT ...)"
        ),
    )


def _build(config: FeaturesConfig, context: BuildContext) -> Encoder:
    from latentkit_features.encoder import open_features

    return open_features(context.recipe_dir / config.model, context.device)


@hookimpl
def latentkit_encoders() -> EncoderSpec:
    """The encoder `features`."""
    return EncoderSpec(
        "features", "patch features of a vision model, such as DINOv2", FeaturesConfig, _build
    )
