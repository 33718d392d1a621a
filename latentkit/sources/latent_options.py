"""Options of core's sources of latents. Loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentkit.contracts import Config


class TensorNamesConfig(Config):
    """How tensors are found in files, for sources of latents."""

    path: str = Field(description="folder of the cache")
    latent: str | None = Field(
        None,
        description=(
            "name of the tensor that is the latent; null: mean with logvar or std, moments, latent,"
            " latents, or the only one"
        ),
    )
    stacked: Literal["logvar", "std"] | None = Field(
        None,
        description=(
            "the tensor is the mean followed by this along the channels; null: only that of the"
            " name moments, whose second half is logvar"
        ),
    )


class LatentFilesConfig(TensorNamesConfig):
    """Options of `latent-files`."""

    class_folders: bool = Field(
        False, description="whether the first folder in a file's path is its attribute label"
    )


class LatentTarsConfig(TensorNamesConfig):
    """Options of `latent-tars`."""
