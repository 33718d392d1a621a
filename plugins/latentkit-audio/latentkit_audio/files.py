"""Sound files by libsndfile: what they hold, and any part of them without the rest."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from latentkit.buffers import BufferPool
from latentkit.contracts import Sample
from latentkit.errors import SampleError

Frames = npt.NDArray[np.float32]
"""(frames, channels); full scale is 1.0."""

RATES_HZ = (1_000, 1_000_000)
"""Lowest and highest sample rate that is believed."""

MP3_PREROLL_FRAMES = 16_384
"""Decoded and dropped in front of a part of an mp3 file: after a seek its bits begin in frames before, which libsndfile doesn't look for.
Ten frames of 576 at 8 kbit/s fill that reservoir, the most there can be."""

MP3_TOLERANCE_SECONDS = 0.1
"""By which an mp3 file may be shorter than said: without a Xing header its length is worked out from its size."""

STATED_SIZE = re.compile(r"^ *(?:data|SSND|Data Size|Riff size|riff) *: (\d+) \(should be (\d+)\)$", re.MULTILINE)
"""In libsndfile's log: the bytes of sound by the header of a wav, aiff, au, rf64 or w64 file, and the bytes that are there. It opens such a
file as a shorter one, and says so nowhere else."""

SIZE_TOLERANCE_BYTES = 64
"""By which a stated size is believed to be the writer's mistake: some count the header too."""

UNKNOWN_SIZE_BYTES = 0x7F00_0000
"""From which on a size isn't believed: what programs that write to a pipe state, ffmpeg all ones, sox a little under 2 GiB."""

SYSTEM_ERROR = 2
"""libsndfile's SF_ERR_SYSTEM: the file couldn't be read, whatever is in it."""


@dataclass(frozen=True)
class Sound:
    """An open file.

    Args:
        num_frames: of all channels together; what the header says.
        rate_hz: frames per second.
        num_channels: of a frame.
    """

    num_frames: int
    rate_hz: int
    num_channels: int
    _file: Any

    def read(self, start: int, stop: int, pool: BufferPool) -> Frames:
        """The frames from `start` to before `stop`, any integer or float format as float32, in memory of the pool.

        Raises:
            SampleError: they are damaged or missing.
            OSError: the file can't be reached.
        """
        is_mp3 = self._file.format == "MP3"
        begin = min(max(start - MP3_PREROLL_FRAMES * is_mp3, 0), self._file.frames) if self._file.seekable() else 0
        try:
            if begin:
                self._file.seek(begin)
            # In one go: soundfile ends every read with a seek.
            room = pool.get((stop - begin, self.num_channels), np.float32)
            frames: Frames = self._file.read(dtype="float32", out=room)[start - begin :]
        except soundfile.LibsndfileError as err:
            raise _explained(err, f"damaged between {start / self.rate_hz:.3f} s and {stop / self.rate_hz:.3f} s") from err
        num_missing = stop - start - len(frames)
        if is_mp3 and 0 < num_missing <= MP3_TOLERANCE_SECONDS * self.rate_hz:
            frames = np.pad(frames, ((0, num_missing), (0, 0)))
        elif num_missing:
            end, expected = min(start + len(frames), self._file.frames) / self.rate_hz, self.num_frames / self.rate_hz
            raise SampleError(f"the sound breaks off at {end:.3f} s, its header says {expected:.3f} s")
        return frames


@contextmanager
def open_sound(sample: Sample) -> Iterator[Sound]:
    """The sound of a sample; a path is read where it lies, and no more of it than is asked for.

    Raises:
        SampleError: it is not a sound, is empty, or has a sample rate that can't be.
        OSError: the file can't be reached.
    """
    if isinstance(sample.media, os.PathLike):
        with open(sample.media, "rb") as file, _open_file(file.fileno()) as sound:  # libsndfile itself doesn't say what is missing
            yield sound
    else:
        with _open_file(io.BytesIO(sample.read())) as sound:
            yield sound


@contextmanager
def _open_file(media: int | io.BytesIO) -> Iterator[Sound]:
    try:
        file = soundfile.SoundFile(media, closefd=False)
    except soundfile.LibsndfileError as err:
        raise _explained(err, "not a sound file, or damaged") from err
    with file:
        if not file.frames:
            raise SampleError("a sound of zero length")
        if not RATES_HZ[0] <= file.samplerate <= RATES_HZ[1]:
            raise SampleError(f"a sample rate of {file.samplerate} Hz; expected {RATES_HZ[0]} to {RATES_HZ[1]}")
        yield Sound(_stated_frames(file), file.samplerate, file.channels, file)


def _stated_frames(file: soundfile.SoundFile) -> int:
    """The frames by the header, more than there are of a file that is broken off."""
    found = STATED_SIZE.search(file.extra_info)
    stated, there = (int(size) for size in found.groups()) if found else (0, 0)
    num_frames: int = file.frames
    if not there or stated <= there + SIZE_TOLERANCE_BYTES or stated >= UNKNOWN_SIZE_BYTES:
        return num_frames
    return round(num_frames * stated / there)


def _explained(error: soundfile.LibsndfileError, what: str) -> Exception:
    """The error to raise. Not libsndfile's own text as a whole: it holds the file's name, or an address."""
    if error.code == SYSTEM_ERROR:
        return OSError(f"{what}: {error.error_string}")
    return SampleError(f"{what}: {error.error_string}")
