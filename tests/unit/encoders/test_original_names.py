"""Published files in their authors' names: converted exactly, and recognized without a config.

Every form is made by inverting the conversion, from the published names as they are written down
here; the networks have random weights.
"""

from __future__ import annotations

import json
import re
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from latentkit.encoders.diffusers_loading import inspect_model, load_model
from latentkit.encoders.published_configs import FOLDER, find_published
from latentkit.errors import EncoderError

Tensors = Mapping[str, Tensor]
Rules = tuple[tuple[str, str], ...]


def rename(tensors: Tensors, *rules: Rules) -> dict[str, Tensor]:
    """By the first rule of each set that matches a name's start or inside."""
    named = {}
    for name, tensor in tensors.items():
        for one in rules:
            for own, original in one:
                changed = re.sub(own, original, name)
                if changed != name:
                    name = changed
                    break
        named[name] = tensor
    assert len(named) == len(tensors)
    return named


LDM_ATTENTION = (
    (r"(attn\w*\.\d+|attn_1)\.group_norm", r"\1.norm"),
    (r"(attn\w*\.\d+|attn_1)\.to_([qkv])", r"\1.\2"),
    (r"(attn\w*\.\d+|attn_1)\.to_out\.0", r"\1.proj_out"),
)


def ldm(tensors: Tensors) -> dict[str, Tensor]:
    levels = 1 + max(
        int(found[1]) for name in tensors if (found := re.match(r"decoder\.up_blocks\.(\d+)", name))
    )
    ups = tuple(
        (rf"^decoder\.up_blocks\.{level}\.", f"decoder.up.{levels - 1 - level}.")
        for level in range(levels)
    )
    named = rename(
        tensors,
        (*ups, (r"^encoder\.down_blocks\.(\d+)\.", r"encoder.down.\1.")),
        (
            (r"mid_block\.resnets\.0", "mid.block_1"),
            (r"mid_block\.resnets\.1", "mid.block_2"),
            (r"mid_block\.attentions\.0", "mid.attn_1"),
        ),
        ((r"\.resnets\.(\d+)", r".block.\1"), (r"\.attentions\.(\d+)", r".attn.\1")),
        ((r"downsamplers\.0\.", "downsample."), (r"upsamplers\.0\.", "upsample.")),
        (("conv_shortcut", "nin_shortcut"), ("conv_norm_out", "norm_out")),
        LDM_ATTENTION,
    )
    return {  # attention is made of convolutions there
        name: tensor[:, :, None, None] if ".attn" in name and tensor.ndim == 2 else tensor
        for name, tensor in named.items()
    }


def flux2(tensors: Tensors) -> dict[str, Tensor]:
    return rename(
        ldm(tensors),
        ((r"^quant_conv", "encoder.quant_conv"), (r"^post_quant_conv", "decoder.post_quant_conv")),
    )


WAN = (
    (r"\.norm1\.", ".residual.0."),
    (r"\.conv1\.", ".residual.2."),
    (r"\.norm2\.", ".residual.3."),
    (r"\.conv2\.", ".residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
)
WAN_REST = (
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"coder\.conv_in\.", "coder.conv1."),
    (r"coder\.norm_out\.", "coder.head.0."),
    (r"coder\.conv_out\.", "coder.head.2."),
    (r"^quant_conv", "conv1"),
    (r"^post_quant_conv", "conv2"),
)


def wan21(tensors: Tensors) -> dict[str, Tensor]:
    blocks = tuple(
        (
            rf"^decoder\.up_blocks\.{block}\.resnets\.{layer}\.",
            f"decoder.upsamples.{4 * block + layer}.",
        )
        for block in range(4)
        for layer in range(3)
    )
    ups = tuple(
        (rf"^decoder\.up_blocks\.{block}\.upsamplers\.0\.", f"decoder.upsamples.{4 * block + 3}.")
        for block in range(4)
    )
    return rename(
        tensors,
        WAN,
        (*WAN_REST, (r"^encoder\.down_blocks\.", "encoder.downsamples."), *blocks, *ups),
    )


def wan22(tensors: Tensors) -> dict[str, Tensor]:
    return rename(
        tensors,
        WAN,
        (
            *WAN_REST,
            (r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.downsamples.\1.downsamples."),
            (
                r"^encoder\.down_blocks\.(\d+)\.downsampler\.",
                r"encoder.downsamples.\1.downsamples.2.",
            ),
            (r"^decoder\.up_blocks\.(\d+)\.resnets\.", r"decoder.upsamples.\1.upsamples."),
            (r"^decoder\.up_blocks\.(\d+)\.upsampler\.", r"decoder.upsamples.\1.upsamples.3."),
        ),
    )


LTX_090_ENCODER = (
    (r"^encoder\.mid_block", "encoder.down_blocks.9"),
    (r"^encoder\.down_blocks\.3", "encoder.down_blocks.8"),
    (r"^encoder\.down_blocks\.2\.downsamplers\.0", "encoder.down_blocks.7"),
    (r"^encoder\.down_blocks\.2", "encoder.down_blocks.6"),
    (r"^encoder\.down_blocks\.1\.conv_out", "encoder.down_blocks.5"),
    (r"^encoder\.down_blocks\.1\.downsamplers\.0", "encoder.down_blocks.4"),
    (r"^encoder\.down_blocks\.1", "encoder.down_blocks.3"),
    (r"^encoder\.down_blocks\.0\.conv_out", "encoder.down_blocks.2"),
    (r"^encoder\.down_blocks\.0\.downsamplers\.0", "encoder.down_blocks.1"),
)
LTX_095_ENCODER = (
    (r"^encoder\.mid_block", "encoder.down_blocks.8"),
    *(
        (
            rf"^encoder\.down_blocks\.{block}\.downsamplers\.0",
            f"encoder.down_blocks.{2 * block + 1}",
        )
        for block in range(4)
    ),
    *(
        (rf"^encoder\.down_blocks\.{block}\.", f"encoder.down_blocks.{2 * block}.")
        for block in (1, 2, 3)
    ),
)
LTX_090_DECODER = (
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
)
LTX_091_DECODER = (
    *(
        (rf"^decoder\.up_blocks\.{block}\.upsamplers\.0", f"decoder.up_blocks.{2 * block + 1}")
        for block in range(4)
    ),
    *(
        (rf"^decoder\.up_blocks\.{block}\.", f"decoder.up_blocks.{2 * block + 2}.")
        for block in range(4)
    ),
    (r"^decoder\.mid_block", "decoder.up_blocks.0"),
    (r"^decoder\.time_embedder", "decoder.last_time_embedder"),
    (r"^decoder\.scale_shift_table", "decoder.last_scale_shift_table"),
)
LTX_REST = (
    (("resnets", "res_blocks"),),
    (
        ("^latents_mean", "per_channel_statistics.mean-of-means"),
        ("^latents_std", "per_channel_statistics.std-of-means"),
    ),
)
LTX_FIRST = (((r"conv_shortcut\.conv", "conv_shortcut"), (r"norm3", "norm3.norm")),)


def ltx(encoder: Rules, decoder: Rules, *more: Rules) -> Callable[[Tensors], dict[str, Tensor]]:
    def original(tensors: Tensors) -> dict[str, Tensor]:
        named = rename(tensors, (*encoder, *decoder), *LTX_REST, *more)
        statistics = named["per_channel_statistics.mean-of-means"]
        return named | {
            f"per_channel_statistics.{name}": torch.ones_like(statistics)
            for name in ("channel", "mean-of-stds")
        }

    return original


def ltx_audio(tensors: Tensors) -> dict[str, Tensor]:
    return rename(tensors, LTX_REST[1])


DC_AE = (
    ((r"coder\.conv_in\.", "coder.project_in.conv."),),
    (
        (r"^encoder\.conv_out\.", "encoder.project_out.0.conv."),
        (r"^decoder\.conv_out\.", "decoder.project_out.2.conv."),
    ),
    ((r"^decoder\.norm_out\.", "decoder.project_out.0."),),
    (
        (r"_blocks\.(\d+)\.(\d+)\.attn\.", r"_blocks.\1.op_list.\2.context_module.main."),
        (r"_blocks\.(\d+)\.(\d+)\.conv_out\.", r"_blocks.\1.op_list.\2.local_module.main."),
        (r"_blocks\.(\d+)\.(\d+)\.conv\.", r"_blocks.\1.op_list.\2.main.conv.conv."),
        (r"_blocks\.(\d+)\.(\d+)\.conv(\d)\.", r"_blocks.\1.op_list.\2.main.conv\3.conv."),
        (r"_blocks\.(\d+)\.(\d+)\.norm\.", r"_blocks.\1.op_list.\2.main.conv2.norm."),
    ),
    (
        (r"main\.to_qkv_multiscale\.0\.proj_in\.", "main.aggreg.0.0."),
        (r"main\.to_qkv_multiscale\.0\.proj_out\.", "main.aggreg.0.1."),
        (r"main\.to_out\.", "main.proj.conv."),
        (r"main\.norm_out\.", "main.proj.norm."),
        (r"main\.conv_inverted\.", "main.inverted_conv.conv."),
        (r"main\.conv_depth\.", "main.depth_conv.conv."),
        (r"main\.conv_point\.", "main.point_conv.conv."),
        (r"local_module\.main\.norm\.", "local_module.main.point_conv.norm."),
    ),
    (
        (r"^encoder\.down_blocks\.", "encoder.stages."),
        (r"^decoder\.up_blocks\.", "decoder.stages."),
    ),
)


def dc_ae(tensors: Tensors) -> dict[str, Tensor]:
    joined = {}
    for name, tensor in tensors.items():
        if name.endswith("to_q.weight"):
            parts = [tensors[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            joined[name.replace("to_q", "qkv.conv")] = torch.cat(parts)[:, :, None, None]
        elif not name.endswith(("to_k.weight", "to_v.weight")):
            joined[name] = (
                tensor[:, :, None, None] if name.endswith("attn.to_out.weight") else tensor
            )
    return rename(joined, *DC_AE)


def tiny(tensors: Tensors) -> dict[str, Tensor]:
    """The two halves; a saved pair is tested apart."""
    named = {}
    for name, tensor in tensors.items():
        half, _, layer, rest = name.split(".", 3)
        named[f"taesd_{half}.{int(layer) + (half == 'decoder')}.{rest}"] = tensor
    return named


LEVELS = (
    (
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
    ),
    (
        (r"(down|up)_blocks\.(\d+)\.resnets\.(\d+)", r"\1.\2.block.\3"),
        (r"(down|up)_blocks\.(\d+)\.\w+samplers\.0", r"\1.\2.\1sample"),
    ),
    (("conv_shortcut", "nin_shortcut"), (r"attn_1\.to_([qkv])", r"attn_1.\1")),
)


def hunyuan_video15(tensors: Tensors) -> dict[str, Tensor]:
    return rename(tensors, *LEVELS)


def cogvideox(tensors: Tensors) -> dict[str, Tensor]:
    turned = tuple(
        (rf"^decoder\.up_blocks\.{level}\.", f"decoder.up_blocks.{3 - level}.")
        for level in range(4)
    )
    return rename(tensors, turned, *LEVELS)


def hunyuan_image(tensors: Tensors) -> dict[str, Tensor]:
    """Six levels of two blocks and a down-sampling, of three and an up-sampling; only the last has
    none.
    """
    downs = [
        (f"down.{level}.block.{block}" if block < 2 else f"down.{level}.downsample")
        for level in range(6)
        for block in range(3)
    ]
    ups = [
        (f"up.{level}.block.{block}" if block < 3 else f"up.{level}.upsample")
        for level in range(6)
        for block in range(4)
    ]
    rules = [(rf"down_blocks\.{number}\.", f"{original}.") for number, original in enumerate(downs)]
    rules += [(rf"up_blocks\.{number}\.", f"{original}.") for number, original in enumerate(ups)]
    return rename(tensors, tuple(rules), *LEVELS, ((r"attn_1\.proj\.", "attn_1.proj_out."),))


def stable_audio(tensors: Tensors) -> dict[str, Tensor]:
    unit = ((r"(res_unit\d)\.snake1", r"\1.layers.0"), (r"(res_unit\d)\.conv1", r"\1.layers.1"))
    unit += ((r"(res_unit\d)\.snake2", r"\1.layers.2"), (r"(res_unit\d)\.conv2", r"\1.layers.3"))
    inner = [("encoder", f"res_unit{number + 1}", number) for number in range(3)] + [
        ("encoder", "snake1", 3),
        ("encoder", "conv1", 4),
    ]
    inner += [("decoder", "snake1", 0), ("decoder", "conv_t1", 1)] + [
        ("decoder", f"res_unit{number - 1}", number) for number in (2, 3, 4)
    ]
    blocks = tuple(
        (rf"^{half}\.block\.(\d)\.{part}\.", rf"{half}.layers.\1.layers.{number}.")
        for half, part, number in inner
    )
    ends = (
        (r"^(\w+)\.conv1\.", r"\1.layers.0."),
        (r"^(\w+)\.snake1\.", r"\1.layers.6."),
        (r"^(\w+)\.conv2\.", r"\1.layers.7."),
    )
    named = {}
    for name, tensor in rename(
        tensors, unit
    ).items():  # one by one: a block's own number is the only one that moves
        for rules in (blocks, ends):
            for own, original in rules:
                changed = re.sub(own, original, name)
                if changed != name:
                    name = changed
                    break
        found = re.match(r"(\w+\.layers\.)(\d)(\.layers\..*)", name)
        name = f"{found[1]}{int(found[2]) + 1}{found[3]}" if found else name
        named[name] = tensor.flatten() if "alpha" in name or "beta" in name else tensor
    assert len(named) == len(tensors)
    return named


def unchanged(tensors: Tensors) -> dict[str, Tensor]:
    return dict(tensors)


# name of the published config, the widths that a small one has instead, prefix in the file,
# original names
SMALL_KL = {"block_out_channels": 16, "norm_num_groups": 8}
SMALL_LTX = {"block_out_channels": 16, "decoder_block_out_channels": 16}
SMALL_LTX_FIRST = {"block_out_channels": 16, "decoder_block_out_channels": [8, 16, 32, 32]}
SMALL_DC = {
    "encoder_block_out_channels": 16,
    "decoder_block_out_channels": 16,
    "attention_head_dim": 4,
}
FORMS: tuple[tuple[str, Mapping[str, Any], str, Callable[[Tensors], dict[str, Tensor]]], ...] = (
    ("sd15", SMALL_KL, "", ldm),
    ("sd15", SMALL_KL, "first_stage_model.", ldm),
    ("sdxl", SMALL_KL, "vae.", unchanged),
    ("sd3", SMALL_KL, "first_stage_model.", ldm),
    ("flux1", SMALL_KL, "", ldm),
    ("flux2", SMALL_KL, "", flux2),
    ("kl-f4", SMALL_KL, "", ldm),
    ("kl-f16", SMALL_KL, "", ldm),
    ("kl-f32", SMALL_KL, "", ldm),
    ("va-vae", SMALL_KL, "state_dict.", ldm),
    ("mar-kl16", SMALL_KL, "model.", ldm),
    ("wan2.1", {"base_dim": 8}, "", wan21),
    ("qwen-image", {"base_dim": 8}, "", wan21),
    ("wan2.2", {"base_dim": 10, "decoder_base_dim": 16}, "", wan22),
    ("hunyuan-video", SMALL_KL, "state_dict.vae.", unchanged),
    ("ltx-0.9.0", SMALL_LTX_FIRST, "vae.", ltx(LTX_090_ENCODER, LTX_090_DECODER, *LTX_FIRST)),
    ("ltx-0.9.0", SMALL_LTX_FIRST, "", ltx(LTX_090_ENCODER, LTX_090_DECODER, *LTX_FIRST)),
    ("ltx-0.9.1", SMALL_LTX, "vae.", ltx(LTX_090_ENCODER, LTX_091_DECODER, *LTX_FIRST)),
    ("ltx-2", SMALL_LTX, "vae.", ltx(LTX_095_ENCODER, LTX_091_DECODER)),
    ("ltx-2", SMALL_LTX, "", ltx(LTX_095_ENCODER, LTX_091_DECODER)),
    ("ltx-2.3", SMALL_LTX, "vae.", ltx(LTX_095_ENCODER, LTX_091_DECODER)),
    ("ltx-2-audio", {"base_channels": 8}, "audio_vae.", ltx_audio),
    ("sana", SMALL_DC, "", dc_ae),
    ("dc-ae-f32c32-in", SMALL_DC, "", dc_ae),
    ("hunyuan-video-1.5", {"block_out_channels": 16}, "", hunyuan_video15),
    ("hunyuan-image-2.1", {"block_out_channels": 4}, "", hunyuan_image),
    ("cogvideox-5b", SMALL_KL, "state_dict.", cogvideox),
    (
        "stable-audio",
        {"encoder_hidden_size": 4, "decoder_channels": 4},
        "pretransform.model.",
        stable_audio,
    ),
    ("taesd", {"encoder_block_out_channels": 8, "decoder_block_out_channels": 8}, "", tiny),
)
IDS = [f"{name}-{prefix}{original.__name__}" for name, _, prefix, original in FORMS]


def small_config(name: str, widths: Mapping[str, Any]) -> dict[str, Any]:
    """The published one, narrower: lists of widths are divided by a number, all else is replaced.
    """
    config = json.loads((FOLDER / f"{name}.json").read_text())
    for key, width in widths.items():
        value = config.get(key)
        config[key] = (
            [max(one // width, 4) for one in value]
            if isinstance(value, list) and isinstance(width, int)
            else width
        )
    return config


def build(config: Mapping[str, Any], device: str = "cpu") -> Any:
    with (
        warnings.catch_warnings(action="ignore"),
        torch.random.fork_rng(devices=[]),
        torch.device(device),
    ):
        torch.manual_seed(0)
        return getattr(diffusers, config["_class_name"]).from_config(config)


@pytest.mark.parametrize(("name", "widths", "prefix", "original"), FORMS, ids=IDS)
def test_original_weights_arrive_bit_identical(
    name: str,
    widths: Mapping[str, Any],
    prefix: str,
    original: Callable[[Tensors], dict[str, Tensor]],
    tmp_path: Path,
) -> None:
    config = small_config(name, widths)
    state = {
        key: torch.randn_like(value) if value.is_floating_point() else value
        for key, value in build(config).state_dict().items()
    }
    saved = {f"{prefix}{key}": value.contiguous() for key, value in original(state).items()}
    assert prefix or original is unchanged or set(saved) != set(state)
    save_file(saved, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_model(tmp_path / "weights.safetensors", None, torch.float32).state_dict()
    assert set(loaded) == set(state)
    assert [key for key in state if not torch.equal(loaded[key], state[key])] == []


def write_empty(tensors: Tensors, file: Path, metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file of these names and shapes, full of zeros that take no room on disk."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        kind, size = ("F16", 2) if tensor.is_floating_point() else ("I64", 8)
        start, end = end, end + size * tensor.numel()
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + end)


def published(
    name: str, prefix: str = "", original: Callable[[Tensors], dict[str, Tensor]] = unchanged
) -> dict[str, Tensor]:
    """Names and shapes of a published file."""
    config = find_published(name)
    assert config is not None
    state = build(json.loads(config.read_text()), "meta").state_dict()
    return {f"{prefix}{key}": value for key, value in original(state).items()}


def taken_for(file: Path, modality: str = "", config: str | None = None) -> str:
    return inspect_model(
        file, None if config is None else find_published(config), None, modality
    ).config_file.stem


CERTAIN = (
    ("flux2", "", flux2),
    ("kl-f4", "", ldm),
    ("kl-f32", "", ldm),
    ("va-vae", "", ldm),
    ("wan2.1", "", wan21),
    ("hunyuan-video", "vae.", unchanged),
    ("ltx-0.9.0", "", ltx(LTX_090_ENCODER, LTX_090_DECODER, *LTX_FIRST)),
    ("ltx-0.9.1", "vae.", ltx(LTX_090_ENCODER, LTX_091_DECODER, *LTX_FIRST)),
    ("ltx-0.9.5", "vae.", ltx(LTX_095_ENCODER, LTX_091_DECODER, *LTX_FIRST)),
    ("ltx-2", "", ltx(LTX_095_ENCODER, LTX_091_DECODER)),
    ("ltx-2.3", "vae.", ltx(LTX_095_ENCODER, LTX_091_DECODER)),
    ("sana", "", dc_ae),
    ("dc-ae-f32c32-in", "", dc_ae),
    ("taesd", "", tiny),
    ("taef1", "", tiny),
    ("hunyuan-video-1.5", "", hunyuan_video15),
    ("hunyuan-image-2.1", "", hunyuan_image),
    ("mochi", "", unchanged),
    ("stable-audio", "pretransform.model.", stable_audio),
)


@pytest.mark.parametrize(("name", "prefix", "original"), CERTAIN, ids=[one[0] for one in CERTAIN])
def test_a_published_file_needs_no_config(
    name: str, prefix: str, original: Callable[[Tensors], dict[str, Tensor]], tmp_path: Path
) -> None:
    write_empty(published(name, prefix, original), tmp_path / "weights.safetensors")
    assert taken_for(tmp_path / "weights.safetensors") == name


@pytest.mark.parametrize(
    ("name", "others", "differ"),
    [
        (
            "sd15",
            "playground-2.5, sd15, sdxl",
            r"scaling_factor \(0\.5, 0\.18215, 0\.13025\) and latents_mean and latents_std",
        ),
        (
            "flux1",
            "flux1, sd3",
            r"scaling_factor \(0\.3611, 1\.5305\) and shift_factor \(0\.1159, 0\.0609\)",
        ),
        ("kl-f16", "kl-f16, mar-kl16", r"scaling_factor \(1\.0, 0\.2325\)"),
    ],
)
def test_shapes_that_several_share_are_asked_about(
    name: str, others: str, differ: str, tmp_path: Path
) -> None:
    file = tmp_path / "weights.safetensors"
    write_empty(published(name, "", ldm), file)
    with pytest.raises(
        EncoderError,
        match=rf"fit {others}, which differ in {differ}\. .* --set encoder\.with\.config=",
    ):
        taken_for(file)
    assert taken_for(file, config=name) == name
    with pytest.raises(
        EncoderError,
        match=r"weights don't fit the model: keys .* (missing|unexpected|of another shape)",
    ):
        taken_for(file, config="flux2")


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("sd15", "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"),
        ("sd15", "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"),
        ("sdxl", "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight"),
        ("playground-2.5", "edm_mean"),
        ("sd3", "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"),
        ("flux1", "model.diffusion_model.double_blocks.0.img_attn.qkv.weight"),
    ],
)
def test_a_whole_pipeline_in_one_file_tells_which_it_is(
    name: str, more: str, tmp_path: Path
) -> None:
    prefix = "vae." if name in ("sd3", "flux1") else "first_stage_model."
    write_empty(
        published(name, prefix, ldm) | {more: torch.ones(4)}, tmp_path / "model.safetensors"
    )
    assert taken_for(tmp_path / "model.safetensors") == name


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"}, "sdxl"),
        ({"config": "sd-ft-mse"}, "sd15"),
        ({"format": "pt"}, ""),
    ],
)
def test_a_name_in_the_file_tells_which_it_is(
    metadata: dict[str, str], name: str, tmp_path: Path
) -> None:
    write_empty(published("sd15", "", ldm), tmp_path / "vae.safetensors", metadata)
    if name:
        assert taken_for(tmp_path / "vae.safetensors") == name
    else:
        with pytest.raises(EncoderError, match="Say which it is"):
            taken_for(tmp_path / "vae.safetensors")


def test_of_two_networks_in_a_file_the_one_for_the_modality_is_taken(tmp_path: Path) -> None:
    tensors = published("ltx-2", "vae.", ltx(LTX_095_ENCODER, LTX_091_DECODER)) | published(
        "ltx-2-audio", "audio_vae.", ltx_audio
    )
    write_empty(
        tensors | {"model.diffusion_model.patchify_proj.weight": torch.ones(4, 4)},
        tmp_path / "ltx-2.safetensors",
    )
    assert taken_for(tmp_path / "ltx-2.safetensors", "video") == "ltx-2"
    assert taken_for(tmp_path / "ltx-2.safetensors", "audio") == "ltx-2-audio"


def test_scales_of_a_transformer_in_the_same_file_are_no_matter(tmp_path: Path) -> None:
    scaled = {
        "model.diffusion_model.double_blocks.0.img_attn.qkv.scale_weight": torch.ones(1),
        "scaled_fp8": torch.ones(1),
    }
    write_empty(published("flux1", "vae.", ldm) | scaled, tmp_path / "flux1-dev-fp8.safetensors")
    assert taken_for(tmp_path / "flux1-dev-fp8.safetensors") == "flux1"
    write_empty(
        published("flux1", "vae.", ldm) | {"vae.encoder.conv_in.scale_weight": torch.ones(1)},
        tmp_path / "vae.safetensors",
    )
    with pytest.raises(EncoderError, match="quantized and have separate scales"):
        taken_for(tmp_path / "vae.safetensors")


@pytest.mark.parametrize("modality", ["image", "video", ""])
def test_a_files_name_does_not_decide_between_configs_of_the_same_latents(
    modality: str, tmp_path: Path
) -> None:
    """The class is a part of the fingerprint: a file that is renamed must stay the same encoder."""
    file = tmp_path / "vae.safetensors"
    write_empty(published("wan2.1", "", wan21), file)
    for name in ("vae", "wan_2.1_vae", "qwen_image_vae"):
        file = file.rename(tmp_path / f"{name}.safetensors")
        found = inspect_model(file, None, None, modality)
        assert found.config_file.stem == "wan2.1"
        assert "recognized as wan2.1 " in str(found.remarks[-1])
        assert "(qwen-image would give the same latents)" in str(found.remarks[-1])


def test_weights_that_nobody_published_are_said_to_need_a_config(tmp_path: Path) -> None:
    write_empty({"encoder.conv_in.weight": torch.ones(8, 3, 3, 3)}, tmp_path / "own.safetensors")
    with pytest.raises(
        EncoderError,
        match=(
            r"fit none of the published .* config\.json beside the file, or .* allegro, .*"
            r" x4-upscaler"
        ),
    ):
        taken_for(tmp_path / "own.safetensors")
