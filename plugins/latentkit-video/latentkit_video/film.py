"""A film file to decoded frames with their times: everything FFmpeg has to be told, and nothing about sizes or clips."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video import VideoFrame, VideoStream

from latentkit.contracts import Sample
from latentkit.errors import SampleError

# Named one by one: FFmpeg also opens playlists, which name other files and addresses, and pictures and texts without a signature.
FORMATS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "ogg", "flv", "asf", "mxf"),
    *("gif", "apng", "ivf", "nut", "h264", "hevc", "obu", "m4v", "dv", "yuv4mpegpipe"),
)

READ_BYTES = 1 << 18

SEEK_MARGINS_SECONDS = (0.0, 2.0, 10.0)
"""How much earlier to seek when a file's index leads to a frame after the one that was looked for."""

HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
"""Transfer characteristics of ITU-T H.273, table 3, whose white is not that of a screen."""


@dataclass(frozen=True)
class Shown:
    """A decoded frame, and when it is on screen: seconds from the film's first frame."""

    start: float
    end: float
    frame: VideoFrame


class Film:
    """The picture track of an open file.

    Args:
        container: just opened.
        max_pixels: of a frame, at most.

    Raises:
        SampleError: there is no such track, or one that can't be decoded as it should look.
    """

    def __init__(self, container: InputContainer, max_pixels: int) -> None:
        self._container = container
        self._stream = _find_track(container)
        codec = self._stream.codec_context
        if codec.width * codec.height > max_pixels:
            raise SampleError(f"{codec.width} x {codec.height} pixels, more than max_pixels allows ({max_pixels})")
        if codec.color_trc in HDR_TRANSFERS:
            raise SampleError(f"HDR ({HDR_TRANSFERS[codec.color_trc]}), whose white is not defined; tone-map it to SDR first")
        rate = self._stream.average_rate or self._stream.guessed_rate
        if not rate or self._stream.time_base is None:
            raise SampleError("its frame rate is not known; convert it to .mp4 or .mkv")
        self.rate = float(rate)
        """Frames per second, on average."""
        self.size = codec.height, codec.width
        """Height and width in pixels, as stored."""
        self.display_size = codec.height, max(1, round(codec.width * float(self._stream.sample_aspect_ratio or 1)))
        """The same when pixels that aren't square are made so."""
        self._tick = float(self._stream.time_base)
        self._first = self._stream.start_time or 0
        # One thread per film, as clips are prepared side by side; and no guessing at what a damaged file may have shown.
        self._stream.thread_type, self._stream.thread_count = "NONE", 1
        codec.options = {"err_detect": "explode"}

    def duration(self) -> float:
        """Seconds from the first frame to the end of the last, to a whole number of average frames.

        It is the header's where that has it for this track, else that of the last packets.

        Raises:
            SampleError: no frame at all.
        """
        seconds = (self._stream.duration or 0) * self._tick or self._measure_duration()
        frames = round(seconds * self.rate)
        if frames < 1:
            raise SampleError("no frames: it lasts 0 seconds")
        return frames / self.rate

    def frames_from(self, start: float, slack: float) -> Iterator[Shown]:
        """Frames in order of time; the first is on screen `slack` seconds after `start` or before that, if there is such a frame.

        Raises:
            SampleError: the film is damaged there.
        """
        for margin in SEEK_MARGINS_SECONDS:
            if start <= margin:
                break
            self._seek(start - margin)
            frames = self._decode()
            first = next(frames, None)
            if first is not None and first.start <= start + slack:
                yield first
                yield from frames
                return
        if start > 0:
            self._seek(0.0)
        yield from self._decode()

    def _seek(self, seconds: float) -> None:
        self._container.seek(self._first + round(seconds / self._tick), stream=self._stream)

    def _decode(self) -> Iterator[Shown]:
        """Frames from the next key frame on."""
        entry = None
        for packet in self._container.demux(self._stream):
            if packet.size:  # an empty one flushes the decoder
                if entry is None and not packet.is_keyframe:
                    continue
                entry = packet.pts if entry is None else entry
                if packet.pts is not None and entry is not None and packet.pts < entry:
                    continue  # shown before the key frame, and made from frames before it
                if packet.is_corrupt:
                    raise SampleError(f"damaged, or cut off{self._at(packet.pts)}")
            for frame in packet.decode():
                yield self._timed(frame)

    def _timed(self, frame: VideoFrame) -> Shown:
        if frame.pts is None:
            raise SampleError("its frames have no time stamps; convert it to .mp4 or .mkv")
        if frame.is_corrupt:
            raise SampleError(f"damaged{self._at(frame.pts)}")
        start = (frame.pts - self._first) * self._tick
        return Shown(start, start + (frame.duration * self._tick or 1 / self.rate), frame)

    def _at(self, pts: int | None) -> str:
        return "" if pts is None else f" at {(pts - self._first) * self._tick:.3f} s"

    def _measure_duration(self) -> float:
        if self._container.duration:
            self._seek(self._container.duration / av.time_base)
        one_frame = 1 / self.rate
        packets = (packet for packet in self._container.demux(self._stream) if packet.size and packet.pts is not None)
        ends = [((packet.pts or 0) - self._first) * self._tick + ((packet.duration or 0) * self._tick or one_frame) for packet in packets]
        return max(ends, default=0.0)


@contextmanager
def open_film(sample: Sample, max_pixels: int) -> Iterator[Film]:
    """A film for as long as the context lasts; it is read as it is decoded, never held whole.

    Raises:
        SampleError: not a film, or damaged; also what is raised inside the context about its content.
        OSError: the media can't be reached.
    """
    # Through Python's file, so that OSErrors stay those of the medium, and FFmpeg sees no name that it could take for an address.
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}
    with _open_media(sample) as media:
        with _as_sample_error("not a film, or damaged at its start"):
            container = av.open(media, "r", buffer_size=READ_BYTES, options=options, metadata_errors="replace")
        with container, _as_sample_error("damaged, or cut off"):
            yield Film(container, max_pixels)


def _open_media(sample: Sample) -> IO[bytes]:
    media: IO[bytes]
    media = Path(sample.media).open("rb") if isinstance(sample.media, os.PathLike) else io.BytesIO(sample.read())  # noqa: SIM115
    if not media.seek(0, os.SEEK_END):
        media.close()
        raise SampleError("empty file: 0 bytes")
    media.seek(0)
    return media


@contextmanager
def _as_sample_error(what: str) -> Iterator[None]:
    """Turn what FFmpeg raises about a film into a `SampleError` whose text is the same in every run."""
    try:
        yield
    except av.FFmpegError as err:
        raise SampleError(f"{what}: {err.strerror}") from err


def _find_track(container: InputContainer) -> VideoStream:
    """The picture track that players show; pictures of an album's cover are none."""
    tracks = [track for track in container.streams.video if not track.disposition & Disposition.attached_pic]
    if not tracks:
        others = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise SampleError(f"no video stream: the file holds {others}")
    track = next((track for track in tracks if track.disposition & Disposition.default), tracks[0])
    if track.codec_context is None or not track.codec_context.width:
        raise SampleError("no decoder for its video stream, or a stream without a size")
    return track
