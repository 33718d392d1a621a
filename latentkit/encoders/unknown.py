"""Encoder `unknown`: hands on latents that somebody else's program made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from latentkit.contracts import Decodes, InputSpec, LatentLayout, Normalization, Remark
from latentkit.encoders.options import UnknownConfig
from latentkit.errors import EncoderError, RecipeError


class UnknownEncoder:
    """What is known of latents without their encoder.

    Args:
        config: the options.
        open_decoder: opens the model that the option `decoder` names.
    """

    modality = "latents"

    def __init__(self, config: UnknownConfig, open_decoder: Callable[[], Any]) -> None:
        self._config, self._open_decoder = config, open_decoder
        self._decoder: Decodes | None = None
        downscale = 1 if config.downscale is None else config.downscale
        self.layout = LatentLayout("latent", config.kind, config.axes, config.channels, downscale)
        self._scale = Normalization(
            0.0 if config.shift is None else config.shift,
            1.0 if config.scale is None else config.scale,
            config.fold,
        )
        if config.normalized and (config.kind == "gaussian" or config.scale is None):
            raise RecipeError(
                "encoder 'unknown': normalized latents need their scale (encoder.with.scale), and"
                " have no log-variance"
            )
        # Letters of its own: these are latents in size, and the layout's are what was encoded.
        self.input = InputSpec(channels=self._num_channels(), axes=config.axes.lower())

    def _num_channels(self) -> int:
        folded = 1
        for factor in self._config.fold.values() if self._config.normalized else ():
            folded *= factor
        return self._config.channels * (2 if self._config.kind == "gaussian" else folded)

    @property
    def normalization(self) -> Normalization:
        """By shift and scale of the options; none where they aren't known."""
        return self._scale

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        """Split moments (N, 2C, h, w), or return latents (N, C, h, w) raw."""
        if self.layout.kind == "gaussian":
            mean, logvar = batch.chunk(2, dim=1)
            return {"mean": mean, "logvar": logvar}
        if self._config.normalized:
            batch = self._scale.invert(batch, self.layout.axes)
        return {"latent": batch}

    def decode(self, latents: Tensor) -> Tensor:
        """Decode raw latents by the model that the option `decoder` names.

        Raises:
            EncoderError: none is named.
        """
        if self._config.decoder is None:
            raise EncoderError(
                "the latents were imported, and the encoder that made them is unknown: name it,"
                " with --encoder when importing, or by encoder.with.decoder.use (and"
                " encoder.with.decoder.with) in the dataset's recipe.yaml"
            )
        if self._decoder is None:
            decoder = self._open_decoder()
            if not isinstance(decoder, Decodes):
                raise EncoderError(f"the encoder {self._config.decoder.use!r} can't decode")
            self._decoder = decoder
        return self._decoder.decode(latents)

    def fingerprint(self) -> dict[str, str]:
        """That the weights aren't known, and the scale where it was taken off."""
        taken_off: Mapping[str, str] = {}
        if self._config.normalized:
            taken_off = {"normalized_by": f"{self._scale.shift} {self._scale.scale}"}
        return {"weights": "unknown", **taken_off}

    def remarks(self) -> Iterator[Remark]:
        """Say what isn't known, and what it is needed for."""
        unknown: Sequence[tuple[str, Any, str]] = (
            ("scale", self._config.scale, "batches come as they were stored"),
            ("downscale", self._config.downscale, "buckets are named by the latents' own size"),
        )
        for name, value, effect in unknown:
            if value is None:
                yield Remark(
                    f"the latents' {name} isn't known: {effect}, and exporters that need it refuse"
                    f" them; give it with --{name} when importing"
                )
