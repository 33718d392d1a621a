"""The plugin is found, its encoder keeps the contract, and its features are the model's own, beside
latents of the same pictures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import latentkit as lk
import pytest
import torch
from latentkit.contracts import BuildContext
from latentkit.errors import EncoderError
from latentkit.kit import discover
from latentkit.testing import EncoderContract
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTModel,
)

from latentkit_features.plugin import FeaturesConfig, latentkit_encoders

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def write_dinov2(folder: Path) -> Dinov2Model:
    """A tiny DINOv2 with random weights, and how its pictures are prepared."""
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **SIZES))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.2, 0.5]})
    )
    return model


def write_vit(folder: Path) -> ViTModel:
    """A tiny ViT with random weights, of 32 x 32 pixels."""
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(image_size=32, patch_size=16, **SIZES), add_pooling_layer=False)
    model.save_pretrained(folder)
    return model


class TestDinov2(EncoderContract):
    spec = latentkit_encoders()

    def make_config(self, tmp_path: Path) -> FeaturesConfig:
        write_dinov2(tmp_path / "model")
        return FeaturesConfig(model="model")


class TestViT(EncoderContract):
    spec = latentkit_encoders()

    def make_config(self, tmp_path: Path) -> FeaturesConfig:
        write_vit(tmp_path / "model")
        return FeaturesConfig(model="model")


def test_features_are_the_models_own_patch_tokens(tmp_path: Path) -> None:
    model = write_dinov2(tmp_path / "model")
    encoder = latentkit_encoders().build(
        FeaturesConfig(model="model"), BuildContext(recipe_dir=tmp_path)
    )
    colors = torch.rand(2, 3, 28, 42)
    pixels = (colors - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.25, 0.2, 0.5]
    ).view(3, 1, 1)
    with torch.inference_mode():
        tokens = model(pixel_values=pixels).last_hidden_state
    found = encoder.encode(2 * colors - 1)["latent"]
    assert found.shape == (2, 16, 2, 3)
    assert torch.allclose(found[:, :, 1, 0], tokens[:, 1 + 3], atol=1e-6)
    assert (encoder.layout.kind, encoder.layout.channels, encoder.layout.downscale) == (
        "deterministic",
        16,
        14,
    )


def test_latents_and_features_of_the_same_pictures_stand_side_by_side(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_vit(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 32), (80 * number, 0, 255)).save(
            tmp_path / "photos" / f"{number}.png"
        )
    lk.run(
        {
            "task": "encode",
            "source": {"use": "folder", "with": {"path": str(tmp_path / "photos")}},
            "modality": {"use": "image", "with": {"size": 32}},
            "encoders": {
                "latents": {"use": "tiny-kl"},
                "features": {"use": "features", "with": {"model": str(tmp_path / "model")}},
            },
            "output": {"path": str(tmp_path / "out")},
            "batch_size": 2,
        }
    )
    assert "take different inputs" not in capfd.readouterr().err  # one pass
    both = lk.join(lk.open(tmp_path / "out" / "latents"), lk.open(tmp_path / "out" / "features"))
    (batch,) = both.batches(3)
    assert batch["latent"].shape == (3, 4, 4, 4)
    assert batch["features"].shape == (3, 16, 2, 2)


def test_a_folder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    model = write_vit(tmp_path / "model")
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("layernorm.")
    }
    save_file(tensors, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        EncoderError, match=r"model: weights are missing: layernorm\.bias, layernorm\.weight"
    ):
        latentkit_encoders().build(FeaturesConfig(model="model"), BuildContext(recipe_dir=tmp_path))


def test_a_folder_without_a_vision_model_is_named(tmp_path: Path) -> None:
    texts = CLIPTextConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    CLIPTextModel(texts).save_pretrained(tmp_path / "text")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("text", "expected a vision model of patches"),
        ("empty", "expected the folder of a transformers model"),
    ):
        with pytest.raises(EncoderError, match=f"{name}: {message}"):
            latentkit_encoders().build(
                FeaturesConfig(model=name), BuildContext(recipe_dir=tmp_path)
            )


def test_the_installed_plugin_is_found() -> None:
    registry = discover()
    assert registry.find("encoder", "features").distribution == "latentkit-features"
    assert not [
        problem for problem in registry.problems if problem.distribution == "latentkit-features"
    ]
