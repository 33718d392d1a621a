"""Sound files: what they hold, and any part of them, equal to that part of the whole decoded from
its start.
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
from latentkit_audio.containers import decode_container, find_container, read_facts
from latentkit_audio.forward import Chunks, Frames, open_forward
from latentkit_audio.sndfile import (
    SYSTEM_ERROR,
    LengthUnknownError,
    SndFile,
    decode_forward,
    explained,
    open_sndfile,
)

RATES_HZ = (1_000, 1_000_000)
"""Lowest and highest sample rate that is believed."""

MP3_TOLERANCE_SECONDS = 0.1
"""By which an mp3 file may be shorter than its Xing header says."""

CONTEXT_SECONDS = 2
"""In front of a span, where its first part may begin: resampling reads at most 0.24 s of context,
and begins on a frame that both rates share, of which there is at least one per second.
"""


class Facts(Protocol):
    """What there is to know of a file before its frames are read."""

    @property
    def num_frames(self) -> int:
        """By the header, or counted."""

    @property
    def num_there(self) -> int:
        """Fewer where the file is broken off."""

    @property
    def rate_hz(self) -> int:
        """Frames per second."""

    @property
    def num_channels(self) -> int:
        """Of a frame."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know of it."""


Read = Callable[[int, int, BufferPool], Frames]
"""The frames from one to before another, fewer where the file ends before."""


@dataclass(frozen=True)
class Sound:
    """An open file.

    Args:
        facts: of it.
        tolerance: frames that may be missing at its end.
    """

    facts: Facts
    tolerance: int
    _read: Read

    def read(self, start: int, stop: int, pool: BufferPool) -> Frames:
        """The frames from `start` to before `stop`, any integer or float format as float32; it may
        be memory of the pool.

        Raises:
            SampleError: they are damaged or missing.
            OSError: the file can't be reached.
        """
        frames = self._read(start, stop, pool)
        num_missing = stop - start - len(frames)
        if 0 < num_missing <= self.tolerance:
            frames = np.pad(frames, ((0, num_missing), (0, 0)))
        elif num_missing:
            rate_hz = self.facts.rate_hz
            end = min(start + len(frames), self.facts.num_there) / rate_hz
            raise SampleError(
                f"the sound breaks off at {end:.3f} s, "
                f"its header says {self.facts.num_frames / rate_hz:.3f} s"
            )
        return frames


@contextmanager
def open_sound(sample: Sample, seeks: bool = True) -> Iterator[Sound]:
    """The sound of a sample; a path is read where it lies.

    Args:
        seeks: False decodes every file from its start, True only those in which a seek could lead
            elsewhere.

    Raises:
        SampleError: it is not a sound, is empty, or has a sample rate that can't be.
        OSError: the file can't be reached.
    """
    with ExitStack() as stack:
        file = _open_or_none(sample, stack)
        if file is None:
            container = find_container(sample) or ""
            facts: Facts = read_facts(sample, container)
            chunks, tolerance = partial(decode_container, sample, container), 0
        else:
            facts, chunks = file, partial(decode_forward, sample)
            tolerance = round(MP3_TOLERANCE_SECONDS * file.rate_hz) if file.is_mp3 else 0
        _check(facts)
        if file is not None and seeks and file.is_seekable:
            yield Sound(facts, tolerance, file.read)
        else:
            yield Sound(facts, tolerance, _forward(sample, facts, chunks, stack))


def _open_or_none(sample: Sample, stack: ExitStack) -> SndFile | None:
    """The file by libsndfile; None where it takes PyAV.

    Raises:
        SampleError: it is not a sound.
        OSError: the file can't be reached.
    """
    try:
        return stack.enter_context(open_sndfile(sample))
    except LengthUnknownError:
        return None
    except soundfile.LibsndfileError as err:
        # A medium that fails once must not choose another decoder, whose sound differs.
        if err.code == SYSTEM_ERROR or find_container(sample) is None:
            raise explained(err, "not a sound file, or damaged") from err
        return None


def _check(facts: Facts) -> None:
    if not facts.num_frames:
        raise SampleError("a sound of zero length")
    if not RATES_HZ[0] <= facts.rate_hz <= RATES_HZ[1]:
        raise SampleError(
            f"a sample rate of {facts.rate_hz} Hz; expected {RATES_HZ[0]} to {RATES_HZ[1]}"
        )


def _forward(sample: Sample, facts: Facts, chunks: Chunks, stack: ExitStack) -> Read:
    """What reads a file from its start; that of a file with spans goes on where this thread's last
    one ended.
    """
    media, name = sample.media, None
    if sample.span is not None and isinstance(media, os.PathLike):
        name = os.fspath(media), file_state(media)
    reader = stack.enter_context(open_forward(name, chunks, facts.num_channels))
    if sample.span is not None:  # views of a span are in no order
        reader.keep_from = int((sample.span[0] - CONTEXT_SECONDS) * facts.rate_hz)
    return lambda start, stop, _: reader.read(start, stop)
