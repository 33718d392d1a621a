"""Audio files: their properties, and any part of them, equal to that part of the whole file decoded
from its start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import soundfile

from latentkit.contracts import Sample
from latentkit.errors import SampleError
from latentkit.kit import BufferPool, file_state
from latentkit_audio.containers import decode_container, find_container, read_properties
from latentkit_audio.forward import Chunks, Frames, open_forward
from latentkit_audio.sndfile import (
    SYSTEM_ERROR,
    LengthUnknownError,
    SndFile,
    convert_error,
    decode_forward,
    open_sndfile,
)

RATES_HZ = (1_000, 1_000_000)
"""Lowest and highest sample rate that is considered valid."""

MP3_TOLERANCE_SECONDS = 0.1
"""Tolerance by which an mp3 file may be shorter than its Xing header says."""

CONTEXT_SECONDS = 2
"""How far before a span its first part may begin. Resampling reads at most 0.24 s of context, and
starts at a frame that both rates share; there is at least one per second.
"""


class FileProperties(Protocol):
    """Properties of a file that are known before its frames are read."""

    @property
    def num_frames(self) -> int:
        """Return the number of frames in the header, or counted."""

    @property
    def num_there(self) -> int:
        """Return the number of frames in the file, which is smaller if it is cut off."""

    @property
    def rate_hz(self) -> int:
        """Return the frames per second."""

    @property
    def num_channels(self) -> int:
        """Return the number of channels."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """Return what a user should know about it."""


Read = Callable[[int, int, BufferPool], Frames]
"""Takes start, stop and a pool, and returns the frames in that range, fewer at the end of the
file.
"""


@dataclass(frozen=True)
class AudioFile:
    """An open audio file.

    Args:
        properties: its properties.
        tolerance: frames that may be missing at its end.
    """

    properties: FileProperties
    tolerance: int
    _read: Read

    def read(self, start: int, stop: int, pool: BufferPool) -> Frames:
        """Return the frames from `start` to before `stop` as float32, from any integer or float
        format. They may use memory of the pool.

        Raises:
            SampleError: frames are damaged or missing.
            OSError: the file can't be reached.
        """
        frames = self._read(start, stop, pool)
        num_missing = stop - start - len(frames)
        if 0 < num_missing <= self.tolerance:
            frames = np.pad(frames, ((0, num_missing), (0, 0)))
        elif num_missing:
            rate_hz = self.properties.rate_hz
            end = min(start + len(frames), self.properties.num_there) / rate_hz
            raise SampleError(
                f"the audio is cut off at {end:.3f} s, but its header says"
                f" {self.properties.num_frames / rate_hz:.3f} s"
            )
        return frames


@contextmanager
def open_audio(sample: Sample, seeks: bool = True) -> Iterator[AudioFile]:
    """Open a sample's audio. A path is read in place.

    Args:
        seeks: False decodes every file from its start; True only those in which a seek may be
            inexact.

    Raises:
        SampleError: this isn't an audio file, is empty, or has an invalid sample rate.
        OSError: the file can't be reached.
    """
    with ExitStack() as stack:
        file = _open_or_none(sample, stack)
        if file is None:
            container = find_container(sample) or ""
            properties: FileProperties = read_properties(sample, container)
            chunks, tolerance = partial(decode_container, sample, container), 0
        else:
            properties, chunks = file, partial(decode_forward, sample)
            tolerance = round(MP3_TOLERANCE_SECONDS * file.rate_hz) if file.is_mp3 else 0
        _check(properties)
        if file is not None and seeks and file.is_seekable:
            yield AudioFile(properties, tolerance, file.read)
        else:
            yield AudioFile(properties, tolerance, _open_forward(sample, properties, chunks, stack))


def _open_or_none(sample: Sample, stack: ExitStack) -> SndFile | None:
    """Open the file with libsndfile; None if it needs PyAV.

    Raises:
        SampleError: this isn't an audio file.
        OSError: the file can't be reached.
    """
    try:
        return stack.enter_context(open_sndfile(sample))
    except LengthUnknownError:
        return None
    except soundfile.LibsndfileError as err:
        # A read error must not lead to another decoder, whose audio differs.
        if err.code == SYSTEM_ERROR or find_container(sample) is None:
            raise convert_error(err, "not an audio file, or damaged") from err
        return None


def _check(properties: FileProperties) -> None:
    """Check that the file isn't empty and its rate is valid."""
    if not properties.num_frames:
        raise SampleError("a sound of zero length")
    if not RATES_HZ[0] <= properties.rate_hz <= RATES_HZ[1]:
        raise SampleError(
            f"a sample rate of {properties.rate_hz} Hz; expected {RATES_HZ[0]} to {RATES_HZ[1]}"
        )


def _open_forward(
    sample: Sample, properties: FileProperties, chunks: Chunks, stack: ExitStack
) -> Read:
    """Return a function that reads a file from its start. For a file with spans it continues where
    this thread's last one ended.
    """
    media, name = sample.media, None
    if sample.span is not None and isinstance(media, os.PathLike):
        name = os.fspath(media), file_state(media)
    reader = stack.enter_context(open_forward(name, chunks, properties.num_channels))
    if sample.span is not None:  # views of a span come in any order
        reader.keep_from = int((sample.span[0] - CONTEXT_SECONDS) * properties.rate_hz)
    return lambda start, stop, _: reader.read(start, stop)
