"""Weights fit strictly or are refused, wherever they come from; only the half that is needed is
there.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from latentkit.contracts import BuildContext, LatentLayout, Normalization
from latentkit.encoders.diffusers import DiffusersEncoder, open_diffusers
from latentkit.encoders.diffusers_normalization import read_normalization
from latentkit.encoders.diffusers_table import TRAITS
from latentkit.encoders.options import DiffusersConfig
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
    folder = with_tensors(
        kl_folder, tmp_path / "m", lambda tensors: tensors.pop("encoder.conv_in.bias")
    )
    with pytest.raises(EncoderError, match=r"1 missing \(encoder\.conv_in\.bias\)"):
        open_model(folder).fingerprint()


def test_unexpected_key_is_named(taesd_folder: Path, tmp_path: Path) -> None:
    folder = with_tensors(
        taesd_folder,
        tmp_path / "m",
        lambda tensors: tensors.update({"encoder.layers.2.pool.0.weight": torch.ones(3)}),
    )
    with pytest.raises(EncoderError, match=r"1 unexpected \(encoder\.layers\.2\.pool\.0\.weight\)"):
        open_model(folder).fingerprint()


def test_other_shape_is_refused(kl_folder: Path, tmp_path: Path) -> None:
    folder = with_tensors(
        kl_folder,
        tmp_path / "m",
        lambda tensors: tensors.update({"encoder.conv_in.bias": torch.ones(3)}),
    )
    with pytest.raises(EncoderError, match=r"conv_in\.bias"):
        open_model(folder).fingerprint()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x00" * 100])
def test_damaged_weights_are_refused(kl_folder: Path, tmp_path: Path, content: bytes) -> None:
    shutil.copytree(kl_folder, tmp_path / "m")
    (tmp_path / "m" / WEIGHTS).write_bytes(content)
    with pytest.raises(
        EncoderError,
        match=(
            r"diffusion_pytorch_model\.safetensors.*(the file is empty|is a web page|is damaged, cut off)"
        ),
    ):
        open_model(tmp_path / "m").fingerprint()


def test_single_file_equals_its_folder(
    kl_folder: Path, tmp_path: Path, batch: torch.Tensor
) -> None:
    expected = open_model(kl_folder).encode(batch)
    beside = open_model(kl_folder / WEIGHTS).encode(batch)
    shutil.copy(kl_folder / WEIGHTS, tmp_path / "vae.safetensors")
    named = open_model(tmp_path / "vae.safetensors", config=str(kl_folder / "config.json")).encode(
        batch
    )
    for got in (beside, named):
        assert torch.equal(got["mean"], expected["mean"])
    with pytest.raises(
        EncoderError, match=r"fit none of the published .* the model's config\.json beside"
    ):
        open_model(tmp_path / "vae.safetensors")


def test_single_file_that_does_not_fit_is_refused(kl_folder: Path, tmp_path: Path) -> None:
    folder = with_tensors(
        kl_folder, tmp_path / "m", lambda tensors: tensors.pop("decoder.conv_out.bias")
    )
    with pytest.raises(EncoderError, match=r"1 missing \(decoder\.conv_out\.bias\)"):
        open_model(folder / WEIGHTS).fingerprint()


def test_pipeline_folder_is_found_by_its_vae(
    kl_folder: Path, tmp_path: Path, batch: torch.Tensor
) -> None:
    shutil.copytree(kl_folder, tmp_path / "pipeline" / "vae")
    expected = open_model(kl_folder).encode(batch)["mean"]
    assert torch.equal(open_model(tmp_path / "pipeline").encode(batch)["mean"], expected)
    assert torch.equal(
        open_model(tmp_path / "pipeline", subfolder="vae").encode(batch)["mean"], expected
    )


def test_of_a_pipelines_autoencoders_the_one_of_the_modality_is_opened(
    kl_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(kl_folder, tmp_path / "pipeline" / "vae")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        sound = diffusers.AutoencoderOobleck(8, [2, 4], [1, 2], 4, 4)
    sound.save_pretrained(tmp_path / "pipeline" / "audio_vae")

    def open_for(modality: str, folder: Path, **options: Any) -> str:
        return open_diffusers(
            DiffusersConfig(model=str(folder), **options), BuildContext(modality=modality)
        ).modality

    pipeline = tmp_path / "pipeline"
    assert [open_for(name, pipeline) for name in ("image", "video", "audio", "")] == [
        "image",
        "video",
        "audio",
        "image",
    ]
    for folder, options in ((pipeline, {"subfolder": "vae"}), (pipeline / "vae", {})):
        with pytest.raises(
            EncoderError, match="vae doesn't accept the modality 'audio'; audio_vae beside it does"
        ):
            open_for("audio", folder, **options)
    with pytest.raises(
        EncoderError, match="audio_vae doesn't accept the modality 'image'; vae beside it does"
    ):
        open_for("image", pipeline, subfolder="audio_vae")
    assert open_for("text", pipeline) == "image", "neither takes it: what runs the recipe says so"
    (pipeline / "vae" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    assert open_for("audio", pipeline) == "audio"


def test_encoding_holds_no_decoder(kl_folder: Path, batch: torch.Tensor) -> None:
    encoder = open_model(kl_folder)
    encoder.encode(batch)
    names = dict(encoder.encoding_half.named_parameters())
    assert names
    assert not [name for name in names if name.startswith(("decoder", "post_quant_conv"))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_encode_is_a_direct_call_in_every_dtype(
    kl_folder: Path, batch: torch.Tensor, dtype: str
) -> None:
    torch_dtype = getattr(torch, dtype)
    model = (
        diffusers.AutoencoderKL.from_pretrained(kl_folder, torch_dtype=torch_dtype)
        .eval()
        .to(memory_format=torch.channels_last)
    )
    with torch.inference_mode():
        expected = model.encode(
            batch.to(torch_dtype, memory_format=torch.channels_last)
        ).latent_dist
    got = open_model(kl_folder, dtype=dtype).encode(batch)
    assert torch.equal(got["mean"], expected.mean)
    assert torch.equal(got["logvar"], expected.logvar)
    assert got["mean"].dtype == torch_dtype


def test_tiling_is_part_of_the_fingerprint(kl_folder: Path) -> None:
    assert open_model(kl_folder, tiling=True).fingerprint() != open_model(kl_folder).fingerprint()


def test_sizes_that_the_model_floors_are_refused(kl_folder: Path) -> None:
    with pytest.raises(ValueError, match="W of the batch is 38"):
        open_model(kl_folder).encode(torch.zeros(1, 3, 32, 38))


def test_downscale_is_measured(kl_folder: Path, taesd_folder: Path) -> None:
    assert (open_model(kl_folder).layout.downscale, open_model(taesd_folder).layout.downscale) == (
        4,
        4,
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"scaling_factor": 0.18215}, Normalization(0.0, 0.18215)),
        ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, Normalization(0.1159, 0.3611)),
        (
            {
                "scaling_factor": 0.5,
                "shift_factor": 9.0,
                "latents_mean": [1.0, 2.0],
                "latents_std": [2.0, 4.0],
            },
            Normalization([1.0, 2.0], [0.25, 0.125]),
        ),
        (
            {"scaling_factor": None, "latents_mean": None, "latents_std": None},
            Normalization(0.0, 1.0),
        ),
        ({}, Normalization(0.0, 1.0)),
    ],
)
def test_normalization_is_the_pipelines(config: dict[str, Any], expected: Normalization) -> None:
    assert (
        read_normalization(
            config, TRAITS["AutoencoderKL"], LatentLayout("latent", "gaussian", "CHW", 2, 8)
        )
        == expected
    )


def test_class_that_is_not_driven_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(EncoderError, match="'UNet2DModel'; this version supports"):
        open_model(tmp_path)


def test_a_class_that_the_installed_diffusers_lacks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRAITS, "AutoencoderKLOfTomorrow", TRAITS["AutoencoderKL"])  # type: ignore[arg-type]
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLOfTomorrow"}))
    expected = (
        rf"diffusers {re.escape(diffusers.__version__)} has no AutoencoderKLOfTomorrow; pip install"
        r" -U diffusers$"
    )
    with pytest.raises(EncoderError, match=expected):
        open_model(tmp_path)


def test_configs_of_flax_classes_are_those_of_the_same_model(
    kl_folder: Path, tmp_path: Path, batch: torch.Tensor
) -> None:
    folder = shutil.copytree(kl_folder, tmp_path / "flax")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "FlaxAutoencoderKL"}))
    assert torch.equal(
        open_model(folder).encode(batch)["mean"], open_model(kl_folder).encode(batch)["mean"]
    )
    assert open_model(folder).fingerprint() == open_model(kl_folder).fingerprint()


def test_random_weights_train_but_do_not_encode(kl_folder: Path, batch: torch.Tensor) -> None:
    config = DiffusersConfig(config=str(kl_folder / "config.json"))
    encoder = open_diffusers(config, BuildContext(seed=3))
    with pytest.raises(EncoderError, match="can be trained but can't encode"):
        encoder.encode(batch)
    again = open_diffusers(config, BuildContext(seed=3))
    assert all(
        torch.equal(a, b)
        for a, b in zip(encoder.module.parameters(), again.module.parameters(), strict=True)
    )
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


def original_name(name: str, num_levels: int) -> str:
    """The name that latent-diffusion's own trainers give a tensor of AutoencoderKL."""
    for pattern, new in (
        (r"(encoder)\.down_blocks\.(\d+)\.resnets\.(\d+)", r"\1.down.\2.block.\3"),
        (r"(encoder)\.down_blocks\.(\d+)\.downsamplers\.0", r"\1.down.\2.downsample"),
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"group_norm", "norm"),
        (r"to_out\.0", "proj_out"),
        (r"to_(q|k|v)\.", r"\1."),
        (r"conv_norm_out", "norm_out"),
        (r"conv_shortcut", "nin_shortcut"),
    ):
        name = re.sub(pattern, new, name)
    name = re.sub(
        r"up_blocks\.(\d+)\.resnets\.(\d+)",
        lambda m: f"up.{num_levels - 1 - int(m[1])}.block.{m[2]}",
        name,
    )
    return re.sub(
        r"up_blocks\.(\d+)\.upsamplers\.0",
        lambda m: f"up.{num_levels - 1 - int(m[1])}.upsample",
        name,
    )


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_checkpoint_of_the_original_trainers_is_converted_strictly(
    kl_folder: Path, tmp_path: Path, batch: torch.Tensor, prefix: str
) -> None:
    tensors = {}
    for name, tensor in load_file(kl_folder / WEIGHTS).items():
        is_attention = "attentions" in name and "group_norm" not in name and name.endswith("weight")
        tensors[prefix + original_name(name, 3)] = (
            tensor[:, :, None, None].clone() if is_attention else tensor
        )
    shutil.copy(kl_folder / "config.json", tmp_path / "config.json")
    save_file(tensors, tmp_path / "vae.safetensors")
    expected = open_model(kl_folder)
    encoder = open_model(tmp_path / "vae.safetensors")
    assert torch.equal(encoder.encode(batch)["mean"], expected.encode(batch)["mean"])
    assert encoder.fingerprint() == expected.fingerprint()
    del tensors[f"{prefix}encoder.down.1.block.0.conv1.weight"]
    save_file(tensors, tmp_path / "vae.safetensors")
    with pytest.raises(
        EncoderError, match=r"encoder\.down_blocks\.1\.resnets\.0\.conv1\.weight|can't be loaded"
    ):
        open_model(tmp_path / "vae.safetensors").fingerprint()
