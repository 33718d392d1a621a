"""Reads a video file's packets in order, and lists them once so that a seek can be checked."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video import VideoStream

from latentkit.contracts import Sample
from latentkit.errors import SampleError
from latentkit.kit import open_with_av

# Named one by one: FFmpeg also opens playlists, which name other files and addresses, and pictures
# and texts without a signature.
FORMATS = (
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg"),
    *("mpegvideo", "ogg", "flv", "asf", "mxf", "gif", "apng", "ivf", "nut", "h264", "hevc", "vvc"),
    *("obu", "m4v", "dv", "rm", "wtv", "yuv4mpegpipe"),
)

NO_STAMP = -(1 << 63)
"""Replaces a missing time stamp in a list of packets."""


def open_container(media: object) -> AbstractContextManager[InputContainer]:
    """Open a sample's file or bytes. They are read while decoding, never as a whole.

    Raises:
        SampleError: not a video, or damaged; FFmpeg may also report that inside the context.
        OSError: the media can't be reached.
    """
    return open_with_av(Sample("", media), "a video", FORMATS)


def shown_streams(container: InputContainer) -> list[VideoStream]:
    """Return the video streams, without cover images of an album."""
    return [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]


def find_stream(container: InputContainer) -> VideoStream:
    """Return the video stream that players show."""
    streams = shown_streams(container)
    if not streams:
        types = {stream.type for stream in container.streams} - {"video"}
        others = ", ".join(sorted(types)) or "nothing"
        raise SampleError(f"no video stream: the file contains {others}")
    stream = next(
        (stream for stream in streams if stream.disposition & Disposition.default), streams[0]
    )
    if stream.codec_context is None or not stream.codec_context.width:
        raise SampleError("no decoder for its video stream, or a stream without a size")
    return stream


def read_packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """Yield packets from the next key frame on. The last one is empty and flushes the decoder.

    Raises:
        SampleError: there are packets, but no key frame among them.
    """
    is_begun, num_skipped = False, 0
    for packet in container.demux(stream):
        is_begun = is_begun or packet.is_keyframe
        # An empty packet with a time means that the previous frame stays on screen.
        if is_begun and (packet.size or packet.dts is None):
            yield packet
        num_skipped += not is_begun and packet.size > 0
    if num_skipped and not is_begun:
        raise SampleError(f"damaged, or cut off: no key frame among {num_skipped} packets")


# ---------------------------------------------------------------- the same packets after a seek


class UnprovenSeekError(Exception):
    """Decoding from the position of a seek may give other frames than decoding from the start."""


@dataclass(frozen=True)
class PacketList:
    """Every packet of a file read from its start, in order.

    Args:
        identities: (number of packets, 3) time stamp, size in bytes and CRC-32 of each.
        decoding: (number of packets) decoding time stamps.
    """

    identities: npt.NDArray[np.int64]
    decoding: npt.NDArray[np.int64]

    def is_ordered(self, reorders: bool) -> bool:
        """Return whether time stamps increase from packet to packet, so that none depends on those
        before.

        Args:
            reorders: whether frames are shown in another order than they are decoded; time stamps
                must then show that.
        """
        shown, decoded = self.identities[:, 0], self.decoding
        is_timed = bool((shown != NO_STAMP).all() and (decoded != NO_STAMP).all())
        is_growing = bool((np.diff(decoded) > 0).all() and (shown >= decoded).all())
        return is_timed and is_growing and not (reorders and (np.diff(shown) > 0).all())

    def check(self, packets: Iterable[Packet[VideoStream]]) -> Iterator[Packet[VideoStream]]:
        """Yield packets as long as they match the list, from any position on.

        Raises:
            UnprovenSeekError: a packet differs.
        """
        row = -1
        for packet in packets:
            identity = _identify(packet)
            if row < 0:
                places = np.flatnonzero((self.identities == identity).all(1))
                row = int(places[0]) if len(places) == 1 else len(self.identities)
            is_end = not packet.size and row == len(self.identities)
            if not is_end and (
                row >= len(self.identities) or tuple(self.identities[row]) != identity
            ):
                raise UnprovenSeekError("its packets are not those read from the start")
            row += 1
            yield packet


@functools.lru_cache(maxsize=16)
def list_packets(path: Path, state: tuple[int, int]) -> PacketList:
    """Read a file from start to end and list its packets. The list is kept for the following clips.

    Args:
        state: state of the file, so that a changed one is read again.

    Raises:
        SampleError: the file is damaged.
        OSError: the file can't be reached.
    """
    with open_container(path) as container:
        packets = read_packets(container, find_stream(container))
        found = [(*_identify(packet), _stamp(packet.dts)) for packet in packets if packet.size]
    table = np.array(found, np.int64).reshape(-1, 4)
    return PacketList(table[:, :3], table[:, 3])


def _identify(packet: Packet[VideoStream]) -> tuple[int, int, int]:
    return _stamp(packet.pts), packet.size, zlib.crc32(packet) if packet.size else 0


def _stamp(value: int | None) -> int:
    return NO_STAMP if value is None else value
