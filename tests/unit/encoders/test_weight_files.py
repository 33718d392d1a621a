"""Weights in the forms they lie around: what a file holds decides, not its ending; folders,
variants, shards, wrapped checkpoints.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from latentkit.contracts import BuildContext, Decodes
from latentkit.encoders.diffusers import DiffusersEncoder, open_diffusers
from latentkit.encoders.diffusers_loading import find_config_file, find_model, load_model
from latentkit.encoders.options import DiffusersConfig
from latentkit.encoders.weight_files import read_tensors
from latentkit.errors import EncoderError

WEIGHTS = "diffusion_pytorch_model.safetensors"
STEM = "diffusion_pytorch_model"
Tensors = Mapping[str, Tensor]


def open_model(
    path: Path, variant: str | None = None, config: Path | None = None
) -> DiffusersEncoder:
    return DiffusersEncoder(path, config, torch.float32, False, "cpu", variant=variant)


def as_shards(
    tensors: Tensors, folder: Path, name: str, write: Callable[[dict[str, Tensor], Path], Any]
) -> None:
    """`name` has a place for the numbers."""
    names = sorted(tensors)
    for part in range(3):
        write(
            {one: tensors[one] for one in names[part::3]},
            folder / name.format(f"{part + 1:05d}-of-00003"),
        )


def in_folder(
    name: str, write: Callable[[dict[str, Tensor], Path], Any]
) -> Callable[[Tensors, Path], Path]:
    def make(tensors: Tensors, folder: Path) -> Path:
        (
            as_shards(tensors, folder, name, write)
            if "{" in name
            else write(dict(tensors), folder / name)
        )
        return folder

    return make


def single(name: str, write: Callable[[Any, Path], Any]) -> Callable[[Tensors, Path], Path]:
    def make(tensors: Tensors, folder: Path) -> Path:
        write(dict(tensors), folder / name)
        return folder / name

    return make


def old(tensors: Any, file: Path) -> None:
    torch.save(tensors, file, _use_new_zipfile_serialization=False)


def wrapped(*names: str, prefix: str = "") -> Callable[[Any, Path], None]:
    """Under names within names, beside what a trainer keeps."""

    def write(tensors: Any, file: Path) -> None:
        held: Any = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
        for name in reversed(names):
            held = {
                name: held,
                "step": 3,
                "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []},
            }
        torch.save(held, file)

    return write


def prefixed(prefix: str) -> Callable[[Any, Path], None]:
    def write(tensors: Any, file: Path) -> None:
        save_file({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, file)

    return write


FORMS: dict[str, Callable[[Tensors, Path], Path]] = {
    "safetensors": in_folder(WEIGHTS, save_file),
    "bin": in_folder(f"{STEM}.bin", torch.save),
    "old bin": in_folder(f"{STEM}.bin", old),
    "fp16": in_folder(f"{STEM}.fp16.safetensors", save_file),
    "non_ema bin": in_folder(f"{STEM}.non_ema.bin", torch.save),
    "shards": in_folder(STEM + "-{}.safetensors", save_file),
    "bin shards": in_folder(STEM + "-{}.bin", torch.save),
    "fp16 shards": in_folder(STEM + ".fp16-{}.safetensors", save_file),
    "fp16 shards as before": in_folder(STEM + "-{}.fp16.safetensors", save_file),
    "another name in the folder": in_folder("model.safetensors", save_file),
    "capitals": in_folder("DIFFUSION_PYTORCH_MODEL.SAFETENSORS", save_file),
    "file": single("vae.safetensors", save_file),
    "sft": single("ae.sft", save_file),
    "SAFETENSORS": single("VAE.SAFETENSORS", save_file),
    "safetensors named ckpt": single("vae.ckpt", save_file),
    "zip named safetensors": single("vae.safetensors", torch.save),
    "old named pth": single("vae.pth", old),
    "no ending": single("0a1b2c3d", save_file),
    "zip without an ending": single("0a1b2c3d", torch.save),
    "state_dict": single("vae.ckpt", wrapped("state_dict")),
    "model": single("vae.pth", wrapped("model")),
    "ema": single("vae.pt", wrapped("ema")),
    "nested": single("vae.pt", wrapped("checkpoint", "model_ema", "state_dict")),
    "in DDP": single("vae.pt", wrapped("model", prefix="module.")),
    "compiled in DDP": single("vae.pt", prefixed("module._orig_mod.")),
    "of a pipeline": single("vae.safetensors", prefixed("vae.")),
    "of a trainer": single("vae.safetensors", prefixed("first_stage_model.")),
    "halves apart": single(
        "vae.pt",
        lambda tensors, file: torch.save(
            {
                part: {
                    name.removeprefix(f"{part}."): tensor
                    for name, tensor in tensors.items()
                    if name.startswith(f"{part}.")
                }
                for part in ("encoder", "decoder", "quant_conv", "post_quant_conv")
            },
            file,
        ),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_weights_give_the_same_model_in_every_form(
    form: str, saved: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    shutil.copy(saved / "config.json", tmp_path)
    path = FORMS[form](tensors, tmp_path)
    loaded = load_model(path, None, torch.float32).state_dict()
    assert set(loaded) == set(tensors)
    assert [name for name in tensors if not torch.equal(loaded[name], tensors[name])] == []


def test_fingerprint_and_latents_are_those_of_the_weights_in_whatever_form(
    saved: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    batch = torch.rand((2, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = open_model(saved)
    latents = expected.encode(batch)
    for form in ("fp16", "bin shards", "no ending", "nested", "in DDP", "of a pipeline"):
        folder = tmp_path / form
        folder.mkdir()
        shutil.copy(saved / "config.json", folder)
        encoder = open_model(FORMS[form](tensors, folder))
        assert encoder.fingerprint() == expected.fingerprint()
        assert torch.equal(encoder.encode(batch)["mean"], latents["mean"])
        assert encoder.normalization == expected.normalization


def test_a_lone_variant_is_taken_and_said_and_of_several_the_named_one(
    saved: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    shutil.copy(saved / "config.json", tmp_path)
    half = {name: tensor.half() for name, tensor in tensors.items()}
    save_file(half, tmp_path / f"{STEM}.fp16.safetensors")
    assert [remark.text for remark in open_model(tmp_path).remarks()] == [
        f"{tmp_path.name} contains no plain weights, so the variant fp16 is used"
    ]
    save_file(tensors, tmp_path / f"{STEM}.non_ema.safetensors")
    with pytest.raises(
        EncoderError, match=r"there are several weights: fp16, non_ema. Choose one with the option variant"
    ):
        load_model(tmp_path, None, torch.float32)
    with pytest.raises(
        EncoderError, match=r"no weights of variant 'bf16'; available: fp16, non_ema"
    ):
        load_model(tmp_path, None, torch.float32, "bf16")
    chosen = load_model(tmp_path, None, torch.float32, "fp16").state_dict()
    assert all(torch.equal(chosen[name], half[name].float()) for name in half)
    save_file(tensors, tmp_path / WEIGHTS)
    plain = load_model(tmp_path, None, torch.float32).state_dict()
    assert all(torch.equal(plain[name], tensors[name]) for name in tensors)
    assert list(open_model(tmp_path).remarks()) == []


def test_missing_shards_are_counted(
    saved: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    shutil.copy(saved / "config.json", tmp_path)
    FORMS["shards"](tensors, tmp_path)
    (tmp_path / f"{STEM}-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        EncoderError,
        match=(
            r"2 of 3 parts of the weights are there \(.*-00001-of-00003\.safetensors, .*Get the"
            r" others too"
        ),
    ):
        load_model(tmp_path, None, torch.float32)


def test_of_several_models_in_a_checkpoint_the_named_one_is_taken(
    saved: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    shutil.copy(saved / "config.json", tmp_path)
    file = tmp_path / "last.pt"
    average = {name: tensor / 2 for name, tensor in tensors.items()}
    torch.save(
        {"model": tensors, "ema": average, "discriminator": {"main.0.weight": torch.ones(3)}}, file
    )
    with pytest.raises(
        EncoderError,
        match=r"contains the weights of 2 such models, under (ema|model), .*encoder\.with\.variant=",
    ):
        open_model(file)
    for variant, expected in (("ema", average), ("model", tensors)):
        chosen = load_model(file, None, torch.float32, variant).state_dict()
        assert all(torch.equal(chosen[name], expected[name]) for name in expected)
    with pytest.raises(EncoderError, match="contains the weights of 2 such models"):
        load_model(file, None, torch.float32, "average")
    torch.save({"model": tensors, "discriminator": {"main.0.weight": torch.ones(3)}}, file)
    assert open_model(file).fingerprint() == open_model(saved).fingerprint()
    with pytest.raises(
        EncoderError,
        match=r"no weights 'ema', only one model \(model\)\. Leave out the option variant",
    ):
        open_model(file, "ema")


@pytest.mark.parametrize(
    ("first", "second", "offered"),
    [
        ("", "ema.", ("outermost", "ema")),
        ("model.", "model.ema.", ("model", "ema")),
        ("state_dict.vae.", "state_dict.teacher.", ("vae", "teacher")),
        ("vae.", "ema.vae.", ("vae", "ema")),
    ],
)
def test_an_average_or_teacher_beside_a_model_is_asked_about_wherever_it_lies(
    first: str,
    second: str,
    offered: tuple[str, str],
    tensors: dict[str, Tensor],
    saved: Path,
    tmp_path: Path,
) -> None:
    other = {name: tensor / 2 for name, tensor in tensors.items()}
    held = {f"{first}{name}": tensor for name, tensor in tensors.items()}
    held |= {f"{second}{name}": tensor for name, tensor in other.items()}
    save_file(held, tmp_path / "last.safetensors")
    with pytest.raises(EncoderError, match="contains the weights of 2 such models") as refused:
        open_model(tmp_path / "last.safetensors", config=saved / "config.json")
    advised = str(refused.value).rpartition("=")[2]
    assert advised in (*offered, "ema.vae")
    taken = {
        variant: (
            load_model(
                tmp_path / "last.safetensors", saved / "config.json", torch.float32, variant
            ).state_dict()
        )
        for variant in {*offered, advised}
    }
    for variant, expected in zip(offered, (tensors, other), strict=True):
        assert all(torch.equal(taken[variant][name], expected[name]) for name in expected)


def test_a_checkpoint_without_its_decoder_encodes_and_says_so(
    saved: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    shutil.copy(saved / "config.json", tmp_path)
    halves = [name for name in tensors if not name.startswith(("decoder.", "post_quant_conv."))]
    save_file({name: tensors[name] for name in halves}, tmp_path / "encoder.safetensors")
    context = BuildContext(seed=0, device="cpu", modality="image", recipe_dir=tmp_path)
    encoder = open_diffusers(DiffusersConfig(model="encoder.safetensors"), context)
    whole = open_diffusers(DiffusersConfig(model=str(saved)), context)
    assert ["no decoder" in remark.text for remark in encoder.remarks()] == [True]
    assert not isinstance(encoder, Decodes)
    assert isinstance(whole, Decodes)
    assert encoder.fingerprint()["weights"] == whole.fingerprint()["weights"]
    with pytest.raises(EncoderError, match="contains no decoder, so it can't be trained"):
        _ = encoder.module
    save_file({name: tensors[name] for name in halves[1:]}, tmp_path / "encoder.safetensors")
    with pytest.raises(EncoderError, match=r"keys 1 missing \(encoder\."):
        open_model(tmp_path / "encoder.safetensors")


def test_both_halves_of_taesd_are_joined_by_their_names(tmp_path: Path) -> None:
    config = {
        "encoder_block_out_channels": [8, 8],
        "decoder_block_out_channels": [8, 8],
        "num_encoder_blocks": [1, 2],
    }
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
        model = diffusers.AutoencoderTiny(**config, num_decoder_blocks=[2, 1])
    model.save_config(tmp_path)
    state = model.state_dict()
    encoder = {
        name.removeprefix("encoder.layers."): tensor
        for name, tensor in state.items()
        if name.startswith("encoder.")
    }
    decoder = {
        f"{int(name.split('.')[2]) + 1}.{name.split('.', 3)[3]}": tensor
        for name, tensor in state.items()
        if name.startswith("decoder.")
    }
    for suffix, write in ((".pth", torch.save), (".safetensors", save_file)):
        write(encoder, tmp_path / f"taesd_encoder{suffix}")
        assert [
            "no decoder" in remark.text
            for remark in open_model(tmp_path / f"taesd_encoder{suffix}").remarks()
        ] == [True]
        write(decoder, tmp_path / f"taesd_decoder{suffix}")
        for half in ("encoder", "decoder"):
            loaded = load_model(
                tmp_path / f"taesd_{half}{suffix}", None, torch.float32
            ).state_dict()
            assert all(torch.equal(loaded[name], state[name]) for name in state)
        (tmp_path / f"taesd_encoder{suffix}").unlink()
        with pytest.raises(
            EncoderError,
            match=rf"contains only a decoder\. Put its encoder taesd_encoder\{suffix}",
        ):
            open_model(tmp_path / f"taesd_decoder{suffix}")


def test_raw_fp8_is_remarked_and_scaled_weights_are_refused(
    saved: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    shutil.copy(saved / "config.json", tmp_path)
    raw = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}
    save_file(raw, tmp_path / "vae.safetensors")
    encoder = open_model(tmp_path / "vae.safetensors")
    assert ["fp8" in remark.text for remark in encoder.remarks()] == [True]
    loaded = load_model(tmp_path / "vae.safetensors", None, torch.float32).state_dict()
    assert all(torch.equal(loaded[name], raw[name].float()) for name in raw)
    for more in ("encoder.conv_in.scale_weight", "scaled_fp8", "vae.encoder.conv_in.weight_scale"):
        save_file(raw | {more: torch.ones(1)}, tmp_path / "vae.safetensors")
        with pytest.raises(EncoderError, match=r"quantized and have separate scales"):
            open_model(tmp_path / "vae.safetensors")
    integers = {name: tensor.to(torch.int8) for name, tensor in tensors.items()}
    save_file(integers, tmp_path / "vae.safetensors")
    with pytest.raises(EncoderError, match="of another shape or kind"):
        open_model(tmp_path / "vae.safetensors")


def test_a_counter_of_batches_may_be_missing(tmp_path: Path) -> None:
    config = {
        "block_out_channels": [8],
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
    }
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
        diffusers.AutoencoderKLFlux2(
            **config, norm_num_groups=4, layers_per_block=1, latent_channels=4
        ).save_pretrained(tmp_path)
    named = read_tensors(tmp_path / WEIGHTS)
    expected = open_model(tmp_path).fingerprint()
    save_file(
        {
            name: tensor
            for name, tensor in named.items()
            if not name.endswith("num_batches_tracked")
        },
        tmp_path / WEIGHTS,
    )
    assert open_model(tmp_path).fingerprint() == expected


def as_tar(content: bytes, file: Path) -> None:
    inner = file.with_name("inner")
    inner.write_bytes(content)
    with tarfile.open(file, "w") as archive:
        archive.add(inner, "vae.safetensors")


def as_zip(content: bytes, file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("vae.safetensors", content)


@pytest.mark.parametrize(
    ("said", "write"),
    [
        (
            "compressed by gzip: unpack it first",
            lambda content, file: file.write_bytes(gzip.compress(content)),
        ),
        ("a tar archive: unpack it first", as_tar),
        ("a zip archive of other files: unpack it first", as_zip),
        (
            "a web page, not weights",
            lambda _, file: file.write_bytes(b"\n<!DOCTYPE html><html>404</html>"),
        ),
        (
            "a pointer of git-lfs",
            lambda _, file: file.write_bytes(
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
            ),
        ),
        (
            "a server's answer: 'Entry not found'",
            lambda _, file: file.write_bytes(b"Entry not found"),
        ),
        (
            "a server's answer: '{\"error\"",
            lambda _, file: file.write_bytes(b'{"error":"Repository not found"}'),
        ),
        ("a GGUF file", lambda _, file: file.write_bytes(b"GGUF\x03\x00\x00\x00")),
        ("the file is empty", lambda _, file: file.write_bytes(b"")),
        ("an array of NumPy", lambda _, file: file.write_bytes(b"\x93NUMPY\x01\x00v\x00")),
        (
            "it is damaged, cut off",
            lambda content, file: file.write_bytes(content[: len(content) // 2]),
        ),
        ("it is damaged, cut off", lambda content, file: file.write_bytes(content[:100])),
        ("it is damaged, cut off", lambda content, file: file.write_bytes(bytes(range(256)) * 4)),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ""])
def test_what_is_no_file_of_weights_is_named_whatever_its_ending(
    said: str,
    write: Callable[[bytes, Path], Any],
    suffix: str,
    tensors: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    file = tmp_path / f"vae{suffix}"
    write(save(tensors), file)
    with pytest.raises(EncoderError) as caught:
        read_tensors(file)
    assert str(file) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("write", [torch.save, old])
def test_a_checkpoint_that_is_cut_off_is_said_to_be(
    write: Callable[..., Any], tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    write(tensors, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    for part in (1, 2, 100, len(whole) // 2, len(whole) - 30):
        (tmp_path / "vae.pt").write_bytes(whole[:part])
        with pytest.raises(
            EncoderError, match=r"vae\.pt: expected weights, .*it is damaged, cut off"
        ):
            read_tensors(tmp_path / "vae.pt")


def make_part(folder: Path, class_name: str) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": class_name}))


@pytest.mark.parametrize("name", ["vae", "movq", "vqvae", "first_stage", "vqgan"])
def test_the_autoencoder_of_a_pipeline_is_found_by_its_class(name: str, tmp_path: Path) -> None:
    for part, kind in (
        ("unet", "UNet2DConditionModel"),
        ("text_encoder", "CLIPTextModel"),
        ("scheduler", "DDIMScheduler"),
    ):
        make_part(tmp_path / part, kind)
    (tmp_path / "model_index.json").write_text("{}")
    make_part(tmp_path / name, "VQModel" if "v" in name else "AutoencoderKL")
    assert find_model(str(tmp_path), None, None, tmp_path, "image") == tmp_path / name
    make_part(tmp_path / "a_sound_vae", "AutoencoderOobleck")
    assert find_model(str(tmp_path), None, None, tmp_path, "image") == tmp_path / name
    assert find_model(str(tmp_path), None, None, tmp_path, "audio") == tmp_path / "a_sound_vae"


def test_a_config_is_a_name_a_file_or_a_folder(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "pipeline" / "vae")
    own = tmp_path / "pipeline" / "vae" / "config.json"
    for given in ("pipeline", "pipeline/vae", "pipeline/vae/config.json", str(own)):
        assert find_config_file(given, tmp_path).resolve() == own.resolve()
    assert find_config_file("sd-ft-mse", tmp_path) == find_config_file("SD15", tmp_path)
    (tmp_path / "sana").mkdir()  # without a config in it
    assert find_config_file("sana", tmp_path).parent.name == "published"
    shutil.copy(own, tmp_path / "sana")
    assert find_config_file("sana", tmp_path) == tmp_path / "sana" / "config.json"
    with pytest.raises(EncoderError, match=r"config sd16: .* or one of allegro, .*, x4-upscaler"):
        find_config_file("sd16", tmp_path)


def test_a_folder_of_one_file_without_a_config_takes_the_named_one(
    saved: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    shutil.copytree(saved, tmp_path / "config")
    (tmp_path / "weights").mkdir()
    save_file(tensors, tmp_path / "weights" / "vae.safetensors")
    path = find_model("weights", None, None, tmp_path, "image")
    config = find_config_file("config", tmp_path)
    assert open_model(path, config=config).fingerprint() == open_model(saved).fingerprint()
    save_file(tensors, tmp_path / "weights" / "other.safetensors")
    for given in (None, config):
        with pytest.raises(
            EncoderError,
            match=r"there are several weights files \(other\.safetensors, vae\.safetensors\)",
        ):
            open_model(
                find_model("weights", None, None, tmp_path, "image"), config=given
            ).fingerprint()
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        EncoderError,
        match=r"no config\.json in it, .*expected the folder of a diffusers autoencoder",
    ):
        find_model("empty", None, None, tmp_path, "image")


def test_a_config_of_something_else_beside_a_file_is_no_config_of_it(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "vae.safetensors")
    (tmp_path / "config.json").write_text('{"_class_name": "WanModel"}')
    with pytest.raises(EncoderError, match="fit none of the published"):
        open_model(tmp_path / "vae.safetensors")
