"""Modality `image`: the ways to resize, against an ideal Lanczos filter in float64."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentkit.contracts import BuildContext, InputSpec, Prepared, Sample
from latentkit.modalities.geometry import Box
from latentkit.modalities.image import ImageModality
from latentkit.modalities.lanczos import (
    COLUMN_BITS,
    ROW_BITS,
    Block,
    filter_blocks,
    resize_levels,
)
from latentkit.modalities.options import ImageConfig
from latentkit.plugins import fingerprint_fields
from latentkit.plugins.registry import parse_fingerprint_field

Pixels = np.ndarray[Any, Any]


def make_photo(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    """Detail of every size, as photographs have it: noise whose spectrum falls with its frequency.
    """
    noise = np.random.default_rng(seed).normal(size=(height, width, channels))
    down, across = np.fft.fftfreq(height)[:, None, None], np.fft.fftfreq(width)[None, :, None]
    spectrum = np.fft.fft2(noise, axes=(0, 1)) / (0.02 + np.hypot(down, across))
    smooth = np.fft.ifft2(spectrum, axes=(0, 1)).real
    return np.asarray((128 + smooth / smooth.std() * 50).clip(0, 255).astype(np.uint8))


def filter_matrix(original: int, start: float, length: float, size: int) -> Pixels:
    """(size, original) weights of a Lanczos filter with three lobes, as wide as a pixel of the
    coarser grid.
    """
    scale = length / size
    centers = start + (np.arange(size) + 0.5) * scale
    offsets = (np.arange(original) + 0.5 - centers[:, None]) / max(scale, 1.0)
    weights = np.where(np.abs(offsets) < 3, np.sinc(offsets) * np.sinc(offsets / 3), 0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def resize_ideally(levels: Pixels, box: Box, shape: tuple[int, int]) -> Pixels:
    """(C, H, W) float64, not rounded."""
    down = filter_matrix(levels.shape[0], box.top, box.height, shape[0])
    across = filter_matrix(levels.shape[1], box.left, box.width, shape[1])
    return np.asarray(
        np.einsum("hy,yxc,wx->chw", down, levels.astype(float), across, optimize=True).clip(0, 255)
    )


def measure_psnr(one: Pixels, other: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.mean((one - other) ** 2)))


BOXES = {
    "smaller": (Box(0, 0, 90, 130), (32, 48)),
    "part": (Box(7.25, 20.5, 60.75, 81), (27, 36)),
    "much smaller": (Box(0, 0, 90, 130), (5, 7)),
    "larger": (Box(10, 10, 40, 40), (64, 96)),
    "one axis larger": (Box(0, 0, 90, 130), (200, 16)),
    "one pixel": (Box(0, 0, 90, 130), (1, 1)),
    "odd sizes": (Box(0.1, 0.2, 89.7, 129.3), (17, 23)),
}


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("channels", [1, 3])
def test_result_is_the_ideal_one_rounded(name: str, channels: int) -> None:
    box, shape = BOXES[name]
    photo = make_photo(90, 130, channels)
    result, ideal = resize_levels(photo, box, shape), resize_ideally(photo, box, shape)
    assert result.shape == (channels, *shape)
    assert np.array_equal(result, np.rint(result))
    assert np.abs(result - ideal).max() <= 0.6


def dense_weights(blocks: tuple[Block, ...], original: int, unit: float) -> Pixels:
    """(size, original) weights as integers, in units of `unit`."""
    matrix = np.zeros((blocks[-1].result.stop, original))
    for block in blocks:
        matrix[block.result, block.original] = block.weights / unit
    assert np.array_equal(matrix, np.rint(matrix))
    return matrix.astype(np.int64)


def resize_in_integers(levels: Pixels, box: Box, shape: tuple[int, int]) -> tuple[Pixels, int]:
    """What `resize_levels` gives, of sums that nothing rounds, and the largest sum that any order
    of adding up can reach, in units of the last bit.
    """
    row_blocks = filter_blocks(levels.shape[0], box.top, box.height, shape[0], ROW_BITS, 8)
    rows = dense_weights(row_blocks, levels.shape[0], 8 / 2**ROW_BITS)
    column_blocks = filter_blocks(levels.shape[1], box.left, box.width, shape[1], COLUMN_BITS, 1)
    columns = dense_weights(column_blocks, levels.shape[1], 1 / 2**COLUMN_BITS)
    alpha = levels[..., 3:].astype(float)
    seen = np.rint(levels[..., :3] * alpha / 255) if alpha.size else levels
    planes = np.concatenate([seen, alpha], axis=2).astype(np.int64).transpose(2, 0, 1)
    planes = np.stack([np.einsum("hy,yx->hx", rows, plane) for plane in planes])
    between = np.rint(planes * 8 / 2**ROW_BITS).astype(np.int64)
    sums = np.einsum("chx,wx->chw", between, columns)
    highest, lowest = np.maximum(columns, 0), np.minimum(columns, 0)
    ups, downs = np.maximum(between, 0), np.minimum(between, 0)
    most = (
        np.maximum(rows, 0).sum(axis=1).max() * 255,
        (np.einsum("chx,wx->chw", ups, highest) + np.einsum("chx,wx->chw", downs, lowest)).max(),
    )
    result = sums / (8 * 2**COLUMN_BITS)
    if alpha.size:
        shown = result[3].astype(np.float32)
        colors = result[:3].astype(np.float32) * np.float32(255)
        result[:3] = np.where(shown > 0.5, colors / np.where(shown > 0.5, shown, 1), 0)
    return np.rint(result.clip(0, 255)), int(max(most))


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_no_sum_is_rounded_so_that_every_machine_has_the_same_pixels(
    name: str, channels: int
) -> None:
    box, shape = BOXES[name]
    photos = [
        make_photo(90, 130, channels),
        np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (90, 130, channels)),
    ]
    for photo in photos:
        expected, largest = resize_in_integers(photo, box, shape)
        assert np.array_equal(resize_levels(photo, box, shape), expected)
        assert largest < 2**24  # float32 has every whole number up to there


def test_the_worst_picture_at_the_worst_place_is_summed_without_rounding() -> None:
    """The sharpest filters that a search over sizes and boxes found, at an edge that enlarges."""
    for original, length, size in ((4, 3.337272245313933, 24), (4, 3.205067682798862, 12)):
        blocks = filter_blocks(original, 0.0, length, size, ROW_BITS, 1)
        weights = dense_weights(blocks, original, 1 / 2**ROW_BITS) / 2**ROW_BITS
        ups = np.maximum(weights, 0).sum(axis=1).max()
        downs = np.minimum(weights, 0).sum(axis=1).min()
        assert 1.285 < ups < 1.29
        assert 255 * ups * 2**ROW_BITS < 2**24
        assert 255 * (ups**2 + downs**2) * 8 * 2**COLUMN_BITS < 2**24


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
@pytest.mark.parametrize("name", BOXES)
def test_flat_pictures_stay_flat(name: str, value: int) -> None:
    photo = np.full((90, 130, 3), value, np.uint8)
    assert np.array_equal(np.unique(resize_levels(photo, *BOXES[name])), [value])


def test_same_size_changes_nothing() -> None:
    photo = make_photo(40, 56)
    np.testing.assert_array_equal(
        resize_levels(photo, Box(0, 0, 40, 56), (40, 56)), photo.transpose(2, 0, 1)
    )


def test_large_products_are_cut_without_a_seam() -> None:
    photo = make_photo(64, 3000, 1)
    box = Box(0, 0, 64, 3000)
    assert (
        np.abs(resize_levels(photo, box, (8, 40)) - resize_ideally(photo, box, (8, 40))).max()
        <= 0.6
    )


def test_colors_count_by_their_alpha() -> None:
    photo = np.zeros((32, 32, 4), np.uint8)
    photo[:, :16] = (200, 100, 50, 255)
    photo[:, 16:] = (0, 255, 255, 0)  # not to be seen
    result = resize_levels(photo, Box(0, 0, 32, 32), (8, 8))
    seen = result[3] > 0
    assert seen.mean() >= 0.5
    np.testing.assert_allclose(
        result[:3, seen], np.repeat([[200], [100], [50]], seen.sum(), axis=1), atol=1
    )


# ---------------------------------------------------------------- as options


def encode(photo: Pixels, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, file_format, **options)
    return file.getvalue()


def prepare(media: bytes, **options: Any) -> list[Prepared]:
    spec = InputSpec(options.pop("channels", 3), (0.0, 255.0))
    return list(
        ImageModality(ImageConfig(**options), BuildContext(input=spec)).prepare(
            Sample("key", media)
        )
    )


def find_box(prepared: Prepared) -> Box:
    return Box(*prepared.geometry["crop"])


VIEWS = ["plain", "hflip", "crop-1", "hflip-1"]


@pytest.mark.parametrize("crop", ["center", "random", "none"])
def test_lanczos_is_nearer_to_the_ideal_than_pillow_in_every_view(crop: str) -> None:
    photo = make_photo(200, 290)
    options: dict[str, Any] = {"size": 48, "crop": crop, "views": VIEWS, "crop_scale": (0.4, 0.9)}
    ours, pillows = (prepare(encode(photo), resize=way, **options) for way in ("lanczos", "pillow"))
    for one, other in zip(ours, pillows, strict=True):
        assert (one.view, one.bucket, one.geometry) == (other.view, other.bucket, other.geometry)
        ideal = resize_ideally(photo, find_box(one), (48, 48))
        ideal = ideal[..., ::-1] if one.geometry["flip"] else ideal
        ours_psnr, pillows_psnr = (
            measure_psnr(np.asarray(view.tensor), ideal) for view in (one, other)
        )
        assert ours_psnr > 58  # rounding alone: 20 log10(255 sqrt 12) = 58.9 dB
        assert pillows_psnr < ours_psnr


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16", "CMYK", "P"])
def test_lanczos_is_within_two_levels_of_pillow_for_every_mode(mode: str, channels: int) -> None:
    photo = make_photo(120, 120, 4)
    photo[..., 3] = np.linspace(60, 255, 120)
    picture = Image.fromarray(photo[..., :3] if mode in ("CMYK", "P", "RGB") else photo)
    if mode == "I;16":
        media = encode(photo[..., 0].astype(np.uint16) * 257)
    else:
        media = (
            encode(np.asarray(picture), "PNG")
            if mode in ("RGB", "RGBA")
            else save(picture.convert(mode), mode)
        )
    one, other = (
        prepare(media, size=32, resize=way, channels=channels)[0] for way in ("lanczos", "pillow")
    )
    # Pillow rounds colors that were multiplied by alpha: half a level of 60 is two of 255.
    assert np.abs(np.asarray(one.tensor) - np.asarray(other.tensor)).max() <= (
        5 if channels == 4 else 2
    )


def save(picture: Image.Image, mode: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, "TIFF" if mode == "CMYK" else "PNG")
    return file.getvalue()


@pytest.mark.parametrize(("side", "divisor"), [(127, 1), (128, 2), (257, 4), (511, 4), (1023, 8)])
def test_draft_decodes_a_jpeg_as_small_as_twice_the_pixels_needed(
    side: int, divisor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    media = encode(make_photo(side, side + 30, 1)[..., 0], "JPEG")
    loaded = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: (loaded.append(self.size), load(self))[1])
    [prepared] = prepare(media, size=32, resize="draft")
    assert (-(-(side + 30) // divisor), -(-side // divisor)) in loaded
    assert (side + 30, side) not in loaded or divisor == 1
    assert (prepared.geometry["height"], prepared.geometry["width"]) == (side, side + 30)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("crop", ["random", "none"])
def test_draft_shows_the_same_part_as_pillow(crop: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    media = encode(make_photo(301, 403), "JPEG", quality=95, exif=exif)
    options: dict[str, Any] = {
        "buckets": {"shapes": [[32, 64], [64, 32]]},
        "crop": crop,
        "views": VIEWS,
    }
    draft, pillow = (prepare(media, resize=way, **options) for way in ("draft", "pillow"))
    for one, other in zip(draft, pillow, strict=True):
        assert (one.view, one.bucket, one.geometry, one.remarks) == (
            other.view,
            other.bucket,
            other.geometry,
            other.remarks,
        )
        assert (
            measure_psnr(np.asarray(one.tensor), np.asarray(other.tensor)) > 35
        )  # half a pixel aside: below 28


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_draft_is_lanczos_where_there_is_nothing_to_shrink(file_format: str) -> None:
    media = encode(make_photo(160, 200), file_format)
    one, other = (prepare(media, size=32, resize=way)[0] for way in ("draft", "lanczos"))
    assert np.array_equal(np.asarray(one.tensor), np.asarray(other.tensor))


def test_draft_counts_the_pixels_of_the_file_as_small_or_not() -> None:
    media = encode(make_photo(80, 100), "JPEG")
    assert prepare(media, size=16, resize="draft", min_size=80)[0].remarks == []
    assert prepare(media, size=16, resize="draft", min_size="target")[0].geometry["height"] == 80


def test_ways_to_resize_are_different_datasets_and_pillow_is_the_one_there_always_was() -> None:
    assert fingerprint_fields(ImageConfig(resize="pillow")) == {}
    for way in ("lanczos", "draft"):
        text = fingerprint_fields(ImageConfig(resize=way))["resize"]
        assert text == f'"{way}" (version 2)'
        assert parse_fingerprint_field(text) == way


def test_threads_resize_as_one_thread_does() -> None:
    photos = [make_photo(150 + number, 200, 3, number) for number in range(12)]
    with ThreadPoolExecutor(6) as threads:
        together = list(
            threads.map(lambda photo: resize_levels(photo, Box(0, 0, 150, 200), (48, 64)), photos)
        )
    for photo, result in zip(photos, together, strict=True):
        assert np.array_equal(resize_levels(photo, Box(0, 0, 150, 200), (48, 64)), result)
