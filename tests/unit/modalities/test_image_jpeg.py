"""Modality `image`: JPEGs that simplejpeg decodes have the pixels and the errors of Pillow."""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from latentkit.contracts import BuildContext, InputSpec, Sample
from latentkit.errors import SampleError
from latentkit.modalities import decode_image, decode_jpeg
from latentkit.modalities.icc import ADOBE_RGB_EXPONENT, ADOBE_RGB_PRIMARIES, make_profile
from latentkit.modalities.image import ImageModality
from latentkit.modalities.options import ImageConfig
from latentkit.runtime.buffers import BufferPool

simplejpeg = pytest.importorskip("simplejpeg")

SIDES = [(64, 96), (61, 37), (8, 8), (129, 200)]


def make_pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray[Any, Any]:
    """Saturated colors with sharp edges, which decoders round and clip."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (-(-height // 5), -(-width // 5), channels))
    fine = coarse.repeat(5, axis=0).repeat(5, axis=1)[:height, :width]
    noise = generator.integers(-40, 41, (height, width, channels))
    return np.asarray((fine + noise).clip(0, 255).astype(np.uint8))


def save(pixels: np.ndarray[Any, Any], mode: str | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    (picture if mode is None else picture.convert(mode)).save(file, "JPEG", **options)
    return file.getvalue()


KINDS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:2:0": {"subsampling": "4:2:0"},
    "progressive": {"progressive": True},
    "progressive 4:4:4": {"progressive": True, "subsampling": "4:4:4"},
    "restarts": {"restart_marker_blocks": 3},
    "coarse": {"quality": 5},
    "fine": {"quality": 100, "optimize": True},
    "RGB": {"keep_rgb": True},
    "gray": {"mode": "L"},
    "gray, progressive": {"mode": "L", "progressive": True},
}


class Decoded:
    """How many pictures the fast decoder gave."""

    count = 0


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoded]:
    counted = Decoded()

    def decode(*given: Any) -> Any:
        levels = decode_jpeg.decode_jpeg(*given)
        counted.count += levels is not None
        return levels

    monkeypatch.setattr(decode_image, "decode_jpeg", decode)
    return counted


def prepare(media: bytes, channels: int = 3, resize: str = "lanczos") -> list[bytes] | str:
    """Pixels of two views, or the error."""
    spec = InputSpec(channels, (0.0, 255.0))
    config = ImageConfig.model_validate(
        {"size": 24, "views": ["plain", "crop-1"], "resize": resize, "on_small": "upscale"}
    )
    modality = ImageModality(config, BuildContext(input=spec))
    try:
        rows = list(modality.prepare(Sample("key", media)))
    except SampleError as error:
        return str(error)
    return [str(row.geometry).encode() + row.tensor.numpy().tobytes() for row in rows]


def prepare_by_pillow(media: bytes, channels: int = 3) -> list[bytes] | str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_jpeg, "find_decoder", lambda: None)
        return prepare(media, channels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", SIDES)
def test_pixels_are_those_of_pillow(side: tuple[int, int], kind: str, decoded: Decoded) -> None:
    media = save(make_pixels(*side), **KINDS[kind])
    channels = 1 if "gray" in kind else 3
    levels = decode_jpeg.decode_jpeg(
        Image.open(io.BytesIO(media)), media, "L" if channels == 1 else "RGB", BufferPool(False)
    )
    assert levels is not None
    np.testing.assert_array_equal(
        levels.squeeze(), np.asarray(Image.open(io.BytesIO(media))).squeeze()
    )
    assert prepare(media, channels) == prepare_by_pillow(media, channels)
    assert decoded.count == 1


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
@pytest.mark.parametrize("side", SIDES)
def test_pixels_are_those_of_pillow_for_subsamplings_that_it_does_not_write(
    side: tuple[int, int], subsampling: str, decoded: Decoded
) -> None:
    media = simplejpeg.encode_jpeg(make_pixels(*side), 85, "RGB", subsampling)
    assert prepare(media) == prepare_by_pillow(media)
    assert decoded.count == 1


@pytest.mark.parametrize("orientation", range(10))
def test_orientation_turns_as_pillow_does(orientation: int, decoded: Decoded) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    media = save(make_pixels(61, 96), exif=exif)
    assert prepare(media) == prepare_by_pillow(media)
    assert decoded.count == 1


def adobe_rgb() -> bytes:
    return make_profile(ADOBE_RGB_PRIMARIES, curve=ADOBE_RGB_EXPONENT)


@cache
def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize(
    ("make", "is_fast"), [(srgb, True), (lambda: b"broken", True), (adobe_rgb, False)]
)
def test_profiles_count_as_before(make: Any, is_fast: bool, decoded: Decoded) -> None:
    media = save(make_pixels(61, 96), icc_profile=make())
    assert prepare(media) == prepare_by_pillow(media)
    assert decoded.count == is_fast


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_other_channels_than_the_files_are_left_to_pillow(
    mode: str, channels: int, decoded: Decoded
) -> None:
    media = save(make_pixels(61, 96), mode)
    assert prepare(media, channels) == prepare_by_pillow(media, channels)
    assert decoded.count == ((mode, channels) in {("L", 1), ("RGB", 3)})


def test_the_first_picture_of_several_is_decoded(decoded: Decoded) -> None:
    file = io.BytesIO()
    first, second = (Image.fromarray(make_pixels(61, 96, seed=seed)) for seed in (0, 1))
    first.save(file, "MPO", save_all=True, append_images=[second])
    assert prepare(file.getvalue()) == prepare_by_pillow(file.getvalue())
    assert decoded.count == 1


def test_other_formats_and_other_ways_to_resize_are_left_to_pillow(decoded: Decoded) -> None:
    file = io.BytesIO()
    Image.fromarray(make_pixels(61, 96)).save(file, "PNG")
    prepare(file.getvalue())
    prepare(save(make_pixels(61, 96)), resize="pillow")
    prepare(save(make_pixels(96, 120)), resize="draft")
    assert decoded.count == 0


@pytest.mark.parametrize("kind", ["4:2:0", "progressive"])
def test_broken_files_have_the_pixels_and_the_errors_of_pillow(kind: str) -> None:
    media = save(make_pixels(64, 96), **KINDS[kind])
    generator = np.random.default_rng(0)
    broken = [media[:length] for length in generator.integers(1, len(media), 40).tolist()]
    broken += [media[:-2], media[:-1], media + b"more", media + media]
    for _ in range(150):
        bytes_ = bytearray(media)
        for place in generator.integers(2, len(media), 2).tolist():
            bytes_[place] = generator.integers(0, 256)
        broken.append(bytes(bytes_))
    results = [(prepare(file), prepare_by_pillow(file)) for file in broken]
    assert [one for one, other in results if one != other] == []
    assert {type(one) for one, _ in results} == {str, list}


def test_a_file_whose_two_headers_disagree_is_left_to_pillow() -> None:
    """No decoder may take memory for a size that wasn't held to `max_pixels`."""
    media = save(make_pixels(64, 96))
    picture = Image.open(io.BytesIO(media))
    at = media.index(b"\xff\xc0") + 5
    other = media[:at] + struct.pack(">HH", 60000, 60000) + media[at + 4 :]
    assert decode_jpeg.decode_jpeg(picture, other, "RGB", BufferPool(False)) is None


def test_without_simplejpeg_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert decode_jpeg.find_decoder.__wrapped__() is None




def test_pictures_prepared_in_turns_keep_their_pixels() -> None:
    config = ImageConfig(size=24, views=["plain", "crop-1"], resize="lanczos")
    modality = ImageModality(config, BuildContext(input=InputSpec(3)))
    samples = [Sample(str(seed), save(make_pixels(96, 96, seed=seed))) for seed in range(4)]
    alone = [[row.tensor.clone() for row in modality.prepare(sample)] for sample in samples]
    together = list(zip(*(modality.prepare(sample) for sample in samples), strict=True))
    for number, tensors in enumerate(alone):
        for view, tensor in enumerate(tensors):
            assert torch.equal(together[view][number].tensor, tensor)
