"""The whole line on real pictures: what is stored is what diffusers gives, and nothing is lost on
the way.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import latentkit as lk
from latentkit.errors import FingerprintError, RecipeError, SourceError, StoreError
from latentkit.runtime.device import choose_device
from latentkit.store.dataset_json import read_dataset, read_index
from latentkit.store.local_folder import LocalFolder

MakePhotos = Callable[..., Path]
FIXED = {"batch_size": 3, "threads": 1, "output.unit_size": 4, "preview": 0}
NUM_PHOTOS = 10


def encode(photos: Path, output: Path, encoder: Path, **overrides: Any) -> lk.LatentDataset:
    return lk.encode(photos, output, encoder=encoder, size=32, overrides={**FIXED, **overrides})


def load_batches(photos: Path, size: int = 32) -> list[torch.Tensor]:
    """The batches that units of 4 and batches of 3 make of 10 pictures: 3 + 1, 3 + 1, 2."""
    images = []
    for file in sorted(photos.glob("*.png")):
        image = Image.open(file).resize((size, size), Image.Resampling.LANCZOS)
        images.append(
            torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1
        )
    return [
        torch.stack(images[start:stop]) for start, stop in ((0, 3), (3, 4), (4, 7), (7, 8), (8, 10))
    ]


@pytest.fixture
def photos(make_photos: MakePhotos) -> Path:
    return make_photos(NUM_PHOTOS)


def test_stored_moments_are_those_of_diffusers_bit_for_bit(
    photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    options = {"output.dtype": "float32", "modality.with.resize": "pillow"}
    data = encode(photos, tmp_path / "out", kl_folder, **options)
    vae = (
        diffusers.AutoencoderKL.from_pretrained(kl_folder)
        .eval()
        .to(memory_format=torch.channels_last)
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            posteriors = [
                vae.encode(batch.to(memory_format=torch.channels_last)).latent_dist
                for batch in load_batches(photos)
            ]
    finally:
        torch.set_num_threads(threads)
    means = torch.cat([posterior.mean for posterior in posteriors])
    logvars = torch.cat([posterior.logvar for posterior in posteriors])
    for index in range(NUM_PHOTOS):
        stored = data.moments(index)
        torch.testing.assert_close(stored["mean"], means[index], rtol=0, atol=1e-5)
        torch.testing.assert_close(stored["logvar"], logvars[index], rtol=0, atol=1e-5)


def test_moments_equal_a_direct_call_on_the_same_prepared_batch(
    photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    from latentkit.contracts import BuildContext
    from latentkit.modalities.image import ImageModality
    from latentkit.modalities.options import ImageConfig
    from latentkit.sources.folder import FolderSource
    from latentkit.sources.options import FolderConfig

    data = encode(photos, tmp_path / "out", kl_folder, **{"output.dtype": "float32"})
    source = FolderSource(FolderConfig(path=str(photos)), BuildContext())
    modality = ImageModality(ImageConfig(size=32, resize="lanczos"), BuildContext())
    rows = [next(iter(modality.prepare(source[index]))).tensor for index in range(3)]
    batch = torch.stack([row for row in rows if isinstance(row, torch.Tensor)])
    vae = (
        diffusers.AutoencoderKL.from_pretrained(kl_folder)
        .eval()
        .to(choose_device(), memory_format=torch.channels_last)
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            posterior = vae.encode(
                batch.to(choose_device(), memory_format=torch.channels_last)
            ).latent_dist
    finally:
        torch.set_num_threads(threads)
    for index in range(3):
        assert torch.equal(data.moments(index)["mean"], posterior.mean[index].cpu())
        assert torch.equal(data.moments(index)["logvar"], posterior.logvar[index].cpu())


def test_latents_are_normalized_by_the_models_own_config_and_decode(
    photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    data = lk.open(encode(photos, tmp_path / "out", kl_folder).folder.path, posterior="mean")
    raw = data.moments(2)["mean"].float()
    assert torch.equal(data[2]["latent"], (raw - 0.25) * 0.5)
    vae = diffusers.AutoencoderKL.from_pretrained(kl_folder).eval()
    with torch.inference_mode():
        expected = vae.decode(data[2]["latent"][None] / 0.5 + 0.25).sample
    for device in ({}, {"device": "cpu"}):
        torch.testing.assert_close(
            data.decode(data[2]["latent"][None], **device).cpu(), expected, rtol=0, atol=1e-5
        )


def test_keys_captions_and_views_are_all_there(
    photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    encode(photos, output, kl_folder, **{"modality.with.views": ["plain", "hflip"]})
    data = lk.open(output, columns=["text"])
    assert len(data) == 2 * NUM_PHOTOS
    assert data.keys[::2] == [f"{number:03d}.png" for number in range(NUM_PHOTOS)]
    assert [data[index]["view"] for index in range(4)] == ["plain", "hflip", "plain", "hflip"]
    assert data[6]["text"] == "picture number 3"


def test_flip_is_the_encoding_of_the_flipped_picture(
    make_photos: MakePhotos, kl_folder: Path, tmp_path: Path
) -> None:
    photos, flipped = make_photos(3), make_photos(3, "flipped")
    for file in flipped.glob("*.png"):
        Image.open(file).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(file)
    both = lk.open(
        encode(
            photos, tmp_path / "a", kl_folder, **{"modality.with.views": ["plain", "hflip"]}
        ).folder.path,
        views=["hflip"],
    )
    alone = encode(flipped, tmp_path / "b", kl_folder)
    for index in range(3):
        torch.testing.assert_close(
            both.moments(index)["mean"], alone.moments(index)["mean"], rtol=0, atol=2e-3
        )


def test_deterministic_encoder_stores_latents(
    photos: Path, taesd_folder: Path, tmp_path: Path
) -> None:
    data = encode(photos, tmp_path / "out", taesd_folder)
    assert data.layout.kind == "deterministic"
    assert data[0]["latent"].shape == (4, 8, 8)
    with pytest.raises(ValueError, match="stores no moments"):
        data.moments(0)
    with pytest.raises(ValueError, match="needs stored moments"):
        lk.open(tmp_path / "out", posterior="sample")


def test_half_size_stores_hold_the_mean(photos: Path, kl_folder: Path, tmp_path: Path) -> None:
    whole = encode(photos, tmp_path / "moments", kl_folder, **{"output.dtype": "float32"})
    data = encode(
        photos, tmp_path / "mean", kl_folder, **{"output.store": "mean", "output.dtype": "float32"}
    )
    stored = torch.stack([data[index]["latent"] for index in range(NUM_PHOTOS)]) / 0.5 + 0.25
    mean = torch.stack([whole.moments(index)["mean"] for index in range(NUM_PHOTOS)])
    torch.testing.assert_close(stored, mean, rtol=0, atol=1e-5)


def test_a_draw_is_not_stored(photos: Path, kl_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"output.store: expected 'moments' or 'mean', got 'sam"):
        encode(photos, tmp_path / "out", kl_folder, **{"output.store": "sample"})


def test_bad_samples_become_ledger_rows(photos: Path, kl_folder: Path, tmp_path: Path) -> None:
    (photos / "003.png").write_bytes(b"")
    (photos / "005.png").write_text("not an image")
    data = encode(photos, tmp_path / "out", kl_folder)
    assert len(data) == NUM_PHOTOS - 2
    assert "003.png" not in data.keys
    folder = LocalFolder(tmp_path / "out")
    rows = read_index(folder, read_dataset(folder)).to_pylist()
    assert [row["key"] for row in rows] == [f"{number:03d}.png" for number in range(NUM_PHOTOS)]
    skipped = {row["key"]: row["reason"] for row in rows if row["status"] == "skipped"}
    assert set(skipped) == {"003.png", "005.png"}
    assert all(skipped.values())


def test_bad_sample_ends_the_run_when_asked_to(
    photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    (photos / "003.png").write_bytes(b"")
    with pytest.raises(SourceError, match=r"003\.png"):
        encode(photos, tmp_path / "out", kl_folder, on_bad_sample="fail")


def test_mostly_bad_source_is_refused_and_can_go_on(
    make_photos: MakePhotos, kl_folder: Path, tmp_path: Path
) -> None:
    photos = make_photos(30)
    for number in range(0, 24, 2):
        (photos / f"{number:03d}.png").write_bytes(b"")
    with pytest.raises(SourceError, match="more than max_bad"):
        encode(photos, tmp_path / "out", kl_folder)
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert len(encode(photos, tmp_path / "out", kl_folder, max_bad=0.5)) == 18


def test_source_without_any_good_sample_is_refused(
    make_photos: MakePhotos, kl_folder: Path, tmp_path: Path
) -> None:
    photos = make_photos(3)
    for file in photos.glob("*.png"):
        file.write_text("not an image")
    with pytest.raises(SourceError, match="none of the"):
        encode(photos, tmp_path / "out", kl_folder)
    with pytest.raises(SourceError, match="none of the"):
        lk.encode(photos, tmp_path / "auto", encoder=kl_folder, size=32)
    assert not (tmp_path / "auto").exists()


def test_running_again_does_nothing(photos: Path, kl_folder: Path, tmp_path: Path) -> None:
    encode(photos, tmp_path / "out", kl_folder)
    before = {
        file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*") if file.is_file()
    }
    encode(photos, tmp_path / "out", kl_folder)
    lk.run(tmp_path / "out" / "recipe.yaml")
    assert before == {
        file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*") if file.is_file()
    }


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ({"modality.with.size": 40}, "modality.with.size"),
        ({"modality.with.views": ["plain", "hflip"]}, "modality.with.views"),
        ({"modality.with.crop": "none"}, "modality.with.crop"),
        ({"encoder.with.dtype": "bfloat16"}, "encoder.with.dtype"),
        ({"output.dtype": "float32"}, "dtype"),
        ({"output.store": "mean"}, "store"),
    ],
)
def test_other_settings_are_refused_by_name(
    make_photos: MakePhotos, kl_folder: Path, tmp_path: Path, override: dict[str, Any], field: str
) -> None:
    photos = make_photos(2)
    encode(photos, tmp_path / "out", kl_folder)
    with pytest.raises(FingerprintError, match=rf"\n  {field}: "):
        encode(photos, tmp_path / "out", kl_folder, **override)


def test_one_bit_of_the_weights_is_noticed_and_the_decoder_is_not(
    make_photos: MakePhotos, kl_folder: Path, tmp_path: Path
) -> None:
    photos = make_photos(2)
    vae = diffusers.AutoencoderKL.from_pretrained(kl_folder)
    vae.save_pretrained(tmp_path / "vae")
    data = encode(photos, tmp_path / "out", tmp_path / "vae")
    vae.decoder.conv_out.weight.data[0, 0, 0, 0] += 1
    vae.save_pretrained(tmp_path / "vae")
    assert encode(photos, tmp_path / "out", tmp_path / "vae").fingerprint == data.fingerprint
    bits = vae.encoder.conv_in.weight.data.view(torch.int32)
    bits[0, 0, 0, 0] ^= 1
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(FingerprintError, match=r"encoder\.weights"):
        encode(photos, tmp_path / "out", tmp_path / "vae")
    with pytest.raises(FingerprintError, match=r"encoder\.weights"):
        lk.open(tmp_path / "out").decode(torch.zeros(1, 4, 8, 8))


def test_batch_size_and_threads_may_change(photos: Path, kl_folder: Path, tmp_path: Path) -> None:
    data = encode(photos, tmp_path / "out", kl_folder)
    assert (
        encode(photos, tmp_path / "out", kl_folder, batch_size=1, threads=2).fingerprint
        == data.fingerprint
    )


def test_output_of_something_else_is_left_alone(
    photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(StoreError, match=r"thesis\.txt"):
        encode(photos, tmp_path / "out", kl_folder)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    with pytest.raises(StoreError, match="is a file"):
        encode(photos, tmp_path / "out" / "thesis.txt", kl_folder)


def stopped_halfway(photos: Path, output: Path, encoder: Path) -> None:
    """A run that ends at a bad ninth picture, with the units before it committed."""
    good = (photos / "008.png").read_bytes()
    (photos / "008.png").write_bytes(b"")
    with pytest.raises(SourceError, match=r"008\.png"):
        encode(photos, output, encoder, on_bad_sample="fail")
    (photos / "008.png").write_bytes(good)
    assert not (output / "dataset.json").exists()


def test_source_that_grew_between_runs_keeps_keys_and_pictures_together(
    photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    whole = encode(photos, tmp_path / "whole", kl_folder)
    stopped_halfway(photos, tmp_path / "out", kl_folder)
    (photos / "000.png").rename(tmp_path / "first.png")
    Image.open(photos / "001.png").transpose(Image.Transpose.ROTATE_180).save(
        photos / "000-new.png"
    )
    (tmp_path / "first.png").rename(photos / "000.png")
    data = encode(photos, tmp_path / "out", kl_folder, on_bad_sample="fail")
    assert data.keys == [
        "000-new.png",
        *whole.keys,
    ]  # the plan that was begun is finished, then the new picture is added
    assert all(
        torch.equal(data.moments(index + 1)["mean"], whole.moments(index)["mean"])
        for index in range(NUM_PHOTOS)
    )


def test_source_that_lacks_or_changed_what_is_left_is_refused(
    photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    stopped_halfway(photos, tmp_path / "out", kl_folder)
    (photos / "009.png").rename(tmp_path / "009.png")
    with pytest.raises(
        SourceError, match=r"1 are no longer in the source and \d have changed, such as '009\.png'"
    ):
        encode(photos, tmp_path / "out", kl_folder)
    (tmp_path / "009.png").rename(photos / "009.png")
    for file in photos.glob("*.png"):
        os.utime(file)
    with pytest.raises(SourceError, match=r"0 are no longer in the source and \d have changed"):
        encode(photos, tmp_path / "out", kl_folder)


def test_several_encoders_make_a_dataset_each(
    photos: Path, kl_folder: Path, taesd_folder: Path, tmp_path: Path
) -> None:
    recipe = {
        "task": "encode",
        "source": {"use": "folder", "with": {"path": str(photos)}},
        "modality": {"use": "image", "with": {"size": 32}},
        "encoders": {
            "kl": {"use": "diffusers", "with": {"model": str(kl_folder)}},
            "taesd": {"use": "diffusers", "with": {"model": str(taesd_folder)}},
        },
        "output": {"path": str(tmp_path / "out")},
    }
    datasets = lk.run(recipe, overrides={"batch_size": 4, "output.unit_size": 4, "preview": 0})
    assert {name: data.layout.kind for name, data in datasets.items()} == {
        "kl": "gaussian",
        "taesd": "deterministic",
    }
    assert len(lk.run(tmp_path / "out" / "kl" / "recipe.yaml")) == NUM_PHOTOS


def test_aspect_buckets_keep_one_shape_per_batch(
    make_photos: MakePhotos, kl_folder: Path, tmp_path: Path
) -> None:
    photos = make_photos(6)
    for number in (1, 4):
        image = Image.open(photos / f"{number:03d}.png")
        image.resize((96, 48)).save(photos / f"{number:03d}.png")
    buckets = {"area": 32 * 32, "step": 8}
    data = lk.encode(
        photos,
        tmp_path / "out",
        encoder=kl_folder,
        overrides={**FIXED, "modality.with.buckets": buckets},
    )
    shapes = [tuple(data[index]["latent"].shape) for index in range(6)]
    assert len(set(shapes)) == 2
    assert {number for number in range(6) if shapes[number][2] > shapes[number][1]} == {1, 4}
    batches = list(data.batches(4, shuffle=True))
    assert sorted(key for batch in batches for key in batch["key"]) == data.keys
    assert len({tuple(batch["latent"].shape[1:]) for batch in batches}) == 2
