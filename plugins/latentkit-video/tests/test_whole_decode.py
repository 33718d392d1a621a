"""Every clip is a cut of the whole video, decoded from its start: in every container, in any order.

Frames tell their numbers by dark and light columns, which lossy encoders keep. What is expected
comes from a decoder of the test's own, which never seeks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import latentkit_video.decoding as decoding
import numpy as np
import numpy.typing as npt
import pytest
import torch
from av.container import OutputContainer
from av.stream import Disposition
from av.video import VideoFrame, VideoStream
from latentkit_video.decoding import ONE_OF_SEVERAL
from latentkit_video.modality import VideoModality
from latentkit_video.plugin import VideoClipsConfig
from latentkit_video.source import measure, spans_of
from videos import make_modality

from latentkit.contracts import Prepared, Sample
from latentkit.errors import SampleError

COUNT = 48
BITS = 6
HEIGHT, WIDTH = 48, 96

H264 = {"crf": "20", "g": "10", "bf": "2", "sc_threshold": "0", "preset": "ultrafast"}
MPEG = {"g": "10", "bf": "2", "qmin": "1", "qmax": "2"}
HEVC = {"x265-params": "keyint=10:bframes=3:open-gop=1:log-level=0", "preset": "ultrafast"}


@dataclass(frozen=True)
class Kind:
    """How a video is written: options of encoder and container, and its frames per second."""

    name: str
    codec: str
    options: dict[str, str]
    muxer: str | None = None
    muxer_options: dict[str, str] | None = None
    pix_fmt: str = "yuv420p"
    rate: int = 10


KINDS = [
    Kind("a.mp4", "libx264", H264),
    Kind("one-key-frame.mp4", "libx264", {**H264, "g": "250"}),
    Kind("fragments.mp4", "libx264", H264, None, {"movflags": "frag_keyframe+empty_moov"}),
    Kind("open.mp4", "libx264", {**H264, "x264-params": "open-gop=1"}),
    Kind("refresh.mp4", "libx264", {**H264, "bf": "0", "x264-params": "intra-refresh=1"}),
    Kind(
        "pyramid.mov", "libx264", {**H264, "bf": "6", "x264-params": "b-pyramid=normal:b-adapt=0"}
    ),
    Kind("a.3gp", "mpeg4", MPEG, rate=25),
    Kind("a.mkv", "libx264", H264),
    Kind("no-index.mkv", "libx264", H264, "matroska", {"live": "1"}),
    Kind("vfw.mkv", "mpeg4", MPEG, None, {"allow_raw_vfw": "1"}, rate=25),
    Kind("hevc.mkv", "libx265", HEVC),
    Kind("a.webm", "libvpx-vp9", {"g": "10", "crf": "10", "b": "0", "deadline": "realtime"}),
    Kind("a.ogv", "libvpx", {"g": "10", "b": "1M", "deadline": "realtime"}, "ogg"),
    Kind("a.ts", "libx264", H264),
    Kind("open.ts", "libx264", {**H264, "x264-params": "open-gop=1"}),
    Kind("hevc.ts", "libx265", HEVC),
    Kind("a.m2ts", "mpeg2video", MPEG, "mpegts", {"mpegts_m2ts_mode": "1"}, rate=25),
    Kind("a.mpg", "mpeg1video", MPEG, "mpeg", rate=25),
    Kind("a.vob", "mpeg2video", MPEG, "vob", rate=25),
    Kind("dvd.mpeg", "mpeg2video", MPEG, "dvd", rate=25),
    Kind("h264.avi", "libx264", H264),
    Kind("mpeg4.avi", "mpeg4", MPEG, rate=25),
    Kind("mjpeg.avi", "mjpeg", {"qmin": "1", "qmax": "2"}, pix_fmt="yuvj420p"),
    Kind("a.flv", "libx264", H264),
    Kind("screen.flv", "flashsv", {"g": "10"}, pix_fmt="bgr24"),
    Kind("a.wmv", "wmv2", {"g": "10", "qmin": "1", "qmax": "2"}, "asf"),
    Kind("a.mxf", "mpeg2video", MPEG, rate=25),
    Kind("prores.mov", "prores_ks", {}, pix_fmt="yuv422p10le"),
    Kind("animation.mov", "qtrle", {"g": "10"}, pix_fmt="rgb24"),
    Kind("a.gif", "gif", {}, pix_fmt="rgb8"),
    Kind("a.y4m", "rawvideo", {}, "yuv4mpegpipe"),
    Kind("a.ivf", "libvpx-vp9", {"g": "10", "crf": "10", "b": "0", "deadline": "realtime"}, "ivf"),
    Kind("a.h264", "libx264", H264, "h264"),
    Kind("a.hevc", "libx265", HEVC, "hevc"),
    Kind("a.m2v", "mpeg2video", MPEG, "mpeg2video", rate=25),
]


def columns(number: int) -> npt.NDArray[np.uint8]:
    """A picture whose columns are the bits of a number."""
    levels = [220 if number >> bit & 1 else 30 for bit in range(BITS)]
    row = np.repeat(np.array(levels, np.uint8), WIDTH // BITS)
    return np.broadcast_to(row[None, :, None], (HEIGHT, WIDTH, 3)).copy()


def number_of(levels: npt.NDArray[Any]) -> int:
    """The number of a picture (rows, columns), of any size and range."""
    light = (levels.max() + levels.min()) / 2 if np.ptp(levels) > 0.2 * 255 else 125
    middle = levels[levels.shape[0] // 2]
    places = [(2 * bit + 1) * len(middle) // (2 * BITS) for bit in range(BITS)]
    return sum(int(middle[place] > light) << bit for bit, place in enumerate(places))


def write(
    folder: Path,
    kind: Kind,
    *,
    times: Sequence[int] | None = None,
    prepare: Callable[[VideoStream], Any] | None = None,
) -> Path:
    """Write a video of `COUNT` numbered frames.

    Args:
        times: of each frame, in milliseconds; none: at the kind's rate.
    """
    path = folder / kind.name
    base = Fraction(1, kind.rate if times is None else 1000)
    with av.open(path, "w", format=kind.muxer, options=kind.muxer_options or {}) as container:
        stream = container.add_stream(kind.codec, kind.rate, options=kind.options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, kind.pix_fmt
        stream.codec_context.time_base = base
        if prepare is not None:
            prepare(stream)
        for number in range(COUNT):
            frame = VideoFrame.from_ndarray(columns(number), "rgb24").reformat(format=kind.pix_fmt)
            frame.pts, frame.time_base = number if times is None else times[number], base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


# ---------------------------------------------------------------- the whole decode


@dataclass(frozen=True)
class Whole:
    """All frames of a video, in the order a decoder gives them in from the start: their numbers,
    and the seconds at which they are shown, from the first one on.
    """

    numbers: list[int]
    starts: list[float]
    rate: float

    def every(self, start: float, frames: int, stride: int) -> list[int] | None:
        """Frames of a clip without a rate; None where there are fewer."""
        slack = 0.5 / self.rate
        shown = [
            number
            for number, at in zip(self.numbers, self.starts, strict=True)
            if at > start - slack
        ]
        found = shown[::stride][:frames]
        return found if len(found) == frames else None

    def at_times(self, start: float, frames: int, fps: float) -> list[int] | None:
        """Frames of a clip with a rate; None where the video ends before."""
        slack = 0.5 / max(fps, self.rate)
        end = self.starts[-1] + 1 / self.rate
        found = []
        for number in range(frames):
            time = start + number / fps + slack
            if time >= end:
                return None
            found.append(self.numbers[max(k for k, at in enumerate(self.starts) if at <= time)])
        return found


def decode_whole(path: Path, rate: float, is_timed: bool = True) -> Whole:
    """Decode a video from its start, without a seek; frames without times come at `rate`."""
    numbers, stamps = [], []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        tick = float(stream.time_base or 0)
        for frame in container.decode(stream):
            numbers.append(number_of(frame.to_ndarray(format="gray").astype(float)))
            stamps.append(frame.pts)
    if is_timed:
        known = sorted(stamp for stamp in stamps if stamp is not None)
        assert len(known) == len(stamps)
        # Sorted, as AVI's are of decoding; the order a decoder gives frames in is that of showing.
        return Whole(numbers, [(stamp - known[0]) * tick for stamp in known], rate)
    return Whole(numbers, [number / rate for number in range(len(numbers))], rate)


def numbers_of(prepared: Prepared) -> list[int]:
    """The numbers of a clip's frames."""
    assert isinstance(prepared.tensor, torch.Tensor)
    levels = ((prepared.tensor.mean(0) + 1) * 127.5).numpy()
    return [number_of(frame) for frame in levels]


def draw_clips(whole: Whole, count: int) -> Iterator[tuple[float, float | None, int]]:
    """Starts (in any order), rates (None: every frame), and strides of clips."""
    generator = np.random.default_rng(7)
    length = whole.starts[-1] + 1 / whole.rate
    starts = [0.0, whole.starts[1], *generator.uniform(0, length, count)]
    generator.shuffle(starts)
    for number, start in enumerate(starts):
        yield (
            round(float(start), 6),
            (None, whole.rate * 0.6, None)[number % 3],
            1 + number % 3 // 2,
        )


def prepare(path: Path, modality: VideoModality, start: float) -> list[Prepared] | None:
    """The views of a clip; None where the video has too few frames for it."""
    try:
        return list(modality.prepare(Sample("a", path, span=(start, 1e6))))
    except SampleError as error:
        if "frames" not in str(error) or "damaged" in str(error):
            raise
        return None


def assert_whole(path: Path, whole: Whole, count: int = 8) -> None:
    """That clips, found by seeking and not, are cuts of the whole decode."""
    assert len(set(whole.numbers)) == len(whole.numbers) > 4, "the frames can't be told apart"
    found_any = False
    for start, fps, stride in draw_clips(whole, count):
        options: dict[str, Any] = {
            "frames": 4,
            "size": (24, 48),
            "crop": "none",
            "fps": fps,
            "frame_stride": stride,
        }
        modality = make_modality(**options, views=["plain", "crop-1"])
        expected = whole.at_times(start, 4, fps / stride) if fps else whole.every(start, 4, stride)
        views = prepare(path, modality, start)
        without = prepare(path, modality.without_seeking(), start)
        assert (None if views is None else numbers_of(views[0])) == expected, (start, fps, stride)
        assert (views is None) == (without is None)
        for view, other in zip(views or [], without or [], strict=True):
            assert isinstance(view.tensor, torch.Tensor)
            assert isinstance(other.tensor, torch.Tensor)
            assert torch.equal(view.tensor, other.tensor)
            assert (view.geometry, view.remarks) == (other.geometry, other.remarks)
        found_any |= views is not None
    assert found_any


BARE = {".h264", ".hevc", ".m2v"}


@pytest.fixture(params=[0.0, 10.0], ids=["listed", "from the start"])
def listed_from(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers whose packets are listed before a seek: also short ones, or not."""
    monkeypatch.setattr(decoding, "LISTED_FROM_SECONDS", request.param)


@pytest.mark.usefixtures("listed_from")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_clips_are_cuts_of_the_whole_decode(tmp_path: Path, kind: Kind) -> None:
    path = write(tmp_path, kind)
    whole = decode_whole(path, kind.rate, path.suffix not in BARE)
    assert whole.numbers == list(range(COUNT))
    assert_whole(path, whole)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_spans_of_a_video_are_all_of_it(tmp_path: Path, kind: Kind) -> None:
    path = write(tmp_path, kind)
    spans = spans_of(*measure(Sample("a", path)), VideoClipsConfig(path=".", frames=6))
    expected = [round(number / kind.rate, 6) for number in range(0, COUNT + 1, 6)]
    assert spans == list(itertools.pairwise(expected))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.name in ("a.ts", "mpeg4.avi")])
def test_threads_get_the_clips_of_one_listed_file_in_any_order(
    tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "LISTED_FROM_SECONDS", 0.0)
    path = write(tmp_path, kind)
    modality = make_modality(size=(24, 48), crop="none")
    firsts = np.random.default_rng(0).permutation(COUNT - 4).tolist()

    def numbers(first: int) -> list[int]:
        span = (first / kind.rate, (first + 4) / kind.rate)
        return numbers_of(next(modality.prepare(Sample("a", path, span=span))))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(numbers, firsts))
    assert found == [list(range(first, first + 4)) for first in firsts]


# ---------------------------------------------------------------- times

EVEN = [100 * number for number in range(COUNT)]
UNEVEN = [round(100 * number + 45 * np.sin(7 * number)) for number in range(COUNT)]
PAUSE = [100 * number + 3000 * (number > 20) for number in range(COUNT)]
TIMES = {
    "late": [5000 + time for time in EVEN],
    "uneven": UNEVEN,
    "with a pause": PAUSE,
    "late and uneven": [700 + time for time in UNEVEN],
}


@pytest.mark.usefixtures("listed_from")
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".flv"])
@pytest.mark.parametrize("name", TIMES)
def test_time_stamps_of_any_kind_are_kept(tmp_path: Path, suffix: str, name: str) -> None:
    path = write(tmp_path, Kind(f"a{suffix}", "libx264", H264), times=TIMES[name])
    with av.open(path) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or stream.guessed_rate or 0)
    whole = decode_whole(path, rate)
    expected = [(time - TIMES[name][0]) / 1000 for time in TIMES[name]]
    assert whole.starts == pytest.approx(expected, abs=1e-3)
    assert_whole(path, whole)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_an_edit_list_that_cuts_within_a_group_is_kept(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, Kind(f"a{suffix}", "libx264", H264), times=[time - 500 for time in EVEN])
    whole = decode_whole(path, 10)
    assert whole.numbers == list(range(5, COUNT)), "the first half second is edited away"
    assert_whole(path, whole)


# ---------------------------------------------------------------- what lies, or is broken


def test_a_frame_that_is_called_a_key_frame_and_is_none_is_not_begun_at(tmp_path: Path) -> None:
    path = write(tmp_path, Kind("a.mp4", "libx264", H264))
    data = bytearray(path.read_bytes())
    # ISO/IEC 14496-12, 8.6.2: the name, version and flags, a count, and the numbers of key frames.
    third = data.index(b"stss") + 12 + 2 * 4
    data[third : third + 4] = (25).to_bytes(4)
    path.write_bytes(data)
    with av.open(path) as container:
        index = container.streams.video[0].index_entries
        assert [entry.is_keyframe for entry in (index[20], index[24])] == [False, True]
    assert_whole(path, decode_whole(path, 10))


def test_frames_without_times_of_showing_are_shown_in_the_decoders_order(tmp_path: Path) -> None:
    path = write(tmp_path, Kind("a.mp4", "libx264", H264))
    data = path.read_bytes()
    assert data.count(b"ctts") == 1
    path.write_bytes(data.replace(b"ctts", b"free"))  # the table without which they are of decoding
    assert_whole(path, decode_whole(path, 10), count=16)


@pytest.mark.usefixtures("listed_from")
def test_a_transport_stream_that_begins_within_a_group_begins_at_its_first_key_frame(
    tmp_path: Path,
) -> None:
    path = cut_start(write(tmp_path, Kind("a.ts", "libx264", H264)))
    whole = decode_whole(path, 10)
    assert 1 < whole.numbers[0] < 30
    assert_whole(path, whole)


@pytest.mark.usefixtures("listed_from")
def test_where_the_first_group_refers_to_what_is_gone_later_clips_are_right(tmp_path: Path) -> None:
    path = cut_start(
        write(tmp_path, Kind("a.ts", "libx264", {**H264, "x264-params": "open-gop=1"}))
    )
    whole = decode_whole(path, 10)
    modality = make_modality(size=(24, 48), crop="none")
    with pytest.raises(SampleError, match="damaged, or cut off"):
        next(modality.prepare(Sample("a", path)))
    for start in (2.6, 1.55, 3.2, 2.1):
        views = prepare(path, modality, start)
        assert views is not None
        assert numbers_of(views[0]) == whole.every(start, 4, 1)


def cut_start(path: Path) -> Path:
    """Take the first quarter of a transport stream away."""
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 188 // 4 * 188 :])
    return path


def test_a_joined_transport_stream_goes_on_after_its_first_part(tmp_path: Path) -> None:
    path = write(tmp_path, Kind("a.ts", "libx264", H264))
    path.write_bytes(path.read_bytes() * 2)  # time stamps begin again in the middle
    assert (
        len(spans_of(*measure(Sample("a", path)), VideoClipsConfig(path=".", frames=6)))
        == 2 * COUNT // 6
    )
    modality = make_modality(size=(24, 48), crop="none")
    for start in (6.0, 3.0, 5.9, 6.7):
        views = prepare(path, modality, start)
        assert views is not None
        first = round(start * 10)
        assert numbers_of(views[0]) == [number % COUNT for number in range(first, first + 4)]
        assert (decoding.GUESSED_TIMES in views[0].remarks) == (start > 4.8)
    with pytest.raises(SampleError, match=r"damaged, or cut off at 4\.\d00 s"):
        list(
            modality.prepare(Sample("a", path, span=(4.6, 5.5)))
        )  # a gap, as far as a reader can see


CUT_OFF = {"a.mkv", "fragments.mp4", "a.ts", "a.flv", "mpeg4.avi", "h264.avi", "a.m2v", "a.wmv"}


@pytest.mark.usefixtures("listed_from")
@pytest.mark.parametrize(
    "kind", [one for one in KINDS if one.name in CUT_OFF], ids=lambda one: one.name
)
def test_a_file_that_was_cut_off_gives_the_same_clips_with_and_without_seeking(
    tmp_path: Path, kind: Kind
) -> None:
    path = write(tmp_path, kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 8 // 10])
    modality = make_modality(size=(24, 48), crop="none")

    def clip(one: VideoModality, first: int) -> list[int] | str:
        try:
            return numbers_of(next(one.prepare(Sample("a", path, span=(first / kind.rate, 1e6)))))
        except SampleError as error:
            return str(error)

    found = [clip(modality, first) for first in range(0, COUNT, 3)]
    assert found == [clip(modality.without_seeking(), first) for first in range(0, COUNT, 3)]
    good = [numbers for numbers in found if isinstance(numbers, list)]
    assert good[:4] == [list(range(first, first + 4)) for first in range(0, 12, 3)]
    assert any("damaged" in str(reason) or " frames from " in str(reason) for reason in found)


# ---------------------------------------------------------------- several streams


def copy_video(
    given: Path, path: Path, prepare: Callable[[OutputContainer, VideoStream], Any]
) -> None:
    """Copy a video's packets into another file, to which `prepare` adds other streams."""
    with av.open(given) as source, av.open(path, "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        prepare(container, stream)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                container.mux(packet)


def add_picture(container: OutputContainer, disposition: Disposition) -> None:
    """Add a video stream of one frame, the picture of the number 63."""
    stream = container.add_stream("mjpeg", 1)
    assert isinstance(stream, VideoStream)
    stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
    stream.disposition = disposition
    picture = VideoFrame.from_ndarray(columns(63), "rgb24").reformat(format="yuvj420p")
    container.mux(stream.encode(picture))
    container.mux(stream.encode())


def test_a_cover_picture_is_not_the_video(tmp_path: Path) -> None:
    plain = write(tmp_path, Kind("plain.mp4", "libx264", H264))
    path = tmp_path / "cover.mp4"
    copy_video(plain, path, lambda container, _: add_picture(container, Disposition.attached_pic))
    with av.open(path) as container:
        assert len(container.streams.video) == 2
    assert_whole(path, decode_whole(plain, 10))
    assert ONE_OF_SEVERAL not in next(make_modality().prepare(Sample("a", path))).remarks


def test_of_several_video_streams_the_default_one_is_read(tmp_path: Path) -> None:
    plain = write(tmp_path, Kind("plain.mkv", "libx264", H264))
    path = tmp_path / "two.mkv"

    def prepare(container: OutputContainer, stream: VideoStream) -> None:
        stream.disposition = Disposition.default
        add_picture(container, Disposition.dub)

    copy_video(plain, path, prepare)
    assert_whole(path, decode_whole(plain, 10))
    assert ONE_OF_SEVERAL in next(make_modality().prepare(Sample("a", path))).remarks


# ---------------------------------------------------------------- AVI


def rewrite_avi(given: Path, path: Path, change: Callable[[list[bytes]], list[bytes]]) -> Path:
    """Write an MPEG-4 video's packets, changed, into an AVI file, one for each frame's time."""
    with av.open(given) as source:
        stream = source.streams.video[0]
        chunks = change([bytes(packet) for packet in source.demux(stream) if packet.size])
        with av.open(path, "w") as container:
            copy = container.add_stream_from_template(stream)
            for number, chunk in enumerate(chunks):
                packet = av.Packet(chunk)
                packet.stream, packet.time_base = copy, Fraction(1, 25)
                packet.pts = packet.dts = number
                packet.is_keyframe = b"\0\0\1\xb0" in chunk or number == 0
                container.mux(packet)
    return path


NOT_CODED = bytes.fromhex("000001b65000ff")
"""A picture that says that the one before stays: ISO/IEC 14496-2, 6.2.5 (vop_coded is 0)."""


def pack(chunks: list[bytes]) -> list[bytes]:
    """Put a frame and the one shown before it into one chunk, as DivX 5 does."""
    packed, held = [], list(chunks)
    held[0] = held[0].replace(b"\0\0\1\xb6", b"\0\0\1\xb2DivX503b1393p\0\0\1\xb6", 1)
    packed.append(held.pop(0))
    while held:
        is_pair = len(held) > 1 and coding_type(held[1]) == 2
        packed += [held.pop(0) + held.pop(0), NOT_CODED] if is_pair else [held.pop(0)]
    return packed


def coding_type(chunk: bytes) -> int:
    """0 of a picture of its own, 1 predicted, 2 predicted from both sides (vop_coding_type)."""
    return chunk[chunk.index(b"\0\0\1\xb6") + 4] >> 6


@pytest.mark.usefixtures("listed_from")
def test_packed_frames_of_avi_are_told_apart(tmp_path: Path) -> None:
    given = write(tmp_path, Kind("given.avi", "mpeg4", {**MPEG, "bf": "1"}, rate=25))
    path = rewrite_avi(given, tmp_path / "a.avi", pack)
    whole = decode_whole(path, 25)
    assert whole.numbers == list(range(COUNT))
    assert_whole(path, whole)


@pytest.mark.usefixtures("listed_from")
def test_a_frame_dropped_from_avi_stays_on_screen(tmp_path: Path) -> None:
    given = write(tmp_path, Kind("given.avi", "mpeg4", {**MPEG, "bf": "0"}, rate=25))
    path = rewrite_avi(
        given, tmp_path / "a.avi", lambda chunks: [*chunks[:20], b"", b"", *chunks[20:]]
    )
    whole = decode_whole(path, 25)
    assert whole.numbers == list(range(COUNT))
    assert whole.starts[20] - whole.starts[19] == pytest.approx(3 / 25)
    assert_whole(path, whole)
