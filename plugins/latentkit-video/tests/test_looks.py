"""What a frame looks like: upright, in the right colors, cut and scaled as pictures are."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video import VideoFrame, VideoStream
from PIL import Image
from torch import Tensor
from videos import Picture, encode, make_modality, prepare_one

from latentkit.contracts import InputSpec, Prepared, Sample
from latentkit.errors import SampleError, SourceError

LUMA_WEIGHTS = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
"""Of red and blue, by the number of a matrix in ITU-T H.273, table 4; so BT.709-6, 3.2, BT.601-7,
2.5.1, and BT.2020-2, table 4.
"""


def draw(height: int, width: int) -> Picture:
    """A smooth picture without any symmetry."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [
        127
        + 60 * np.sin(rows / (9 + c) + 1.3 * c)
        + 60 * np.cos(columns / (13 - 2 * c) + rows / 40)
        for c in range(3)
    ]
    return np.stack(channels, -1).round().astype(np.uint8)


def frame_of(prepared: Prepared, number: int = 0) -> Tensor:
    """A frame, (3, H, W), with values from 0 to 255."""
    assert isinstance(prepared.tensor, Tensor)
    return (prepared.tensor[:, number] + 1) * 127.5


def resized(
    picture: Picture, height: int, width: int, box: tuple[float, float, float, float] | None = None
) -> Tensor:
    """What Pillow's Lanczos filter makes of a picture, (3, H, W)."""
    scaled = Image.fromarray(np.ascontiguousarray(picture)).resize(
        (width, height), Image.Resampling.LANCZOS, box=box
    )
    return torch.from_numpy(np.asarray(scaled).copy()).permute(2, 0, 1).float()


def assert_near(found: Tensor, expected: Tensor, most: float = 2.0) -> None:
    """That pictures agree but for rounding, and for the borders, where filters end in different
    ways.
    """
    inner = (found - expected)[:, 2:-2, 2:-2].abs()
    assert float(inner.mean()) < most / 2, float(inner.mean())
    assert float(inner.max()) < 2 * most, float(inner.max())


# ---------------------------------------------------------------- orientation

# The matrix [a, b; c, d] of a track header, and what undoes it on the upright picture (rows,
# columns, channels).
TURNS: dict[str, tuple[tuple[float, float, float, float], Callable[[Picture], Picture]]] = {
    "none": ((1, 0, 0, 1), lambda upright: upright),
    "mirrored": ((-1, 0, 0, 1), lambda upright: upright[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda upright: upright[::-1]),
    "half a turn": ((-1, 0, 0, -1), lambda upright: upright[::-1, ::-1]),
    "a quarter to the right": ((0, 1, -1, 0), lambda upright: np.rot90(upright, 1)),
    "a quarter to the left": ((0, -1, 1, 0), lambda upright: np.rot90(upright, -1)),
    "diagonal": ((0, 1, 1, 0), lambda upright: upright.swapaxes(0, 1)),
    "other diagonal": ((0, -1, -1, 0), lambda upright: np.rot90(upright, 2).swapaxes(0, 1)),
}


def matrix(a: float, b: float, c: float, d: float) -> list[int]:
    """A display matrix in fixed point, as a track header has it."""
    one = 1 << 16
    return [round(a * one), round(b * one), 0, round(c * one), round(d * one), 0, 0, 0, 1 << 30]


@pytest.mark.parametrize("name", TURNS)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_video_is_turned_upright(tmp_path: Path, name: str, suffix: str) -> None:
    upright = draw(96, 64)
    values, undo = TURNS[name]
    stored = np.ascontiguousarray(undo(upright))
    video = encode(
        tmp_path / f"a{suffix}",
        [stored] * 2,
        prepare=lambda stream: stream.set_display_matrix(matrix(*values)),
    )
    modality = make_modality(
        size=(48, 32), frames=2, views=["plain", "hflip", "crop-1"], crop_scale=(0.5, 0.6)
    )
    plain, flipped, crop = modality.prepare(Sample("a", video))
    assert plain.geometry == {
        "height": 96,
        "width": 64,
        "crop": [0.0, 0.0, 96.0, 64.0],
        "flip": False,
        "start": 0.0,
        "fps": 10.0,
    }
    assert_near(frame_of(plain), resized(upright, 48, 32))
    assert torch.equal(frame_of(flipped), frame_of(plain).flip(2))
    top, left, height, width = crop.geometry["crop"]
    assert height < 60
    assert_near(
        frame_of(crop), resized(upright, 48, 32, (left, top, left + width, top + height)), 3.0
    )


def test_a_video_turned_by_some_other_angle_is_refused(tmp_path: Path) -> None:
    video = encode(
        tmp_path / "a.mp4",
        [draw(32, 32)] * 4,
        prepare=lambda stream: stream.set_display_rotation(12),
    )
    with pytest.raises(SampleError, match="doesn't turn by a multiple of 90 degrees"):
        prepare_one(video)


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    def squeeze(stream: VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)

    picture = draw(64, 64)
    video = encode(tmp_path / "a.mp4", [picture] * 4, prepare=squeeze)
    prepared = prepare_one(video, size=32)
    assert prepared.geometry["crop"] == [0.0, 16.0, 64.0, 32.0]
    assert_near(frame_of(prepared), resized(picture, 32, 32, (16, 0, 48, 64)))


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(("height", "width"), [(37, 53), (135, 241), (31, 24), (250, 250)])
@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv420p"])
def test_odd_sizes_are_scaled_as_pictures_are(
    tmp_path: Path, height: int, width: int, pix_fmt: str
) -> None:
    picture = draw(height, width)
    video = encode(tmp_path / "a.mkv", [picture] * 4, codec="ffv1", pix_fmt=pix_fmt)
    prepared = prepare_one(video, size=(24, 32), crop="none")
    assert prepared.geometry["crop"] == [0.0, 0.0, float(height), float(width)]
    assert_near(frame_of(prepared), resized(picture, 24, 32), 2.0 if pix_fmt == "yuv444p" else 4.0)


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    lines = np.zeros((128, 128, 3), np.uint8)
    lines[:, ::2] = 255
    video = encode(tmp_path / "a.mkv", [lines] * 4, codec="ffv1")
    inner = frame_of(prepare_one(video, size=20))[:, 3:-3, 3:-3]
    assert float(inner.min()) > 115
    assert float(inner.max()) < 140


def test_the_crop_in_the_ledger_is_what_is_shown(tmp_path: Path) -> None:
    picture = draw(90, 160)
    video = encode(tmp_path / "a.mkv", [picture] * 4, codec="ffv1", pix_fmt="yuv420p")
    for view in make_modality(
        size=32, views=["plain", "crop-1", "crop-2", "hflip-2"], crop_scale=(0.6, 1.0)
    ).prepare(Sample("a", video)):
        top, left, height, width = view.geometry["crop"]
        assert top % 2 == left % 2 == 0, "where pixels of color begin"
        shown = frame_of(view).flip(2) if view.geometry["flip"] else frame_of(view)
        assert_near(shown, resized(picture, 32, 32, (left, top, left + width, top + height)), 4.0)


def test_every_video_goes_to_the_bucket_nearest_to_its_aspect(tmp_path: Path) -> None:
    modality = make_modality(buckets={"area": 64 * 64, "step": 16, "aspect": 2.0})
    found = []
    for number, (height, width) in enumerate([(60, 60), (45, 80), (80, 45)]):
        video = encode(tmp_path / f"{number}.mkv", [draw(height, width)] * 4, codec="ffv1")
        found += [view.bucket for view in modality.prepare(Sample("a", video))]
    assert found == ["4x64x64", "4x48x80", "4x80x48"]


def test_small_videos_are_skipped_enlarged_or_end_the_run(tmp_path: Path) -> None:
    video = encode(tmp_path / "a.mkv", [draw(30, 40)] * 4, codec="ffv1")
    with pytest.raises(
        SampleError, match=r"40 x 30 pixels \(width x height\), too small: min_size is 31"
    ):
        prepare_one(video, min_size=31)
    with pytest.raises(SourceError, match=r"sample 'a\.mkv': 40 x 30"):
        prepare_one(video, min_size=31, on_small="fail")
    assert prepare_one(video, min_size=31, on_small="upscale", size=64).bucket == "4x64x64"
    with pytest.raises(SampleError, match=r"40 x 30 pixels, more than max_pixels allows \(1199\)"):
        prepare_one(video, max_pixels=1199)


def test_a_crop_depends_on_key_and_seed_alone(tmp_path: Path) -> None:
    video = encode(tmp_path / "a.mkv", [draw(60, 80)] * 4, codec="ffv1")
    options: dict[str, Any] = {"crop": "random", "crop_scale": (0.3, 0.9)}

    def crop(key: str, seed: int) -> Any:
        [view] = make_modality(seed=seed, **options).prepare(Sample(key, video))
        return view.geometry["crop"]

    assert crop("a", 0) == crop("a", 0)
    assert len({str(crop(key, seed)) for key in "ab" for seed in (0, 1)}) == 4


# ---------------------------------------------------------------- colors


def tagged(
    path: Path,
    levels: tuple[int, int, int],
    pix_fmt: str,
    colorspace: int,
    color_range: int,
    shape: tuple[int, int] = (30, 34),
) -> Path:
    """A video of one color, written without loss as these levels of Y, Cb and Cr (of 8 bits)."""
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", 10)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = shape
        stream.pix_fmt = pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = colorspace, color_range
        for number in range(4):
            frame = VideoFrame(shape[1], shape[0], pix_fmt)
            for plane, level in zip(frame.planes, levels, strict=True):
                deep = pix_fmt.endswith("10le")
                values = np.full(
                    plane.buffer_size // (1 + deep),
                    level * 4 if deep else level,
                    np.uint16 if deep else np.uint8,
                )
                plane.update(values.tobytes())
            frame.colorspace, frame.color_range = colorspace, color_range
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def rgb(levels: tuple[int, int, int], colorspace: int, is_full: bool) -> list[float]:
    """Red, green, blue from 0 to 255, clipped: BT.709-6, 3.3 and 3.5."""
    red, blue = LUMA_WEIGHTS[colorspace]
    y, cb, cr = levels
    luma, u, v = (
        (y / 255, (cb - 128) / 255, (cr - 128) / 255)
        if is_full
        else ((y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224)
    )
    r, b = luma + 2 * (1 - red) * v, luma + 2 * (1 - blue) * u
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return [min(max(255 * value, 0.0), 255.0) for value in (r, g, b)]


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("colorspace", LUMA_WEIGHTS)
@pytest.mark.parametrize("color_range", [1, 2])
@pytest.mark.parametrize("levels", [(16, 128, 128), (235, 128, 128), (81, 90, 240), (120, 200, 90)])
def test_colors_are_those_of_matrix_and_range(
    tmp_path: Path, levels: tuple[int, int, int], pix_fmt: str, colorspace: int, color_range: int
) -> None:
    video = tagged(tmp_path / "a.mkv", levels, pix_fmt, colorspace, color_range)
    found = frame_of(prepare_one(video))
    expected = torch.tensor(rgb(levels, colorspace, color_range == 2))[:, None, None]
    assert float((found - expected).abs().max()) < 0.6


@pytest.mark.parametrize(
    ("height", "width", "matrix", "name"),
    [
        *((480, 640, 6, "BT.601"), (576, 1024, 6, "BT.601"), (854, 480, 6, "BT.601")),
        *((720, 1280, 1, "BT.709"), (1280, 720, 1, "BT.709"), (720, 960, 1, "BT.709")),
    ],
)
def test_a_video_without_tags_has_the_matrix_of_its_size(
    tmp_path: Path, height: int, width: int, matrix: int, name: str
) -> None:
    levels = (81, 90, 200)
    prepared = prepare_one(tagged(tmp_path / "a.mkv", levels, "yuv420p", 2, 0, (height, width)))
    expected = torch.tensor(rgb(levels, matrix, False))[:, None, None]
    assert float((frame_of(prepared) - expected).abs().max()) < 1.0
    assert prepared.remarks == [f"color matrix not tagged, assumed to be {name}"]


@pytest.mark.parametrize(("color", "matrix"), [("bt601", 6), ("bt709", 1), ("bt2020", 9)])
def test_an_option_says_the_matrix_of_videos_without_tags(
    tmp_path: Path, color: str, matrix: int
) -> None:
    levels = (81, 90, 200)
    untagged = prepare_one(tagged(tmp_path / "a.mkv", levels, "yuv420p", 2, 0), color=color)
    other = prepare_one(tagged(tmp_path / "b.mkv", levels, "yuv420p", 7, 0), color=color)
    for prepared, number in ((untagged, matrix), (other, 7)):
        expected = torch.tensor(rgb(levels, number, False))[:, None, None]
        assert float((frame_of(prepared) - expected).abs().max()) < 0.6
        assert prepared.remarks == [], "nothing is guessed"


@pytest.mark.parametrize(
    ("pix_fmt", "codec"), [("gray", "ffv1"), ("bgr0", "ffv1"), ("rgb24", "png")]
)
def test_pixels_without_a_matrix_need_no_guess(tmp_path: Path, pix_fmt: str, codec: str) -> None:
    prepared = prepare_one(
        encode(tmp_path / "a.avi", [draw(32, 32)] * 4, codec=codec, pix_fmt=pix_fmt)
    )
    assert prepared.remarks == []


@pytest.mark.parametrize(
    ("matrix", "name"), [(8, "YCgCo"), (10, "BT.2020 with constant"), (14, "ICtCp")]
)
def test_a_matrix_that_cannot_be_converted_is_refused(
    tmp_path: Path, matrix: int, name: str
) -> None:
    with pytest.raises(SampleError, match=f"color matrix is {name}.*convert it to BT.709"):
        prepare_one(tagged(tmp_path / "a.mkv", (81, 90, 200), "yuv420p", matrix, 0))


def test_colors_that_are_left_as_they_are_are_said(tmp_path: Path) -> None:
    def tag(stream: VideoStream) -> None:
        stream.codec_context.colorspace = 9
        stream.codec_context.color_primaries, stream.codec_context.color_trc = 9, 8

    video = encode(tmp_path / "a.mkv", [draw(32, 32)] * 4, prepare=tag)
    assert prepare_one(video).remarks == [
        "BT.2020 primaries, treated as those of sRGB",
        "linear transfer curve, treated as that of sRGB",
    ]


def test_interlaced_video_is_said_to_be(tmp_path: Path) -> None:
    options = {"qp": "0", "g": "10", "flags": "+ildct+ilme"}
    video = encode(tmp_path / "a.mkv", [draw(32, 32)] * 4, options=options)
    assert "interlaced, and not deinterlaced" in prepare_one(video).remarks


@pytest.mark.parametrize("limits", [(-1.0, 1.0), (0.0, 1.0), (-3.0, 5.0)])
def test_black_and_white_are_the_ends_of_the_encoders_range(
    tmp_path: Path, limits: tuple[float, float]
) -> None:
    pictures = [np.full((16, 16, 3), level, np.uint8) for level in (0, 255)]
    video = encode(tmp_path / "a.mkv", pictures, codec="ffv1", pix_fmt="bgr0")
    [view] = make_modality(InputSpec(3, limits, axes="CTHW"), frames=2).prepare(Sample("a", video))
    assert isinstance(view.tensor, Tensor)
    assert set(view.tensor[:, 0].flatten().tolist()) == {limits[0]}
    assert set(view.tensor[:, 1].flatten().tolist()) == {limits[1]}


def test_alpha_is_ignored(tmp_path: Path) -> None:
    picture = draw(32, 32)
    clear = np.concatenate([picture, np.zeros((32, 32, 1), np.uint8)], -1)
    path = tmp_path / "a.mov"
    with av.open(path, "w") as container:
        stream = container.add_stream("png", 10)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "rgba"
        for _ in range(4):
            container.mux(stream.encode(VideoFrame.from_ndarray(clear, "rgba")))
        container.mux(stream.encode())
    prepared = prepare_one(path, size=32)
    assert_near(frame_of(prepared), resized(picture, 32, 32))
    assert prepared.remarks == ["transparency ignored"]


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused(tmp_path: Path, transfer: int, name: str) -> None:
    def tag(stream: VideoStream) -> None:
        stream.codec_context.color_trc = transfer

    video = encode(tmp_path / "a.mkv", [draw(32, 32)] * 4, pix_fmt="yuv420p10le", prepare=tag)
    with pytest.raises(SampleError, match=rf"HDR \({name}\)"):
        prepare_one(video)


@pytest.mark.parametrize(
    ("side", "said"), [(64, []), (32, []), (24, ["at most twofold"]), (12, ["more than twofold"])]
)
def test_a_clip_that_was_enlarged_says_so(tmp_path: Path, side: int, said: list[str]) -> None:
    video = encode(tmp_path / "a.avi", [draw(side, side)] * 4, codec="ffv1", pix_fmt="bgr0")
    remarks = prepare_one(video, size=32).remarks
    assert len(remarks) == len(said)
    assert all(part in remark for part, remark in zip(said, remarks, strict=True))
