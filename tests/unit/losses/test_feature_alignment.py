"""Feature alignment against its formula in numpy, and the networks that features come from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from loss_batches import make_batch
from pydantic import ValidationError
from torch import Tensor, nn

from latentkit.builtin.losses import latentkit_losses
from latentkit.contracts import (
    BuildContext,
    HasModule,
    InputSpec,
    LatentLayout,
)
from latentkit.errors import EncoderError, PluginError, RecipeError, TrainingError
from latentkit.losses.feature_alignment import FeatureAlignment
from latentkit.losses.features import EncoderFeatures, TransformersFeatures, rescale
from latentkit.losses.options import FeatureAlignmentConfig

(SPEC,) = (spec for spec in latentkit_losses() if spec.name == "feature-alignment")


class Fixed:
    """Features that are always the same."""

    def __init__(self, values: Tensor) -> None:
        self.channels = values.shape[1]
        self._values = values

    def __call__(self, pictures: Tensor, grid: tuple[int, int]) -> Tensor:
        assert grid == tuple(self._values.shape[2:])
        return self._values


def align(
    features: Tensor, channels: int, matrix_margin: float = 0.25, cosine_margin: float = 0.5
) -> FeatureAlignment:
    torch.manual_seed(0)
    return FeatureAlignment(
        Fixed(features),
        nn.Conv2d(channels, features.shape[1], 1, bias=False),
        matrix_margin,
        cosine_margin,
    )


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Of each row with each row."""
    lengths = np.outer(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1))
    return np.asarray(left @ right.T / lengths)


@pytest.mark.parametrize("margins", [(0.25, 0.5), (0.0, 0.0)])
def test_loss_is_the_two_hinges_of_va_vae(margins: tuple[float, float]) -> None:
    features, latents = torch.randn(3, 6, 2, 5), torch.randn(3, 4, 2, 5)
    loss = align(features, 4, *margins)
    weight = loss.module.weight.detach().numpy()[:, :, 0, 0]  # type: ignore[union-attr, operator]
    expected = []
    for latent, feature in zip(
        latents.numpy().reshape(3, 4, 10), features.numpy().reshape(3, 6, 10), strict=True
    ):
        places, aims = (weight @ latent).T, feature.T
        matrix = np.maximum(
            np.abs(cosines(places, places) - cosines(aims, aims)) - margins[0], 0
        ).mean()
        cosine = np.maximum(1 - margins[1] - np.diag(cosines(places, aims)), 0).mean()
        expected.append(matrix + cosine)
    np.testing.assert_allclose(
        loss(make_batch(torch.zeros(3, 3, 8, 8), latents=latents)).detach().numpy(), expected, rtol=1e-4
    )


def test_latents_that_are_the_features_cost_nothing() -> None:
    features = torch.randn(2, 4, 3, 3)
    loss = align(features, 4, 0.0, 0.0)
    with torch.no_grad():
        loss.module.weight.copy_(torch.eye(4)[:, :, None, None])  # type: ignore[union-attr, operator]
    assert loss(
        make_batch(torch.zeros(2, 3, 8, 8), latents=5 * features)
    ).abs().max().item() == pytest.approx(0, abs=1e-6)


def test_training_latents_and_projection_brings_the_loss_to_its_margins() -> None:
    features, latents = torch.randn(2, 8, 4, 4), torch.randn(2, 4, 4, 4, requires_grad=True)
    loss = align(features, 4)
    assert isinstance(loss, HasModule)
    optimizer = torch.optim.Adam([latents, *loss.module.parameters()], lr=0.05)
    first = loss(make_batch(torch.zeros(2, 3, 8, 8), latents=latents)).mean().item()
    for _ in range(150):
        optimizer.zero_grad()
        value = loss(make_batch(torch.zeros(2, 3, 8, 8), latents=latents)).mean()
        value.backward()
        optimizer.step()
    assert value.item() < 0.1 * first


def test_latents_of_another_width_are_refused() -> None:
    loss = align(torch.randn(1, 8, 2, 2), 4)
    with pytest.raises(
        TrainingError, match=r"option channels is 4, but the model's latents are \(1, 16, 2, 2\)"
    ):
        loss(make_batch(torch.zeros(1, 3, 8, 8), latents=torch.zeros(1, 16, 2, 2)))


# ---------------------------------------------------------------- an encoder plugin as the network


def build(recipe_dir: Path, context: dict[str, Any] | None = None, **options: Any) -> Any:
    return SPEC.build(
        FeatureAlignmentConfig(**options), BuildContext(recipe_dir=recipe_dir, **(context or {}))
    )


def test_features_are_the_means_of_a_named_encoder(kl_folder: Path) -> None:
    import diffusers

    loss = build(
        kl_folder.parent, channels=2, encoder="diffusers", options={"model": kl_folder.name}
    )
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    model = diffusers.AutoencoderKL.from_pretrained(kl_folder)
    with torch.no_grad():
        expected = model.encode(pictures).latent_dist.mean
    torch.testing.assert_close(loss.features(pictures, (4, 4)), expected, rtol=1e-4, atol=1e-5)
    assert loss.features(pictures, (2, 3)).shape == (
        2,
        4,
        2,
        3,
    ), "resized to the latents of the trained model"
    assert [tuple(weight.shape) for weight in loss.module.parameters()] == [
        (4, 2, 1, 1)
    ], "the network is not in the module"


def test_projection_is_drawn_from_the_seed_alone(taesd_folder: Path) -> None:
    state = torch.get_rng_state()
    options = {"channels": 2, "encoder": "diffusers", "options": {"model": str(taesd_folder)}}
    first, again, other = (
        build(Path(), {"seed": seed}, **options).module.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_pictures_are_given_in_the_networks_range() -> None:
    torch.testing.assert_close(
        rescale(torch.tensor([0.0, 0.5, 1.0]), (0.0, 1.0), (-1.0, 1.0)),
        torch.tensor([-1.0, 0.0, 1.0]),
    )


def test_an_encoder_that_is_not_there_or_refuses_its_options_says_so() -> None:
    with pytest.raises(PluginError, match="no encoder is named 'dino'"):
        build(Path(), channels=4, encoder="dino")
    with pytest.raises(
        RecipeError,
        match=r"feature-alignment: encoder\.with\.modell: unknown key, did you mean 'model'\?",
    ):
        build(Path(), channels=4, encoder="diffusers", options={"modell": "x"})


def test_pictures_of_a_size_that_the_encoder_does_not_take_are_refused(kl_folder: Path) -> None:
    loss = build(Path(), channels=4, encoder="diffusers", options={"model": str(kl_folder)})
    with pytest.raises(
        TrainingError,
        match=(
            r"the encoder that gives the features rejects the images: W of the batch is 18; .*"
            r" a multiple of 4"
        ),
    ):
        loss(make_batch(torch.zeros(1, 3, 16, 18), latents=torch.zeros(1, 4, 4, 4)))


@pytest.mark.parametrize(("axes", "kind"), [("CL", "gaussian"), ("CHW", "quantised")])
def test_an_encoder_whose_latents_are_no_maps_is_refused(axes: str, kind: Any) -> None:
    layout = LatentLayout("latent", kind, axes, 4, 8)
    with pytest.raises(EncoderError, match="expected latents that are maps"):
        EncoderFeatures(SimpleNamespace(layout=layout), (-1.0, 1.0))  # type: ignore[arg-type]


# ---------------------------------------------------------------- a transformers folder as the
# network


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        EncoderError,
        match=(
            r"dino: expected the folder of a transformers model, with config\.json; there is no such"
            r" file"
        ),
    ):
        build(tmp_path, channels=4, model="dino")


def test_without_transformers_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        EncoderError, match="needs the library transformers: pip install transformers"
    ):
        build(tmp_path, channels=4, model=".")


class Tokens(nn.Module):
    """A vision model in the form of transformers': a class token, then the mean color of each
    patch, as it was given it.
    """

    class config:  # noqa: N801 (transformers' name)
        patch_size = 2

    def forward(self, pixel_values: Tensor) -> Any:
        patches = torch.nn.functional.avg_pool2d(pixel_values, 2).flatten(2).mT
        first = torch.full_like(patches[:, :1], 99.0)
        return type("Output", (), {"last_hidden_state": torch.cat([first, patches], 1)})


def test_patch_tokens_become_a_map_in_the_place_of_their_patches() -> None:
    features = TransformersFeatures(Tokens(), [0.5] * 3, [0.25] * 3, (-1.0, 1.0))
    pictures = torch.rand(2, 3, 4, 6) * 2 - 1
    found = features(pictures, (2, 3))
    colors = (pictures.numpy() + 1) / 2
    expected = (colors.reshape(2, 3, 2, 2, 3, 2).mean((3, 5)) - 0.5) / 0.25
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert features.channels == 3


def test_gray_pictures_are_given_as_colors() -> None:
    features = TransformersFeatures(Tokens(), [0.0] * 3, [1.0] * 3, (0.0, 1.0))
    assert features(torch.full((1, 1, 4, 4), 0.25), (2, 2)).unique().tolist() == [0.25]


@pytest.mark.parametrize("kind", ["Dinov2", "ViT", "ResNet"])
def test_models_that_transformers_saved_are_read(kind: str, tmp_path: Path) -> None:
    """Features are the patch tokens of the library's own forward pass."""
    import transformers

    layers = {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
    }
    small: dict[str, Any] = {**layers, "image_size": 32, "patch_size": 8}
    if kind == "ResNet":
        small = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(
        getattr(transformers, f"{kind}Config")(**small)
    ).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    loss = build(tmp_path, {"input": InputSpec(3)}, channels=4, model=".", matrix_margin=0.0)
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        state = model(pixel_values=pictures).last_hidden_state
    grid = (4, 4) if kind != "ResNet" else tuple(state.shape[2:])
    expected = state[:, -16:].mT.reshape(2, 16, 4, 4) if kind != "ResNet" else state
    torch.testing.assert_close(loss.features(pictures, grid), expected, rtol=1e-4, atol=1e-5)
    assert loss.features(pictures, (3, 5)).shape == (2, 16, 3, 5)
    latents = torch.randn(2, 4, 4, 4, requires_grad=True)
    loss(make_batch(pictures, latents=latents)).sum().backward()
    assert latents.grad is not None
    assert bool(latents.grad.any())
    assert sum(weight.numel() for weight in loss.module.parameters()) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"give model \(a transformers folder\) or encoder \(a plugin\)"),
        ({"model": "a", "encoder": "b"}, "not both"),
        ({"model": "a", "options": {"x": 1}}, "options needs an encoder; name one"),
    ],
)
def test_a_network_given_in_two_ways_or_none_is_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        FeatureAlignmentConfig(channels=4, **options)
