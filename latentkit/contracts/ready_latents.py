"""What a source of latents that lie ready says of all of them. Loads no torch.

Plugins import this from `latentkit.contracts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentkit.contracts.encoder_description import Normalization


@dataclass(frozen=True)
class KnownLatents:
    """What a cache of latents, or its format, tells of all of them; None where it doesn't.

    A source whose samples are latents, of `SourceSpec.modality` "latents", may have it as an
    attribute `known`. The media of its samples are what `latentkit.kit.pack_latents` returns.

    Args:
        normalization: that the trainer applies to raw latents, or that was applied already.
        is_normalized: whether it was applied already.
        downscale: input size over latent size, for all axes but C or one for each.
        axes: of a latent, such as "CHW"; empty: by the number of its axes.
    """

    normalization: Normalization | None = None
    is_normalized: bool | None = None
    downscale: int | tuple[int | float, ...] | None = None
    axes: str = ""
