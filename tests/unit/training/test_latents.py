"""Training a decoder from a latent dataset, whose moments stand for the encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

import latentkit
from latentkit.contracts import Sample
from latentkit.encoders.diffusers import TrainedModel
from latentkit.errors import FingerprintError, RecipeError, SourceError, TrainingError
from latentkit.training.batches import SampleLocation
from latentkit.training.checkpoint import list_checkpoints
from latentkit.training.stored_moments import StoredMoments

VIEWS: dict[str, Any] = {
    "size": 32,
    "crop": "random",
    "crop_scale": [0.5, 1.0],
    "views": ["plain", "hflip"],
}


@pytest.fixture
def photos(make_photos: Callable[..., Path]) -> Path:
    return make_photos(6)


def encode(photos: Path, model: Path, folder: Path, **output: Any) -> Path:
    """A latent dataset, float32 unless said otherwise."""
    recipe: dict[str, Any] = {
        "task": "encode",
        "source": {"use": "folder", "with": {"path": str(photos)}},
        "modality": {"use": "image", "with": VIEWS},
        "encoder": {"use": "diffusers", "with": {"model": str(model)}},
        "output": {"path": str(folder), "dtype": "float32", **output},
        "batch_size": 2,
        "preview": 0,
        "seed": 5,
    }
    latentkit.run(recipe)
    return folder


def train(photos: Path, model: Path, output: Path, latents: Path, /, **changes: Any) -> Any:
    recipe: dict[str, Any] = {
        "task": "train",
        "source": {"use": "folder", "with": {"path": str(photos)}},
        "model": {"use": "diffusers", "with": {"model": str(model)}, "train": "decoder"},
        "losses": [{"use": "mse"}],
        "steps": 4,
        "batch_size": 2,
        "output": {"path": str(output), "checkpoint_every": 2},
        "latents": str(latents),
    }
    return latentkit.run(recipe | changes)


def test_stored_moments_are_those_of_the_very_view_that_is_compared(
    photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    from latentkit.contracts import BuildContext
    from latentkit.modalities.image import ImageModality
    from latentkit.modalities.options import ImageConfig

    latents = encode(photos, kl_folder, tmp_path / "latents")
    modality = ImageModality(ImageConfig(**VIEWS, resize="lanczos"), BuildContext(seed=5))
    prepare = StoredMoments(str(latents), modality)
    vae = diffusers.AutoencoderKL.from_pretrained(kl_folder).eval()
    for place in (SampleLocation(0, 0), SampleLocation(3, 1)):
        path = photos / "002.png"
        examples = prepare(Sample("002.png", path), place)
        assert len(examples) == 2
        for example in examples:
            with torch.no_grad():
                found = vae.encode(example.inputs[None]).latent_dist
            assert example.moments is not None
            torch.testing.assert_close(
                example.moments, torch.cat([found.mean, found.logvar], 1)[0], rtol=1e-3, atol=1e-4
            )


def test_images_are_resized_as_those_that_the_moments_were_made_from(
    photos: Path, kl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentkit.contracts import BuildContext
    from latentkit.modalities.image import ImageModality
    from latentkit.modalities.options import ImageConfig

    latents = encode(photos, kl_folder, tmp_path / "latents")  # no `resize` in its recipe
    given = []

    class Recorded(StoredMoments):
        def __init__(self, path: str, modality: ImageModality) -> None:
            given.append(modality)
            super().__init__(path, modality)

    monkeypatch.setattr("latentkit.training.stored_moments.StoredMoments", Recorded)
    train(photos, kl_folder, tmp_path / "run", latents)
    sample = Sample("002.png", photos / "002.png")
    for way, is_same in (("lanczos", True), ("pillow", False)):
        expected = ImageModality(ImageConfig(**VIEWS, resize=way), BuildContext(seed=5))
        views = zip(given[0].prepare(sample), expected.prepare(sample), strict=True)
        assert all(torch.equal(a.tensor, b.tensor) for a, b in views) == is_same


def test_a_decoder_is_trained_without_running_the_encoder(
    photos: Path, kl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = encode(photos, kl_folder, tmp_path / "latents")
    monkeypatch.setattr(TrainedModel, "forward", lambda *_: pytest.fail("the encoder ran"))
    result = train(photos, kl_folder, tmp_path / "run", latents)
    before, after = (
        diffusers.AutoencoderKL.from_pretrained(folder).state_dict()
        for folder in (kl_folder, result.model)
    )
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}
    assert (
        diffusers.AutoencoderKL.from_pretrained(result.model).config.scaling_factor == 0.5
    )  # as the encoder, so its statistics


def test_the_trained_decoder_fits_the_same_latents_again_and_its_run_resumes(
    photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    latents = encode(photos, kl_folder, tmp_path / "latents")
    straight = train(photos, kl_folder, tmp_path / "straight", latents)
    for steps in (2, 4):
        parts = train(photos, kl_folder, tmp_path / "parts", latents, steps=steps)
    files = [
        list_checkpoints(result.model.parent / "checkpoints")[-1] / "model.safetensors"
        for result in (straight, parts)
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    again = train(
        photos, straight.model, tmp_path / "again", latents
    )  # the fingerprint is the encoder's
    assert again.steps == 4


def test_latents_of_a_half_precision_encoder_are_the_models_too(
    photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    overrides = {"encoder.with.dtype": "bfloat16", "encoder.with.tiling": True}
    latentkit.encode(
        photos,
        tmp_path / "latents",
        encoder=kl_folder,
        size=32,
        overrides={**overrides, "preview": 0, "batch_size": 2},
    )
    assert train(photos, kl_folder, tmp_path / "run", tmp_path / "latents").steps == 4


def test_latents_of_another_encoder_are_refused(
    photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    latents = encode(photos, kl_folder, tmp_path / "latents")
    other = diffusers.AutoencoderKL.from_pretrained(kl_folder)
    with torch.no_grad():
        other.encoder.conv_in.weight[0, 0, 0, 0] += 1e-3
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(
        FingerprintError, match=r"made by another encoder than the model's: encoder\.weights differ"
    ):
        train(photos, tmp_path / "other", tmp_path / "run", latents)
    assert not (tmp_path / "run").exists()


def test_pictures_that_are_not_those_encoded_are_told_of(
    photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    latents = encode(photos, kl_folder, tmp_path / "latents")
    for path in photos.glob("*.png"):
        Image.new("RGB", (48, 48)).save(path)
    with pytest.raises(
        SourceError,
        match=r"its media is not what the latent dataset was made from .*such as 000\.png",
    ):
        train(photos, kl_folder, tmp_path / "run", latents)
    for path in photos.glob("*.png"):
        path.rename(path.with_name(f"new-{path.name}"))
    with pytest.raises(
        SourceError, match=r"the latent dataset has no latents of it .*such as new-000\.png"
    ):
        train(photos, kl_folder, tmp_path / "other", latents)


def test_a_dataset_without_moments_is_refused(
    photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    latents = encode(photos, kl_folder, tmp_path / "latents", store="mean")
    with pytest.raises(
        TrainingError, match=r"stores no moments .store: mean.. Encode with store: moments"
    ):
        train(photos, kl_folder, tmp_path / "run", latents)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": {"use": "image"}}, "expected one of modality and latents, got both"),
        ({"latents": None}, "expected one of modality and latents, got neither"),
        ({"model": {"use": "tiny-kl"}}, r"latents: expected model\.train: decoder and no sizes"),
        ({"sizes": [32]}, r"latents: expected model\.train: decoder and no sizes"),
    ],
)
def test_what_doesnt_go_with_latents_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        train(tmp_path, tmp_path, tmp_path / "run", tmp_path / "latents", **changes)
