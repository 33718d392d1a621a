"""Every format gives the sound that was written; a part of a file is that part of it; what is no
sound says why.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from latentkit.contracts import Sample
from latentkit.errors import SampleError

FORMATS = [
    ("a.wav", "PCM_U8", 0.008),
    ("a.wav", "PCM_16", 4e-5),
    ("a.wav", "PCM_24", 3e-7),
    ("a.wav", "PCM_32", 1e-7),
    ("a.wav", "FLOAT", 1e-7),
    ("a.wav", "DOUBLE", 1e-7),
    ("a.flac", "PCM_16", 4e-5),
    ("a.flac", "PCM_24", 3e-7),
    ("a.ogg", "VORBIS", 0.05),
    ("a.mp3", "MPEG_LAYER_III", 0.05),
]
"""Name, subtype, and the largest error: of rounding, or of what a lossy format makes of two sines.
"""

RATE_HZ = 16_000


@pytest.fixture
def stereo(make_sine: Callable[..., Any]) -> Any:
    """Two seconds, another sine in each channel, that begin and end softly."""
    channels = [make_sine(hz, 2.0, RATE_HZ, 0.4) for hz in (440, 1000)]
    return np.stack(channels, axis=1) * np.hanning(2 * RATE_HZ)[:, None]


@pytest.mark.parametrize(("name", "subtype", "error"), FORMATS)
def test_every_format_gives_what_was_written(
    write_sound: Any,
    open_audio: Any,
    prepare_one: Any,
    stereo: Any,
    name: str,
    subtype: str,
    error: float,
) -> None:
    path = write_sound(name, stereo, RATE_HZ, subtype)
    row = prepare_one(
        open_audio(RATE_HZ, channels=2, length=2.0, on_short="skip"), path
    ).tensor.numpy()
    assert row.shape == (2, 2 * RATE_HZ)
    assert np.abs(row - stereo.T).max() < error


@pytest.mark.parametrize(("name", "subtype", "error"), FORMATS)
def test_a_span_is_that_part_of_the_file(
    write_sound: Any,
    open_audio: Any,
    prepare_one: Any,
    stereo: Any,
    name: str,
    subtype: str,
    error: float,
) -> None:
    path = write_sound(name, stereo, RATE_HZ, subtype)
    row = prepare_one(
        open_audio(RATE_HZ, channels=2, length=0.5, on_short="skip"), path, span=(0.75, 1.25)
    ).tensor.numpy()
    assert np.abs(row - stereo[12_000:20_000].T).max() < error


def test_bytes_give_what_the_file_gives(write_sound: Any, open_audio: Any, stereo: Any) -> None:
    path, modality = write_sound("a.ogg", stereo, RATE_HZ), open_audio(RATE_HZ, length=1.0)
    rows = [
        next(modality.prepare(Sample("a", media))).tensor["audio"]
        for media in (path, path.read_bytes())
    ]
    assert rows[0].equal(rows[1])


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_parts_of_an_mp3_file_are_those_of_the_whole(
    tmp_path: Path, open_audio: Any, prepare_one: Any, rate_hz: int
) -> None:
    """Its frames take bits from frames before: libsndfile alone gives up to 3,500 wrong samples
    after a seek.
    """
    noise, path = np.random.default_rng(0).uniform(-0.3, 0.3, (4 * rate_hz, 2)), tmp_path / "a.mp3"
    with soundfile.SoundFile(
        path, "w", rate_hz, 2, compression_level=0.7, bitrate_mode="CONSTANT"
    ) as file:
        file.write(noise * (np.arange(4 * rate_hz) // (rate_hz // 8) % 2)[:, None])
    whole, _ = soundfile.read(path, dtype="float32")
    modality = open_audio(rate_hz, channels=2, length=0.25, on_short="skip")
    for start in (0.0, 0.5, 1.25, 3.75):
        row = prepare_one(modality, path, (start, start + 0.25)).tensor.numpy()
        first = round(start * rate_hz)
        assert np.abs(row.T - whole[first : first + rate_hz // 4]).max() < 1e-6


def test_a_span_reads_no_more_of_a_long_file_than_it_needs(tmp_path: Path, open_audio: Any) -> None:
    """Of a file with an hour of silence on disk (sparse), a second is read: by the counter of the
    kernel.
    """
    path, num_frames = tmp_path / "long.wav", 3600 * 48_000
    with soundfile.SoundFile(path, "w", 48_000, 2, "PCM_16") as file:
        file.seek(num_frames - 1)
        file.write(np.zeros((1, 2)))

    def characters_read() -> int:
        return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])

    modality = open_audio(48_000, channels=2, length=1.0)
    before = characters_read()
    (prepared,) = modality.prepare(Sample("long", path, span=(3000.0, 3001.0)))
    assert prepared.tensor["mask"].all()
    assert characters_read() - before < 1_000_000


# ---------------------------------------------------------------- what is no good


def written(
    frames: Any, rate_hz: int = RATE_HZ, subtype: str = "PCM_16", kind: str = "WAV"
) -> bytes:
    media = io.BytesIO()
    soundfile.write(media, frames, rate_hz, format=kind, subtype=subtype)
    return media.getvalue()


def with_rate(rate_hz: int) -> bytes:
    """A wav file whose header says another rate."""
    media = written(np.zeros(100))
    return media[:24] + rate_hz.to_bytes(4, "little") + media[28:]


def with_values(*values: float) -> bytes:
    return written(np.array([0.1, 0.2, *values]), subtype="FLOAT")


NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * RATE_HZ)


def half(kind: str, subtype: str) -> bytes:
    media = written(NOISE, subtype=subtype, kind=kind)
    return media[: len(media) // 2]


BAD = {
    "no bytes": (b"", "not an audio file, or damaged: Format not recognised"),
    "a text": (
        b"caption of a sound\n" * 100,
        "not an audio file, or damaged: Format not recognised",
    ),
    "no frames": (written(np.zeros(0)), "a sound of zero length"),
    "a frame of mp3 that holds nothing": (
        b"\xff\xfb\x90\x00" * 50,
        "not an audio file, or damaged: no frame in it can be decoded",
    ),
    "a rate of 0": (with_rate(0), "not an audio file, or damaged"),
    "a rate of 7": (with_rate(7), "a sample rate of 7 Hz; expected 1000 to 1000000"),
    "a rate of 2 GHz": (with_rate(2**31 - 1), "a sample rate of 2147483647 Hz"),
    "nan": (with_values(np.nan, np.nan), "2 of 4 values are nan or infinite"),
    "infinity": (with_values(np.inf), "1 of 3 values are nan or infinite"),
    "half a flac": (
        written(NOISE, kind="FLAC")[:20_000],
        "damaged between 0.000 s and 4.000 s: .*lost sync",
    ),
    "half an ogg": (written(NOISE, kind="OGG", subtype="VORBIS")[:20_000], "shorter than 4 s"),
    "half an mp3": (
        written(NOISE, kind="MP3", subtype="MPEG_LAYER_III")[:10_000],
        "is cut off at .* s, but its header says 4.000 s",
    ),
    **{
        f"half a {kind} {subtype}": (
            half(kind, subtype),
            r"is cut off at (1\.9|2\.0)\d+ s, but its header says (3\.9|4\.0)\d+ s",
        )
        for kind, subtype in [
            *itertools.product(["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU"], ["PCM_16"]),
            ("WAV", "IMA_ADPCM"),
        ]
    },
    "six channels": (written(np.zeros((100, 6))), "6 channels; with on_many_channels: mix"),
}


@pytest.mark.parametrize("media", list(BAD))
def test_bad_media_is_refused_with_the_reason(open_audio: Any, tmp_path: Path, media: str) -> None:
    damaged, reason = BAD[media]
    modality = open_audio(RATE_HZ, length=4.0, on_short="skip" if "ogg" in media else "pad")
    (tmp_path / "bad").write_bytes(damaged)
    reasons = []
    for sample in (Sample("bad", damaged), Sample("bad", tmp_path / "bad")):
        with pytest.raises(SampleError, match=reason) as raised:
            list(modality.prepare(sample))
        reasons.append(str(raised.value))
    assert reasons[0] == reasons[1]


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_what_lies_before_the_break_of_a_file_is_taken(
    tmp_path: Path, open_audio: Any, kind: str
) -> None:
    path, modality = tmp_path / "half", open_audio(RATE_HZ, length=1.0)
    path.write_bytes(half(kind, "PCM_16"))
    (prepared,) = modality.prepare(Sample("half", path, span=(0.5, 1.5)))
    assert (
        np.abs(prepared.tensor["audio"][0].numpy() - NOISE[RATE_HZ // 2 : 3 * RATE_HZ // 2]).max()
        < 4e-5
    )
    with pytest.raises(SampleError, match=r"is cut off|damaged between"):
        list(modality.prepare(Sample("half", path, span=(3.0, 4.0))))


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0x7FFF_F000, 8 * RATE_HZ + 44])
def test_a_size_that_a_stream_could_not_know_or_that_counts_the_header_is_no_break(
    open_audio: Any, size: int
) -> None:
    """ffmpeg's and sox's to a pipe, and the mistake of counting the header."""
    media = written(NOISE)
    (prepared,) = open_audio(RATE_HZ, length=4.0).prepare(
        Sample("stream", media[:40] + size.to_bytes(4, "little") + media[44:])
    )
    assert prepared.tensor["mask"].all()
    assert np.abs(prepared.tensor["audio"][0].numpy() - NOISE).max() < 4e-5


@pytest.mark.parametrize("channels", [1, 2])
def test_values_that_are_not_finite_are_counted_as_the_file_has_them(
    open_audio: Any, channels: int
) -> None:
    """Not as many as they are after another rate and a second channel."""
    frames = np.where(np.arange(RATE_HZ) == 100, np.nan, NOISE[:RATE_HZ])
    with pytest.raises(SampleError, match=r"^1 of 16000 values are nan or infinite"):
        list(
            open_audio(44_100, channels=channels, length=1.0).prepare(
                Sample("nan", written(frames, subtype="FLOAT"))
            )
        )


@pytest.mark.parametrize("span", [(1.5, 2.5), (3.0, 4.0), (1.0, 1.0), (-1.0, 1.0)])
def test_a_span_beyond_the_sound_is_refused(
    write_sound: Any, open_audio: Any, prepare_one: Any, stereo: Any, span: tuple[float, float]
) -> None:
    with pytest.raises(
        SampleError, match=rf"a span from {span[0]:g} s to {span[1]:g} s, in audio of 2 s"
    ):
        prepare_one(open_audio(RATE_HZ), write_sound("a.wav", stereo, RATE_HZ), span)


def test_a_short_sound_is_refused_where_the_recipe_says_so(
    write_sound: Any, open_audio: Any, prepare_one: Any, stereo: Any
) -> None:
    with pytest.raises(SampleError, match="2 s of audio, shorter than 3 s"):
        prepare_one(
            open_audio(RATE_HZ, length=3.0, on_short="skip"), write_sound("a.wav", stereo, RATE_HZ)
        )
