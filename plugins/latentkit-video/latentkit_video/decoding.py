"""A video file to decoded frames with their times: everything FFmpeg has to be told, and nothing
about sizes or clips."""

from __future__ import annotations

import heapq
import io
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video import VideoFrame, VideoStream

from latentkit.contracts import Sample
from latentkit.errors import SampleError
from latentkit_video.color import refuse_hdr

# Named one by one: FFmpeg also opens playlists, which name other files and addresses, and pictures
# and texts without a signature.
FORMATS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg"),
    *("mpegvideo", "ogg", "flv", "asf", "mxf", "gif", "apng", "ivf", "nut", "h264", "hevc", "vvc"),
    *("obu", "m4v", "dv", "rm", "wtv", "yuv4mpegpipe"),
)

SEEKABLE_FORMATS = ("mov", "matroska")
"""Those that store every frame's time, so that it is the same wherever reading begins. In others
FFmpeg counts on from what it read before, or searches for a place by bytes."""

BARE_FORMATS = ("h264", "hevc", "vvc", "mpegvideo", "m4v", "obu")
"""Streams without a container, which store no times at all; what FFmpeg says of them is a guess."""

MOST_DELAY_FRAMES = 16
"""How far decoders reorder frames: ITU-T H.264, A.3.1 (max_dec_frame_buffering)."""

READ_BYTES = 1 << 18

SEEK_MARGINS_SECONDS = (0.0, 2.0, 10.0)
"""How much earlier to seek when a file's index leads to a frame after the one looked for."""

GUESSED_TIMES = "frames without usable time stamps, taken to follow each other at the video's rate"
ONE_OF_SEVERAL = "one of several video streams"


class UnprovenSeekError(Exception):
    """Decoding from the place that a seek led to may give other frames than from the start."""


@dataclass(frozen=True)
class Shown:
    """A decoded frame, and when it is on screen: seconds from the video's first frame."""

    start: float
    end: float
    frame: VideoFrame


class Video:
    """The video stream of an open file, to be iterated once, by `frames` or `frames_from`.

    Args:
        container: just opened.
        max_pixels: of a frame, at most.

    Raises:
        SampleError: there is no such stream, or one that can't be decoded as it should look.
    """

    def __init__(self, container: InputContainer, max_pixels: int) -> None:
        self._container = container
        self._format = container.format.name.split(",")[0]
        self._stream = _find_stream(container)
        codec = self._stream.codec_context
        if codec.width * codec.height > max_pixels:
            size = f"{codec.width} x {codec.height} pixels"
            raise SampleError(f"{size}, more than max_pixels allows ({max_pixels})")
        refuse_hdr(codec.color_trc)
        if self._stream.time_base is None:
            raise SampleError("it has no time base; convert it to .mp4 or .mkv")
        self._tick = float(self._stream.time_base)
        self.rate = self._find_rate()
        """Frames per second, on average."""
        self.size = codec.height, codec.width
        """Height and width in pixels, as stored."""
        aspect = float(self._stream.sample_aspect_ratio or 1)
        self.display_size = codec.height, max(1, round(codec.width * aspect))
        """The same when pixels that aren't square are made so."""
        self.remarks = {ONE_OF_SEVERAL} if len(_shown_streams(container)) > 1 else set()
        """What a user should know of how it was read; complete when the frames are."""
        self._first: int | None = None
        # One thread per video, as clips are prepared side by side; and no guessing at what a
        # damaged file may have shown.
        self._stream.thread_type, self._stream.thread_count = "NONE", 1
        codec.options = {"err_detect": "explode"}

    def duration(self) -> float:
        """Seconds from the first frame to the end of the last, to a whole number of average frames.

        It is the header's in .mp4 and .mov; in others, that of the packets.

        Raises:
            SampleError: no frame at all.
        """
        is_counted = self._format == "mov" and self._stream.frames
        header = (self._stream.duration or 0) * self._tick if is_counted else 0.0
        frames = round((header or self._measure_duration()) * self.rate)
        if frames < 1:
            raise SampleError("no frames: it lasts 0 seconds")
        return frames / self.rate

    def frames(self, needed: float = 0.0) -> Iterator[Shown]:
        """All frames in the order they are shown in, decoded from the start.

        Args:
            needed: seconds up to which damage doesn't matter where a key frame ends it.

        Raises:
            SampleError: the video is damaged.
        """
        last = end = 0.0
        for stamp, frame in self._stamped(self._decode(needed)):
            if self._first is None and stamp is not None:
                self._first = stamp
            start = end if stamp is None else self._seconds(stamp)
            if stamp is None or start < last:
                self.remarks.add(GUESSED_TIMES)
                start = end
            last, end = start, start + (frame.duration * self._tick or 1 / self.rate)
            yield Shown(start, end, frame)

    def frames_from(self, start: float) -> Iterator[Shown]:
        """Those of `frames` from a key frame at or before `start` on, found by seeking.

        Raises:
            UnprovenSeekError: they may not be the same; a frame before this was.
        """
        try:
            yield from self._sought(start)
        except (SampleError, av.FFmpegError) as error:
            raise UnprovenSeekError("it can't be decoded from there") from error

    def _sought(self, start: float) -> Iterator[Shown]:
        if self._format not in SEEKABLE_FORMATS or next(self.frames(), None) is None:
            raise UnprovenSeekError("its frames have no times of their own")
        for margin in SEEK_MARGINS_SECONDS:
            if start <= margin:
                break
            self._seek(start - margin)
            frames = self._decode(start)
            entry = next(frames, None)
            # A container may call any frame a key frame; a decoder says so of real ones alone.
            if entry is not None and entry.key_frame and self._time_of(entry) <= start:
                yield from self._checked(itertools.chain([entry], frames))
                return
        raise UnprovenSeekError("no key frame before it was found")

    def _checked(self, frames: Iterable[VideoFrame]) -> Iterator[Shown]:
        last = 0.0
        for frame in frames:
            start = self._time_of(frame)
            if start < last:
                raise UnprovenSeekError("its time stamps are not in order")
            last = start
            yield Shown(start, start + (frame.duration * self._tick or 1 / self.rate), frame)

    def _time_of(self, frame: VideoFrame) -> float:
        if frame.pts is None:
            raise UnprovenSeekError("a frame has no time stamp")
        return self._seconds(frame.pts)

    def _seconds(self, pts: int) -> float:
        return (pts - (self._first or 0)) * self._tick

    def _seek(self, seconds: float) -> None:
        self._container.seek((self._first or 0) + int(seconds / self._tick), stream=self._stream)

    def _find_rate(self) -> float:
        rates = [self._stream.average_rate, self._stream.guessed_rate]
        # Of a bare stream, the average is a default of FFmpeg's, not the stream's.
        if self._format in BARE_FORMATS:
            rates.reverse()
        rate = next(filter(None, rates), None)
        if not rate:
            raise SampleError("its frame rate is not known; convert it to .mp4 or .mkv")
        return float(rate)

    # ------------------------------------------------------------ packets to frames

    def _stamped(self, frames: Iterator[VideoFrame]) -> Iterator[tuple[int | None, VideoFrame]]:
        """Frames with their time stamps; those of AVI, which are of decoding, are sorted."""
        if self._format in BARE_FORMATS:
            yield from ((None, frame) for frame in frames)
        elif self._format == "avi" and self._stream.codec_context.has_b_frames:
            yield from _sort_stamps(frames)
        else:
            yield from ((frame.pts, frame) for frame in frames)

    def _decode(self, needed: float) -> Iterator[VideoFrame]:
        """Frames from the next key frame on, in the order they are shown in.

        Raises:
            SampleError: damage after `needed` seconds, or before with no key frame in between.
        """
        entry, damage = None, ""
        for packet in self._packets():
            entry = packet.pts if entry is None else entry
            if packet.is_keyframe and self._is_within(packet.pts, needed):
                damage = ""
            frames, problem = _decode_packet(packet)
            # What is shown before the key frame is made from frames before it.
            if problem and not _is_before(packet.pts, entry):
                damage = damage or problem + self._at(packet.pts)
            for frame in frames:
                if _is_before(frame.pts, entry):
                    continue
                if frame.is_corrupt:
                    damage = damage or f"damaged{self._at(frame.pts)}"
                if damage and not self._is_within(frame.pts, needed):
                    raise SampleError(damage)
                yield frame
            if damage and not self._is_within(packet.pts, needed):
                raise SampleError(damage)

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        """Packets from the next key frame on; the last one, which is empty, flushes the decoder."""
        is_begun = False
        for packet in self._container.demux(self._stream):
            is_begun = is_begun or packet.is_keyframe
            # An empty one with a time says that the frame before stays on screen.
            if is_begun and (packet.size or packet.dts is None):
                yield packet

    def _is_within(self, pts: int | None, needed: float) -> bool:
        return pts is not None and self._first is not None and self._seconds(pts) <= needed

    def _at(self, pts: int | None) -> str:
        return "" if pts is None else f" at {self._seconds(pts):.3f} s"

    def _measure_duration(self) -> float:
        """Seconds from the first packet to the end of the last; of .mkv and .webm only both ends are read."""
        packets = self._packets()
        first = next(packets, None)
        if first is None:
            return 0.0
        self._first = first.pts
        if self._format == "matroska" and self._container.duration:
            self._seek(self._container.duration / av.time_base)
            packets = self._packets()
        stamps, num_packets = [], 0
        for packet in itertools.chain([first], packets):
            num_packets += bool(packet.size)
            if packet.size and packet.pts is not None:
                length = (packet.duration or 0) * self._tick or 1 / self.rate
                stamps.append(self._seconds(packet.pts) + length)
        is_timed = len(stamps) == num_packets and self._format not in BARE_FORMATS
        return max(stamps) if is_timed else num_packets / self.rate


@contextmanager
def open_video(sample: Sample, max_pixels: int) -> Iterator[Video]:
    """A video for as long as the context lasts; it is read as it is decoded, never held whole.

    Raises:
        SampleError: not a video, or damaged; also what is raised inside the context about its content.
        OSError: the media can't be reached.
    """
    # Through Python's file, so that OSErrors stay those of the medium, and FFmpeg sees no name that
    # it could take for an address.
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}
    with _open_media(sample) as media:
        with _as_sample_error("not a video, or damaged at its start"):
            container = av.open(
                media, "r", buffer_size=READ_BYTES, options=options, metadata_errors="replace"
            )
        with container, _as_sample_error("damaged, or cut off"):
            yield Video(container, max_pixels)


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
    """Turn what FFmpeg raises about a video into a `SampleError` whose text is the same in every run."""
    try:
        yield
    except av.FFmpegError as err:
        raise SampleError(f"{what}: {err.strerror}") from err


def _shown_streams(container: InputContainer) -> list[VideoStream]:
    """Video streams but for pictures of an album's cover."""
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def _find_stream(container: InputContainer) -> VideoStream:
    """The video stream that players show."""
    streams = _shown_streams(container)
    if not streams:
        others = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise SampleError(f"no video stream: the file holds {others}")
    stream = next((stream for stream in streams if stream.disposition & Disposition.default), streams[0])
    if stream.codec_context is None or not stream.codec_context.width:
        raise SampleError("no decoder for its video stream, or a stream without a size")
    return stream


def _decode_packet(packet: Packet[VideoStream]) -> tuple[list[VideoFrame], str]:
    """The frames that a packet makes the decoder give, and what is wrong with it, "" if nothing."""
    try:
        frames = [frame for frame in packet.decode() if isinstance(frame, VideoFrame)]
    except av.FFmpegError as error:
        return [], f"damaged, or cut off ({error.strerror})"
    return frames, "damaged, or cut off" if packet.is_corrupt else ""


def _sort_stamps(frames: Iterator[VideoFrame]) -> Iterator[tuple[int | None, VideoFrame]]:
    """Frames in the same order, the earliest of them with the earliest time stamp, and so on."""
    held: deque[VideoFrame] = deque()
    stamps: list[int] = []
    for frame in itertools.chain(frames, itertools.repeat(None, MOST_DELAY_FRAMES)):
        if frame is not None:
            held.append(frame)
            if frame.pts is not None:
                heapq.heappush(stamps, frame.pts)
        if held and (frame is None or len(held) > MOST_DELAY_FRAMES):
            first = held.popleft()
            yield None if first.pts is None else heapq.heappop(stamps), first


def _is_before(pts: int | None, entry: int | None) -> bool:
    return pts is not None and entry is not None and pts < entry
