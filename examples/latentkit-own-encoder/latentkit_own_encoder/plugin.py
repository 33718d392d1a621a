"""The declarations of the plugin.

Importing this loads no torch, so that `latentkit plugins` answers in a blink.
"""

from __future__ import annotations

from latentkit.contracts import BuildContext, Config, Encoder, EncoderSpec, neutral
from latentkit.errors import EncoderError
from latentkit.hooks import hookimpl


class OwnConfig(Config):
    """Options of `own-encoder`."""

    model: str = neutral(..., description="file of the weights, .safetensors")


def _build(config: OwnConfig, context: BuildContext) -> Encoder:
    from safetensors import SafetensorError

    from latentkit_own_encoder.encoder import OwnEncoder

    path = context.recipe_dir / config.model
    try:
        return OwnEncoder(path, context.device)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise EncoderError(f"{path}: expected the weights of an Autoencoder: {error}") from error


@hookimpl
def latentkit_encoders() -> EncoderSpec:
    """The encoder `own-encoder`."""
    return EncoderSpec("own-encoder", "a module of one's own, f8, 4 channels", OwnConfig, _build)
