"""Each row equals what decoding the whole file from its start, resampling it and cutting gives, in
every format and order of access.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from latentkit_audio import forward, sndfile
from latentkit_audio.clips import open_audio_clips
from latentkit_audio.plugin import AudioClipsConfig
from latentkit_audio.sndfile import SndFile

from latentkit.contracts import BuildContext, Sample
from latentkit.errors import SampleError

MONO, STEREO = 1, 2

RESAMPLED_TOLERANCE = 2e-6
"""Of values up to 1: soxr's own rounding, largest where two rates share no factor."""

MP3_TOLERANCE = 2e-7
"""Its decoder adds up in an order that depends on where it began."""


@dataclass(frozen=True)
class Case:
    """A file to make: its name tells the format."""

    name: str
    subtype: str | None = None
    rate_hz: int = 44_100
    channels: int = STEREO
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return "-".join(
            map(
                str,
                [
                    self.name,
                    self.subtype,
                    self.rate_hz,
                    self.channels,
                    *(value for _, value in self.options),
                ],
            )
        )


CBR, VBR = (
    (("bitrate_mode", "CONSTANT"),),
    (("bitrate_mode", "VARIABLE"), ("compression_level", 0.7)),
)

CASES = [
    *(
        Case("a.wav", subtype)
        for subtype in (
            "PCM_U8",
            "PCM_16",
            "PCM_24",
            "PCM_32",
            "FLOAT",
            "DOUBLE",
            "ULAW",
            "IMA_ADPCM",
            "MS_ADPCM",
        )
    ),
    Case("a.wav", "GSM610", 8000, MONO),
    *(
        Case("a.flac", "PCM_16", rate_hz, channels)
        for rate_hz, channels in ((8000, MONO), (22_050, STEREO), (48_000, STEREO))
    ),
    *(
        Case("a.ogg", "VORBIS", rate_hz, channels)
        for rate_hz, channels in ((8000, MONO), (22_050, STEREO), (44_100, STEREO))
    ),
    *(
        Case("a.opus", "OPUS", rate_hz, channels)
        for rate_hz, channels in ((8000, MONO), (48_000, STEREO))
    ),
    *(Case("a.mp3", None, rate_hz, MONO, CBR) for rate_hz in (8000, 22_050, 48_000)),
    *(Case("a.mp3", None, rate_hz, STEREO, VBR) for rate_hz in (16_000, 44_100)),
    Case("a.mp3", None, 44_100, STEREO, CBR),
    Case("a.aiff", "PCM_24", 11_025),
    Case("a.au", "ALAW", 8000, MONO),
    Case("a.caf", "ALAC_16", 32_000),
    Case("a.w64", "PCM_16", 22_051),
]


def gated_noise(seconds: float, rate_hz: int, channels: int) -> Any:
    """(frames, channels): bursts and silence, of which every part is another."""
    frames = np.random.default_rng(0).uniform(-0.3, 0.3, (round(seconds * rate_hz), channels))
    return frames * (np.arange(len(frames)) // (rate_hz // 7) % 3 > 0)[:, None]


def write(case: Case, folder: Path, seconds: float = 2.345) -> Path:
    path = folder / case.name
    frames = gated_noise(seconds, case.rate_hz, case.channels)
    kind = "OGG" if path.suffix == ".opus" else None
    with soundfile.SoundFile(
        path, "w", case.rate_hz, case.channels, case.subtype, format=kind, **dict(case.options)
    ) as file:
        file.write(frames)
    return path


def resampled(whole: Any, from_hz: int, to_hz: int) -> Any:
    """(frames,) of the mean of all channels at another rate."""
    mean = whole.mean(axis=1, dtype=np.float32)
    return mean if from_hz == to_hz else soxr.resample(mean, from_hz, to_hz, quality="VHQ")


def difference(row: Any, part: Any) -> float:
    """The largest between a row and the part of the whole it should be, which is turned down where
    it goes beyond full scale.
    """
    return float(np.abs(row - part / np.float32(max(1.0, np.abs(part).max()))).max())


def check_parts(
    open_audio: Callable[..., Any], path: Path, whole: Any, from_hz: int, to_hz: int
) -> None:
    """Spans and crops in a drawn order, by path and by bytes, against the whole."""
    expected, drawn = resampled(whole, from_hz, to_hz), random.Random(0)
    tolerance = (
        (MP3_TOLERANCE if path.suffix == ".mp3" else 0) if from_hz == to_hz else RESAMPLED_TOLERANCE
    )
    duration = len(whole) / from_hz
    spans = [
        None,
        None,
        *((start, start + 0.3) for start in (0.0, 0.3, 0.6, 0.123456, 1.0, 1.7, duration - 0.3)),
    ]
    drawn.shuffle(spans)
    modality = open_audio(
        to_hz, length=0.2, crop="random", views=["plain", "crop-1", "crop-2"], on_short="skip"
    )
    for span in spans:
        for media in (path, path.read_bytes()):
            for view in modality.prepare(Sample(str(span), media, span=span)):
                row, first = view.tensor[0].numpy(), round(view.geometry["start"] * to_hz)
                assert (
                    span is None
                    or span[0] - 1e-4
                    <= view.geometry["start"]
                    < view.geometry["end"]
                    <= span[1] + 1e-4
                )
                assert difference(row, expected[first : first + len(row)]) <= tolerance, (
                    span,
                    view.view,
                    first,
                )
    (tail,) = open_audio(to_hz, length=10.0).prepare(Sample("whole", path))
    count = int(tail.tensor["mask"].sum())
    assert count == len(expected)
    assert difference(tail.tensor["audio"][0, :count].numpy(), expected) <= tolerance
    assert not tail.tensor["audio"][0, count:].any()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_part_of_a_file_is_that_of_the_whole(
    tmp_path: Path, open_audio: Any, case: Case
) -> None:
    path = write(case, tmp_path)
    whole, from_hz = soundfile.read(path, dtype="float32", always_2d=True)
    for to_hz in (from_hz, 24_000):
        check_parts(open_audio, path, whole, from_hz, to_hz)


@pytest.mark.parametrize("rate_hz", [1000, 11_025, 16_000, 44_100, 48_000, 96_000])
def test_every_pair_of_rates_resamples_a_part_as_the_whole(
    tmp_path: Path, open_audio: Any, rate_hz: int
) -> None:
    path = write(Case("a.wav", "FLOAT", rate_hz), tmp_path)
    whole, _ = soundfile.read(path, dtype="float32")
    for to_hz in (8000, 44_100):
        check_parts(open_audio, path, whole, rate_hz, to_hz)


@pytest.mark.parametrize("name", ["a.ogg", "a.opus", "a.mp3", "a.flac"])
def test_views_of_sounds_of_any_length_are_those_of_the_whole(
    tmp_path: Path, open_audio: Any, name: str
) -> None:
    """Also of a sound that is hardly longer than a row, and of one that is shorter."""
    for seconds in (0.19, 0.2, 0.21, 0.3, 0.777):
        path = write(Case(name, rate_hz=16_000), tmp_path, seconds)
        whole, _ = soundfile.read(path, dtype="float32", always_2d=True)
        for to_hz in (16_000, 8000):
            expected = resampled(whole, 16_000, to_hz)
            for view in open_audio(
                to_hz, length=0.2, views=["crop-1", "plain", "crop-2", "crop-3"]
            ).prepare(Sample("a", path)):
                count, first = int(view.tensor["mask"].sum()), round(view.geometry["start"] * to_hz)
                assert count == min(len(expected), to_hz // 5)
                assert (
                    np.abs(
                        view.tensor["audio"][0, :count].numpy() - expected[first : first + count]
                    ).max()
                    <= RESAMPLED_TOLERANCE
                )


@pytest.mark.parametrize("name", ["a.ogg", "a.mp3"])
def test_parts_of_a_long_file_are_those_of_the_whole(
    tmp_path: Path, open_audio: Any, name: str
) -> None:
    """Long enough that a seek jumps: of Ogg Vorbis, libsndfile's then leads to another place now
    and then.
    """
    path = write(Case(name), tmp_path, 30.0)
    whole, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    expected, modality = (
        resampled(whole, rate_hz, rate_hz),
        open_audio(rate_hz, num_samples=1000, on_short="skip"),
    )
    starts = np.random.default_rng(1).uniform(0, 29.9, 40 if name == "a.mp3" else 12)
    for start in starts:
        (row,) = modality.prepare(Sample("a", path, span=(start, start + 0.05)))
        first = round(start * rate_hz)
        assert np.abs(row.tensor[0].numpy() - expected[first : first + 1000]).max() <= (
            MP3_TOLERANCE if name == "a.mp3" else 0
        )


def test_spans_in_order_decode_a_file_once(
    tmp_path: Path, open_audio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What decodes from the start goes on where the last span ended: as many opened files for ten
    spans as for one.
    """
    path, opened = write(Case("a.ogg"), tmp_path), []
    original = soundfile.SoundFile.read

    def read(self: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(len(args))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    modality = open_audio(44_100, length=0.2)
    for number in range(10):
        list(modality.prepare(Sample("a", path, span=(number * 0.2, number * 0.2 + 0.2))))
    assert len(opened) == 2  # chunks of 65,536 frames


@pytest.mark.parametrize("rate_hz", [44_100, 8000])
def test_views_of_spans_in_order_decode_a_file_once(
    tmp_path: Path, open_audio: Any, monkeypatch: pytest.MonkeyPatch, rate_hz: int
) -> None:
    """Views of a span, and their context of resampling, begin in no order."""
    path = write(Case("a.ogg", channels=MONO), tmp_path, 30.0)
    whole, _ = soundfile.read(path, dtype="float32", always_2d=True)
    expected, decoded = resampled(whole, 44_100, rate_hz), []
    original = soundfile.SoundFile.read

    def read(self: Any, *args: Any, **kwargs: Any) -> Any:
        frames = original(self, *args, **kwargs)
        decoded.append(len(frames))
        return frames

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    modality = open_audio(
        rate_hz, length=0.5, crop="random", views=["plain", "crop-1", "crop-2"], on_short="skip"
    )
    for start in range(0, 30, 6):
        for view in modality.prepare(Sample(f"{start}", path, span=(start, start + 6.0))):
            row, first = view.tensor[0].numpy(), round(view.geometry["start"] * rate_hz)
            assert difference(row, expected[first : first + len(row)]) <= RESAMPLED_TOLERANCE
    assert sum(decoded) <= len(whole)


def test_long_spans_keep_no_more_than_a_limit(
    tmp_path: Path, open_audio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "KEPT_FRAMES", 1 << 17)
    path = write(Case("a.ogg", channels=MONO), tmp_path, 20.0)
    whole, _ = soundfile.read(path, dtype="float32")
    modality = open_audio(44_100, length=0.2, crop="random", views=["plain", "crop-1", "crop-2"])
    for view in modality.prepare(Sample("b", path, span=(1.0, 20.0))):
        first = round(view.geometry["start"] * 44_100)
        assert np.array_equal(view.tensor["audio"][0].numpy(), whole[first : first + 8820])
    kept = forward.THREAD_READER.reader
    assert kept is not None
    assert kept.num_held <= 1 << 18


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.caf", "a.mp3", "bare.mp3"])
@pytest.mark.parametrize("method", ["__init__", "read", "seek"])
def test_a_medium_that_fails_once_is_an_error_of_the_medium(
    tmp_path: Path, open_audio: Any, monkeypatch: pytest.MonkeyPatch, name: str, method: str
) -> None:
    """Whichever call fails: no damaged sound, and none by another decoder."""
    original, calls = getattr(soundfile.SoundFile, method), 0
    modality = open_audio(44_100, length=1.0, crop="center")
    for failing in range(20):
        folder = tmp_path / str(failing)
        folder.mkdir()
        path = folder / name
        if name == "bare.mp3":
            path.write_bytes(bare_mp3())
        else:
            write(Case(name), folder)
        (expected,) = modality.prepare(Sample("a", path.read_bytes()))

        def fail(self: Any, *args: Any, failing: int = failing, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == failing + 1:
                raise soundfile.LibsndfileError(2)
            return original(self, *args, **kwargs)

        calls = 0
        with monkeypatch.context() as patched:
            patched.setattr(soundfile.SoundFile, method, fail)
            try:
                (row,) = modality.prepare(Sample("a", path))
            except OSError:
                continue
        assert calls <= failing
        assert torch.equal(row.tensor["audio"], expected.tensor["audio"])
        return
    raise AssertionError(f"{method} is called 20 times or more")


def test_a_file_that_changed_is_decoded_anew(tmp_path: Path, open_audio: Any) -> None:
    modality, rows = open_audio(44_100, length=0.2), []
    for seconds in (2.0, 1.0):
        path = tmp_path / "a.ogg"
        frames = gated_noise(seconds, 44_100, MONO) * seconds / 2
        soundfile.write(path, frames, 44_100)
        (row,) = modality.prepare(Sample("a", path, span=(0.5, 0.7)))
        rows.append(row.tensor["audio"])
        whole, _ = soundfile.read(path, dtype="float32")
        assert np.array_equal(rows[-1][0].numpy(), whole[22_050:30_870])


# ---------------------------------------------------------------- mp3


def bare_mp3(rate_hz: int = 44_100, seconds: float = 3.0) -> bytes:
    """Frames without the one that says their number, as a stream that was cut has them."""
    media = io.BytesIO()
    with soundfile.SoundFile(media, "w", rate_hz, 2, format="MP3", bitrate_mode="CONSTANT") as file:
        file.write(gated_noise(seconds, rate_hz, STEREO))
    whole = media.getvalue()
    return whole[whole.index(whole[:2], 100) :]


@pytest.mark.parametrize("name", ["a.mp3", "a.sound"])
def test_a_stereo_mp3_without_tags_is_read(tmp_path: Path, open_audio: Any, name: str) -> None:
    """libsndfile alone knows it by the ending of its name only, and from memory not at all."""
    path = write(Case("b.mp3", options=CBR), tmp_path)
    whole, _ = soundfile.read(path, dtype="float32")
    path = path.rename(tmp_path / name)
    for media in (path, path.read_bytes()):
        (row,) = open_audio(44_100, channels=2, length=1.0, crop="center").prepare(
            Sample("a", media)
        )
        first = (len(whole) - 44_100) // 2
        assert np.array_equal(row.tensor["audio"].numpy(), whole[first : first + 44_100].T)


def test_an_mp3_that_does_not_say_its_length_is_counted(tmp_path: Path, open_audio: Any) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(bare_mp3() + b"TAG" + bytes(125))
    whole, _ = soundfile.read(path, dtype="float32")
    assert soundfile.info(path).frames != len(whole)
    for media in (path, path.read_bytes()):
        (row,) = open_audio(44_100, channels=2, length=5.0).prepare(Sample("a", media))
        assert int(row.tensor["mask"].sum()) == len(whole)
        assert any("its length is counted" in text for text in row.remarks)
        assert np.array_equal(row.tensor["audio"][:, : len(whole)].numpy(), whole.T)


def test_the_length_of_an_mp3_is_counted_once_for_all_its_spans(
    tmp_path: Path, open_audio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And again when the file has changed."""
    path, measured, original = tmp_path / "a.mp3", [], sndfile.count_frames

    def measure(*args: Any) -> Any:
        measured.append(original(*args))
        return measured[-1]

    monkeypatch.setattr(sndfile, "count_frames", measure)
    for seconds in (3.0, 2.0):
        path.write_bytes(bare_mp3(seconds=seconds))
        whole, _ = soundfile.read(path, dtype="float32")
        for start in (0.0, 0.5, 1.0, 1.5):
            span = (start, start + 0.5)
            (row,) = open_audio(44_100, channels=2, length=0.5).prepare(
                Sample("a", path, span=span)
            )
            first = round(start * 44_100)
            part = whole[first : first + 22_050].T
            assert difference(row.tensor["audio"].numpy(), part) <= MP3_TOLERANCE
        assert measured.pop()[0] == len(whole)
        assert not measured


def test_a_flac_stream_that_does_not_say_its_length_is_counted(
    tmp_path: Path, open_audio: Any
) -> None:
    """As programs that write to a pipe leave it: 36 bits of STREAMINFO are 0 (RFC 9639, 8.2)."""
    path = write(Case("a.flac", "PCM_16"), tmp_path)
    whole, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    media = bytearray(path.read_bytes())
    media[21] &= 0xF0
    media[22:26] = bytes(4)
    path.write_bytes(media)
    check_parts(open_audio, path, whole, rate_hz, rate_hz)
    config = AudioClipsConfig(path=".", length=1.0)
    source = open_audio_clips(config, BuildContext(recipe_dir=tmp_path))
    assert [entry.key for entry in source.entries()][-1] == f"a.flac#t=2,{len(whole) / rate_hz:.6f}"


@pytest.mark.parametrize(("num_bytes", "remarks"), [(None, 0), (20_000, 1)])
def test_an_ogg_file_without_its_last_page_says_so(
    tmp_path: Path, open_audio: Any, num_bytes: int | None, remarks: int
) -> None:
    path = write(Case("a.ogg"), tmp_path)
    path.write_bytes(path.read_bytes()[:num_bytes])
    for media in (path, path.read_bytes()):
        (row,) = open_audio(44_100, length=0.2).prepare(Sample("a", media))
        assert len([text for text in row.remarks if "last page is missing" in text]) == remarks


# ---------------------------------------------------------------- checks


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3"])
def test_without_seeking_finds_a_seek_that_is_off(
    tmp_path: Path, open_audio: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = write(Case(name), tmp_path)
    sample, modality = (
        Sample("a", path, span=(1.0, 1.5)),
        open_audio(44_100, length=0.5, on_short="skip"),
    )
    (right,) = modality.prepare(sample)
    monkeypatch.setattr(
        SndFile,
        "read",
        lambda self, start, stop, pool, read=SndFile.read: read(self, start + 3, stop + 3, pool),
    )
    (wrong,), (checked,) = modality.prepare(sample), modality.without_seeking().prepare(sample)
    assert not wrong.tensor.equal(right.tensor)
    assert checked.tensor.equal(right.tensor)


def test_damage_in_front_is_found_where_a_file_is_decoded_from_its_start(
    tmp_path: Path, open_audio: Any
) -> None:
    path = write(Case("a.flac", "PCM_16"), tmp_path)
    media = bytearray(path.read_bytes())
    media[len(media) // 4 : len(media) // 4 + 2000] = bytes(2000)
    path.write_bytes(media)
    with pytest.raises(SampleError, match="damaged between"):
        list(
            open_audio(44_100, length=0.2)
            .without_seeking()
            .prepare(Sample("a", path, span=(2.0, 2.2)))
        )
