"""Modality `image`: orientation, modes, transparency, 16 bits, frames and color profiles, against
values worked out by hand.
"""

from __future__ import annotations

import io
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from latentkit.contracts import BuildContext, InputSpec, Sample
from latentkit.errors import SampleError
from latentkit.modalities.decode_image import decode_upright
from latentkit.modalities.image import ImageModality
from latentkit.modalities.options import ImageConfig

Pixels = np.ndarray[Any, Any]

UPRIGHT = np.random.default_rng(0).integers(0, 256, (12, 8, 3), dtype=np.uint8)

# How a camera stores an upright picture under each value of the EXIF tag: where the stored row 0
# and column 0 lie in the upright one.
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    0: lambda upright: upright,  # not a value of the standard
    1: lambda upright: upright,  # top, left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.transpose(1, 0, 2),  # left, top
    6: lambda upright: upright.transpose(1, 0, 2)[::-1],  # right, top
    7: lambda upright: upright.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: lambda upright: upright.transpose(1, 0, 2)[:, ::-1],  # left, bottom
}


def encode(picture: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format=file_format, **options)
    return file.getvalue()


def show(media: bytes, height: int, width: int, channels: int = 3, **options: Any) -> Pixels:
    """Levels (H, W, C) of a picture prepared to its own size."""
    spec = InputSpec(channels, (0.0, 255.0))
    modality = ImageModality(
        ImageConfig(size=(height, width), min_size=1, **options), BuildContext(input=spec)
    )
    [prepared] = modality.prepare(Sample("key", media))
    levels: Pixels = np.asarray(prepared.tensor).transpose(1, 2, 0)
    return levels


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("file_format", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]
)
def test_every_orientation_gives_the_same_upright_picture(
    orientation: int, file_format: str, options: dict[str, Any]
) -> None:
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](UPRIGHT)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(
        show(encode(stored, file_format, exif=exif, **options), 12, 8), UPRIGHT
    )


def test_broken_exif_data_leaves_the_picture_as_it_lies() -> None:
    media = encode(Image.fromarray(UPRIGHT), exif=b"Exif\0\0 this is not a TIFF header at all")
    np.testing.assert_array_equal(show(media, 12, 8), UPRIGHT)


# ---------------------------------------------------------------- modes


def test_gray_becomes_three_equal_channels() -> None:
    gray = np.arange(96, dtype=np.uint8).reshape(8, 12)
    np.testing.assert_array_equal(
        show(encode(Image.fromarray(gray)), 8, 12), np.repeat(gray[..., None], 3, axis=2)
    )


def test_black_and_white_of_one_bit_become_0_and_255() -> None:
    bits = np.indices((8, 12)).sum(0) % 2 == 0
    assert (
        show(encode(Image.fromarray(bits)), 8, 12)[..., 1].tolist()
        == np.where(bits, 255, 0).tolist()
    )


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bits_are_scaled_to_8_rather_than_clipped(file_format: str) -> None:
    deep = np.linspace(0, 65535, 96).astype(np.uint16).reshape(8, 12)
    expected = np.rint(deep / 257)
    np.testing.assert_array_equal(
        show(encode(Image.fromarray(deep), file_format), 8, 12)[..., 0], expected
    )


def test_gray_of_16_bits_takes_no_64_bits_a_pixel() -> None:
    picture = Image.fromarray(np.arange(1 << 16, dtype=np.uint16).reshape(256, 256))
    tracemalloc.start()
    try:
        shown = np.asarray(decode_upright(picture, "L", (0, 0, 0)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(shown.ravel(), np.round(np.arange(1 << 16) / 257))
    assert peak / picture.width / picture.height < 10


def test_16_bits_in_a_32_bit_picture_are_scaled_too() -> None:
    deep = np.array([[0, 257], [32896, 65535]], np.int32)
    media = encode(Image.fromarray(deep), "TIFF")
    assert Image.open(io.BytesIO(media)).mode == "I"
    assert show(media, 2, 2)[..., 0].tolist() == [[0, 1], [128, 255]]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 70000]], np.int32),
        np.array([[-1, 5]], np.int32),
        np.array([[0.0, 1.0]], np.float32),
    ],
)
def test_pixels_without_a_defined_white_are_refused(values: Pixels) -> None:
    with pytest.raises(SampleError, match=r"which value is white"):
        show(encode(Image.fromarray(values), "TIFF"), 1, 2)


def test_cmyk_without_profile_is_ink_on_white() -> None:
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0]], [[0, 0, 0, 255], [0, 255, 255, 0]]], np.uint8)
    media = encode(Image.frombytes("CMYK", (2, 2), inks.tobytes()), "TIFF")
    assert show(media, 2, 2).tolist() == [
        [[255, 255, 255], [0, 255, 255]],
        [[0, 0, 0], [255, 0, 0]],
    ]


@pytest.mark.parametrize(
    ("background", "expected"), [((255, 255, 255), [255, 191, 127]), ((0, 0, 100), [128, 64, 50])]
)
def test_transparency_shows_the_background(
    background: tuple[int, int, int], expected: list[int]
) -> None:
    media = encode(
        Image.new("RGBA", (4, 4), (255, 128, 0, 128))
    )  # 128 / 255 of the color, the rest of the background
    np.testing.assert_allclose(show(media, 4, 4, background=background)[2, 2], expected, atol=1)


def test_alpha_is_kept_for_an_encoder_that_takes_it() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 128, 0, 128))
    assert show(encode(clear), 4, 4, channels=4)[2, 2].tolist() == [255, 128, 0, 128]


def make_palette_picture() -> Image.Image:
    picture = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    return picture


@pytest.mark.parametrize(
    ("picture", "options", "expected"),
    [
        (make_palette_picture(), {}, [[255, 0, 0], [0, 255, 0], [0, 0, 255]]),
        (make_palette_picture(), {"transparency": 1}, [[255, 0, 0], [9, 9, 9], [0, 0, 255]]),
        (
            make_palette_picture(),
            {"transparency": bytes([255, 255, 0])},
            [[255, 0, 0], [0, 255, 0], [9, 9, 9]],
        ),
        (
            Image.frombytes("L", (3, 1), bytes([0, 100, 255])),
            {"transparency": 100},
            [[0, 0, 0], [9, 9, 9], [255, 255, 255]],
        ),
        (
            Image.frombytes("RGB", (3, 1), bytes(range(9))),
            {"transparency": (3, 4, 5)},
            [[0, 1, 2], [9, 9, 9], [6, 7, 8]],
        ),
        (
            Image.frombytes("LA", (3, 1), bytes([7, 255, 7, 0, 8, 255])),
            {},
            [[7, 7, 7], [9, 9, 9], [8, 8, 8]],
        ),
    ],
    ids=["palette", "palette-index", "palette-alpha", "gray-key", "color-key", "gray-alpha"],
)
def test_every_kind_of_transparency_is_seen(
    picture: Image.Image, options: dict[str, Any], expected: list[list[int]]
) -> None:
    assert show(encode(picture, **options), 1, 3, background=(9, 9, 9))[0].tolist() == expected


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("GIF", {}), ("MPO", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("PNG", {})],
)
def test_first_of_several_frames_is_taken(file_format: str, options: dict[str, Any]) -> None:
    first, second = Image.new("RGB", (16, 16), (200, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 200))
    media = encode(first, file_format, save_all=True, append_images=[second], **options)
    with Image.open(io.BytesIO(media)) as opened:
        assert getattr(opened, "n_frames", 1) == 2
    np.testing.assert_allclose(show(media, 16, 16)[8, 8], [200, 0, 0], atol=2)


# ---------------------------------------------------------------- color profiles


def pack_point(x: float, y: float, z: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(part * 65536) for part in (x, y, z)))


def pack_profile(space: bytes, connection: bytes, device: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile, version 2.1 (ICC.1:2001-04, section 6)."""
    tags = {b"wtpt": pack_point(0.9642, 1.0, 0.8249), **tags}
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(content))
        body += content
    size = 128 + len(table) + len(body)
    head = struct.pack(
        ">I4xI4s4s4s12x4s28x3i",
        size,
        0x02100000,
        device,
        space,
        connection,
        b"acsp",
        63190,
        65536,
        54061,
    )
    return head.ljust(128, b"\0") + table + body


def make_profile(space: bytes, gamma: float) -> bytes:
    """sRGB's primaries (or gray) under a pure power law."""
    curve = b"curv" + bytes(4) + struct.pack(">IHxx", 1, round(gamma * 256))
    if space == b"GRAY":
        return pack_profile(space, b"XYZ ", b"mntr", {b"kTRC": curve})
    points = {  # of sRGB, adapted to D50
        b"rXYZ": pack_point(0.4360747, 0.2225045, 0.0139322),
        b"gXYZ": pack_point(0.3850649, 0.7168786, 0.0971045),
        b"bXYZ": pack_point(0.1430804, 0.0606169, 0.7141733),
    }
    return pack_profile(
        space, b"XYZ ", b"mntr", {**points, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    )


def make_ink_profile() -> bytes:
    """A printer with three invisible inks: L* falls from 100 to 0 with the black ink alone."""
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (number % 4 == 0) for number in range(9)))
    corners = bytes([255, 128, 128, 0, 128, 128]) * 2**3  # black ink changes fastest
    table = (
        b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + identity * 4 + corners + identity * 3
    )
    return pack_profile(b"CMYK", b"Lab ", b"prtr", {b"A2B0": table})


def from_linear(levels: Pixels) -> Pixels:
    """sRGB levels of linear ones (IEC 61966-2-1), both from 0 to 255."""
    linear = levels / 255
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255


@pytest.mark.parametrize(
    ("mode", "space"),
    [("RGB", b"RGB "), ("L", b"GRAY"), ("L", b"RGB "), ("RGBA", b"RGB "), ("LA", b"GRAY")],
)
def test_colors_are_converted_from_their_profile_to_srgb(mode: str, space: bytes) -> None:
    levels = np.linspace(0, 255, 32).astype(np.uint8)[None]
    picture = Image.fromarray(levels).convert(mode)
    shown = show(encode(picture, icc_profile=make_profile(space, 1.0)), 1, 32)
    np.testing.assert_allclose(
        shown[0], np.repeat(from_linear(levels)[0][:, None], 3, axis=1), atol=2
    )


def test_colors_of_a_palette_are_converted_too() -> None:
    picture = Image.frombytes("P", (2, 1), bytes([0, 1]))
    picture.putpalette([10, 100, 200, 50, 0, 255])
    shown = show(encode(picture, icc_profile=make_profile(b"RGB ", 1.0)), 1, 2)
    np.testing.assert_allclose(
        shown[0], from_linear(np.array([[10, 100, 200], [50, 0, 255]])), atol=2
    )


def test_alpha_outlives_the_conversion_of_colors() -> None:
    media = encode(
        Image.new("RGBA", (4, 4), (100, 100, 100, 50)), icc_profile=make_profile(b"RGB ", 1.0)
    )
    np.testing.assert_allclose(
        show(media, 4, 4, channels=4)[1, 1], [*from_linear(np.full(3, 100)), 50], atol=2
    )


def make_useless_profiles() -> dict[str, bytes]:
    whole = make_profile(b"RGB ", 1.0)
    return {
        "srgb": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        "text": b"not a profile",
        "cut": whole[:200],
        "of-gray": make_profile(b"GRAY", 1.0),
        "of-lab": whole[:16] + b"Lab " + whole[20:],
    }


@pytest.mark.parametrize("name", make_useless_profiles())
def test_profile_that_is_srgb_or_broken_or_of_another_kind_changes_nothing(name: str) -> None:
    media = encode(Image.fromarray(UPRIGHT), icc_profile=make_useless_profiles()[name])
    np.testing.assert_array_equal(show(media, 12, 8), UPRIGHT)


def test_cmyk_with_a_profile_of_another_kind_is_ink_on_white() -> None:
    picture = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    assert show(encode(picture, "TIFF", icc_profile=make_profile(b"RGB ", 1.0)), 4, 4)[
        1, 1
    ].tolist() == [255, 0, 0]


def test_cmyk_is_converted_from_its_profile_to_srgb() -> None:
    luminance = ((100 * (1 - 127 / 255) + 16) / 116) ** 3  # CIE 15: Y of L*
    picture = Image.frombytes("CMYK", (2, 1), bytes([255, 0, 90, 0, 0, 200, 255, 127]))
    shown = show(encode(picture, "TIFF", icc_profile=make_ink_profile()), 1, 2)
    np.testing.assert_allclose(
        shown[0], np.stack([np.full(3, 255), from_linear(np.full(3, luminance * 255))]), atol=2
    )
