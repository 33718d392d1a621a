"""Published autoencoders, by their true configs: each opens by its folder, with the sizes it has,
and normalizes as its pipeline does.

`published.json` has a line for each: sizes worked out by hand, the numbers its latents are scaled
by, and the line of its pipeline below diffusers/ (0.42.1) that does it. The configs are those that
latentkit ships, or stand in the table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import latentkit as lk
import latentkit.encoders
from latentkit.contracts import BuildContext, LatentLayout, Normalization
from latentkit.encoders.diffusers import DiffusersEncoder, open_diffusers
from latentkit.encoders.options import DiffusersConfig
from latentkit.encoders.published_configs import ALIASES, find_published
from latentkit.encoding.encode_source import encode_source
from latentkit.encoding.make_plan import EncodeInputs, EncodeSettings
from latentkit.executors.local import LocalExecutor
from latentkit.store.local_folder import LocalFolder

SHIPPED = Path(latentkit.encoders.__file__).parent / "published"
PUBLISHED: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text())
NUM_FRAMES = 16
"""Latent frames that Cosmos 1.0 has statistics of."""


def config_of(name: str) -> dict[str, Any]:
    """The published config, without what nothing reads."""
    config: dict[str, Any] = PUBLISHED[name].get("config") or json.loads(
        (SHIPPED / f"{name}.json").read_text()
    )
    if name == "cosmos-1.0":
        draw = torch.Generator().manual_seed(4)
        values = torch.randn(2, 16 * NUM_FRAMES, generator=draw)
        config = config | {
            "latents_mean": values[0].tolist(),
            "latents_std": (values[1].abs() + 0.5).tolist(),
        }
    return config


class Published(DiffusersEncoder):
    """A published config without weights: statistics that would be among them are drawn, of the
    published shape.
    """

    class_name = ""
    """Of the model."""

    @property
    def statistics(self) -> Mapping[str, Tensor]:
        channels = PUBLISHED_FOLD.get(self.class_name, 1) * self.layout.channels
        values = torch.randn(2, channels, generator=torch.Generator().manual_seed(5))
        names = (
            ("bn.running_mean", "bn.running_var")
            if "Flux2" in self.class_name
            else ("latents_mean", "latents_std")
        )
        return dict(zip(names, (values[0], values[1].abs() + 0.5), strict=True))


PUBLISHED_FOLD = {"AutoencoderKLFlux2": 4, "AutoencoderKLLTX2Audio": 16}
"""Channels after 2 x 2 patches, or of all mel bins of a latent, over those before."""


def open_published(name: str, folder: Path) -> Published:
    folder.mkdir()
    config = config_of(name)
    (folder / "config.json").write_text(json.dumps(config))
    encoder = Published(folder, None, torch.float32, False, "cpu")
    encoder.class_name = config["_class_name"]
    return encoder


def by_pipeline(name: str, encoder: Published, z: Tensor) -> Tensor:
    """The formula of the pipeline that published.json names, in float64, by the published numbers.
    """
    config, z, how = config_of(name), z.double(), PUBLISHED[name]["normalization"]
    ones = [1] * (z.ndim - 2)
    if "per" not in how:
        return (z - how.get("shift", 0.0)) * how["scale"]
    if how["per"] == "patch of the batch norm":
        n, c, h, w = z.shape
        patches = (
            z.view(n, c, h // 2, 2, w // 2, 2)
            .permute(0, 1, 3, 5, 2, 4)
            .reshape(n, 4 * c, h // 2, w // 2)
        )
        mean, variance = (
            encoder.statistics[f"bn.running_{kind}"].double().view(1, -1, 1, 1)
            for kind in ("mean", "var")
        )
        return (patches - mean) / (variance + 1e-4).sqrt()
    if how["per"] == "channel and latent frame":
        mean, std = (
            torch.tensor(config[key], dtype=torch.float64).view(1, 16, -1, 1, 1)[:, :, : z.shape[2]]
            for key in ("latents_mean", "latents_std")
        )
        return (z - mean) / std
    if how["per"] == "channel":
        mean, std = (
            torch.tensor(config[key], dtype=torch.float64).view(1, -1, *ones)
            for key in ("latents_mean", "latents_std")
        )
        return (z - mean) * how.get("scale", 1.0) / std
    mean, std = (
        encoder.statistics[key].double().view(1, -1, *ones)
        for key in ("latents_mean", "latents_std")
    )
    if how["per"] == "channel of the buffers":
        return (z - mean) / std
    assert how["per"] == "channel and mel bin of the buffers"
    packed = z.transpose(1, 2).flatten(2).transpose(1, 2)  # (N, channels x bins, frames)
    return ((packed - mean.flatten(2)) / std.flatten(2))[..., None]


class Identity:
    """An encoder that gives its input as the mean of its latents, in the layout and normalization
    of another one.
    """

    modality = "image"

    def __init__(self, layout: LatentLayout, normalization: Normalization, taken: Any) -> None:
        self.layout, self.normalization, self.input = layout, normalization, taken

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        if self.layout.kind == "deterministic":
            return {"latent": batch}
        return {"mean": batch, "logvar": torch.zeros_like(batch)}

    def fingerprint(self) -> dict[str, str]:
        return {"weights": "none"}


def read_through_dataset(
    encoder: DiffusersEncoder, raw: Tensor, rows_of: Any, folder: Path
) -> Tensor:
    """Raw latents written to a dataset in float32, and read with the mean of their posterior."""
    layout = LatentLayout(
        "latent", encoder.layout.kind, encoder.layout.axes, encoder.layout.channels, 1
    )
    taken = type(encoder.input)(channels=encoder.layout.channels, axes=encoder.layout.axes)
    identity = Identity(layout, encoder.normalization, taken)
    inputs = EncodeInputs(
        rows_of(raw), rows_of(raw), ["plain"], lambda _: identity, {"encoder.name": "test"}
    )
    settings = EncodeSettings(
        dtype="float32",
        batch_size=len(raw),
        unit_size=len(raw),
        threads=torch.get_num_threads(),
        compile=False,
    )
    encode_source(
        LocalFolder(folder), inputs, LocalExecutor("cpu"), "cpu", settings, "", show_progress=False
    )
    data = lk.open(folder, posterior="mean")
    return torch.stack([data[place]["latent"] for place in range(len(data))])


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_config_opens_with_its_sizes_and_is_read_as_its_pipeline_scales_it(
    name: str, rows_of: Any, tmp_path: Path
) -> None:
    known, encoder = PUBLISHED[name], open_published(name, tmp_path / "model")
    channels, *sizes = known["input"]
    letters = encoder.input.axes[1:]
    assert (encoder.input.channels, len(letters)) == (channels, len(sizes))
    assert encoder.input.sample_rate_hz == known.get("rate")
    for axis, size, step in zip(letters, sizes, known["step"], strict=True):
        allowed = {
            other
            for other in range(size, size + step + 1)
            if encoder.input.sizes[axis].allows(other)
        }
        assert allowed == (
            {size} if axis == "M" else {size, size + step}
        ), f"the sizes taken along {axis}"
    downscale = (
        encoder.layout.downscale
        if isinstance(encoder.layout.downscale, tuple)
        else [encoder.layout.downscale] * len(sizes)
    )
    latents = [
        encoder.layout.channels,
        *(math.ceil(size / factor) for size, factor in zip(sizes, downscale, strict=True)),
    ]
    assert latents == known["latents"]
    shape = [
        latents[0],
        *(size if axis in "TM" else 4 for axis, size in zip(letters, latents[1:], strict=True)),
    ]
    raw = torch.randn((2, *shape), generator=torch.Generator().manual_seed(6)) * 3
    expected = by_pipeline(name, encoder, raw).float()
    read = read_through_dataset(encoder, raw, rows_of, tmp_path / "latents")
    torch.testing.assert_close(read, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        encoder.normalization.apply(raw, encoder.layout.axes), expected, rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(
        encoder.normalization.invert(read, encoder.layout.axes), raw, rtol=1e-4, atol=1e-5
    )


def test_every_shipped_config_is_held_to_its_pipeline() -> None:
    assert {file.stem for file in SHIPPED.glob("*.json")} <= set(PUBLISHED)


def test_old_configs_without_a_scaling_factor_have_that_of_stable_diffusion(tmp_path: Path) -> None:
    config = config_of("sd15")
    config.pop("scaling_factor", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = open_diffusers(DiffusersConfig(model=str(tmp_path)), BuildContext())
    assert encoder.normalization == Normalization(0.0, 0.18215)


SCALED = {
    "sd1 sd14 sd2 sd21 sd-ft-mse sd-ft-ema kl-f8": ("AutoencoderKL", 4, 0.18215, None),
    "sdxl-fp16-fix kolors pixart-sigma hunyuan-dit": ("AutoencoderKL", 4, 0.13025, None),
    "sd35": ("AutoencoderKL", 16, 1.5305, 0.0609),
    "flux chroma lumina2 z-image": ("AutoencoderKL", 16, 0.3611, 0.1159),
    "dc-ae-f32c32-sana": ("AutoencoderDC", 32, 0.41407, None),
    "taesdxl": ("AutoencoderTiny", 4, 1.0, 0.0),
    "taesd3": ("AutoencoderTiny", 16, 1.0, 0.0),
    "flux2-klein": ("AutoencoderKLFlux2", 32, None, None),
    "ltx-0.9 ltx-0.9.7 ltx-0.9.8": ("AutoencoderKLLTXVideo", 128, 1.0, None),
    "oobleck": ("AutoencoderOobleck", None, None, None),
    "wan2.2-14b": ("AutoencoderKLWan", None, None, None),
    "wan2.2-5b": ("AutoencoderKLWan", None, None, None),
}
"""Class, latent channels, scale and shift in the config.json of each alias's own model on the hub;
None where it has none.
"""


def test_an_alias_has_the_scale_of_its_own_model() -> None:
    known = {alias: facts for aliases, facts in SCALED.items() for alias in aliases.split()}
    assert set(known) == set(ALIASES)
    for alias, (kind, channels, scale, shift) in known.items():
        file = find_published(alias)
        assert file is not None
        config = json.loads(file.read_text())
        assert config["_class_name"] == kind
        assert channels is None or config["latent_channels"] == channels
        assert scale in (None, config.get("scaling_factor", 1.0)), alias
        assert (shift or 0.0) == (config.get("shift_factor") or 0.0), alias
    means = [
        json.loads(path.read_text())["latents_mean"][0]
        for alias in ("wan2.2-14b", "wan2.2-5b")
        if (path := find_published(alias))
    ]
    assert means == [-0.7571, -0.2289]
