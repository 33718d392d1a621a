"""Train a small diffusion model by flow matching: what a trainer has to do to read latents.

    python recipes/train_flow_matching.py latents/quickstart [--steps 300]

All it knows of latentkit is `latentkit.open`: no source media, no autoencoder. Rectified flow (Liu
et al., "Flow Straight and Fast", 2022): the network sees x_t = (1 - t) * noise + t * latent and
predicts latent - noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from diffusers import UNet2DModel
from torch import Tensor

import latentkit


def endless_batches(path: str, batch_size: int, crop: int) -> Iterator[Tensor]:
    """Latents (N, C, crop, crop), epoch after epoch; a random view and a new draw from the
    posterior each time.
    """
    batches = latentkit.open(path, views="random").batches(batch_size, shuffle=True, tail="drop")
    while True:
        for batch in batches:
            latents = batch["latent"]
            top, left = (int(torch.randint(size - crop + 1, ())) for size in latents.shape[2:])
            yield latents[:, :, top : top + crop, left : left + crop]


def train(path: str, steps: int, batch_size: int = 8, crop: int = 16, seed: int = 0) -> list[float]:
    """The loss of each step."""
    torch.manual_seed(seed)
    channels = latentkit.open(path).layout.channels
    network = UNet2DModel(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for _, latents in zip(range(steps), endless_batches(path, batch_size, crop), strict=False):
        noise, time = torch.randn_like(latents), torch.rand(len(latents))
        weight = time[:, None, None, None]
        velocity = network((1 - weight) * noise + weight * latents, time * 1000).sample
        loss = (velocity - (latents - noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("path", help="folder of the latent dataset")
    options.add_argument("--steps", type=int, default=300)
    given = options.parse_args()
    losses = train(given.path, given.steps)
    tenth = max(len(losses) // 10, 1)
    first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
    print(f"loss of the first tenth of {len(losses)} steps: {first:.3f}, of the last: {last:.3f}")


if __name__ == "__main__":
    main()
