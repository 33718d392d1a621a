"""Plugin declarations. Importing this loads no torch."""

from __future__ import annotations

import math
from itertools import permutations, product
from typing import Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from latentkit.contracts import (
    BuildContext,
    Config,
    Encoder,
    EncoderSpec,
    Modality,
    ModalitySpec,
    Source,
    SourceSpec,
    neutral,
)
from latentkit.hooks import hookimpl
from latentkit_volume.views import VIEW_HELP, expand_views

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd")
DICOM_SUFFIXES = (".dcm", ".ima")
AXES = frozenset(
    "".join(axes) for letters in product("RL", "AP", "SI") for axes in permutations(letters)
)


class DicomConfig(Config):
    """Options of the source `dicom`: each DICOM series below a folder is one sample, whatever its
    files are called.
    """

    path: str = Field(description="folder to read; relative to the recipe")


class VolumeConfig(Config):
    """Options of the modality `volume`. Axes are D, H, W: up (towards the head), front, right."""

    size: int | tuple[int, int, int] = Field(
        64, description="voxels of a patch along D, H and W, or one number for all"
    )
    spacing: float | tuple[float, float, float] | None = Field(
        None,
        description=(
            "voxel size in millimeters along D, H and W, or one number for all; none: each"
            " volume's own"
        ),
    )
    align: Literal["voxels", "patient"] = Field(
        "voxels",
        description=(
            "keep the volume's own axes, turned to the nearest of D, H, W; or interpolate onto the"
            " patient's true ones"
        ),
    )
    window: tuple[float, float] | None = Field(
        None,
        description=(
            "values, such as Hounsfield units, that become the lowest and highest of the encoder's"
            " range; others are clipped"
        ),
    )
    percentiles: tuple[float, float] = Field(
        (0.5, 99.5),
        description=(
            "the same two values if no window is given, as percentiles of each volume's voxels, 0"
            " to 100"
        ),
    )
    frame: int | Literal["channels"] | None = Field(
        None,
        description=(
            "for a 4-D volume: number, from 0, of the frame to use, or channels: all frames as"
            " channels; none: 4-D is refused"
        ),
    )
    assume: str | None = Field(
        None,
        description=(
            "where the axes point if a file doesn't say it, as letters, such as RAS or LPS; none:"
            " such a file is refused"
        ),
    )
    crop: Literal["center", "random"] = Field(
        "center",
        description="which patch is plain: the center, or a random one (from seed and key)",
    )
    views: list[str] = Field(["plain"], min_length=1, description=VIEW_HELP)
    max_voxels: int = neutral(
        1 << 29, gt=0, description="volumes with more voxels are refused before they are unpacked"
    )

    @field_validator("size")
    @classmethod
    def _positive_size(cls, size: int | tuple[int, int, int]) -> int | tuple[int, int, int]:
        if min((size,) if isinstance(size, int) else size) < 1:
            raise ValueError("must be at least 1 voxel")
        # One way to write a cube, so that both have one fingerprint; the same below.
        return size[0] if isinstance(size, tuple) and len(set(size)) == 1 else size

    @field_validator("spacing")
    @classmethod
    def _positive_spacing(
        cls, spacing: float | tuple[float, float, float] | None
    ) -> float | tuple[float, float, float] | None:
        if spacing is None:
            return None
        values = spacing if isinstance(spacing, tuple) else (spacing,)
        if not all(1e-6 <= value <= 1e6 for value in values):
            raise ValueError("must be from 1e-6 to 1e6 millimeters")
        return values[0] if len(set(values)) == 1 else spacing

    @field_validator("window", "percentiles")
    @classmethod
    def _low_to_high(cls, limits: tuple[float, float] | None) -> tuple[float, float] | None:
        if limits is not None and not -math.inf < limits[0] < limits[1] < math.inf:
            raise ValueError("must be two finite numbers, the lower one first")
        return limits

    @field_validator("percentiles")
    @classmethod
    def _up_to_a_hundred(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if limits[0] < 0 or limits[1] > 100:
            raise ValueError("must lie between 0 and 100")
        return limits

    @field_validator("frame")
    @classmethod
    def _frame_from_zero(cls, frame: int | str | None) -> int | str | None:
        if isinstance(frame, int) and frame < 0:
            raise ValueError("must be at least 0, or channels")
        return frame

    @field_validator("assume")
    @classmethod
    def _three_directions(cls, letters: str | None) -> str | None:
        if letters is not None and letters not in AXES:
            raise ValueError(
                "must be where the first, second and third axis point: one each of R or L, A or P,"
                " S or I, such as RAS or LPS"
            )
        return letters

    @field_validator("views")
    @classmethod
    def _known_views(cls, views: list[str]) -> list[str]:
        return expand_views(views)

    @model_validator(mode="after")
    def _window_or_percentiles(self) -> Self:
        if self.window is not None and "percentiles" in self.model_fields_set:
            raise ValueError("give window or percentiles, not both")
        return self


class VolumeKLConfig(Config):
    """Options of the encoder `volume-kl`.

    All except dtype describe random weights; for loaded ones the model's config.json does.
    """

    model: str | None = neutral(None, description="folder that training wrote")
    init: Literal["weights", "random"] = neutral(
        "weights",
        description=("start from those weights, or from random weights to train from scratch"),
    )
    channels: PositiveInt = neutral(1, description="channels of the volumes")
    latent_channels: PositiveInt = neutral(4, description="channels of the latents")
    downscale: Literal[4, 8] = neutral(
        4, description="voxels of the volume per position of the latents, along each axis"
    )
    widths: tuple[PositiveInt, PositiveInt] = neutral(
        (32, 64), description="channels at twice the latents' resolution, and at theirs"
    )
    blocks: tuple[PositiveInt, PositiveInt] = neutral(
        (1, 2), description="residual blocks at those two resolutions, in each half"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="the network computes in this"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.model is None) != (self.init == "random"):
            raise ValueError(
                "give model (the folder that training wrote), or init: random to train from scratch"
            )
        given = sorted(self.model_fields_set - {"model", "init", "dtype"})
        if self.model is not None and given:
            raise ValueError(
                f"give model, whose config.json says what it is, or {', '.join(given)}, not both"
            )
        if self.latent_channels > self.channels * self.downscale**3:
            raise ValueError(
                f"latent_channels: at most {self.channels * self.downscale**3}, the values that"
                " they stand for"
            )
        return self


def _build_volume(config: VolumeConfig, context: BuildContext) -> Modality:
    from latentkit_volume.modality import VolumeModality

    return VolumeModality(config, context)


def _build_volume_kl(config: VolumeKLConfig, context: BuildContext) -> Encoder:
    from latentkit_volume.encoder import open_volume_kl

    return open_volume_kl(config, context)


def _build_dicom(config: DicomConfig, context: BuildContext) -> Source:
    from latentkit_volume.series import DicomSource

    return DicomSource(config, context)


@hookimpl
def latentkit_sources() -> SourceSpec:
    """Declare the source `dicom`."""
    summary = "DICOM series below a folder, each one sample"
    return SourceSpec(
        "dicom",
        summary,
        DicomConfig,
        _build_dicom,
        suffixes=DICOM_SUFFIXES,
        signature=(128, b"DICM"),
        modality="volume",
    )


@hookimpl
def latentkit_modalities() -> ModalitySpec:
    """Declare the modality `volume`."""
    return ModalitySpec(
        "volume",
        "medical volumes: NIfTI, NRRD, DICOM",
        VolumeConfig,
        _build_volume,
        suffixes=VOLUME_SUFFIXES,
    )


@hookimpl
def latentkit_encoders() -> EncoderSpec:
    """Declare the encoder `volume-kl`."""
    return EncoderSpec(
        "volume-kl",
        "small 3-D KL autoencoder, to train on your own volumes",
        VolumeKLConfig,
        _build_volume_kl,
    )
