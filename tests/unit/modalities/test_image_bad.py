"""Modality `image`: files that are no pictures, broken, too small or too large: each is a
`SampleError` with a reason for the ledger.
"""

from __future__ import annotations

import io
import random
import re
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentkit.contracts import BuildContext, Prepared, Sample
from latentkit.errors import SampleError, SourceError
from latentkit.modalities.image import ImageModality
from latentkit.modalities.options import ImageConfig

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"]


def make_modality(**options: Any) -> ImageModality:
    return ImageModality(ImageConfig(size=16, **options), BuildContext())


def encode(picture: Image.Image, file_format: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture.save(file, format=file_format)
    return file.getvalue()


def make_noise(height: int = 40, width: int = 48) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def prepare(media: object, **options: Any) -> list[Prepared]:
    return list(make_modality(**options).prepare(Sample("key", media)))


def find_reason(media: object, **options: Any) -> str:
    with pytest.raises(SampleError) as caught:
        prepare(media, **options)
    return str(caught.value)


def make_png_header(width: int, height: int) -> bytes:
    """A PNG of gray pixels, a bit each, all 0: small on disk, large in memory."""
    chunks = [
        (b"IHDR", struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(height * (width // 8 + 2)))),
        (b"IEND", b""),
    ]
    packed = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    ("media", "reason"),
    [
        (b"", "empty file: 0 bytes"),
        (
            b"This is a text that somebody renamed to photo.jpg.\n" * 40,
            "not an image; known formats: JPEG, PNG",
        ),
        (b"\xff\xd8\xff", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "not an image"),
        (
            encode(Image.new("RGB", (1, 1))),
            "1 x 1 pixels (width x height), too small: min_size is 8",
        ),
        (
            encode(Image.new("RGB", (30000, 1))),
            "30000 x 1 pixels (width x height), too small: min_size is 8",
        ),
    ],
    ids=["empty", "text", "only-a-signature", "eps", "1x1", "30000x1"],
)
def test_reason_says_what_is_wrong_with_a_file(media: bytes, reason: str) -> None:
    assert reason in find_reason(media)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_file_is_refused(file_format: str, share: float) -> None:
    media = encode(make_noise(), file_format)
    assert find_reason(media[: int(len(media) * share)])


@pytest.mark.parametrize("file_format", FORMATS)
def test_reason_is_the_same_in_every_run_and_holds_no_address_or_path(
    file_format: str, tmp_path: Path
) -> None:
    media = encode(make_noise(), file_format)
    for number, cut in enumerate([media[:20], media[: len(media) // 2], b"text" + media]):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(cut)
        reason = find_reason(path)
        assert reason == find_reason(cut)
        assert re.search(r"0x[0-9a-f]{6}|" + re.escape(str(tmp_path)), reason) is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file_format", FORMATS)
def test_damage_of_any_kind_ends_in_a_tensor_or_a_sample_error(file_format: str) -> None:
    whole = encode(make_noise(), file_format)
    dice = random.Random(file_format)
    modality = make_modality(max_pixels=1_000_000)
    for _ in range(150):
        media = bytearray(whole)
        for _ in range(dice.choice([1, 3, 10])):
            media[dice.randrange(min(len(media), dice.choice([60, 100_000])))] = dice.randrange(256)
        try:
            [prepared] = modality.prepare(Sample("key", bytes(media)))
        except SampleError:
            continue
        assert prepared.bucket == "16x16"


def test_media_out_of_reach_is_no_bad_sample(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        prepare(tmp_path / "gone.jpg")
    with pytest.raises(IsADirectoryError):
        prepare(tmp_path)


@pytest.mark.parametrize("size", [(1, 1), (30000, 1), (1, 30000)])
@pytest.mark.parametrize("crop", ["center", "random", "none"])
def test_small_picture_is_enlarged_when_the_recipe_says_so(
    size: tuple[int, int], crop: str
) -> None:
    [prepared] = prepare(
        encode(Image.new("RGB", size, (255, 255, 255))), on_small="upscale", crop=crop
    )
    assert np.asarray(prepared.tensor).min() == 1.0


def test_small_picture_ends_the_run_when_the_recipe_says_so() -> None:
    with pytest.raises(
        SourceError,
        match=r"sample 'key': 30 x 9 pixels .* min_size is 10; lower modality\.with\.min_size",
    ):
        prepare(encode(Image.new("RGB", (30, 9))), min_size=10, on_small="fail")


# ---------------------------------------------------------------- decompression bombs


def test_bomb_is_refused_before_it_is_decoded() -> None:
    header_alone = make_png_header(20_000, 10_000)[:60]  # so decoding would fail for another reason
    assert (
        find_reason(header_alone) == "20000 x 10000 pixels, more than max_pixels allows (178956970)"
    )


def test_limit_of_the_recipe_is_exact() -> None:
    media = encode(make_noise(40, 50))
    assert len(prepare(media, max_pixels=2000)) == 1
    assert "50 x 40 pixels, more than max_pixels allows (1999)" in find_reason(
        media, max_pixels=1999
    )


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "GIF", "WEBP"])
def test_limit_above_pillows_holds_in_every_thread_without_a_warning(
    file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 500
    )  # Pillow warns above 500 pixels and refuses above 1000
    large, larger = encode(make_noise(30, 50), file_format), encode(make_noise(50, 50), file_format)
    modality = make_modality(max_pixels=2000)

    def try_both(_: int) -> tuple[int, str]:
        with pytest.raises(SampleError) as caught:
            list(modality.prepare(Sample("larger", larger)))
        return len(list(modality.prepare(Sample("large", large)))), str(caught.value)

    with warnings.catch_warnings(), ThreadPoolExecutor(8) as threads:
        warnings.simplefilter("error")
        found = set(threads.map(try_both, range(64)))
    assert found == {(1, "50 x 50 pixels, more than max_pixels allows (2000)")}
    assert Image.MAX_IMAGE_PIXELS == 500


def test_pillows_own_limit_is_left_as_it_was_after_a_bad_file() -> None:
    before = Image.MAX_IMAGE_PIXELS
    find_reason(b"not an image")
    assert before == Image.MAX_IMAGE_PIXELS
