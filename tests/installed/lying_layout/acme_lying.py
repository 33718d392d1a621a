"""Encoders whose layout is not what they give, each in one way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from latentkit.contracts import (
    Config,
    EncoderSpec,
    InputSpec,
    LatentLayout,
    Normalization,
    SizeRule,
)
from latentkit.hooks import hookimpl

LAYOUT = LatentLayout(name="latent", kind="deterministic", axes="CHW", channels=3, downscale=8)
LIES = {
    "lies-channels": replace(LAYOUT, channels=4),
    "lies-sizes": replace(LAYOUT, downscale=4),
    "lies-kind": replace(LAYOUT, kind="gaussian"),
    "lies-axes": replace(LAYOUT, axes="CTHW", downscale=(1, 8, 8)),
}


class ShrinkEncoder:
    modality = "image"
    input = InputSpec(channels=3, sizes={"H": SizeRule(multiple=8), "W": SizeRule(multiple=8)})
    normalization = Normalization()

    def __init__(self, layout: LatentLayout) -> None:
        self.layout = layout

    def encode(self, batch: Any) -> dict[str, Any]:
        from torch.nn.functional import avg_pool2d

        return {"latent": avg_pool2d(batch, 8)}

    def fingerprint(self) -> dict[str, str]:
        return {"weights": "none"}


def build(layout: LatentLayout) -> Any:
    return lambda config, context: ShrinkEncoder(layout)


@hookimpl
def latentkit_encoders() -> Iterator[EncoderSpec]:
    for name, layout in LIES.items():
        yield EncoderSpec(name, "its layout lies", Config, build(layout))
