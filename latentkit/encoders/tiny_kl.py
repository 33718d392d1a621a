"""Encoders `tiny-kl` and `tiny-kl-16`: small KL autoencoders whose weights are part of the
package.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from latentkit.contracts import BuildContext, InputSpec, LatentLayout, Normalization, SizeRule
from latentkit.encoders.hashing import hash_tensors
from latentkit.encoders.options import TinyKLConfig
from latentkit.encoders.tiny_kl_network import DOWNSCALE, TinyKL
from latentkit.encoders.weight_files import check_is_weights
from latentkit.errors import EncoderError
from latentkit.runtime.device import memory_format

SHIPPED = Path(__file__).parents[1] / "weights"
NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "tiny-kl": {},
    "tiny-kl-16": {"channels": 16, "decoder_widths": (64, 124)},
}
"""By the encoder's name, the arguments of `TinyKL` that differ from its defaults, for random
weights.
"""
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
"""diffusers' name of a weights file."""
HALVES = ("encoder", "decoder")


def open_tiny_kl(
    config: TinyKLConfig, context: BuildContext, name: str = "tiny-kl"
) -> TinyKLEncoder:
    """Return the encoder `name` with the weights that `config` names, on the context's device.

    Raises:
        EncoderError: the folder contains no such model, or its weights don't fit its config; the
            message names the keys.
    """
    dtype = getattr(torch, config.dtype)
    if config.init == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            return TinyKLEncoder(build_network(NETWORKS[name], Path()), None, dtype, context.device)
    folder = (
        SHIPPED / name
        if config.model is None
        else context.recipe_dir / Path(config.model).expanduser()
    )
    with torch.device("meta"):
        network = build_network(read_config(folder), folder)
    check_weights(folder / WEIGHTS_NAME, network)
    return TinyKLEncoder(network, folder / WEIGHTS_NAME, dtype, context.device)


class TinyKLEncoder:
    """Encodes RGB images to 4 (up to 16) channels at an eighth of the size, and decodes them;
    satisfies `Encoder`, `Decodes` and `Trainable`.

    Each half of the network is loaded when it is first used, so encoding never reads the decoder.
    """

    modality = "image"
    input = InputSpec(
        channels=3, sizes={"H": SizeRule(multiple=DOWNSCALE), "W": SizeRule(multiple=DOWNSCALE)}
    )

    def __init__(
        self, network: TinyKL, weights: Path | None, dtype: torch.dtype, device: str
    ) -> None:
        """Take a network on torch's device "meta" and the file to load it from, or a loaded network
        and None.
        """
        config: Mapping[str, Any] = network.config
        self.layout = LatentLayout(
            name="latent",
            kind="gaussian",
            axes="CHW",
            channels=config["channels"],
            downscale=DOWNSCALE,
        )
        self._network = network
        self._weights = weights
        self._dtype = dtype
        self._unloaded = set(HALVES if weights is not None else ())
        if weights is None:
            for half in HALVES:
                move_network(network.get_submodule(half), device, dtype)
        self._device = torch.device(device)

    @property
    def normalization(self) -> Normalization:
        """Return (z - latents_mean) / latents_std per channel if the model has measured values,
        else its shift and scaling factor.
        """
        config: Mapping[str, Any] = self._network.config
        if config["latents_mean"] is None or config["latents_std"] is None:
            return Normalization(shift=config["shift_factor"], scale=config["scaling_factor"])
        return Normalization(
            shift=tuple(config["latents_mean"]),
            scale=tuple(1 / std for std in config["latents_std"]),
        )

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        """Return the posterior moments of a batch of images.

        Args:
            batch: (N, 3, H, W) float32 in [-1, 1]; H and W divisible by 8.

        Returns:
            "mean" and "logvar", each (N, C, H / 8, W / 8), unscaled, in the encoder's dtype; logvar
            in [-30, 20].

        Raises:
            ValueError: the shape is another one; the message names it.
        """
        if (
            batch.ndim != 4
            or batch.shape[1] != 3
            or batch.shape[2] % DOWNSCALE
            or batch.shape[3] % DOWNSCALE
        ):
            found = " x ".join(map(str, batch.shape))
            raise ValueError(
                f"tiny-kl: expected (N, 3, H, W) with H and W divisible by {DOWNSCALE}, got {found}"
            )
        network = self._load_half("encoder")
        with torch.inference_mode():
            moments = network.encode(self._to_network_input(batch, network.encoder))
        return {"mean": moments.mean, "logvar": moments.logvar}

    def decode(self, latents: Tensor) -> Tensor:
        """Decode raw latents to images.

        Args:
            latents: (N, C, h, w), unscaled.

        Returns:
            (N, 3, 8 h, 8 w) in the encoder's dtype, approximately in [-1, 1], not clamped.

        Raises:
            ValueError: the shape is another one; the message names it.
        """
        if latents.ndim != 4 or latents.shape[1] != self.layout.channels:
            raise ValueError(
                f"tiny-kl: expected latents (N, {self.layout.channels}, h, w), got"
                f" {' x '.join(map(str, latents.shape))}"
            )
        network = self._load_half("decoder")
        with torch.inference_mode():
            return network.decode(self._to_network_input(latents, network.decoder))

    def compile(self) -> None:
        """Compile the encoding half, with one graph per shape.

        The graph that encodes a batch, and so the last bits of its latents, must not depend on
        earlier batches.
        """
        self._load_half("encoder").encoder.compile(dynamic=False)

    def fingerprint(self) -> dict[str, str]:
        """Return hashes of both halves' tensors in the dtype they compute in: "weights" decides the
        latents, "decoder" doesn't.
        """
        return {
            "weights": hash_tensors(self._tensors("encoder")),
            "decoder": hash_tensors(self._tensors("decoder")),
        }

    # ------------------------------------------------------------ training

    @functools.cached_property
    def module(self) -> nn.Module:
        """Return the whole network, loaded. It is the same one that `encode` and `decode` use."""
        for half in HALVES:
            self._load_half(half)
        return self._network

    def last_layer(self) -> nn.Parameter:
        """Return the weight of the decoder's last convolution, (48, width, 3, 3)."""
        weight = self._load_half("decoder").decoder.pixels.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Store the measured mean and standard deviation of raw latents per channel, (C,) each, in
        the config that `save` writes, and the shift and scaling factor of all channels together.
        """
        center = float(mean.double().mean())
        spread = float((std.double().square() + (mean.double() - center).square()).mean().sqrt())
        values = {
            "latents_mean": mean.tolist(),
            "latents_std": std.tolist(),
            "shift_factor": center,
            "scaling_factor": 1 / spread,
        }
        self._network.register_to_config(**values)  # type: ignore[no-untyped-call]

    def save(self, folder: Path) -> None:
        """Write config.json and the weights as float16: half the bytes, and a rounding error far
        below one level of 8-bit images.
        """
        tensors = {
            f"{half}.{name}": tensor
            for half in HALVES
            for name, tensor in self._tensors(half).items()
        }
        stored = {
            name: tensor.to("cpu", torch.float16).contiguous() for name, tensor in tensors.items()
        }
        self._network.save_config(folder)
        save_file(stored, folder / WEIGHTS_NAME, metadata={"format": "pt"})

    # ------------------------------------------------------------ loading

    def _load_half(self, half: str) -> TinyKL:
        """Load one half ("encoder" or "decoder") unless it is loaded, and return the network."""
        if half in self._unloaded:
            module = self._network.get_submodule(half)
            module.load_state_dict(self._tensors(half), assign=True)
            move_network(module, self._device, self._dtype)
            self._unloaded.remove(half)
        return self._network

    def _tensors(self, half: str) -> dict[str, Tensor]:
        """Return the tensors of one half in the encoder's dtype, from the file if the half isn't
        loaded.
        """
        if half not in self._unloaded:
            return self._network.get_submodule(half).state_dict()
        assert self._weights is not None
        with safe_open(self._weights, "pt") as file:
            keys = file.keys()
            names = [name for name in keys if name.startswith(f"{half}.")]
            return {
                name.removeprefix(f"{half}."): file.get_tensor(name).to(self._dtype)
                for name in names
            }

    def _to_network_input(self, batch: Tensor, module: nn.Module) -> Tensor:
        """Move a batch to the module's device, in the encoder's dtype and the memory format that is
        fastest there.
        """
        device = next(module.parameters()).device  # training may have moved the network
        return batch.to(device=device, dtype=self._dtype, memory_format=memory_format(device, 4))


def move_network(module: nn.Module, device: torch.device | str, dtype: torch.dtype) -> None:
    """Move a module to a device and a dtype, in the memory format in which its convolutions are
    fast.
    """
    module.to(device, dtype).to(memory_format=memory_format(device, 4))  # type: ignore[call-overload]


def read_config(folder: Path) -> dict[str, Any]:
    """Return the values of a model folder's config.json that `TinyKL` takes.

    Raises:
        EncoderError: the file is missing, isn't JSON, is for another class, or has unknown keys.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EncoderError(
            f"{path}: {error.strerror}; expected a tiny-kl model's folder, with config.json and"
            f" {WEIGHTS_NAME}"
        ) from error
    except ValueError as error:
        raise EncoderError(f"{path}: not JSON: {error}") from error
    name = values.get("_class_name") if isinstance(values, Mapping) else None
    if name != TinyKL.__name__:
        raise EncoderError(
            f"{path}: expected _class_name 'TinyKL', got {name!r}; other autoencoders are opened by"
            " the encoder 'diffusers'"
        )
    known = inspect.signature(TinyKL.__init__).parameters
    unknown = sorted(key for key in values if key not in known and not key.startswith("_"))
    if unknown:
        raise EncoderError(f"{path}: keys that tiny-kl doesn't have: {', '.join(unknown)}")
    return {key: value for key, value in values.items() if not key.startswith("_")}


def build_network(values: Mapping[str, Any], folder: Path) -> TinyKL:
    """Build the network of a config on the current default device.

    Raises:
        EncoderError: the values don't make a network.
    """
    try:
        network: TinyKL = TinyKL(**values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EncoderError(
            f"{folder / 'config.json'}: no network can be built from it: {error}"
        ) from error
    channels = network.config["channels"]
    for key in ("latents_mean", "latents_std"):
        if values.get(key) is not None and len(values[key]) != channels:
            raise EncoderError(
                f"{folder / 'config.json'}: {key}: expected {channels} numbers, got {values[key]!r}"
            )
    return network


def check_weights(path: Path, network: nn.Module) -> None:
    """Check by its header that the file contains exactly the network's tensors.

    Raises:
        EncoderError: the file can't be read, or keys are missing, unexpected or have another
            shape; the message names them.
    """
    check_is_weights(path)
    try:
        with safe_open(path, "pt") as file:
            keys = file.keys()
            found = {name: tuple(file.get_slice(name).get_shape()) for name in keys}
    except (OSError, SafetensorError) as error:
        raise EncoderError(f"{path}: the weights can't be read: {error}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    misshaped = [key for key in sorted(expected) if found.get(key, expected[key]) != expected[key]]
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": [f"{key} {found[key]}, expected {expected[key]}" for key in misshaped],
    }
    if any(problems.values()):
        lines = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in problems.items() if keys)
        raise EncoderError(f"{path}: the weights don't fit the config beside them. {lines}")
