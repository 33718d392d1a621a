"""Videos that are no good: one reason each, never frames that were made up."""

from __future__ import annotations

import io
import wave
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
from av.audio import AudioFrame, AudioStream
from av.video import VideoFrame, VideoStream
from videos import Picture, encode, make_modality, numbered, numbers_of, prepare_one

from latentkit.contracts import Sample
from latentkit.errors import SampleError
from latentkit.kit import av_errors


def noise(count: int) -> list[Picture]:
    """Pictures that compress badly, so that each has many bytes."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(count)]


def reason(media: Path | bytes, span: tuple[float, float] | None = None) -> str:
    """Why a sample is refused."""
    with pytest.raises(SampleError) as caught:
        list(make_modality().prepare(Sample("a", media, span=span)))
    return str(caught.value)


@pytest.mark.parametrize(
    "media",
    [
        b"text",
        bytes(1000),
        b"RIFF" + bytes(100),
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
        b"ffconcat version 1.0\nfile a.mp4\n",
    ],
)
def test_what_is_not_a_video_is_refused(media: bytes) -> None:
    assert reason(media).startswith("not a video, or damaged at its start: Invalid")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    assert reason(tmp_path / "a.mp4") == reason(b"") == "empty file: 0 bytes"


def test_sound_without_pictures_is_refused(tmp_path: Path) -> None:
    with av.open(tmp_path / "a.mkv", "w") as container:
        stream = container.add_stream("pcm_s16le", 8000)
        assert isinstance(stream, AudioStream)
        frame = AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    assert reason(tmp_path / "a.mkv") == "no video stream: the file contains audio"


def test_a_sound_file_is_refused() -> None:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    assert reason(buffer.getvalue()).startswith("not a video")


def test_a_video_with_sound_is_read_without_it(tmp_path: Path) -> None:
    with av.open(tmp_path / "a.mkv", "w") as container:
        sound, video = container.add_stream("pcm_s16le", 8000), container.add_stream("ffv1", 10)
        assert isinstance(sound, AudioStream)
        assert isinstance(video, VideoStream)
        video.height, video.width, video.pix_fmt = 24, 32, "yuv420p"
        frame = AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(sound.encode(frame))
        for picture in numbered(10):
            container.mux(video.encode(VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(video.encode())
    assert numbers_of(prepare_one(tmp_path / "a.mkv", (0.3, 0.7))) == [3, 4, 5, 6]


def test_a_video_without_frames_is_refused(tmp_path: Path) -> None:
    whole = encode(tmp_path / "a.mkv", numbered(5)).read_bytes()
    first_cluster = whole.index(bytes.fromhex("1f43b675"))
    assert reason(whole[:first_cluster]) == "not a video, or damaged at its start: End of file"


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".mp4"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6])
def test_a_video_that_was_cut_off_gives_no_clip_beyond_its_end(
    tmp_path: Path, suffix: str, share: float
) -> None:
    whole = encode(tmp_path / f"a{suffix}", noise(20)).read_bytes()
    found = reason(whole[: int(len(whole) * share)], (1.6, 2.0))
    assert "damaged" in found or "0 frames from 1.600 s" in found


def test_a_clip_beyond_the_end_says_where_that_is(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", numbered(20))
    wanted = (
        r"0 frames from 5\.000 s, as the video ends at 2\.000 s \(all frames\), but a clip has 4"
    )
    for modality in (make_modality(), make_modality().without_seeking()):
        with pytest.raises(SampleError, match=wanted):
            list(modality.prepare(Sample("a", path, span=(5.0, 6.0))))


def test_a_video_that_was_cut_off_gives_the_clips_before_its_end(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", numbered(20))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    assert numbers_of(prepare_one(path, (0.5, 0.9))) == [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [
        (".mp4", "libx264", "yuv420p"),
        (".ts", "libx264", "yuv420p"),
        (".mkv", "mpeg4", "yuv420p"),
        (".avi", "mjpeg", "yuvj420p"),
    ],
)
def test_damage_in_the_middle_is_seen(
    tmp_path: Path, suffix: str, codec: str, pix_fmt: str
) -> None:
    path = encode(tmp_path / f"a{suffix}", noise(12), codec=codec, pix_fmt=pix_fmt, options={})
    damaged = bytearray(path.read_bytes())
    start, stop = len(damaged) // 3, len(damaged) // 2
    damaged[start:stop] = b"\xff" * (stop - start)
    with pytest.raises(SampleError, match=r"damaged|frames from"):
        list(make_modality(frames=12).prepare(Sample("a", bytes(damaged))))


def test_damage_after_a_clip_does_not_matter(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", noise(40))
    damaged = bytearray(path.read_bytes())
    start = len(damaged) * 3 // 4
    damaged[start : start + 400] = bytes(400)
    list(make_modality().prepare(Sample("a", bytes(damaged), span=(0.2, 0.6))))


def test_a_size_that_changes_in_a_clip_is_refused(tmp_path: Path) -> None:
    parts = [
        encode(tmp_path / f"{side}.ts", numbered(5, side, side)).read_bytes() for side in (32, 48)
    ]
    assert reason(b"".join(parts), (0.3, 0.7)).startswith(
        ("its frames change from video_size=32x32", "damaged")
    )


def test_a_reason_is_the_same_for_a_file_and_for_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(200))
    assert reason(path) == reason(path.read_bytes())


def test_a_file_that_cannot_be_read_is_not_the_samples_fault(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        list(make_modality().prepare(Sample("a", tmp_path)))


def test_a_clip_after_damage_and_a_key_frame_is_the_same_with_and_without_seeking(
    tmp_path: Path,
) -> None:
    path = encode(tmp_path / "a.mkv", numbered(40))
    with av.open(path) as container:
        places = {packet.pts: packet.pos for packet in container.demux(video=0) if packet.size}
    data = bytearray(path.read_bytes())
    start = (places[500] or 0) + 12
    data[start : start + 20] = b"\xff" * 20
    path.write_bytes(data)
    modality = make_modality()
    for one in (modality, modality.without_seeking()):
        for first in (0, 10, 25, 35):
            [view] = one.prepare(Sample("a", path, span=(first / 10, first / 10 + 0.4)))
            assert numbers_of(view) == list(range(first, first + 4))
        with pytest.raises(SampleError, match=r"damaged, or cut off .* at 0\.500 s"):
            list(one.prepare(Sample("a", path, span=(0.6, 1.0))))


def test_good_and_bad_files_leave_no_file_and_no_thread_open(tmp_path: Path) -> None:
    process = psutil.Process()
    paths = [encode(tmp_path / f"a{suffix}", numbered(20)) for suffix in (".mp4", ".ts", ".mkv")]
    paths.append(tmp_path / "bad.mp4")
    paths[-1].write_bytes(paths[0].read_bytes()[:300])
    modality = make_modality()

    def prepare_all() -> tuple[int, int]:
        for path in paths:
            for span in (None, (1.2, 1.6), (5.0, 6.0)):
                with suppress(SampleError):
                    list(modality.prepare(Sample("a", path, span=span)))
        return len(process.open_files()), process.num_threads()

    before = prepare_all()
    assert [prepare_all() for _ in range(5)] == [before] * 5


def test_a_seek_to_before_the_start_is_damage_and_other_errors_stay_those_of_the_medium() -> None:
    with (
        Path(__file__).open("rb") as file,
        pytest.raises(SampleError, match=r"^cut off: Invalid data found when processing input$"),
        av_errors("cut off"),
    ):
        file.seek(-1)
    with pytest.raises(FileNotFoundError), av_errors("cut off"):
        Path("/nowhere").read_bytes()
