"""Modality `image`: kinds of files that Pillow reads wrong or not at all, written byte by byte,
come out right or are refused.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from latentkit.contracts import BuildContext, InputSpec, Sample
from latentkit.errors import SampleError
from latentkit.modalities.icc import make_profile
from latentkit.modalities.image import ImageModality
from latentkit.modalities.image_formats import FORMATS, read_jxl_header
from latentkit.modalities.options import ImageConfig
from latentkit.runtime.file_endings import IMAGE_PACKAGES, IMAGE_SUFFIXES

Pixels = np.ndarray[Any, Any]


def show(media: bytes, channels: int = 3, size: tuple[int, int] | None = None) -> Pixels:
    """Levels (H, W, C) of a picture prepared to its own size."""
    if size is None:
        with Image.open(io.BytesIO(media)) as opened:
            size = opened.height, opened.width
    spec = InputSpec(channels, (0.0, 255.0))
    modality = ImageModality(ImageConfig(size=size, min_size=1), BuildContext(input=spec))
    [prepared] = modality.prepare(Sample("key", media))
    levels: Pixels = np.asarray(prepared.tensor).transpose(1, 2, 0)
    return levels


def find_reason(media: bytes) -> str:
    with pytest.raises(SampleError) as caught:
        show(media, size=(8, 8))
    return str(caught.value)


# ---------------------------------------------------------------- TIFF 6.0

TAGS = {
    **{"planar": 284, "format": 339, "extra": 338, "map": 320, "compression": 259, "inks": 332},
    **{"reference": 532, "subfile": 254, "sub_ifds": 330, "largest": 281, "fill": 266},
}


def write_tiff(
    width: int,
    bits: list[int],
    photometric: int,
    planes: list[bytes],
    order: str = "<",
    **tags: list[int],
) -> bytes:
    """A TIFF of one row, a strip per plane; `reference` is in whole numbers, a denominator of 1
    each.
    """
    entries: dict[int, tuple[str, list[int]]] = {
        **{256: ("I", [width]), 257: ("I", [1]), 258: ("H", bits), 262: ("H", [photometric])},
        **{277: ("H", [len(bits)]), 278: ("I", [1])},
        **{TAGS[name]: ("H", numbers) for name, numbers in tags.items()},
    }
    if "reference" in tags:
        entries[532] = "II", [part for number in tags["reference"] for part in (number, 1)]
    start = 8 + 2 + 12 * (len(entries) + 2) + 4
    sizes = [len(plane) for plane in planes]
    entries[279] = "I", sizes
    entries[273] = "I", [start + sum(sizes[:number]) for number in range(len(sizes))]
    table, behind = struct.pack(f"{order}H", len(entries)), b"".join(planes)
    behind += bytes(len(behind) % 2)
    for tag, (kind, numbers) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(numbers)}{kind[0]}", *numbers)
        table += struct.pack(
            f"{order}HHI", tag, {"H": 3, "I": 4, "II": 5}[kind], len(numbers) // len(kind)
        )
        if len(packed) > 4:
            table += struct.pack(f"{order}I", start + len(behind))
            behind += packed
        else:
            table += packed.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}I", 8) + table + bytes(4) + behind


def pack_bits(numbers: list[int], bits: int) -> bytes:
    text = "".join(f"{number:0{bits}b}" for number in numbers)
    return bytes(int(text[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(text), 8))


def pack(numbers: list[int], order: str, kind: str = "H") -> bytes:
    return struct.pack(f"{order}{len(numbers)}{kind}", *numbers)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("black_is_zero", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 16, 24, 32])
def test_gray_tiff_of_any_depth_is_right_or_refused(
    bits: int, black_is_zero: bool, order: str, deflate: bool
) -> None:
    white = 2**bits - 1
    numbers = [0, white // 3, white // 2, white, white - white // 4]
    packed = (
        pack(numbers, order, {16: "H", 32: "I"}[bits])
        if bits in (16, 32)
        else pack_bits(numbers, bits)
    )
    packed = zlib.compress(packed) if deflate else packed
    compression = [8 if deflate else 1]
    media = write_tiff(5, [bits], int(black_is_zero), [packed], order, compression=compression)
    expected = np.array(numbers) / white * 255
    is_read = bits in (1, 2, 4, 8) or (bits == 16 and (black_is_zero or order == "<"))
    is_read |= bits in (12, 32) and black_is_zero and order == "<"
    if not is_read:  # by Pillow 13
        assert f"{bits} bits" in find_reason(media)
        return
    shown = show(media, size=(1, 5))
    np.testing.assert_allclose(
        shown[0, :, 0], expected if black_is_zero else 255 - expected, atol=1
    )


def test_gray_tiff_of_12_bits_is_scaled_by_its_own_white() -> None:
    media = write_tiff(4, [12], 1, [pack_bits([0, 2048, 4095, 1024], 12)])
    assert show(media)[0, :, 0].tolist() == [0, 128, 255, 64]


def test_gray_tiff_of_16_bits_whose_white_is_zero_is_inverted() -> None:
    media = write_tiff(3, [16], 0, [pack([0, 257 * 100, 65535], "<")])
    assert show(media)[0, :, 0].tolist() == [255, 155, 0]


def test_unsigned_gray_of_32_bits_is_scaled_by_its_own_white() -> None:
    media = write_tiff(4, [32], 1, [pack([0, 2**30, 2**31, 2**32 - 1], "<", "I")])
    assert show(media)[0, :, 0].tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize(
    ("media", "reason"),
    [
        (
            write_tiff(2, [16], 1, [pack([0, 9], "<")], format=[2]),
            "signed values of 16 bits, so it is unknown which value is white",
        ),
        (write_tiff(2, [8], 1, [bytes(2)], format=[2]), "signed values of 8 bits"),
        (
            write_tiff(2, [32], 1, [pack([0, 65535], "<", "I")]),
            "32 bits up to 65535, where white is 4294967295",
        ),
        (
            write_tiff(2, [32], 1, [struct.pack("<2f", 0, 1)], format=[3]),
            "floating-point pixels, so it is unknown which value is white",
        ),
        (
            write_tiff(1, [32] * 3, 2, [struct.pack("<3f", 0, 1, 2)], format=[3] * 3),
            "RGB, 3 samples of 32 bits, floating-point",
        ),
        (
            write_tiff(2, [64], 1, [struct.pack("<2d", 0, 1)], format=[3]),
            "1 samples of 64 bits, floating-point",
        ),
        (
            write_tiff(2, [12] * 3, 2, [pack_bits([0, 2048, 4095] * 2, 12)]),
            "RGB, 3 samples of 12 bits, unsigned",
        ),
        (
            write_tiff(2, [16] * 3, 2, [bytes(4)] * 3, planar=[2]),
            "a plane per channel, uncompressed",
        ),
        (write_tiff(1, [8] * 4, 2, [bytes(1)] * 4, planar=[2], extra=[1]), "unknown raw mode"),
        (write_tiff(1, [16] * 2, 1, [bytes(4)], extra=[2]), "black is zero, 2 samples of 16 bits"),
        (write_tiff(1, [8] * 3, 9, [bytes(3)]), "ICCLab"),
        (
            write_tiff(2, [8] * 3, 6, [bytes(6)], reference=[16, 235, 128, 240, 128, 240]),
            "its own reference levels",
        ),
        (
            write_tiff(1, [8] * 4, 5, [bytes(4)], inks=[2]),
            "inks other than cyan, magenta, yellow and black",
        ),
        (
            write_tiff(8, [8] * 3, 2, [bytes(24)], subfile=[1], sub_ifds=[8]),
            "raw photo, of which only the thumbnail",
        ),
        (write_tiff(2, [8], 1, [bytes(2)], compression=[34712]), "compression 34712"),
    ],
    ids=lambda value: value.split(",")[0] if isinstance(value, str) else "",
)
def test_tiff_without_a_right_value_is_refused_with_the_reason(media: bytes, reason: str) -> None:
    assert reason in find_reason(media)


@pytest.mark.parametrize("order", ["<", ">"])
def test_color_tiff_of_16_bits_is_right(order: str) -> None:
    numbers = [0, 257 * 100, 65535, 300, 257 * 200, 257]
    expected = np.array(numbers).reshape(2, 3) / 257
    together = write_tiff(2, [16] * 3, 2, [pack(numbers, order)], order)
    planes = [zlib.compress(pack(numbers[channel::3], order)) for channel in range(3)]
    apart = write_tiff(2, [16] * 3, 2, planes, order, planar=[2], compression=[8])
    np.testing.assert_allclose(show(together)[0], expected, atol=1)
    np.testing.assert_allclose(show(apart)[0], expected, atol=1)


@pytest.mark.parametrize(
    ("extra", "expected"), [(0, [50, 25, 0, 255]), (1, [100, 50, 0, 128]), (2, [50, 25, 0, 128])]
)
@pytest.mark.parametrize("bits", [8, 16])
def test_alpha_of_tiff_is_taken_back_out_of_the_colors_where_it_is_in_them(
    bits: int, extra: int, expected: list[int]
) -> None:
    numbers = [50, 25, 0, 128]
    row = bytes(numbers) if bits == 8 else pack([257 * number for number in numbers], "<")
    np.testing.assert_allclose(
        show(write_tiff(1, [bits] * 4, 2, [row], extra=[extra]), 4)[0, 0], expected, atol=1
    )


@pytest.mark.parametrize(("extra", "gray"), [(1, 100), (2, 50)])
def test_gray_with_alpha_of_tiff_is_right(extra: int, gray: int) -> None:
    shown = show(write_tiff(1, [8] * 2, 1, [bytes([50, 128])], extra=[extra]), 4)
    np.testing.assert_allclose(shown[0, 0], [gray, gray, gray, 128], atol=1)


@pytest.mark.parametrize("scale", [257, 1], ids=["16 bits", "8 bits in 16"])
def test_color_map_of_a_tiff_is_read_in_both_depths_that_are_written(scale: int) -> None:
    levels = [[255, 0, 9], [0, 100, 8], [0, 200, 7]]
    colors = [scale * level for channel in levels for level in (*channel, *[0] * 253)]
    assert show(write_tiff(3, [8], 3, [bytes([0, 1, 2])], map=colors))[0].T.tolist() == levels


def from_linear(light: Pixels) -> Pixels:
    """sRGB levels from 0 to 255 of light from 0 to 1, clipped (IEC 61966-2-1)."""
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255


SRGB_OF_XYZ_D65 = np.array(
    [
        [3.2404542, -1.5371385, -0.4985314],
        [-0.9692660, 1.8760108, 0.0415560],
        [0.0556434, -0.2040259, 1.0572252],
    ]
)
SRGB_OF_XYZ_D50 = np.array(
    [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
)


def test_cielab_tiff_is_converted_to_srgb() -> None:
    lab = np.array([[100, 0, 0], [50, 20, -30], [70, -40, 30], [0, 0, 0]])
    row = b"".join(struct.pack("<Bbb", round(light * 2.55), a, b) for light, a, b in lab.tolist())
    y = (np.rint(lab[:, 0] * 2.55) / 2.55 + 16) / 116  # CIE 15, relative to D50
    x, z = y + lab[:, 1] / 500, y - lab[:, 2] / 200
    xyz = [
        np.where(part > 6 / 29, part**3, 3 * (6 / 29) ** 2 * (part - 4 / 29)) for part in (x, y, z)
    ]
    expected = from_linear(np.stack(xyz, axis=1) * [0.9642, 1, 0.8249] @ SRGB_OF_XYZ_D50.T)
    np.testing.assert_allclose(show(write_tiff(4, [8] * 3, 8, [row]))[0], expected, atol=2)


def test_ycbcr_tiff_is_converted_to_srgb() -> None:
    media = write_tiff(2, [8] * 3, 6, [bytes([76, 85, 255, 255, 128, 128])])
    np.testing.assert_allclose(show(media)[0], [[255, 0, 0], [255, 255, 255]], atol=1)  # JFIF 1.02


@pytest.mark.parametrize("bits", [8, 16])
def test_cmyk_tiff_is_ink_on_white(bits: int) -> None:
    numbers = [0, 0, 0, 0, 255, 0, 0, 0]
    row = bytes(numbers) if bits == 8 else pack([257 * number for number in numbers], "<")
    assert show(write_tiff(2, [bits] * 4, 5, [row]))[0].tolist() == [[255, 255, 255], [0, 255, 255]]


def test_cmyk_jpeg_of_adobe_counts_ink_upside_down() -> None:
    file = io.BytesIO()
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(
        file, "JPEG", quality=100
    )  # Pillow inverts and marks it
    assert b"Adobe" in file.getvalue()
    np.testing.assert_allclose(show(file.getvalue())[8, 8], [0, 255, 255], atol=1)


def test_cmyk_jpeg_of_others_is_refused_since_its_white_is_not_known() -> None:
    file = io.BytesIO()
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(file, "JPEG")
    media = file.getvalue()
    at = media.index(b"\xff\xee")
    unmarked = media[:at] + media[at + 2 + int.from_bytes(media[at + 2 : at + 4], "big") :]
    assert "CMYK JPEG without an Adobe marker" in find_reason(unmarked)


def test_jpeg_inside_a_tiff_is_right() -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(file, "TIFF", compression="jpeg", quality=100)
    np.testing.assert_allclose(show(file.getvalue())[8, 8], [200, 100, 50], atol=2)


# ---------------------------------------------------------------- PNG, third edition


def write_png(
    width: int, depth: int, color_type: int, row: bytes, *chunks: tuple[bytes, bytes]
) -> bytes:
    """A PNG of one row."""
    header = b"IHDR", struct.pack(">2I5B", width, 1, depth, color_type, 0, 0, 0)
    pixels = b"IDAT", zlib.compress(b"\0" + row)
    packed = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in (header, *chunks, pixels, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_transparent_gray_is_found_at_every_depth(depth: int) -> None:
    white = 2**depth - 1
    numbers = [0, white, white // 2, white // 3]
    row = pack(numbers, ">") if depth == 16 else pack_bits(numbers, depth)
    for key in set(numbers):
        shown = show(write_png(4, depth, 0, row, (b"tRNS", pack([key], ">"))), 4)[0]
        np.testing.assert_allclose(shown[:, 0], np.array(numbers) / white * 255, atol=1)
        assert shown[:, 3].tolist() == [0 if number == key else 255 for number in numbers]


def test_transparent_color_of_16_bits_is_refused_since_8_do_not_tell_it_apart() -> None:
    row = pack([25700, 257, 9, 25700, 257, 10], ">")
    assert "tRNS" in find_reason(write_png(2, 16, 2, row, (b"tRNS", pack([25700, 257, 9], ">"))))


@pytest.mark.parametrize(
    ("color_type", "channels"), [(0, [0]), (2, [0, 1, 2]), (4, [0, 3]), (6, [0, 1, 2, 3])]
)
def test_png_of_16_bits_is_right_in_every_color_type(color_type: int, channels: list[int]) -> None:
    numbers = np.array([[25700, 12850, 65535, 32896], [128, 384, 60000, 257]])[:, channels]
    shown = show(write_png(2, 16, color_type, pack(numbers.ravel().tolist(), ">")), 4)[0]
    np.testing.assert_allclose(shown[:, channels], numbers / 257, atol=1)


def write_gamma(gamma: float) -> tuple[bytes, bytes]:
    return b"gAMA", pack([round(gamma * 100_000)], ">", "I")


def write_chromaticities(*points: float) -> tuple[bytes, bytes]:
    return b"cHRM", pack([round(part * 100_000) for part in points], ">", "I")


LEVELS = np.linspace(0, 255, 18).astype(np.uint8)
SRGB_POINTS = (0.3127, 0.329, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE_POINTS = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)


@pytest.mark.parametrize("gamma", [1.0, 0.55556, 0.35])
@pytest.mark.parametrize("color_type", [0, 2])
def test_png_gamma_is_converted_to_srgb(gamma: float, color_type: int) -> None:
    shown = show(
        write_png(18 if color_type == 0 else 6, 8, color_type, LEVELS.tobytes(), write_gamma(gamma))
    )
    expected = from_linear((LEVELS / 255) ** (1 / gamma))
    np.testing.assert_allclose(
        shown[0, :, 0] if color_type == 0 else shown.ravel(), expected, atol=2
    )


@pytest.mark.parametrize(
    "chunks",
    [
        [write_gamma(0.45455)],
        [write_gamma(0.45455), write_chromaticities(*SRGB_POINTS)],
        [(b"sRGB", b"\0"), write_gamma(1.0)],
        [(b"cICP", bytes([1, 13, 0, 1])), write_gamma(1.0)],
        [(b"iCCP", b"name\0\0" + zlib.compress(make_profile())), write_gamma(1.0)],
        [write_gamma(0)],
    ],
    ids=[
        "gamma of sRGB",
        "chromaticities of sRGB",
        "sRGB wins",
        "cICP wins",
        "profile wins",
        "gamma 0",
    ],
)
def test_png_that_says_srgb_or_nothing_keeps_its_levels(chunks: list[tuple[bytes, bytes]]) -> None:
    assert show(write_png(18, 8, 0, LEVELS.tobytes(), *chunks))[0, :, 0].tolist() == LEVELS.tolist()


COLORS = np.array(
    [[200, 100, 50], [60, 160, 90], [255, 255, 255], [128, 128, 128], [90, 90, 200]], np.uint8
)
XYZ_OF_ADOBE = np.array(
    [
        [0.5767309, 0.1855540, 0.1881852],
        [0.2973769, 0.6273491, 0.0752741],
        [0.0270343, 0.0706872, 0.9911085],
    ]
)
XYZ_OF_P3 = np.array(
    [
        [0.4865709, 0.2656677, 0.1982173],
        [0.2289746, 0.6917385, 0.0792869],
        [0.0, 0.0451134, 1.0439444],
    ]
)
ADOBE_EXPECTED = from_linear((COLORS / 255) ** (563 / 256) @ XYZ_OF_ADOBE.T @ SRGB_OF_XYZ_D65.T)


def from_srgb_curve(levels: Pixels) -> Pixels:
    values = levels / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def test_png_chromaticities_are_converted_to_srgb() -> None:
    media = write_png(
        5, 8, 2, COLORS.tobytes(), write_gamma(256 / 563), write_chromaticities(*ADOBE_POINTS)
    )
    expected = from_linear(from_srgb_curve(COLORS) @ XYZ_OF_ADOBE.T @ SRGB_OF_XYZ_D65.T)
    np.testing.assert_allclose(show(media)[0], expected, atol=2)


def test_png_code_points_of_display_p3_are_converted_to_srgb() -> None:
    media = write_png(5, 8, 2, COLORS.tobytes(), (b"cICP", bytes([12, 13, 0, 1])))
    expected = from_linear(from_srgb_curve(COLORS) @ XYZ_OF_P3.T @ SRGB_OF_XYZ_D65.T)
    np.testing.assert_allclose(show(media)[0], expected, atol=2)


@pytest.mark.parametrize(("code", "name"), [(16, "PQ"), (18, "HLG")])
def test_high_dynamic_range_is_refused(code: int, name: str) -> None:
    media = write_png(5, 8, 2, COLORS.tobytes(), (b"cICP", bytes([9, code, 0, 1])))
    assert find_reason(media).startswith(f"high dynamic range ({name})")


@pytest.mark.parametrize(
    "chunk", [write_chromaticities(*[0.3] * 8), write_chromaticities(*[0.0] * 8)]
)
def test_chromaticities_without_a_meaning_count_for_nothing(chunk: tuple[bytes, bytes]) -> None:
    assert show(write_png(5, 8, 2, COLORS.tobytes(), chunk))[0].tolist() == COLORS.tolist()


# ---------------------------------------------------------------- EXIF, JPEG 2000, PPM


def test_adobe_rgb_that_a_camera_names_in_exif_is_converted_to_srgb() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 65535  # color space: uncalibrated
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}  # DCF 2.0: Adobe RGB
    file = io.BytesIO()
    Image.fromarray(np.repeat(COLORS[None], 8, axis=0).repeat(16, axis=1)).save(
        file, "JPEG", quality=100, subsampling=0, exif=exif
    )
    shown = show(file.getvalue())[4, 8::16]
    np.testing.assert_allclose(shown, ADOBE_EXPECTED, atol=3)  # JPEG rounds, too


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's, of the same data
@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0 this is no TIFF header",
        b"Exif\0\0II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\xff\xff\0\0",
    ],
)
def test_broken_exif_data_count_for_nothing(file_format: str, exif: bytes) -> None:
    file = io.BytesIO()
    options = {"exif": exif} if file_format != "TIFF" else {"tiffinfo": {0x8769: 99_999}}
    Image.new("RGB", (16, 16), (200, 100, 50)).save(file, file_format, **options)
    np.testing.assert_allclose(show(file.getvalue())[8, 8], [200, 100, 50], atol=3)


def test_gray_of_12_bits_in_jpeg_2000_is_scaled_by_its_own_white() -> None:
    numbers = np.linspace(0, 4095, 256).astype(np.uint16).reshape(16, 16)
    file = io.BytesIO()
    # Lossless 16 bits whose middle lies where that of 12 bits will: then only the depth in SIZ is
    # changed.
    Image.fromarray(numbers + 32768 - 2048).save(file, "JPEG2000", no_jp2=True, irreversible=False)
    media = bytearray(file.getvalue())
    siz = media.index(b"\xff\x51")
    assert media[siz + 40] == 15
    media[siz + 40] = 11
    np.testing.assert_allclose(show(bytes(media))[:, :, 0], numbers / 4095 * 255, atol=1)


def make_jp2(color: bytes) -> bytes:
    """A JP2 of `COLORS` whose `colr` box has another content."""
    file = io.BytesIO()
    Image.fromarray(np.repeat(COLORS[None], 4, axis=0)).save(file, "JPEG2000", irreversible=False)
    media = file.getvalue()
    at, header = media.index(b"colr") - 4, media.index(b"jp2h") - 4
    size, header_size = (
        struct.unpack_from(">I", media, at)[0],
        struct.unpack_from(">I", media, header)[0],
    )
    box = struct.pack(">I", 8 + len(color)) + b"colr" + color
    head = struct.pack(">I", header_size - size + len(box)) + media[header + 4 : at] + box
    return media[:header] + head + media[at + size :]


def test_profile_in_jpeg_2000_is_used() -> None:
    profile = make_profile(
        tuple(zip(ADOBE_POINTS[2::2], ADOBE_POINTS[3::2], strict=True)), (0.3127, 0.329), 563 / 256
    )
    np.testing.assert_allclose(show(make_jp2(b"\2\0\0" + profile))[2], ADOBE_EXPECTED, atol=2)
    assert show(make_jp2(b"\1\0\0" + pack([16], ">", "I")))[2].tolist() == COLORS.tolist()


def test_color_space_of_jpeg_2000_that_is_not_read_is_refused() -> None:
    assert "color space 14" in find_reason(make_jp2(b"\1\0\0" + pack([14], ">", "I")))  # CIELab


@pytest.mark.parametrize("color_space", [0, 1])
def test_colors_of_qoi_are_shown_as_they_are_stored(color_space: int) -> None:
    """The field is purely informative (qoiformat.org), and Pillow writes 1 into every file unless
    told otherwise.
    """
    pixels = b"".join(b"\xfe" + bytes(color) for color in COLORS.tolist())
    media = b"qoif" + struct.pack(">IIBB", 5, 1, 3, color_space) + pixels + bytes(7) + b"\1"
    assert show(media)[0].tolist() == COLORS.tolist()


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_qoi_as_pillow_writes_it_is_shown_as_it_was(mode: str) -> None:
    media = io.BytesIO()
    Image.new(mode, (3, 2), (200, 100, 50)).save(media, "QOI")
    assert show(media.getvalue()).reshape(-1, 3).tolist() == [[200, 100, 50]] * 6


@pytest.mark.parametrize("white", [100, 255, 1023, 4095, 65535])
def test_gray_map_is_scaled_by_its_own_white(white: int) -> None:
    numbers = [0, white // 3, white]
    row = bytes(numbers) if white < 256 else pack(numbers, ">")
    shown = show(b"P5\n3 1\n%d\n" % white + row)[0, :, 0]
    np.testing.assert_allclose(shown, np.array(numbers) / white * 255, atol=1)


@pytest.mark.parametrize(
    ("media", "reason"),
    [
        (b"v/1\x01\x02\0\0\0channels", "OpenEXR image: floating-point light"),
        (
            b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n",
            "Radiance image: floating-point light",
        ),
        (b"PF\n1 1\n-1.0\n" + bytes(12), "portable float map: floating-point light"),
        (b"8BPS\0\1" + bytes(40), "Photoshop document, which is not read"),
    ],
)
def test_other_formats_are_called_by_their_name(media: bytes, reason: str) -> None:
    assert reason in find_reason(media)


# ---------------------------------------------------------------- packages beside Pillow


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)
    Image.init()
    for name in ("HEIF", "JXL", "AVIF"):
        monkeypatch.delitem(Image.OPEN, name, raising=False)


@pytest.mark.usefixtures("without_packages")
@pytest.mark.parametrize(
    ("media", "name", "package"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIF", "'pillow-heif'"),
        (b"\0\0\0\x18ftypmif1" + bytes(40), "HEIF", "'pillow-heif'"),
        (b"\0\0\0\x18ftypavif" + bytes(40), "AVIF", "'pillow>=11.3'"),
        (b"\xff\x0a\x7a\x7f\xf8" + bytes(40), "JXL", "'pillow-jxl-plugin'"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JXL", "'pillow-jxl-plugin'"),
    ],
)
def test_package_that_reads_the_format_is_named(media: bytes, name: str, package: str) -> None:
    assert (
        find_reason(media)
        == f"{name} image, which needs a package that is missing: pip install {package}"
    )


def test_every_ending_with_a_package_is_one_of_the_pictures() -> None:
    assert set(IMAGE_PACKAGES) <= set(IMAGE_SUFFIXES)
    assert {"HEIF", "JXL"} <= set(FORMATS)


CORNERS = np.kron(
    np.array([[[250, 20, 20], [20, 250, 20]], [[20, 20, 250], [240, 240, 20]]], np.uint8),
    np.ones((32, 48, 1), np.uint8),
)


def save_turned(file_format: str, orientation: int, **options: Any) -> bytes:
    """`CORNERS` as a camera that was held on its side stores them: EXIF says how to turn them back.
    """
    stored = {1: CORNERS, 6: CORNERS.transpose(1, 0, 2)[::-1], 3: CORNERS[::-1, ::-1]}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif.tobytes(), **options}
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stored)).save(file, file_format, **options)
    return file.getvalue()


def check_corners(media: bytes) -> None:
    """Away from the edges, where colors are stored at half the size."""
    np.testing.assert_allclose(
        show(media, size=(64, 96))[8::16, 8::16], CORNERS[8::16, 8::16], atol=3
    )


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("file_format", ["AVIF", "HEIF"])
def test_heic_and_avif_come_out_upright(file_format: str, orientation: int) -> None:
    if file_format == "HEIF":
        pillow_heif.register_heif_opener()
    check_corners(save_turned(file_format, orientation, quality=100))


def test_heic_whose_writer_left_the_turn_to_exif_comes_out_upright() -> None:
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    media = save_turned("HEIF", 6, quality=100, exif=exif)
    assert b"irot" not in media
    check_corners(media)


def test_limit_of_pixels_holds_for_heic() -> None:
    pillow_heif.register_heif_opener()
    modality = ImageModality(ImageConfig(size=8, max_pixels=6143), BuildContext())
    with pytest.raises(SampleError, match="more than max_pixels allows"):
        list(modality.prepare(Sample("key", save_turned("HEIF", 1))))


def test_high_dynamic_range_in_avif_is_refused() -> None:
    media = save_turned("AVIF", 1)
    at = media.index(b"colrnclx") + 8
    assert find_reason(media[:at] + pack([9, 16], ">") + media[at + 4 :]).startswith(
        "high dynamic range (PQ)"
    )


@pytest.mark.parametrize("name", [b"pitm", b"ipco", b"ipma", b"colr"])
def test_avif_without_a_box_of_colors_is_as_its_decoder_says(name: bytes) -> None:
    media = save_turned("AVIF", 1, quality=100)
    renamed = media.replace(name, b"free")
    try:
        with Image.open(io.BytesIO(renamed)) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, RuntimeError):
        assert find_reason(renamed)
    else:
        check_corners(renamed)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("options", [{"lossless": True}, {"lossless": True, "use_container": True}])
def test_jpeg_xl_comes_out_upright(orientation: int, options: dict[str, Any]) -> None:
    pytest.importorskip("pillow_jxl")
    np.testing.assert_array_equal(
        show(save_turned("JXL", orientation, **options), size=(64, 96)), CORNERS
    )


@pytest.mark.parametrize(
    "shape", [(8, 8), (64, 96), (100, 1), (255, 256), (513, 700), (300, 400), (90, 160)]
)
def test_size_of_jpeg_xl_is_read_from_its_header(shape: tuple[int, int]) -> None:
    pytest.importorskip("pillow_jxl")
    file = io.BytesIO()
    Image.new("RGB", (shape[1], shape[0])).save(file, "JXL")
    assert read_jxl_header(file.getvalue())[:2] == (shape[1], shape[0])


def test_bomb_in_jpeg_xl_is_refused_before_it_is_decoded() -> None:
    pytest.importorskip("pillow_jxl")
    # SizeHeader: not small; height: selector 3, 30 bits; ratio 1 (square): 100,000 on each side
    # (ISO 18181-1, D.2).
    bits = 0 | 3 << 1 | 99_999 << 3 | 1 << 33
    assert (
        find_reason(b"\xff\x0a" + bits.to_bytes(8, "little"))
        == "100000 x 100000 pixels, more than max_pixels allows (178956970)"
    )
