"""What every part of a training run shares: the model's passes, and the run's state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from latentkit.contracts import Moments, Reconstruction
from latentkit.errors import TrainingError
from latentkit.runtime.stopping import Stop
from latentkit.training_log import TrainingLog
from latentkit.training_settings import TrainSettings, WeightedLoss
from latentkit.training_state import TrainState

AUTOCAST = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Run:
    """What the parts of a run share: the state, which changes, and what doesn't.

    Args:
        state: see there.
        losses: all of them.
        last_layers: by role of a loss, the weight at which adaptive weights are measured.
        settings, accelerator, log, stop: see there.
    """

    state: TrainState
    losses: Sequence[WeightedLoss]
    last_layers: dict[str, nn.Parameter]
    settings: TrainSettings
    accelerator: Accelerator
    log: TrainingLog
    stop: Stop = field(default_factory=Stop)

    def forward(self, values: Tensor) -> Reconstruction:
        """The model's forward, computed in the precision asked for and given in float32."""
        with self._autocast():
            found: Reconstruction = self.state.module(values)
        moments = found.moments
        return Reconstruction(
            output=found.output.float(),
            latents=found.latents.float(),
            moments=None if moments is None else Moments(moments.mean.float(), moments.logvar.float()),
            extra_losses={name: value.float() for name, value in found.extra_losses.items()},
        )

    def decode_moments(self, moments: Moments) -> Reconstruction:
        """As `forward`, from a posterior that was computed before: only the decoder runs."""
        latents = moments.mean + torch.exp(0.5 * moments.logvar) * torch.randn_like(moments.mean)
        return Reconstruction(self.decode(latents), latents, moments)

    def encode(self, values: Tensor) -> Moments | Tensor:
        """Moments of a batch, or latents where the model has none; float32."""
        found = self.forward(values)
        return found.latents if found.moments is None else found.moments

    def decode(self, latents: Tensor) -> Tensor:
        """The batch of raw latents; float32.

        Raises:
            TrainingError: the model can't decode alone.
        """
        decode = getattr(self.state.module, "decode", None)
        if decode is None:
            raise TrainingError("this run decodes latents, but the model's module has no method decode")
        with self._autocast():
            decoded: Tensor = decode(latents)
        return decoded.float()

    def active_losses(self) -> list[WeightedLoss]:
        """The losses that count in the next step."""
        return [loss for loss in self.losses if loss.schedule.is_active(self.state.step)]

    def _autocast(self) -> torch.autocast:
        dtype = AUTOCAST[self.settings.precision]
        return torch.autocast(self.accelerator.device.type, dtype=dtype, enabled=dtype is not None)
