"""Containers that libsndfile doesn't know: the sound is as long as what was encoded, and begins
where that began.
"""

from __future__ import annotations

import builtins
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from latentkit_audio.clips import open_audio_clips
from latentkit_audio.plugin import AudioClipsConfig

from latentkit.contracts import BuildContext, Sample
from latentkit.errors import SampleError

AAC_HZ, OPUS_HZ = 44_100, 48_000

open_av: Any = av.open
"""Its declared types tell containers that are read from those that are written by no argument."""

GAPLESS = [
    ("a.m4a", "ipod", "aac", AAC_HZ, 0),
    ("a.m4a", "ipod", "alac", AAC_HZ, 0),
    ("a.mp4", "mp4", "libopus", OPUS_HZ, 0),
    ("a.webm", "webm", "libopus", OPUS_HZ, 0),
    ("a.mka", "matroska", "flac", AAC_HZ, 0),
    ("a.wv", "wv", "wavpack", AAC_HZ, 0),
    ("a.tta", "tta", "tta", AAC_HZ, 0),
    ("a.mp4", "mp4", "libmp3lame", AAC_HZ, AAC_HZ // 1000),
    ("a.mka", "matroska", "aac", AAC_HZ, 1024),
    ("a.mkv", "matroska", "ac3", OPUS_HZ, 1536),
]
"""Name, container, codec, rate, and by how many frames the length may be off: mp4 files state it
in milliseconds where the last frame isn't cut, and Matroska not at all where the encoder pads
it.
"""


def chirp(num_frames: int, rate_hz: int) -> Any:
    """(2, frames) float32: another frequency at every moment, so that a shift shows."""
    seconds = np.arange(num_frames) / rate_hz
    return np.stack(
        [0.4 * np.sin(2 * np.pi * seconds * (hz + 150 * seconds)) for hz in (300, 500)]
    ).astype(np.float32)


def encode(
    frames: Any,
    rate_hz: int,
    container: str,
    codec: str,
    with_picture: bool = False,
    **options: str,
) -> bytes:
    media = io.BytesIO()
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(frames)]
    with open_av(media, "w", format=container) as file:
        if with_picture:
            picture = file.add_stream("mpeg4", rate=10)
            picture.width = picture.height = 32
            picture.pix_fmt = "yuv420p"
        stream = file.add_stream(codec, rate=rate_hz, options=options)
        stream.layout = layout
        if with_picture:
            for number in range(20):
                shown = av.VideoFrame.from_ndarray(
                    np.full((32, 32, 3), 10 * number, np.uint8), format="rgb24"
                )
                file.mux(picture.encode(shown))
            file.mux(picture.encode(None))
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(frames), format="fltp", layout=layout
        )
        frame.sample_rate, frame.pts = rate_hz, 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return media.getvalue()


def whole_by_av(media: bytes) -> Any:
    """(channels, frames): all that PyAV decodes, one after the other."""
    with open_av(io.BytesIO(media)) as file:
        resampler = av.AudioResampler(format="fltp")
        frames = [
            part.to_ndarray()
            for frame in file.decode(audio=0)
            for part in resampler.resample(frame)
        ]
    return np.concatenate(frames, axis=1)


def lag(row: Any, expected: Any, most: int = 3000) -> int:
    """Frames by which a row is late, looked for in its middle."""
    middle = len(expected) // 2
    wanted = expected[middle : middle + 4000]
    return min(
        range(-most, most),
        key=lambda shift: float(np.abs(row[middle + shift : middle + shift + 4000] - wanted).sum()),
    )


@pytest.mark.parametrize(("name", "container", "codec", "rate_hz", "slack"), GAPLESS)
@pytest.mark.parametrize("num_frames", [70_777, 30 * 1024])
def test_the_sound_is_as_long_as_what_was_encoded_and_begins_there(
    tmp_path: Path,
    open_audio: Any,
    name: str,
    container: str,
    codec: str,
    rate_hz: int,
    slack: int,
    num_frames: int,
) -> None:
    source = chirp(num_frames, rate_hz)
    media, path = encode(source, rate_hz, container, codec), tmp_path / name
    path.write_bytes(media)
    for given in (path, media):
        (row,) = open_audio(rate_hz, channels=2, length=2.5).prepare(Sample("a", given))
        count = int(row.tensor["mask"].sum())
        assert abs(count - num_frames) <= slack
        sound = row.tensor["audio"][:, :count].numpy()
        assert lag(sound[0], source[0]) == 0
        decoded = whole_by_av(media)[:, :count]
        assert np.abs(sound - decoded).max() < 1e-6


@pytest.mark.parametrize(
    ("name", "container", "codec", "rate_hz", "channels", "options"),
    [
        ("a.wma", "asf", "wmav2", 44_100, 2, {"b": "128k"}),
        ("a.amr", "amr", "libopencore_amrnb", 8000, 1, {"b": "12200"}),
    ],
)
def test_what_says_no_lead_in_is_what_ffmpeg_decodes(
    tmp_path: Path,
    open_audio: Any,
    name: str,
    container: str,
    codec: str,
    rate_hz: int,
    channels: int,
    options: Any,
) -> None:
    media = encode(chirp(2 * rate_hz, rate_hz)[:channels], rate_hz, container, codec, **options)
    decoded = whole_by_av(media)
    (row,) = open_audio(rate_hz, channels=channels, length=3.0).prepare(Sample(name, media))
    assert int(row.tensor["mask"].sum()) == decoded.shape[1]
    assert np.abs(row.tensor["audio"][:, : decoded.shape[1]].numpy() - decoded).max() < 1e-6


@pytest.mark.parametrize("tag", [b"", b"ID3\x04\x00\x00\x00\x00\x00\x20" + bytes(32)])
def test_bare_aac_keeps_its_lead_in_and_says_so(open_audio: Any, tag: bytes) -> None:
    (row,) = open_audio(AAC_HZ, length=1.0).prepare(
        Sample("a", tag + encode(chirp(80_000, AAC_HZ), AAC_HZ, "adts", "aac"))
    )
    assert [text for text in row.remarks if "lead-in" in text]


@pytest.mark.parametrize(
    ("container", "codec", "rate_hz"), [("ipod", "aac", AAC_HZ), ("webm", "libopus", OPUS_HZ)]
)
def test_spans_and_views_are_parts_of_the_whole(
    tmp_path: Path, open_audio: Any, container: str, codec: str, rate_hz: int
) -> None:
    path = tmp_path / "a.media"
    path.write_bytes(encode(chirp(3 * rate_hz, rate_hz), rate_hz, container, codec))
    whole = whole_by_av(path.read_bytes())
    modality = open_audio(
        rate_hz, channels=2, length=0.3, views=["plain", "crop-1", "crop-2"], on_short="skip"
    )
    for span in (None, (0.5, 1.0), (0.8, 1.3), (2.0, 2.5), (0.0, 0.5)):
        for view in modality.prepare(Sample(f"{span}", path, span=span)):
            first = round(view.geometry["start"] * rate_hz)
            row = view.tensor.numpy()
            assert (
                span is None or span[0] <= view.geometry["start"] < view.geometry["end"] <= span[1]
            )
            assert np.abs(row - whole[:, first : first + row.shape[1]]).max() < 1e-6


@pytest.mark.parametrize(
    ("name", "container"),
    [("a.mp4", "mp4"), ("a.mkv", "matroska"), ("a.avi", "avi"), ("a.ts", "mpegts")],
)
def test_the_sound_of_a_video_is_taken(
    tmp_path: Path, open_audio: Any, name: str, container: str
) -> None:
    """From its start where the container says where that is; else behind the lead-in of 256 frames
    that AC-3 has.
    """
    source = chirp(2 * OPUS_HZ, OPUS_HZ)
    (tmp_path / name).write_bytes(encode(source, OPUS_HZ, container, "ac3", with_picture=True))
    files = open_audio_clips(
        AudioClipsConfig(path=".", suffixes=[".mp4", ".mkv", ".avi", ".ts"]),
        BuildContext(recipe_dir=tmp_path),
    )
    (row,) = open_audio(OPUS_HZ, channels=2, length=1.5).prepare(files[0])
    sound, says_nothing = row.tensor["audio"].numpy(), container in ("avi", "mpegts")
    lead_in = 256 if says_nothing else 0
    assert np.abs(sound[:, lead_in : lead_in + 50_000] - source[:, :50_000]).max() < 0.05
    assert any("lead-in" in text for text in row.remarks) == says_nothing


def test_long_containers_become_spans(tmp_path: Path, open_audio: Any) -> None:
    (tmp_path / "a.m4a").write_bytes(encode(chirp(100_000, AAC_HZ), AAC_HZ, "ipod", "aac"))
    source = open_audio_clips(
        AudioClipsConfig(path=".", length=1.0), BuildContext(recipe_dir=tmp_path)
    )
    assert [entry.key for entry in source.entries()] == [
        "a.m4a#t=0,1",
        "a.m4a#t=1,2",
        "a.m4a#t=2,2.267574",
    ]


# ---------------------------------------------------------------- what is no good


def half(media: bytes) -> bytes:
    return media[: len(media) // 2]


def mp4() -> bytes:
    return encode(chirp(100_000, AAC_HZ), AAC_HZ, "mp4", "aac")


def with_index_in_front() -> bytes:
    """An mp4 file as web servers want it; FFmpeg moves the index within a file on disk only."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        with (
            open_av(io.BytesIO(mp4())) as given,
            open_av(path, "w", options={"movflags": "faststart"}) as file,
        ):
            stream = file.add_stream_from_template(given.streams.audio[0])
            for packet in given.demux(audio=0):
                if packet.dts is not None:
                    packet.stream = stream
                    file.mux(packet)
        return path.read_bytes()


def without_sound() -> bytes:
    media = io.BytesIO()
    with open_av(media, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        file.mux(
            stream.encode(
                av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            )
        )
        file.mux(stream.encode(None))
    return media.getvalue()


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "its index cut off": (lambda: half(mp4()), "not an audio file, or damaged at its|cut off"),
    "its end cut off": (lambda: half(with_index_in_front()), "cut off"),
    "no sound": (without_sound, "no audio: the file contains video"),
    "a playlist": (lambda: b"#EXTM3U\n#EXTINF:1\n/etc/passwd\n", "not an audio file"),
    "six channels": (
        lambda: encode(np.zeros((6, 50_000), np.float32), OPUS_HZ, "mp4", "ac3"),
        "6 channels; with on_many_channels: mix",
    ),
}


@pytest.mark.parametrize("what", list(BAD))
def test_bad_media_is_refused_with_the_reason(tmp_path: Path, open_audio: Any, what: str) -> None:
    make, reason = BAD[what]
    path, reasons = tmp_path / "bad", []
    path.write_bytes(make())
    for media in (path, path.read_bytes()):
        with pytest.raises(SampleError, match=reason) as raised:
            list(open_audio(AAC_HZ, length=5.0).prepare(Sample("bad", media)))
        reasons.append(str(raised.value))
    assert reasons[0] == reasons[1]


@pytest.mark.parametrize(("kind", "subtype"), [("CAF", "PCM_16"), ("CAF", "ALAC_16")])
def test_damage_is_no_error_of_the_medium(
    tmp_path: Path, open_audio: Any, kind: str, subtype: str
) -> None:
    """Sizes that lead FFmpeg to before the start of the file, on disk and in memory."""
    media, path = io.BytesIO(), tmp_path / "a"
    outcomes: list[Any] = []
    soundfile.write(media, chirp(2000, 48_000).T, 48_000, format=kind, subtype=subtype)
    modality = open_audio(48_000, channels=2, length=0.1)
    for place in range(8, 80):
        damaged = bytearray(media.getvalue())
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        outcomes.clear()
        for given in (path, bytes(damaged)):
            try:
                (row,) = modality.prepare(Sample("a", given))
                outcomes.append(row.tensor["audio"].numpy().tobytes())
            except SampleError as err:
                outcomes.append(str(err))
        assert outcomes[0] == outcomes[1], place


def test_without_pyav_the_reason_names_it(open_audio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    media, original = mp4(), builtins.__import__

    def without_av(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "av" or name.startswith("av."):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(
        SampleError, match=r"needs the package PyAV: pip install 'latentkit-audio\[av\]'"
    ):
        list(open_audio(AAC_HZ).prepare(Sample("a", media)))
