"""Loss `patch-gan`: an adversarial loss with a discriminator that judges patches.

Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", section
3.2.2, in the size of Rombach et al. 2022. The adaptive weight, the start step and the
discriminator's optimizer belong to the training loop.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import relu, softplus

from latentkit.contracts import LossBatch
from latentkit.errors import TrainingError

if TYPE_CHECKING:
    from latentkit.losses.options import PatchGanConfig

MAX_GROUPS = 32
WEIGHT_STD = 0.02
LECAM_DECAY = 0.99
"""Share of LeCam's moving averages that one pass keeps."""


def open_patch_gan(config: PatchGanConfig, channels: int, seed: int) -> PatchGan:
    """Return the loss for images of `channels` channels; weights are drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        discriminator = PatchDiscriminator(channels, config.width, config.num_layers, config.norm)
    return PatchGan(discriminator, config.objective, config.lecam)


class PatchGan:
    """Adversarial loss of a discriminator of patches.

    Hinge: Lim and Ye 2017, "Geometric GAN"; vanilla: Goodfellow et al. 2014, with the generator's
    term that doesn't saturate. The discriminator's loss is half the sum over real and generated, as
    in Rombach et al.'s code, plus the weighted LeCam term of Tseng et al. 2021, "Regularizing
    Generative Adversarial Networks under Limited Data", in the one-sided form of the authors' code.

    Args:
        discriminator: gives logits; the training loop may wrap it.
        objective: "hinge" or "vanilla".
        lecam: weight of the LeCam term.
    """

    def __init__(
        self,
        discriminator: PatchDiscriminator,
        objective: str = "hinge",
        lecam: float = 0.0,
    ) -> None:
        self.discriminator: nn.Module = discriminator
        self._averages = discriminator.averages
        self._is_hinge, self._lecam = objective == "hinge", lecam

    def __call__(self, batch: LossBatch) -> Tensor:
        """Return the generator's term, (N,) float32: small if the discriminator judges patches of
        the reconstruction as real.

        Raises:
            TrainingError: the images are too small, or have another number of channels.
        """
        logits = self._logits_of(batch.reconstruction.output)
        return _mean(-logits if self._is_hinge else softplus(-logits))

    def discriminator_loss(self, batch: LossBatch) -> Tensor:
        """Return the discriminator's own loss, (N,) float32. In training mode this updates the
        LeCam averages, so all processes must call it.

        Raises:
            TrainingError: as for the loss.
        """
        real, generated = self._logits_of(batch.inputs), self._logits_of(
            batch.reconstruction.output.detach()
        )
        if self._is_hinge:
            loss = 0.5 * (_mean(relu(1 - real)) + _mean(relu(1 + generated)))
        else:
            loss = 0.5 * (_mean(softplus(-real)) + _mean(softplus(generated)))
        if not self._lecam:
            return loss
        averages = self._averages
        if averages.training:
            averages.update(real.detach(), generated.detach())
        lecam = _mean(relu(real - averages.generated).square()) + _mean(
            relu(averages.real - generated).square()
        )
        return loss + self._lecam * lecam

    def _logits_of(self, images: Tensor) -> Tensor:
        logits: Tensor = self.discriminator(images)
        return logits.float()


class PatchDiscriminator(nn.Module):
    """Images (N, C, H, W) to a logit for each patch, (N, 1, h, w): large for real ones.

    Args:
        width: channels of the first layer; each further one has twice as many, at most 8 times.
        num_layers: convolutions of stride 2.
        norm: "group", "batch" or "none", after all convolutions but the first and the last.
    """

    def __init__(self, channels: int, width: int, num_layers: int, norm: str) -> None:
        super().__init__()
        self.channels = channels
        self.smallest_side = 3 * 2**num_layers
        widths = [width * min(2**number, 8) for number in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for number in range(1, num_layers + 1):
            stride = 2 if number < num_layers else 1
            layers += [
                nn.Conv2d(widths[number - 1], widths[number], 4, stride, 1, bias=norm == "none"),
                *_make_norm(norm, widths[number]),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.averages = LogitAverages()
        self.apply(_draw_weights)

    def forward(self, images: Tensor) -> Tensor:
        if (
            images.ndim != 4
            or images.shape[1] != self.channels
            or min(images.shape[2:]) < self.smallest_side
        ):
            raise TrainingError(
                f"loss 'patch-gan': expected images (N, {self.channels}, H, W) with sides of at"
                f" least {self.smallest_side} pixels, got {tuple(images.shape)}; for"
                " smaller images lower num_layers"
            )
        return cast(Tensor, self.layers(images))


class LogitAverages(nn.Module):
    """Moving averages of a discriminator's logits, in buffers: they are saved with it."""

    real: Tensor
    generated: Tensor
    num_updates: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("real", "generated", "num_updates"):
            self.register_buffer(name, torch.zeros(()))

    def update(self, real: Tensor, generated: Tensor) -> None:
        """Add the mean logits of a pass, over all processes, to the averages. The first passes are
        averaged evenly, so that the averages don't start at 0.

        A pass with a value that isn't finite, in any process, is ignored, because the averages
        would never be finite again.
        """
        means = _over_processes(torch.stack([real.mean(), generated.mean()]))
        counts = (
            means.isfinite().all()
        )  # stays a tensor, because reading its value would make the device wait
        share = 1 - (self.num_updates / (self.num_updates + 1)).clamp(max=LECAM_DECAY)
        for average, mean in zip((self.real, self.generated), means, strict=True):
            average.copy_(torch.where(counts, average.lerp(mean, share), average))
        self.num_updates += counts


def _over_processes(means: Tensor) -> Tensor:
    """Return the mean over all processes; each process passes its own values."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(means)
        means /= distributed.get_world_size()
    return means


def _make_norm(norm: str, width: int) -> list[nn.Module]:
    if norm == "none":
        return []
    return [
        (
            nn.BatchNorm2d(width)
            if norm == "batch"
            else nn.GroupNorm(math.gcd(MAX_GROUPS, width), width)
        )
    ]


def _draw_weights(module: nn.Module) -> None:
    """Isola et al. 2017, section 6.2: N(0, 0.02); scales of norms, as in their code, N(1, 0.02)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, WEIGHT_STD)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, WEIGHT_STD)
    if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.GroupNorm) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _mean(values: Tensor) -> Tensor:
    """Average (N, ...) to (N,)."""
    return values.flatten(1).mean(dim=1)
