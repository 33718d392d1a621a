"""Single files: in diffusers' names, in the original trainers', in half precision, as trainers' own
checkpoints, and what is none.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentkit.encoders.diffusers import DiffusersEncoder
from latentkit.encoders.diffusers_loading import load_model
from latentkit.errors import EncoderError

WEIGHTS = "diffusion_pytorch_model.safetensors"

# From diffusers' names of LTX-Video's first autoencoder to those of its authors, the longer ones
# first.
LTX_NAMES = (
    (r"^encoder\.mid_block", "encoder.down_blocks.9"),
    (r"^encoder\.down_blocks\.3", "encoder.down_blocks.8"),
    (r"^encoder\.down_blocks\.2\.downsamplers\.0", "encoder.down_blocks.7"),
    (r"^encoder\.down_blocks\.2", "encoder.down_blocks.6"),
    (r"^encoder\.down_blocks\.1\.conv_out", "encoder.down_blocks.5"),
    (r"^encoder\.down_blocks\.1\.downsamplers\.0", "encoder.down_blocks.4"),
    (r"^encoder\.down_blocks\.1", "encoder.down_blocks.3"),
    (r"^encoder\.down_blocks\.0\.conv_out", "encoder.down_blocks.2"),
    (r"^encoder\.down_blocks\.0\.downsamplers\.0", "encoder.down_blocks.1"),
    (r"^decoder\.up_blocks\.3\.upsamplers\.0", "decoder.up_blocks.8"),
    (r"^decoder\.up_blocks\.3\.conv_in", "decoder.up_blocks.7"),
    (r"^decoder\.up_blocks\.3", "decoder.up_blocks.9"),
    (r"^decoder\.up_blocks\.2\.upsamplers\.0", "decoder.up_blocks.5"),
    (r"^decoder\.up_blocks\.2\.conv_in", "decoder.up_blocks.4"),
    (r"^decoder\.up_blocks\.2", "decoder.up_blocks.6"),
    (r"^decoder\.up_blocks\.1\.upsamplers\.0", "decoder.up_blocks.2"),
    (r"^decoder\.up_blocks\.1", "decoder.up_blocks.3"),
    (r"^decoder\.up_blocks\.0", "decoder.up_blocks.1"),
    (r"^decoder\.mid_block", "decoder.up_blocks.0"),
    (r"^latents_mean", "per_channel_statistics.mean-of-means"),
    (r"^latents_std", "per_channel_statistics.std-of-means"),
)


def original_name(name: str) -> str:
    for pattern, original in LTX_NAMES:
        if re.search(pattern, name):
            name = re.sub(pattern, original, name)
            break
    name = (
        name.replace("resnets", "res_blocks")
        .replace("conv_shortcut.conv", "conv_shortcut")
        .replace("norm3", "norm3.norm")
    )
    return f"vae.{name}"


def open_file(file: Path, dtype: torch.dtype = torch.float32) -> DiffusersEncoder:
    return DiffusersEncoder(file, None, dtype, False, "cpu")


@pytest.mark.parametrize(
    "name", ["AutoencoderKLWan", "AutoencoderOobleck", "AutoencoderKLMiniMaxH3"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_single_file_equals_its_folder(name: str, dtype: torch.dtype, tiny: Any) -> None:
    folder, batch = tiny.folder(name), tiny.batch(name, rows=1)
    expected, got = (
        open_file(place, dtype).encode(batch)["mean"] for place in (folder, folder / WEIGHTS)
    )
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "name", ["AutoencoderKLCosmos", "AutoencoderVidTok", "AutoencoderKLMiniMaxH3", "AutoencoderDC"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_buffers_are_those_that_diffusers_loads(
    name: str, dtype: torch.dtype, tiny: Any
) -> None:
    folder = tiny.folder(name)
    loaded = load_model(folder, None, dtype)
    with warnings.catch_warnings(action="ignore"):
        expected = type(loaded).from_pretrained(folder, torch_dtype=dtype)
    for named in ("state_dict", "named_buffers"):
        got, wanted = (dict(getattr(model, named)()) for model in (loaded, expected))
        assert [
            key
            for key in wanted
            if got[key].dtype != wanted[key].dtype or not torch.equal(got[key], wanted[key])
        ] == []


def test_the_original_names_are_converted(tiny: Any, tmp_path: Path) -> None:
    name = "AutoencoderKLLTXVideo"
    folder = tiny.folder(name)
    tensors = {original_name(own): tensor for own, tensor in load_file(folder / WEIGHTS).items()}
    shutil.copy(folder / "config.json", tmp_path)
    save_file(tensors, tmp_path / "ltx.safetensors")
    encoder = open_file(tmp_path / "ltx.safetensors")
    assert encoder.fingerprint() == tiny.encoder(name).fingerprint()
    assert encoder.normalization == tiny.encoder(name).normalization
    del tensors["vae.encoder.conv_in.conv.bias"]
    save_file(tensors, tmp_path / "ltx.safetensors")
    with pytest.raises(EncoderError, match=r"1 missing \(encoder\.conv_in\.conv\.bias\)"):
        open_file(tmp_path / "ltx.safetensors").fingerprint()


def as_zip(tensors: dict[str, Tensor], file: Path) -> None:
    torch.save(tensors, file)


def as_trainers_do(tensors: dict[str, Tensor], file: Path) -> None:
    torch.save(
        {"state_dict": tensors, "epoch": 3, "optimizer_states": [{"state": {}, "lr": 1e-4}]}, file
    )


def as_before_torch_1_6(tensors: dict[str, Tensor], file: Path) -> None:
    torch.save(tensors, file, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("file_name", "write"),
    [
        ("vae.safetensors", save_file),
        ("vae.bin", as_zip),
        ("vae.ckpt", as_trainers_do),
        ("vae.pt", as_before_torch_1_6),
        ("vae.pth", as_zip),
    ],
)
def test_the_same_weights_have_the_same_fingerprint_in_every_kind_of_file(
    file_name: str, write: Callable[[dict[str, Tensor], Path], None], tiny: Any, tmp_path: Path
) -> None:
    name = "AutoencoderTiny"
    folder = tiny.folder(name)
    shutil.copy(folder / "config.json", tmp_path)
    write(load_file(folder / WEIGHTS), tmp_path / file_name)
    encoder = open_file(tmp_path / file_name)
    assert encoder.fingerprint() == tiny.encoder(name).fingerprint()
    assert torch.equal(
        encoder.encode(tiny.batch(name))["latent"],
        tiny.encoder(name).encode(tiny.batch(name))["latent"],
    )


def test_a_checkpoint_with_the_original_names_is_converted(tiny: Any, tmp_path: Path) -> None:
    name = "AutoencoderKLLTXVideo"
    shutil.copy(tiny.folder(name) / "config.json", tmp_path)
    as_trainers_do(
        {
            original_name(own): tensor
            for own, tensor in load_file(tiny.folder(name) / WEIGHTS).items()
        },
        tmp_path / "ltx.ckpt",
    )
    assert open_file(tmp_path / "ltx.ckpt").fingerprint() == tiny.encoder(name).fingerprint()


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".safetensors"])
def test_what_holds_no_weights_is_said(suffix: str, tiny: Any, tmp_path: Path) -> None:
    folder, file = tiny.folder("AutoencoderTiny"), tmp_path / f"vae{suffix}"
    shutil.copy(folder / "config.json", tmp_path)

    def refused(content: bytes) -> str:
        file.write_bytes(content)
        with pytest.raises(EncoderError) as caught:
            open_file(file).fingerprint()
        return str(caught.value)

    write = {".safetensors": save_file, ".ckpt": as_zip, ".pt": as_before_torch_1_6}[suffix]
    write(load_file(folder / WEIGHTS), file)
    whole = file.read_bytes()
    assert "a web page, not weights" in refused(b"<!DOCTYPE html><html>login</html>")
    for part in (0, 1, 2, 100, len(whole) // 2, len(whole) - 30):
        assert f"{file}: expected weights, " in refused(whole[:part])


def test_tensors_that_have_no_names_are_said(tiny: Any, tmp_path: Path) -> None:
    shutil.copy(tiny.folder("AutoencoderTiny") / "config.json", tmp_path)
    for held, said in (
        ([torch.ones(1)], "got a list"),
        ({"step": 3}, r"got a mapping that also holds int \(step \.\.\.\)"),
    ):
        torch.save(held, tmp_path / "vae.pth")
        with pytest.raises(EncoderError, match=f"expected tensors by name, .*; {said}"):
            open_file(tmp_path / "vae.pth").fingerprint()
