"""What decides a latent's value is refused by name when it changes; what doesn't may change at any
time.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from verified import verify_dataset

import latentkit as lk
from latentkit import cli
from latentkit.contracts import Normalization
from latentkit.errors import FingerprintError, SourceError
from latentkit.store.fingerprint import fingerprint_of, fingerprinted_parts

FIXED = {"batch_size": 2, "threads": 1, "output.unit_size": 2, "preview": 0}
NUM_PHOTOS = 6


@pytest.fixture
def photos(make_photos: Callable[..., Path]) -> Path:
    return make_photos(NUM_PHOTOS)


@pytest.fixture
def vae(kl_folder: Path, tmp_path: Path) -> Path:
    """A copy of the autoencoder that a test may train further."""
    shutil.copytree(kl_folder, tmp_path / "vae")
    return tmp_path / "vae"


def encode(photos: Path, output: Path, encoder: Path, **overrides: Any) -> lk.LatentDataset:
    return lk.encode(photos, output, encoder=encoder, size=32, overrides={**FIXED, **overrides})


def change_weights(folder: Path, change: Callable[[Any], object]) -> None:
    model = diffusers.AutoencoderKL.from_pretrained(folder)
    change(model)
    model.save_pretrained(folder)


def flip_a_bit(tensor: torch.Tensor) -> None:
    tensor.data.view(torch.int32).view(-1)[0] ^= 1


def fine_tune(model: Any) -> None:
    """One step of training, with a tiny step size."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loss = (model(images).sample - images).square().mean()
    loss.backward()
    optimizer.step()


def named_fields(refused: pytest.ExceptionInfo[FingerprintError]) -> set[str]:
    return set(re.findall(r"^  ([\w.-]+): ", str(refused.value), re.M))


@pytest.mark.parametrize(
    "part",
    ["conv_in.weight", "conv_out.bias", "mid_block.attentions.0.to_q.weight", "conv_norm_out.bias"],
)
def test_any_bit_of_any_tensor_that_encoding_uses_is_refused(
    part: str, photos: Path, vae: Path, tmp_path: Path
) -> None:
    encode(photos, tmp_path / "out", vae)
    change_weights(vae, lambda model: flip_a_bit(model.encoder.get_parameter(part)))
    with pytest.raises(FingerprintError) as refused:
        encode(photos, tmp_path / "out", vae)
    assert named_fields(refused) == {"encoder.weights"}


def test_fine_tuned_model_under_the_old_path_is_refused_and_nothing_changes(
    photos: Path, vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encode(photos, tmp_path / "out", vae)
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*.*") if file.is_file()}
    change_weights(vae, fine_tune)
    with pytest.raises(
        FingerprintError, match=r"encoder\.weights: [0-9a-f]+\.\.\. there, [0-9a-f]+\.\.\. now"
    ):
        encode(photos, tmp_path / "out", vae)
    assert cli.main(["run", f"{tmp_path}/out/recipe.yaml"]) == 2
    assert "contains latents that were made with other settings" in capsys.readouterr().err
    assert {
        file: file.read_bytes() for file in (tmp_path / "out").rglob("*.*") if file.is_file()
    } == before
    assert len(lk.open(tmp_path / "out")) == NUM_PHOTOS  # what is there can still be read


def test_unfinished_run_is_refused_too(photos: Path, vae: Path, tmp_path: Path) -> None:
    good = (photos / "004.png").read_bytes()
    (photos / "004.png").write_bytes(b"")
    with pytest.raises(SourceError):
        encode(photos, tmp_path / "out", vae, on_bad_sample="fail")
    (photos / "004.png").write_bytes(good)
    change_weights(vae, fine_tune)
    with pytest.raises(FingerprintError, match=r"encoder\.weights"):
        encode(photos, tmp_path / "out", vae)


def test_every_field_that_differs_is_named_at_once(photos: Path, vae: Path, tmp_path: Path) -> None:
    encode(photos, tmp_path / "out", vae)
    with pytest.raises(FingerprintError) as refused:
        lk.encode(
            photos,
            tmp_path / "out",
            encoder=vae,
            size=48,
            overrides={
                **FIXED,
                "modality.with.views": ["hflip"],
                "modality.with.crop": "none",
                "encoder.with.dtype": "bfloat16",
            },
        )
    expected = {
        "modality.with.size",
        "modality.with.views",
        "modality.with.crop",
        "encoder.with.dtype",
    }
    assert named_fields(refused) - {"encoder.dtype", "encoder.weights"} == expected


@pytest.mark.parametrize(
    "override", [{"modality.with.crop": "random"}, {"modality.with.views": ["plain", "crop-1"]}]
)
def test_seed_counts_only_where_something_is_drawn_from_it(
    override: dict[str, Any], photos: Path, vae: Path, tmp_path: Path
) -> None:
    encode(photos, tmp_path / "plain", vae, seed=0)
    encode(photos, tmp_path / "plain", vae, seed=1)
    encode(photos, tmp_path / "drawn", vae, seed=0, **override)
    with pytest.raises(FingerprintError) as refused:
        encode(photos, tmp_path / "drawn", vae, seed=1, **override)
    assert named_fields(refused) == {"modality.seed"}


@pytest.mark.parametrize(
    "override",
    [
        {"batch_size": 3},
        {"threads": 2},
        {"output.unit_size": 5},
        {"executor": {"use": "local", "with": {"device": "cpu"}}},
        {"executor": {"use": "accelerate"}},
        {"preview": 2},
        {"on_bad_sample": "fail"},
        {"max_bad": 0.5},
    ],
    ids=str,
)
def test_what_changes_no_value_may_change(
    override: dict[str, Any], photos: Path, vae: Path, tmp_path: Path
) -> None:
    fingerprint = encode(photos, tmp_path / "out", vae).fingerprint
    assert encode(photos, tmp_path / "out", vae, **override).fingerprint == fingerprint
    assert encode(photos, tmp_path / "other", vae, **override).fingerprint == fingerprint


def test_finished_dataset_may_be_run_with_compile(photos: Path, vae: Path, tmp_path: Path) -> None:
    fingerprint = encode(photos, tmp_path / "out", vae).fingerprint
    assert encode(photos, tmp_path / "out", vae, compile=True).fingerprint == fingerprint


def set_scaling(folder: Path, scale: float, shift: float) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"scaling_factor": scale, "shift_factor": shift}))


@pytest.mark.parametrize("num_more", [0, 1])
def test_corrected_normalization_takes_the_place_of_the_old_and_both_are_said(
    num_more: int, photos: Path, vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is applied when latents are read, so none is encoded again; with more samples or without.
    """
    out = tmp_path / "out"
    set_scaling(vae, 0.18215, 0.25)
    encode(photos, out, vae)
    before = lk.open(out, posterior="mean")[0]
    units = set((out / "units").iterdir())
    for number in range(num_more):
        shutil.copy(photos / "000.png", photos / f"more-{number}.png")
    set_scaling(vae, 0.13025, 0.5)
    capsys.readouterr()
    encode(photos, out, vae)
    said = [line for line in capsys.readouterr().err.splitlines() if "scale" in line]
    now, was = "shift 0.5, scale 0.13025", "shift 0.25, scale 0.18215"
    words = f"latents are now read with {now}, as the encoder's config says; before it was {was}"
    assert said == [f"{out}: {words}"]
    after = lk.open(out, posterior="mean")
    assert (after.normalization, len(after)) == (Normalization(0.5, 0.13025), NUM_PHOTOS + num_more)
    latent = next(item for item in after if item["key"] == before["key"])["latent"]
    expected = (before["latent"] / 0.18215 + 0.25 - 0.5) * 0.13025
    torch.testing.assert_close(torch.as_tensor(latent), torch.as_tensor(expected))
    assert len(set((out / "units").iterdir()) - units) == num_more
    assert not verify_dataset(out).damage
    encode(photos, out, vae)
    assert "scale" not in capsys.readouterr().err


def test_only_the_commit_on_the_hub_and_the_decoder_are_recorded_without_counting() -> None:
    counting = {f"encoder.{name}": "1" for name in ("commit", "commitment_cost", "hub", "weights")}
    recorded = {"encoder.hub_commit": "o/n@1", "encoder.decoder": "2"}
    assert fingerprinted_parts(counting | recorded) == counting
    assert fingerprint_of(counting | recorded) == fingerprint_of(counting)


def test_same_model_in_another_place_is_the_same(photos: Path, vae: Path, tmp_path: Path) -> None:
    first = encode(photos, tmp_path / "out", vae)
    vae.rename(tmp_path / "moved")
    assert encode(photos, tmp_path / "out", tmp_path / "moved").fingerprint == first.fingerprint
