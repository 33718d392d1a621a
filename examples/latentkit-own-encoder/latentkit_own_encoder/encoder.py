"""Encoder `own-encoder`: one's own module, with weights from a file."""

from pathlib import Path

import torch
from latentkit.contracts import InputSpec, LatentLayout, Normalization, SizeRule
from latentkit.encoders.hashing import hash_tensors
from safetensors.torch import load_file

from latentkit_own_encoder.network import Autoencoder


class OwnEncoder:
    modality = "image"
    input = InputSpec(
        channels=3, range=(-1.0, 1.0), sizes={axis: SizeRule(multiple=8) for axis in "HW"}
    )
    layout = LatentLayout(name="latent", kind="gaussian", axes="CHW", channels=4, downscale=8)
    normalization = Normalization(shift=0.05, scale=1.2)

    def __init__(self, weights: Path, device: str) -> None:
        self.device, self.network = device, Autoencoder().eval().requires_grad_(False).to(device)
        self.network.load_state_dict(load_file(weights))

    def encode(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        if batch.shape[2] % 8 or batch.shape[3] % 8:
            raise ValueError(
                f"height and width must be multiples of 8, got {tuple(batch.shape[2:])}"
            )
        mean, logvar = self.network.encoder(batch.to(self.device)).chunk(2, dim=1)
        return {"mean": mean, "logvar": logvar.clamp(-30, 20)}

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.network.decoder(latents.to(self.device)).clamp(-1, 1)  # type: ignore[no-any-return]

    def fingerprint(self) -> dict[str, str]:
        return {"weights": hash_tensors(self.network.encoder.state_dict())}
