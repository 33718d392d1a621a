"""Sizes, statistics and precision of published autoencoders, from folders of weights to datasets
that are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import latentkit as lk
from latentkit.encoders.diffusers import DiffusersEncoder
from latentkit.errors import RecipeError, SourceError

WEIGHTS = "diffusion_pytorch_model.safetensors"
OWN_STATISTICS = (
    "AutoencoderKLFlux2",
    "AutoencoderKLLTXVideo",
    "AutoencoderKLLTX2Video",
    "AutoencoderKLLTX2Audio",
)
MakePhotos = Callable[..., Path]


def open_folder(
    folder: Path, dtype: torch.dtype = torch.float32, modality: str = ""
) -> DiffusersEncoder:
    return DiffusersEncoder(folder, None, dtype, False, "cpu", modality=modality)


def changed(folder: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a model's folder with other weights."""
    to.mkdir()
    (to / "config.json").write_text((folder / "config.json").read_text())
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, to / WEIGHTS)
    return to


# ---------------------------------------------------------------- sizes


def test_a_size_that_flux2_could_not_fold_is_refused_before_encoding(
    tiny: Any, make_photos: MakePhotos, tmp_path: Path
) -> None:
    folder, photos = tiny.folder("AutoencoderKLFlux2"), make_photos(2)
    with pytest.raises(
        RecipeError,
        match="height 34 is not a size the encoder takes: a multiple of 4; nearest: 32 and 36",
    ):
        lk.encode(photos, tmp_path / "out", encoder=folder, size=34)
    buckets = {"modality.with.buckets": {"area": 1024, "step": 2}, "preview": 0}
    with pytest.raises(RecipeError, match="make step a multiple of 4"):
        lk.encode(photos, tmp_path / "out", encoder=folder, overrides=buckets)
    assert not (tmp_path / "out").exists()
    data = lk.encode(photos, tmp_path / "out", encoder=folder, size=36, overrides={"preview": 0})
    assert tuple(data[0]["latent"].shape) == (16, 9, 9)
    with pytest.raises(ValueError, match="W of the batch is 34"):
        tiny.encoder("AutoencoderKLFlux2").encode(torch.zeros(1, 3, 32, 34))


def test_cosmos_takes_as_many_frames_as_it_has_statistics_of(
    tiny: Any, rows_of: Any, tmp_path: Path
) -> None:
    encoder = tiny.encoder("AutoencoderKLCosmos")  # with statistics of two latent frames
    assert [frames for frames in range(1, 40) if encoder.input.sizes["T"].allows(frames)] == [1, 9]
    with pytest.raises(
        ValueError, match=r"T of the batch is 17; the encoder accepts 8 . k . 1, at most 9"
    ):
        encoder.encode(torch.zeros(1, 3, 17, 16, 16))
    pictures = open_folder(tiny.folder("AutoencoderKLCosmos"), modality="image")
    assert pictures.normalization.shift == [0.1, 0.3, 0.5, 0.7], "the first frame's"


# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize("name", OWN_STATISTICS)
def test_statistics_are_those_of_the_file_whatever_dtype_is_computed_in(
    name: str, tiny: Any, tmp_path: Path
) -> None:
    folder = tiny.folder(name)
    stored = load_file(folder / WEIGHTS)
    if "bn.running_mean" in stored:
        eps = json.loads((folder / "config.json").read_text())["batch_norm_eps"]
        mean, std = (
            stored["bn.running_mean"].double(),
            (stored["bn.running_var"].double() + eps).sqrt(),
        )
    else:
        mean, std = stored["latents_mean"].double(), stored["latents_std"].double()
    by_dtype = [
        open_folder(folder, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ]
    for encoder in by_dtype:
        assert encoder.normalization == by_dtype[0].normalization
        assert encoder.normalization.shift == mean.tolist()
        assert encoder.normalization.scale == (1.0 / std).tolist()
    batch = tiny.batch(name, rows=1)
    with torch.inference_mode():
        model = getattr(diffusers, name).from_pretrained(folder, torch_dtype=torch.bfloat16).eval()
        form = torch.channels_last if by_dtype[1].input.axes == "CHW" else torch.contiguous_format
        expected = (
            model.to(memory_format=form)
            .encode(batch.to(torch.bfloat16, memory_format=form))
            .latent_dist.mean
        )
    assert torch.equal(
        by_dtype[1].encode(batch)["mean"], expected
    ), "the network computes in bfloat16 as before"


# ---------------------------------------------------------------- precision


@pytest.fixture
def fragile(kl_folder: Path, tmp_path: Path) -> Path:
    """A model whose decoder leaves the range of float16 on its way, as that of SDXL does."""

    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["decoder.conv_in.weight"] *= 1e7

    return changed(kl_folder, tmp_path / "fragile", enlarge)


def test_what_overflows_in_float16_is_decoded_in_float32(
    fragile: Path, make_photos: MakePhotos, tmp_path: Path
) -> None:
    photos, given = (
        make_photos(2),
        {"encoder.with.dtype": "float16", "preview": 2, "output.dtype": "int8"},
    )
    lk.encode(photos, tmp_path / "out", encoder=fragile, size=32, overrides=given)
    data = lk.open(tmp_path / "out", posterior="mean")
    raw = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not bool(
        open_folder(fragile, torch.float16).decode(raw).isfinite().all()
    ), "the bare decoder overflows"
    shown = np.asarray(Image.open(tmp_path / "out" / "preview.png").convert("RGB"))[4:36, 40:72]
    latent = data[0]["latent"][None]
    decoded = open_folder(fragile).decode(data.normalization.invert(latent))[0].clamp(-1, 1)
    expected = ((decoded + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(shown - expected).max() <= 1
    assert shown.std() > 1
    torch.testing.assert_close(data.decode(latent, "cpu")[0].clamp(-1, 1), decoded)
    assert (
        json.loads((tmp_path / "out" / "dataset.json").read_text())["quantisation"]["psnr_db"] > 10
    )


def test_reconstructions_that_are_not_finite_are_said(
    fragile: Path, make_photos: MakePhotos, tmp_path: Path
) -> None:
    recipe: dict[str, Any] = {
        "task": "evaluate",
        "source": {"use": "folder", "with": {"path": str(make_photos(3))}},
        "modality": {"use": "image", "with": {"size": 32}},
        "model": {"use": "diffusers", "with": {"model": str(fragile), "dtype": "float16"}},
        "metrics": [{"use": "psnr"}],
        "output": {"path": str(tmp_path / "evaluation")},
    }
    assert "3 of 3 reconstructions are not finite" in " ".join(lk.run(recipe).evaluation.warnings)
    recipe["model"]["with"]["dtype"], recipe["output"]["path"] = "float32", str(tmp_path / "other")
    assert lk.run(recipe).evaluation.warnings == []


def test_a_config_that_asks_for_more_than_float16_is_said_once(
    kl_folder: Path, make_photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert json.loads((kl_folder / "config.json").read_text())["force_upcast"] is True
    for dtype, times in (("float16", 1), ("float32", 0)):
        lk.encode(
            make_photos(2, dtype),
            tmp_path / f"out-{dtype}",
            encoder=kl_folder,
            size=32,
            overrides={"encoder.with.dtype": dtype},
        )
        said = capsys.readouterr().err
        assert said.count("force_upcast is true") == times
        assert said.count("on_overflow: retry-fp32") == times


def test_latents_that_are_not_finite_are_not_blamed_on_the_source(
    kl_folder: Path, make_photos: MakePhotos, tmp_path: Path
) -> None:
    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["quant_conv.weight"] *= 1e9

    folder = changed(kl_folder, tmp_path / "large", enlarge)
    with pytest.raises(
        SourceError, match="the latents are not finite; set on_overflow: retry-fp32"
    ) as caught:
        lk.encode(
            make_photos(12),
            tmp_path / "out",
            encoder=folder,
            size=32,
            overrides={"encoder.with.dtype": "float16", "preview": 0},
        )
    assert "the source" not in str(caught.value)
    assert "write to another output, or raise max_bad" in str(caught.value)


# ---------------------------------------------------------------- the short command


def test_the_short_command_takes_a_size_that_the_model_takes(
    tiny: Any, make_photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, folder = (
        make_photos(2),
        tiny.folder("AutoencoderRAE"),
    )  # which takes 28 x 28 pixels alone
    data = lk.encode(photos, tmp_path / "out", encoder=folder, overrides={"preview": 0})
    assert (
        "modality.with.size: 28, as the encoder doesn't take the default 256"
        in capsys.readouterr().err
    )
    assert tuple(data[0]["latent"].shape) == (64, 2, 2)
    assert "size: 28" in (tmp_path / "out" / "recipe.yaml").read_text()
    again = lk.run(tmp_path / "out" / "recipe.yaml")
    assert again.fingerprint == data.fingerprint
    with pytest.raises(RecipeError, match="height 64 is not a size the encoder takes"):
        lk.encode(photos, tmp_path / "other", encoder=folder, size=64)
