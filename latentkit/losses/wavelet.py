"""Loss `wavelet`: errors by frequency, which an error per pixel can't distinguish."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad

from latentkit.contracts import LossBatch
from latentkit.errors import TrainingError
from latentkit.losses.reconstruction import num_values


@dataclass(frozen=True)
class Wavelet:
    """Mean absolute difference of the Haar wavelet coefficients of reconstruction and input.

    The transform is orthonormal, so there are as many coefficients as values and `l1` and this have
    one unit. Li et al. 2024, "WF-VAE", compare sub-bands this way inside the network; here the
    sub-bands are the image's. An odd side is padded with an error of zero.

    Args:
        levels: how many times the low frequencies are split.
    """

    levels: int = 1

    def __call__(self, batch: LossBatch) -> Tensor:
        """Return (N,) float32, in units of the input's range.

        Raises:
            TrainingError: the inputs are not images, (N, C, H, W).
        """
        if batch.inputs.ndim != 4:
            raise TrainingError(
                f"loss 'wavelet': expected images, (N, C, H, W), got {tuple(batch.inputs.shape)}"
            )
        low = (
            batch.reconstruction.output.float() - batch.inputs.float()
        )  # the transform is linear, so the transform of the errors is enough
        low = low if batch.mask is None else low * batch.mask
        total = low.new_zeros(len(low))
        for _ in range(self.levels):
            low, *details = haar(low)
            total = total + sum(band.abs().flatten(1).sum(dim=1) for band in details)
        total = total + low.abs().flatten(1).sum(dim=1)
        return total / num_values(batch.inputs, batch.mask)


def haar(values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Low frequencies, then horizontal, vertical and diagonal edges of (..., H, W), each (...,
    ceil(H / 2), ceil(W / 2)).

    Haar 1910, orthonormal; an odd side is padded with a zero.
    """
    height, width = values.shape[-2:]
    even = pad(values, (0, width % 2, 0, height % 2))
    a, b = even[..., 0::2, 0::2], even[..., 0::2, 1::2]
    c, d = even[..., 1::2, 0::2], even[..., 1::2, 1::2]
    return (a + b + c + d) / 2, (a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2
