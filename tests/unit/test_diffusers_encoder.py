"""Weights fit strictly or are refused, wherever they come from; only the half that is needed is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from latentkit.builtin import DiffusersConfig
from latentkit.contracts import BuildContext, Normalization
from latentkit.encoders.diffusers import DiffusersEncoder, open_diffusers
from latentkit.encoders.diffusers_table import read_normalization
from latentkit.errors import EncoderError

WEIGHTS = "diffusion_pytorch_model.safetensors"


def open_model(model: Path | str, **options: Any) -> DiffusersEncoder:
    return open_diffusers(DiffusersConfig(model=str(model), **options), BuildContext())


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1


def with_tensors(folder: Path, to: Path, change: Any) -> Path:
    shutil.copytree(folder, to)
    tensors = load_file(to / WEIGHTS)
    change(tensors)
    save_file(tensors, to / WEIGHTS)
    return to


def test_missing_key_is_named(kl_folder: Path, tmp_path: Path) -> None:
    folder = with_tensors(kl_folder, tmp_path / "m", lambda tensors: tensors.pop("encoder.conv_in.bias"))
    with pytest.raises(EncoderError, match=r"1 missing \(encoder\.conv_in\.bias\)"):
        open_model(folder).fingerprint()


def test_unexpected_key_is_named(taesd_folder: Path, tmp_path: Path) -> None:
    folder = with_tensors(taesd_folder, tmp_path / "m", lambda tensors: tensors.update({"encoder.layers.2.pool.0.weight": torch.ones(3)}))
    with pytest.raises(EncoderError, match=r"1 unexpected \(encoder\.layers\.2\.pool\.0\.weight\)"):
        open_model(folder).fingerprint()


def test_other_shape_is_refused(kl_folder: Path, tmp_path: Path) -> None:
    folder = with_tensors(kl_folder, tmp_path / "m", lambda tensors: tensors.update({"encoder.conv_in.bias": torch.ones(3)}))
    with pytest.raises(EncoderError, match=r"conv_in\.bias"):
        open_model(folder).fingerprint()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x00" * 100])
def test_damaged_weights_are_refused(kl_folder: Path, tmp_path: Path, content: bytes) -> None:
    shutil.copytree(kl_folder, tmp_path / "m")
    (tmp_path / "m" / WEIGHTS).write_bytes(content)
    with pytest.raises(EncoderError, match="can't be loaded"):
        open_model(tmp_path / "m").fingerprint()


def test_single_file_equals_its_folder(kl_folder: Path, tmp_path: Path, batch: torch.Tensor) -> None:
    expected = open_model(kl_folder).encode(batch)
    beside = open_model(kl_folder / WEIGHTS).encode(batch)
    shutil.copy(kl_folder / WEIGHTS, tmp_path / "vae.safetensors")
    named = open_model(tmp_path / "vae.safetensors", config=str(kl_folder / "config.json")).encode(batch)
    for got in (beside, named):
        assert torch.equal(got["mean"], expected["mean"])
    with pytest.raises(EncoderError, match=r"needs the model's config\.json"):
        open_model(tmp_path / "vae.safetensors")


def test_single_file_that_does_not_fit_is_refused(kl_folder: Path, tmp_path: Path) -> None:
    folder = with_tensors(kl_folder, tmp_path / "m", lambda tensors: tensors.pop("decoder.conv_out.bias"))
    with pytest.raises(EncoderError, match=r"1 missing \(decoder\.conv_out\.bias\)"):
        open_model(folder / WEIGHTS).fingerprint()


def test_pipeline_folder_is_found_by_its_vae(kl_folder: Path, tmp_path: Path, batch: torch.Tensor) -> None:
    shutil.copytree(kl_folder, tmp_path / "pipeline" / "vae")
    expected = open_model(kl_folder).encode(batch)["mean"]
    assert torch.equal(open_model(tmp_path / "pipeline").encode(batch)["mean"], expected)
    assert torch.equal(open_model(tmp_path / "pipeline", subfolder="vae").encode(batch)["mean"], expected)


def test_encoding_holds_no_decoder(kl_folder: Path, batch: torch.Tensor) -> None:
    encoder = open_model(kl_folder)
    encoder.encode(batch)
    names = dict(encoder._encoding_half.named_parameters())
    assert names
    assert not [name for name in names if name.startswith(("decoder", "post_quant_conv"))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_encode_is_a_direct_call_in_every_dtype(kl_folder: Path, batch: torch.Tensor, dtype: str) -> None:
    torch_dtype = getattr(torch, dtype)
    model = diffusers.AutoencoderKL.from_pretrained(kl_folder, torch_dtype=torch_dtype).eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = model.encode(batch.to(torch_dtype, memory_format=torch.channels_last)).latent_dist
    got = open_model(kl_folder, dtype=dtype).encode(batch)
    assert torch.equal(got["mean"], expected.mean)
    assert torch.equal(got["logvar"], expected.logvar)
    assert got["mean"].dtype == torch_dtype


def test_tiling_is_part_of_the_fingerprint(kl_folder: Path) -> None:
    assert open_model(kl_folder, tiling=True).fingerprint() != open_model(kl_folder).fingerprint()


def test_sizes_that_the_model_floors_are_refused(kl_folder: Path) -> None:
    with pytest.raises(ValueError, match="W of a batch is 38"):
        open_model(kl_folder).encode(torch.zeros(1, 3, 32, 38))


def test_downscale_is_measured(kl_folder: Path, taesd_folder: Path) -> None:
    assert (open_model(kl_folder).layout.downscale, open_model(taesd_folder).layout.downscale) == (4, 4)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"scaling_factor": 0.18215}, Normalization(0.0, 0.18215)),
        ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, Normalization(0.1159, 0.3611)),
        (
            {"scaling_factor": 0.5, "shift_factor": 9.0, "latents_mean": [1.0, 2.0], "latents_std": [2.0, 4.0]},
            Normalization([1.0, 2.0], [0.25, 0.125]),
        ),
        ({"scaling_factor": None, "latents_mean": None, "latents_std": None}, Normalization(0.0, 1.0)),
        ({}, Normalization(0.0, 1.0)),
    ],
)
def test_normalization_is_the_pipelines(config: dict[str, Any], expected: Normalization) -> None:
    assert read_normalization(config) == expected


def test_class_that_is_not_driven_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(EncoderError, match="'UNet2DModel'; this version drives"):
        open_model(tmp_path)


def test_random_weights_train_but_do_not_encode(kl_folder: Path, batch: torch.Tensor) -> None:
    config = DiffusersConfig(config=str(kl_folder / "config.json"))
    encoder = open_diffusers(config, BuildContext(seed=3))
    with pytest.raises(EncoderError, match="can be trained, but not encode"):
        encoder.encode(batch)
    again = open_diffusers(config, BuildContext(seed=3))
    assert all(torch.equal(a, b) for a, b in zip(encoder.module.parameters(), again.module.parameters(), strict=True))
    with pytest.raises(ValidationError, match="give model"):
        DiffusersConfig()


def test_saved_model_has_the_statistics_it_is_given(kl_folder: Path, tmp_path: Path) -> None:
    encoder = open_model(kl_folder)
    encoder.set_statistics(torch.tensor([1.0, -1.0, 0.0, 2.0]), torch.tensor([1.0, 2.0, 1.0, 2.0]))
    encoder.save(tmp_path / "model")
    saved = diffusers.AutoencoderKL.from_pretrained(tmp_path / "model")
    # Mean 0.5; variance is E[std^2] + Var[mean] = 2.5 + 1.25.
    assert saved.config["shift_factor"] == pytest.approx(0.5)
    assert saved.config["scaling_factor"] == pytest.approx(3.75**-0.5)
    assert open_model(tmp_path / "model").fingerprint() == open_model(kl_folder).fingerprint()


def test_last_layer_is_the_last_convolution(kl_folder: Path, taesd_folder: Path) -> None:
    for folder in (kl_folder, taesd_folder):
        weight = open_model(folder).last_layer()
        assert weight.shape[0] == 3
