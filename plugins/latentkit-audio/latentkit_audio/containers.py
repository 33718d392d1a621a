"""Reads audio from containers that libsndfile doesn't know, with FFmpeg (PyAV): m4a, webm, wma,
amr, and videos.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentkit.contracts import Sample
from latentkit.errors import SampleError
from latentkit.kit import av_errors, file_state, open_with_av
from latentkit_audio.forward import Frames
from latentkit_audio.sndfile import id3_size, read_bytes

if TYPE_CHECKING:
    from av.audio import AudioFrame, AudioStream
    from av.container import InputContainer

INSTALL = "pip install 'latentkit-audio[av]'"

SIGNATURES = (
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"#!AMR", "amr"),
    (0, b"wvpk", "wv"),
    (0, b"TTA1", "tta"),
    (0, b"MAC ", "ape"),
    (0, b"FLV\x01", "flv"),
    (0, b"caff", "caf"),
    (0, b"OggS", "ogg"),
    (0, b"fLaC", "flac"),
    (8, b"AVI ", "avi"),
    *((4, name, "mov") for name in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),
)
"""Offset, bytes, and FFmpeg's name of the container. No other is opened, because FFmpeg also reads
playlists, which name other files and addresses.
"""

TRANSPORT_PACKET_BYTES = 188

MS_PER_SECOND = 1000
"""Unit of the durations in most mp4 edit lists, which are rounded to it."""

WITHOUT_LEAD_IN = ("aac", "mpegts", "avi", "flv")
LEAD_IN = (
    "its container doesn't contain the length of the encoder's lead-in: some hundredths of a"
    " second remain at the start"
)


@dataclass(frozen=True)
class FileProperties:
    """Properties of a file that are known before its frames are read.

    Args:
        num_frames: counted, or the header's number if that is clearly larger.
        num_there: counted number of frames.
        rate_hz, num_channels: rate and channels of the decoded audio.
        remarks: what a user should know.
    """

    num_frames: int
    num_there: int
    rate_hz: int
    num_channels: int
    remarks: tuple[str, ...] = ()


def find_container(sample: Sample) -> str | None:
    """Return FFmpeg's name of the container, recognized by its first bytes; None if it isn't opened
    here.

    Raises:
        OSError: the file can't be reached.
    """
    head = read_bytes(sample, TRANSPORT_PACKET_BYTES + 1, id3_size(sample))
    for place, signature, name in SIGNATURES:
        if head[place:].startswith(signature):
            return name
    # ISO 13818-7, 6.2: twelve bits of ones, and layer 0.
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "aac"
    if len(head) > TRANSPORT_PACKET_BYTES and head[0] == head[TRANSPORT_PACKET_BYTES] == 0x47:
        return "mpegts"
    return None


def read_properties(sample: Sample, container: str) -> FileProperties:
    """Return the properties of a sample's file. Those of a file with many spans are read once.

    Raises:
        SampleError: the file contains no audio, or it can't be decoded, or PyAV is missing.
        OSError: the file can't be reached.
    """
    if isinstance(sample.media, os.PathLike):
        return _properties_of_file(Path(sample.media), file_state(sample.media), container)
    return _find_properties(sample, container)


@functools.lru_cache(maxsize=256)
def _properties_of_file(path: Path, state: tuple[int, int], container: str) -> FileProperties:
    return _find_properties(Sample("", path), container)


def _find_properties(sample: Sample, container: str) -> FileProperties:
    with ExitStack() as stack:
        track = _open(sample, container, stack)
        num_frames = sum(len(frames) for frames in track.chunks())
        if track.format is None:
            raise SampleError("audio of zero length")
        remarks = [LEAD_IN] if container in WITHOUT_LEAD_IN else []
        if track.num_tracks > 1:
            remarks.append("several audio tracks: the default one is used, or the first")
        return FileProperties(
            max(num_frames, track.broken_off(num_frames)), num_frames, *track.format, tuple(remarks)
        )


def decode_container(sample: Sample, container: str, stack: ExitStack) -> Iterator[Frames]:
    """Yield all frames of a sample's audio in chunks, without the encoder's lead-in and padding.
    `stack` closes the file.

    Raises:
        SampleError: the file contains no audio, or is damaged.
        OSError: the file can't be reached.
    """
    return _open(sample, container, stack).chunks()


class Track:
    """The default audio track of an open file, or the first.

    Args:
        container: container that was just opened.

    Raises:
        SampleError: there is no track that can be decoded.
    """

    format: tuple[int, int] | None = None
    """Rate in Hz and number of channels of the decoded audio."""

    def __init__(self, container: InputContainer) -> None:
        from av.stream import Disposition

        tracks = container.streams.audio
        if not tracks:
            others = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise SampleError(f"no audio: the file contains {others}")
        self._container, self.num_tracks = container, len(tracks)
        self._stream: AudioStream = next(
            (track for track in tracks if track.disposition & Disposition.default), tracks[0]
        )
        if self._stream.codec_context is None:
            raise SampleError("no decoder for its audio")
        self._stream.codec_context.thread_count = 1  # files are decoded in parallel
        self._stream.codec_context.options = {"err_detect": "explode"}
        self._is_mp4 = container.format.name == "mov"

    def chunks(self) -> Iterator[Frames]:
        """Yield all frames, in chunks.

        Raises:
            SampleError: the packets are damaged.
        """
        held, num_before = None, 0
        with av_errors("damaged, or cut off"):
            for frame in self._container.decode(self._stream):
                if held is not None:
                    yield self._to_array(held)
                    num_before += held.samples
                held = frame
        if held is not None:
            # FFmpeg removes the encoder's lead-in, but leaves the padding at the end of mp4 files.
            yield self._to_array(held)[: self._kept_of_last(held, num_before)]

    def broken_off(self, num_frames: int) -> int:
        """Return the number of frames in the header if it is clearly larger than `num_frames`; else
        0.
        """
        stated = self._stated_frames()
        return stated if self.format and stated > num_frames + self.format[0] // 10 else 0

    def _kept_of_last(self, frame: AudioFrame, num_before: int) -> int:
        """Return how many samples of a frame belong to the audio, without padding."""
        tick = (self._stream.time_base or 0) * frame.sample_rate
        if not self._is_mp4 or not tick or Fraction(tick).denominator != 1:
            return frame.samples
        kept = min(frame.samples, int((frame.duration or frame.samples) * tick))
        stated = self._stated_frames()
        if 0 < stated < num_before + kept - frame.sample_rate // MS_PER_SECOND:
            kept = stated - num_before
        return max(kept, 0)

    def _stated_frames(self) -> int:
        """Return the frames in an mp4 file's edit list; 0 if nothing states them exactly."""
        if (
            not self._is_mp4
            or self.format is None
            or not self._stream.duration
            or not self._stream.time_base
        ):
            return 0
        return int(self._stream.duration * self._stream.time_base * self.format[0])

    def _to_array(self, frame: AudioFrame) -> Frames:
        """Return a decoded frame as float32, after checking that the format hasn't changed."""
        found = frame.sample_rate, frame.layout.nb_channels
        self.format = self.format or found
        if found != self.format:
            raise SampleError(
                f"its audio changes from {self.format} to {found} (rate in Hz, channels); convert"
                " it to one format"
            )
        if frame.is_corrupt:
            raise SampleError("damaged, or cut off")
        values = frame.to_ndarray()
        values = values.T if frame.format.is_planar else values.reshape(-1, found[1])
        if values.dtype == np.uint8:
            return ((values.astype(np.float32) - 128) / 128).astype(np.float32)
        if values.dtype.kind == "i":
            return (values / 2.0 ** (8 * values.itemsize - 1)).astype(np.float32)
        return np.ascontiguousarray(values, np.float32)


def _open(sample: Sample, container: str, stack: ExitStack) -> Track:
    return Track(stack.enter_context(open_with_av(sample, "an audio file", [container], INSTALL)))
