"""`lk.encoder`: the encoders of `latentkit encode` without a dataset, bit for bit what it stores.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hub_server import FakeHub, read_files
from pictures import draw_picture
from PIL import Image

import latentkit as lk
from latentkit.errors import EncoderError, RecipeError, SampleError, SourceError

FIXED: dict[str, Any] = {
    "batch_size": 4,
    "threads": 1,
    "compile": False,
    "preview": 0,
    "output.dtype": "float32",
}
SIDE = 32


@pytest.fixture(scope="module")
def photos(
    tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]
) -> list[Path]:
    folder = write_photos(tmp_path_factory.mktemp("source") / "photos", 4)
    return sorted(folder.glob("*.png"))


@pytest.fixture(scope="module")
def vq_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny VQModel, f2, with a codebook of 16."""
    folder = tmp_path_factory.mktemp("vq")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(0)
        diffusers.VQModel(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=4,
            num_vq_embeddings=16,
        ).save_pretrained(folder)
    return folder


def store(
    photos: list[Path], folder: Path, encoder: str | Path, overrides: dict[str, Any] | None = None
) -> lk.LatentDataset:
    fixed = {**FIXED, **(overrides or {})}
    return lk.encode(photos[0].parent, folder, encoder=encoder, size=SIDE, overrides=fixed)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As many threads as the stored latents are made with: their number decides the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(FIXED["threads"])
    yield
    torch.set_num_threads(before)


def to_tensor(photo: Path) -> torch.Tensor:
    """A picture at the size that it is prepared to, so that nothing is resized."""
    pixels = np.asarray(Image.open(photo).resize((SIDE, SIDE)))
    return torch.from_numpy(pixels.copy()).movedim(-1, 0).float() / 127.5 - 1


def test_files_give_what_encode_stores_and_decode_what_data_decodes(
    photos: list[Path], kl_folder: Path, tmp_path: Path
) -> None:
    data = lk.open(store(photos, tmp_path / "out", kl_folder).folder.path, posterior="mean")
    encoder = lk.encoder(kl_folder, device="cpu")
    encoded = encoder.encode(photos, size=SIDE, batch_size=4)
    for row in range(4):
        moments = data.moments(row)
        assert torch.equal(encoded.mean[row], moments["mean"])  # type: ignore[index]
        assert torch.equal(encoded.logvar[row], moments["logvar"])  # type: ignore[index]
        assert torch.equal(encoded.latents[row], data[row]["latent"])
    batch = data[:4]
    assert torch.equal(encoder.decode(batch["latent"]), data.decode(batch["latent"], "cpu"))
    assert torch.equal(encoder.decode(encoded), data.decode(batch, "cpu"))
    parts = lk.encoder(kl_folder, device="cpu", dtype="bfloat16").fingerprint
    assert parts != encoder.fingerprint
    assert parts["encoder.with.dtype"] == '"bfloat16"'
    assert encoder.normalization.scale == data.normalization.scale == 0.5
    assert encoder.layout == data.layout


def test_paths_pictures_and_bytes_are_prepared_alike(photos: list[Path], tmp_path: Path) -> None:
    encoder = lk.encoder("tiny-kl", device="cpu")
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    draw_picture(1, 40, 64).save(turned, exif=exif)
    for path in (photos[1], turned):
        expected = encoder.encode(path, size=SIDE)
        assert expected.latents.shape == (4, 4, 4)
        given: list[Any] = [str(path), Image.open(path), path.read_bytes()]
        for one in given:
            assert torch.equal(encoder.encode(one, size=SIDE).latents, expected.latents)
    one_by_one = encoder.encode(photos, size=SIDE, batch_size=1)
    assert torch.equal(one_by_one.latents[1], encoder.encode(photos[1], size=SIDE).latents)
    cmyk = Image.open(photos[0]).convert("CMYK")
    assert encoder.encode(cmyk, size=(16, 24)).latents.shape == (4, 2, 3)


def test_tensors_go_through_the_network_as_they_are(kl_folder: Path) -> None:
    encoder = lk.encoder(str(kl_folder), device="cpu")
    batch = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = diffusers.AutoencoderKL.from_pretrained(kl_folder).eval()
    with torch.no_grad():
        posterior = model.encode(batch).latent_dist
        expected = (posterior.mean - 0.25) * 0.5
        decoded = model.decode(posterior.mean).sample
    encoded = encoder.encode(batch.requires_grad_())
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(encoded.mode(), posterior.mean, **close)
    torch.testing.assert_close(encoded.latents, expected, **close)
    torch.testing.assert_close(encoder.normalize(posterior.mean), expected, **close)
    torch.testing.assert_close(encoder.denormalize(expected), posterior.mean, **close)
    torch.testing.assert_close(encoder.decode(encoded.latents), decoded, rtol=1e-3, atol=1e-4)
    single = encoder.encode(batch[0])
    assert single.latents.shape == (4, 8, 12)
    assert encoder.decode(single).shape == (3, 32, 48)
    draws = [encoded.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws[0], posterior.mean + posterior.std * noise, **close)


def test_a_network_can_be_trained_on_what_it_gives() -> None:
    encoder = lk.encoder("tiny-kl", device="cpu")
    batch = torch.zeros(1, 3, 16, 16)
    network = torch.nn.Conv2d(4, 4, 1)
    encoded = encoder.encode(batch)
    for latents in (encoded.latents, encoded.sample(), encoded.mode()):
        assert not latents.requires_grad
        network(latents).square().sum().backward()
    assert network.weight.grad is not None
    pictures = torch.nn.Conv2d(3, 3, 1)
    pictures(encoder.decode(encoded)).sum().backward()


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"dtype": torch.bfloat16}])
def test_dtype_is_of_the_latents_and_decoding_stays_in_float32(options: dict[str, Any]) -> None:
    encoder = lk.encoder("tiny-kl", device="cpu", **options)
    encoded = encoder.encode(torch.zeros(1, 3, 16, 16))
    assert encoded.mode().dtype == torch.bfloat16
    assert encoded.latents.dtype == torch.float32
    exact = lk.encoder("tiny-kl", device="cpu")
    assert torch.equal(encoder.decode(encoded.latents), exact.decode(encoded.latents))


def test_a_deterministic_encoder_has_no_logvar(
    photos: list[Path], taesd_folder: Path, tmp_path: Path
) -> None:
    data = store(photos, tmp_path / "out", taesd_folder)
    encoder = lk.encoder(taesd_folder, device="cpu")
    encoded = encoder.encode(photos, size=SIDE, batch_size=4)
    assert encoded.logvar is None
    assert encoded.indices is None
    assert torch.equal(encoded.sample(), encoded.mode())
    assert torch.equal(encoded.latents, data[:]["latent"])
    assert torch.equal(encoder.decode(encoded), data.decode(data[:], "cpu"))


def test_a_quantized_encoder_gives_indices(
    photos: list[Path], vq_folder: Path, tmp_path: Path
) -> None:
    options = {"indices": True}
    data = store(photos, tmp_path / "out", vq_folder, {"encoder.with.indices": True})
    encoder = lk.encoder(vq_folder, device="cpu", options=options)
    encoded = encoder.encode(photos, size=SIDE, batch_size=4)
    assert encoded.mean is None
    assert encoded.logvar is None
    assert torch.equal(encoded.latents, data[:]["indices"])
    assert torch.equal(encoder.decode(encoded.latents), data.decode(data[:], "cpu"))
    assert torch.equal(data.decode(data[1], "cpu"), data.decode(data[1:2], "cpu")[0])
    for change in (encoder.normalize, encoder.denormalize):
        with pytest.raises(ValueError, match="indices into a codebook"):
            change(encoded.latents)


def test_a_hub_id_names_a_model(hub: FakeHub, kl_folder: Path) -> None:
    hub.add("someone/vae", read_files(kl_folder))
    batch = torch.rand(1, 3, 16, 16) * 2 - 1
    found = lk.encoder("someone/vae", device="cpu")
    assert torch.equal(
        found.encode(batch).latents, lk.encoder(kl_folder, device="cpu").encode(batch).latents
    )
    assert found.fingerprint["encoder.hub_commit"].startswith("someone/vae@")
    with pytest.raises(EncoderError, match="someone/none"):
        lk.encoder("someone/none", device="cpu")


def test_it_says_what_it_is(kl_folder: Path) -> None:
    assert repr(lk.encoder(kl_folder, device="cpu")).splitlines() == [
        f"LatentEncoder {kl_folder} on cpu, float32",
        "  takes          image (3, H, W) in [-1, 1]; H a multiple of 4; W a multiple of 4",
        "  gives          gaussian latents (4, h, w), downscale 4",
        "  normalized by  shift 0.25, scale 0.5",
        "  decodes        yes",
    ]
    encoder = lk.encoder("tiny-kl", device="cpu")
    assert (encoder.device, encoder.dtype, encoder.modality) == ("cpu", "float32", "image")
    encoded = encoder.encode(torch.zeros(3, 16, 16))
    assert repr(encoded) == "EncodedLatents (4, 2, 2), posterior, float32 on cpu"


def test_wrong_tensors_are_refused() -> None:
    encoder = lk.encoder("tiny-kl", device="cpu")
    for given, words in (
        (torch.zeros(1, 3, 250, 256), "H 250 .* a multiple of 8; nearest: 248 and 256"),
        (torch.zeros(1, 3, 256, 4), "W 4 .* nearest: 8$"),
        (torch.zeros(1, 1, 16, 16), r"takes \(3, H, W\) or a batch \(N, 3, H, W\)"),
        (torch.zeros(0, 3, 16, 16), "got shape"),
        (torch.zeros(16, 16), "got shape"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "floats in .* got uint8"),
        (torch.full((1, 3, 16, 16), 255.0), r"values in \[-1, 1\], got 255"),
    ):
        with pytest.raises(ValueError, match=words):
            encoder.encode(given)
    with pytest.raises(ValueError, match="a tensor already has a size"):
        encoder.encode(torch.zeros(1, 3, 16, 16), size=16)
    with pytest.raises(ValueError, match="4 channels, got 5"):
        encoder.decode(torch.zeros(1, 5, 2, 2))
    with pytest.raises(ValueError, match="no file"):
        encoder.encode([])


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    encoder = lk.encoder("tiny-kl", device="cpu")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(SampleError, match=r"broken\.png: .*not an image"):
        encoder.encode(tmp_path / "broken.png")
    with pytest.raises(SourceError, match=r"gone\.png: no such file"):
        encoder.encode([tmp_path / "gone.png"])
    with pytest.raises(RecipeError, match=r"height 250 .* nearest: 248 and 256"):
        encoder.encode(draw_picture(0), size=250)
    with pytest.raises(TypeError, match="got int"):
        encoder.encode([3])  # type: ignore[list-item]


def test_wrong_names_and_options_are_refused(kl_folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"no encoder plugin of that name \(.*tiny-kl"):
        lk.encoder("tiny-k1")
    with pytest.raises(RecipeError, match=r"encoder\.with\.tilling: .* did you mean 'tiling'"):
        lk.encoder(kl_folder, tilling=True)
    with pytest.raises(RecipeError, match=r"encoder\.with\.dtype"):
        lk.encoder("tiny-kl", dtype="float8")
    with pytest.raises(ValueError, match="given twice: dtype; give each option once"):
        lk.encoder("tiny-kl", dtype="float32", options={"dtype": "float32"})
    with pytest.raises(RecipeError, match="takes the modality image, got audio"):
        lk.encoder("tiny-kl", modality="audio")
