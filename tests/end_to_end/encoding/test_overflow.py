"""Pictures whose latents are too large for float16: skipped with advice, or encoded again in
float32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch

from latentkit.contracts import BuildContext
from latentkit.encoders.diffusers import DiffusersEncoder
from latentkit.encoding.encode_source import EncodeSummary, encode_source
from latentkit.encoding.make_plan import EncodeInputs, EncodeSettings
from latentkit.executors.local import LocalExecutor
from latentkit.modalities.image import ImageModality
from latentkit.modalities.options import ImageConfig
from latentkit.reading.dataset import open_dataset
from latentkit.sources.folder import FolderSource
from latentkit.sources.options import FolderConfig
from latentkit.store.local_folder import LocalFolder

SIZE = 32
NUM_PHOTOS = 6
LARGEST_HALF = 65504.0


@pytest.fixture
def photos(make_photos: Callable[..., Path]) -> FolderSource:
    return FolderSource(FolderConfig(path=str(make_photos(NUM_PHOTOS))), BuildContext())


@pytest.fixture
def modality() -> ImageModality:
    return ImageModality(ImageConfig(size=SIZE), BuildContext())


@pytest.fixture
def large_folder(
    kl_folder: Path, photos: FolderSource, modality: ImageModality, tmp_path: Path
) -> Path:
    """The tiny model, its means magnified so that those of some of the photographs are beyond
    float16.
    """
    model = diffusers.AutoencoderKL.from_pretrained(kl_folder)
    batch = torch.stack(
        [next(modality.prepare(photos[place])).tensor for place in range(NUM_PHOTOS)]
    )
    with torch.no_grad():
        peaks = model.encode(batch).latent_dist.mean.abs().flatten(1).amax(1).sort().values
        widest = int((peaks[1:] / peaks[:-1]).argmax())
        factor = LARGEST_HALF / float((peaks[widest] * peaks[widest + 1]).sqrt())
        model.quant_conv.weight[:4] *= factor
        model.quant_conv.bias[:4] *= factor
    model.save_pretrained(tmp_path / "large")
    return tmp_path / "large"


def encode(
    output: Path,
    folder: Path,
    source: FolderSource,
    modality: ImageModality,
    on_overflow: str,
    dtype: str,
    **more: object,
) -> EncodeSummary:
    inputs = EncodeInputs(
        source,
        modality,
        ["plain"],
        lambda device: DiffusersEncoder(folder, None, torch.float16, False, device),
        {"encoder.name": "test"},
        open_float32=lambda device: DiffusersEncoder(folder, None, torch.float32, False, device),
    )
    given = {
        "batch_size": 4,
        "unit_size": NUM_PHOTOS,
        "threads": 1,
        "max_bad": 1.0,
        "dtype": dtype,
        "on_overflow": on_overflow,
        **more,
    }
    settings = EncodeSettings(**given)  # type: ignore[arg-type]
    return encode_source(
        LocalFolder(output), inputs, LocalExecutor("cpu"), "cpu", settings, "", show_progress=False
    )


def test_rows_that_overflow_are_skipped_or_have_their_float32_latents(
    large_folder: Path, photos: FolderSource, modality: ImageModality, tmp_path: Path
) -> None:
    skipped = encode(tmp_path / "skip", large_folder, photos, modality, "skip", "float32")
    assert 0 < skipped.num_ok < NUM_PHOTOS
    retried = encode(tmp_path / "retry", large_folder, photos, modality, "retry-fp32", "float32")
    assert (retried.num_ok, retried.num_skipped) == (NUM_PHOTOS, 0)
    fine, whole = open_dataset(tmp_path / "skip"), open_dataset(tmp_path / "retry")
    model = diffusers.AutoencoderKL.from_pretrained(large_folder)
    for place, key in enumerate(whole.keys):
        got = whole.moments(place)
        if key in fine.keys:
            assert torch.equal(got["mean"], fine.moments(fine.keys.index(key))["mean"])
            continue
        with torch.no_grad():
            expected = model.encode(next(modality.prepare(photos[place])).tensor[None]).latent_dist
        assert expected.mean.abs().max() > LARGEST_HALF
        assert torch.allclose(got["mean"], expected.mean[0], rtol=1e-4, atol=1.0)
        assert torch.allclose(got["logvar"], expected.logvar[0], atol=1e-3)


def test_what_float16_can_not_hold_is_still_skipped_when_stored_as_float16(
    large_folder: Path, photos: FolderSource, modality: ImageModality, tmp_path: Path
) -> None:
    skipped = encode(tmp_path / "skip", large_folder, photos, modality, "skip", "float16")
    retried = encode(tmp_path / "retry", large_folder, photos, modality, "retry-fp32", "float16")
    assert retried.num_ok == skipped.num_ok < NUM_PHOTOS
    kept = encode(tmp_path / "bfloat16", large_folder, photos, modality, "retry-fp32", "bfloat16")
    assert kept.num_ok == NUM_PHOTOS


def test_a_retried_run_gives_the_same_bytes_again(
    large_folder: Path, photos: FolderSource, modality: ImageModality, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        encode(tmp_path / name, large_folder, photos, modality, "retry-fp32", "float32")
    units = [sorted((tmp_path / name / "units").iterdir()) for name in ("one", "two")]
    assert [file.read_bytes() for file in units[0]] == [file.read_bytes() for file in units[1]]
