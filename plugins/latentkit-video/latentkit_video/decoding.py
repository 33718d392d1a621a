"""Decodes a video file to frames with their times. It contains all settings of FFmpeg,
and nothing about sizes or clips.
"""

from __future__ import annotations

import heapq
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.video import VideoFrame, VideoStream

from latentkit.contracts import Sample
from latentkit.errors import SampleError
from latentkit.kit import file_state
from latentkit_video.color import refuse_hdr
from latentkit_video.packets import (
    PacketList,
    UnprovenSeekError,
    find_stream,
    list_packets,
    open_container,
    read_packets,
    shown_streams,
)

LISTED_FROM_SECONDS = 10.0
"""Clips that begin earlier are decoded from the start, which costs less than listing packets."""

BARE_FORMATS = ("h264", "hevc", "vvc", "mpegvideo", "m4v", "obu")
"""Streams without a container, which store no times. FFmpeg's times are guesses."""

MOST_DELAY_FRAMES = 16
"""Largest reordering of frames by decoders: ITU-T H.264, A.3.1 (max_dec_frame_buffering)."""

SEEK_MARGINS_SECONDS = (0.0, 2.0, 10.0)
"""How much earlier to seek if a file's index leads to a frame after the requested one."""

GUESSED_TIMES = (
    "frames without usable time stamps, assumed to follow each other at the video's rate"
)
ONE_OF_SEVERAL = "one of several video streams"


@dataclass(frozen=True)
class ShownFrame:
    """A decoded frame and when it is on screen, in seconds from the video's first frame."""

    start: float
    end: float
    frame: VideoFrame


@dataclass(frozen=True)
class _Decoded:
    """A frame, and what went wrong since the last key frame shown before it ("" if nothing)."""

    frame: VideoFrame
    damage: str


class Video:
    """The video stream of an open file. Iterate once, with `frames` or `frames_from`.

    Args:
        container: container that was just opened.
        media: path or bytes that it was opened from.
        max_pixels: most pixels of a frame.

    Raises:
        SampleError: there is no video stream, or it can't be decoded correctly.
    """

    def __init__(self, container: InputContainer, media: object, max_pixels: int) -> None:
        self._container, self._media = container, media
        self._format = container.format.name.split(",")[0]
        self._stream = find_stream(container)
        codec = self._stream.codec_context
        if codec.width * codec.height > max_pixels:
            size = f"{codec.width} x {codec.height} pixels"
            raise SampleError(f"{size}, more than max_pixels allows ({max_pixels})")
        refuse_hdr(codec.color_trc)
        if self._stream.time_base is None:
            raise SampleError("it has no time base; convert it to .mp4 or .mkv")
        self._tick = float(self._stream.time_base)
        # Of .mp4 and .mov; those in fragments have no table of all frames.
        self._has_table = self._format == "mov" and self._stream.frames > 0
        self.rate = self._find_rate()
        """Frames per second, on average."""
        self.size = codec.height, codec.width
        """Height and width in pixels, as stored."""
        aspect = float(self._stream.sample_aspect_ratio or 1)
        self.display_size = codec.height, max(1, round(codec.width * aspect))
        """The same when pixels that aren't square are made so."""
        self.remarks = {ONE_OF_SEVERAL} if len(shown_streams(container)) > 1 else set()
        """What a user should know of how it was read; complete when the frames are."""
        self._first: int | None = None
        """Time stamp of the first frame; until it is decoded, that of the first packet."""
        self._has_decoding_times = self._format == "avi"
        """Whether frames that are reordered may have those in the place of times of showing."""
        # One thread per video, as clips are prepared side by side; and no guessing at what a
        # damaged file may have shown.
        self._stream.thread_type, self._stream.thread_count = "NONE", 1
        codec.options = {"err_detect": "explode"}

    def duration(self) -> float:
        """Return the seconds from the first frame to the end of the last, as a whole number of
        average frames.

        For .mp4 and .mov it comes from the header, for others from the packets.

        Raises:
            SampleError: there is no frame.
        """
        header = (self._stream.duration or 0) * self._tick if self._has_table else 0.0
        frames = round((header or self._measure_duration()) * self.rate)
        if frames < 1:
            raise SampleError("no frames: it lasts 0 seconds")
        return frames / self.rate

    def frames(self, needed: float = 0.0) -> Iterator[ShownFrame]:
        """Yield all frames in display order, decoded from the start.

        Args:
            needed: seconds up to which damage is ignored if a key frame ends it.

        Raises:
            SampleError: the video is damaged.
        """
        last = end = 0.0
        for number, (stamp, decoded) in enumerate(self._stamped(self._decode())):
            if number == 0 and stamp is not None:
                self._first = stamp
            start = end if stamp is None else self._seconds(stamp)
            if stamp is None or start < last:
                self.remarks.add(GUESSED_TIMES)
                start = end
            shown = self._show(decoded, start, needed)
            last, end = start, shown.end
            yield shown

    def frames_from(self, start: float) -> Iterator[ShownFrame]:
        """Yield the frames of `frames` from a key frame at or before `start` on, found by seeking.

        Raises:
            UnprovenSeekError: they may differ; can also be raised after some were yielded.
        """
        try:
            yield from self._frames_by_seeking(start)
        except (SampleError, av.FFmpegError) as error:
            raise UnprovenSeekError("it can't be decoded from there") from error

    def _frames_by_seeking(self, start: float) -> Iterator[ShownFrame]:
        """Yield frames from a key frame before `start` on."""
        # These two store every frame's time, so that it is the same wherever reading begins. In
        # others FFmpeg counts on from what it read before, or searches for a place by bytes.
        is_timed = self._has_table or self._format == "matroska"
        listed = None if is_timed else self._list_packets(start)
        next(self.frames(), None)  # finds the first frame's time stamp
        if self._format != "avi" and self._is_unsorted():
            raise UnprovenSeekError("its time stamps are not display times")
        for margin in SEEK_MARGINS_SECONDS:
            if start <= margin:
                break
            self._seek(start - margin)
            shown = self._checked(self._decode(listed), start)
            try:
                first = self._reach(shown, start)
            except SampleError:  # perhaps only before the next key frame
                continue
            if first:
                yield from first
                yield from shown
                return
        raise UnprovenSeekError("no key frame before it was found")

    def _reach(self, shown: Iterator[ShownFrame], start: float) -> list[ShownFrame]:
        """Return the last frame up to `start` and the first after it; nothing if no frame is
        before.
        """
        found = next(shown, None)
        # A container may mark any frame as a key frame; a decoder only marks real ones.
        if found is None or not found.frame.key_frame or found.start > start:
            return []
        for after in shown:
            if after.start > start:
                return [found, after]
            found = after
        return [found]

    def _list_packets(self, start: float) -> PacketList:
        """Return the list of the file's packets, if seeking can be checked with it."""
        if (
            start < LISTED_FROM_SECONDS
            or self._format in BARE_FORMATS
            or not isinstance(self._media, os.PathLike)
        ):
            raise UnprovenSeekError("decoding from the start is as good")
        path = Path(self._media)
        listed = list_packets(path, file_state(path))
        if not listed.is_ordered(self._is_unsorted()):
            raise UnprovenSeekError("its time stamps are not in order")
        return listed

    def _checked(self, frames: Iterable[_Decoded], needed: float) -> Iterator[ShownFrame]:
        """Yield frames with their times, which must be in order."""
        last = 0.0
        for decoded in frames:
            start = self._time_of(decoded.frame)
            if start < last:
                raise UnprovenSeekError("its time stamps are not in order")
            last = start
            yield self._show(decoded, start, needed)

    def _show(self, decoded: _Decoded, start: float, needed: float) -> ShownFrame:
        """Return a frame with its time on screen, or refuse it if it is damaged."""
        if decoded.damage and start > needed:
            raise SampleError(decoded.damage)
        length = decoded.frame.duration * self._tick or 1 / self.rate
        return ShownFrame(start, start + length, decoded.frame)

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

    def _is_unsorted(self) -> bool:
        return self._has_decoding_times and self._stream.codec_context.has_b_frames

    def _stamped(self, frames: Iterator[_Decoded]) -> Iterator[tuple[int | None, _Decoded]]:
        """Yield frames with their time stamps. Decoding times are sorted."""
        first = list(itertools.islice(frames, 1))  # the packets aren't known before
        frames = itertools.chain(first, frames)
        if self._format in BARE_FORMATS:
            yield from ((None, decoded) for decoded in frames)
        elif self._is_unsorted():
            yield from _sort_stamps(frames)
        else:
            yield from ((decoded.frame.pts, decoded) for decoded in frames)

    def _decode(self, listed: PacketList | None = None) -> Iterator[_Decoded]:
        """Yield frames from the next key frame on, in display order.

        Raises:
            UnprovenSeekError: packets differ from the list.
            SampleError: the end is reached after damage.
        """
        entry = key = None
        before = after = ""  # damage before the last key frame, and from there on
        packets = read_packets(self._container, self._stream)
        for packet in packets if listed is None else listed.check(packets):
            if entry is None:
                entry = packet.pts
                self._first = entry if self._first is None else self._first
                # Files without the table of time differences (ctts).
                self._has_decoding_times |= self._format == "mov" and packet.dts == entry
            if packet.is_keyframe:
                key, before, after = packet.pts, before or after, ""
            frames, problem = _decode_packet(packet)
            problem = problem and problem + self._at(packet.pts)
            # Frames shown before a key frame may depend on frames before it.
            if not _is_before(packet.pts, key):
                after = after or problem
            elif not _is_before(packet.pts, entry):
                before = before or problem
            for frame in frames:
                if _is_before(frame.pts, entry):
                    continue
                if frame.is_corrupt:
                    before = before or f"damaged{self._at(frame.pts)}"
                yield _Decoded(frame, before or after)
                if frame.key_frame and frame.pts == key:
                    before = ""
        if before or after:
            raise SampleError(before or after)

    def _at(self, pts: int | None) -> str:
        return "" if pts is None else f" at {self._seconds(pts):.3f} s"

    def _measure_duration(self) -> float:
        """Return the seconds from the first packet to the end of the last. In .mkv only both ends
        are read.
        """
        packets = read_packets(self._container, self._stream)
        first = next(packets, None)
        if first is None:
            return 0.0
        self._first = first.pts
        is_whole = self._format != "matroska" or not self._container.duration
        if not is_whole:
            self._seek((self._container.duration or 0) / av.time_base)
            packets = read_packets(self._container, self._stream)
        end, last, num_packets = 0.0, first.dts, 0
        is_timed = self._format not in BARE_FORMATS
        for packet in filter(lambda packet: packet.size, itertools.chain([first], packets)):
            num_packets += 1
            is_timed &= packet.pts is not None and not _is_before(packet.dts, last)
            length = (packet.duration or 0) * self._tick or 1 / self.rate
            if packet.pts is not None:
                end = max(end, self._seconds(packet.pts) + length)
            last = packet.dts
        return end if is_timed or not is_whole else num_packets / self.rate


@contextmanager
def open_video(sample: Sample, max_pixels: int) -> Iterator[Video]:
    """Open a video while the context lasts. It is read while it is decoded, never as a whole.

    Raises:
        SampleError: not a video, or damaged; can also be raised inside the context.
        OSError: the media can't be reached.
    """
    with open_container(sample.media) as container:
        yield Video(container, sample.media, max_pixels)


def _decode_packet(packet: Packet[VideoStream]) -> tuple[list[VideoFrame], str]:
    """Return the frames that a packet makes the decoder return, and what is wrong ("" if
    nothing).
    """
    try:
        frames = [frame for frame in packet.decode() if isinstance(frame, VideoFrame)]
    except av.FFmpegError as error:
        return [], f"damaged, or cut off ({error.strerror})"
    return frames, "damaged, or cut off" if packet.is_corrupt else ""


def _sort_stamps(frames: Iterator[_Decoded]) -> Iterator[tuple[int | None, _Decoded]]:
    """Yield frames in the same order, with the time stamps sorted."""
    held: deque[_Decoded] = deque()
    stamps: list[int] = []
    failure: SampleError | None = None
    while True:
        try:
            decoded = next(frames, None)
        except SampleError as error:  # the frames before it are fine
            decoded, failure = None, error
        if decoded is not None:
            held.append(decoded)
            if decoded.frame.pts is not None:
                heapq.heappush(stamps, decoded.frame.pts)
        elif not held:
            break
        if decoded is None or len(held) > MOST_DELAY_FRAMES:
            first = held.popleft()
            yield None if first.frame.pts is None else heapq.heappop(stamps), first
    if failure is not None:
        raise failure


def _is_before(pts: int | None, entry: int | None) -> bool:
    return pts is not None and entry is not None and pts < entry
