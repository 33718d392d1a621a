"""Exports of real pictures through the command, as a user does it; what is refused."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from latentkit_trainers.kohya import fit_inside
from latentkit_trainers.mar import class_folders
from PIL import Image

import latentkit as lk
from latentkit import cli

MakeDataset = Callable[..., Path]


def export(latents: Path, to: str, *options: str) -> int:
    sets = [word for option in options for word in ("--set", option)]
    return cli.main(["export", str(latents), str(latents.parent / "out"), "--to", to, *sets])


def test_kohya_has_two_buckets_captions_and_the_sizes_of_the_pictures(
    make_dataset: MakeDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    latents = make_dataset(4, 0.18215, square=False)
    assert export(latents, "kohya", "family=sd", "seed=3") == 0
    out = latents.parent / "out"
    metadata = json.loads((out / "metadata.json").read_text(encoding="utf-8"))
    assert metadata == {
        "cats/0.png": {"caption": 'a "quoted" cat', "image_size": [128, 192]},
        "cats/1.png": {"caption": "two lines", "image_size": [192, 128]},
        "cats/2.png": {"caption": "an Ärger, 猫 and 🐈", "image_size": [128, 192]},
        "dogs/0.png": {"caption": "", "image_size": [192, 128]},
        "dogs/1.png": {"caption": "a dog\\", "image_size": [128, 192]},
        "dogs/2.png": {"caption": "plain", "image_size": [192, 128]},
    }
    data = lk.open(latents)
    with np.load(out / "cats" / "1_0192x0128_sd.npz") as file:
        assert file["original_size"].tolist() == [300, 200]
        assert file["crop_ltrb"].tolist() == [0, 0, 192, 128]
        for name, view in (("latents", "plain"), ("latents_flipped", "hflip")):
            stored = data.moments(("cats/1.png", view))
            deviation = (stored["logvar"].float() / 2).exp()
            noise = (file[name] - stored["mean"].float().numpy()) / deviation.numpy()
            assert noise.shape == (4, 16, 24)
            assert 0.8 < noise.std() < 1.2
    configuration = tomllib.loads((latents.parent / "out.toml").read_text())
    assert configuration["general"]["bucket_no_upscale"] is True
    assert configuration["general"]["flip_aug"] is True
    assert configuration["datasets"][0]["subsets"][0]["image_dir"] == str(out)
    assert "bucket_no_upscale = true" in capsys.readouterr().out


def test_captions_that_are_not_there_are_said(make_dataset: MakeDataset) -> None:
    latents = make_dataset(4, 0.18215, square=False)
    assert export(latents, "kohya", "family=sd", "caption=title") == 0
    said = (latents.parent / "out.toml").read_text()
    assert "# no sample has a caption in 'title': name its attribute with caption=NAME" in said
    tomllib.loads(said)


def test_mar_has_a_folder_for_each_class(make_dataset: MakeDataset) -> None:
    latents = make_dataset(16, 0.2325)
    assert export(latents, "mar") == 0
    out = latents.parent / "out"
    assert sorted(path.name for path in out.iterdir()) == ["cats", "dogs"]
    assert len(list(out.rglob("*.npz"))) == 6
    assert "--vae_embed_dim 16 --vae_stride 8" in (latents.parent / "out.txt").read_text()


def test_repa_has_the_pictures_as_they_were_encoded(make_dataset: MakeDataset) -> None:
    latents = make_dataset(4, 0.18215)
    assert export(latents, "repa") == 0
    first = latents.parent / "out" / "images" / "00000" / "img00000000.png"
    with Image.open(first) as cut, Image.open(latents.parent / "photos/cats/0.png") as whole:
        box = (0, 60, 200, 260)  # the square in the middle of 200 x 320 pixels
        expected = whole.resize((64, 64), Image.Resampling.LANCZOS, box)
        assert cut.size == (64, 64)
        difference = np.asarray(cut, float) - np.asarray(expected, float)
        assert abs(difference).max() <= 1


def test_lightningdit_says_what_its_configuration_needs(make_dataset: MakeDataset) -> None:
    latents = make_dataset(32, 1.0)
    assert export(latents, "lightningdit") == 0
    text = (latents.parent / "out.yaml").read_text()
    assert "  num_classes: 2\n" in text
    assert "  in_chans: 32\n" in text


def test_another_autoencoder_than_the_trainers_is_refused(
    make_dataset: MakeDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    latents = make_dataset(4, 0.18215)
    for family, reason in (
        ("sdxl", "its trainer always normalizes by scale 0.13025"),
        ("flux", "it takes latents of 16 channels and 8 x downscale, and these have 4"),
    ):
        assert export(latents, "kohya", f"family={family}") == 2
        assert reason in capsys.readouterr().err
    assert export(latents, "kohya") == 2
    assert "family: missing; expected models to train" in capsys.readouterr().err
    assert export(latents, "mar") == 2
    assert export(latents, "kohya", "family=sdxl", "allow_other_scale=true") == 0


def test_names_of_classes_that_a_folder_cannot_have_are_numbered() -> None:
    assert class_folders(["ant", "zebra"]) == ["ant", "zebra"]
    assert class_folders(["a/b", "a:b"]) == ["000000", "000001"]
    assert class_folders(["0", "1", "2"]) == ["0", "1", "2"]
    assert class_folders([str(number) for number in range(11)])[10] == "000010"
    assert class_folders([""]) == ["000000"]
    assert class_folders(["long" * 100]) == ["000000"]


def test_a_picture_is_fitted_into_the_middle_of_its_bucket() -> None:
    assert fit_inside((400, 300), (256, 256)) == [0, 32, 256, 224]
    assert fit_inside((300, 400), (256, 256)) == [32, 0, 224, 256]
