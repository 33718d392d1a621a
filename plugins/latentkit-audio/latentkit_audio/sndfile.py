"""Reads audio files with libsndfile: their headers, and any part of them."""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import soundfile

from latentkit.contracts import Sample
from latentkit.errors import SampleError
from latentkit.kit import BufferPool, file_state
from latentkit_audio.forward import Frames

CHUNK_FRAMES = 1 << 16

SEEKABLE = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
"""Encodings whose values are independent, also in FLAC, so a seek is exact. Seeks in Ogg Vorbis
sometimes lead elsewhere, and other encodings depend on earlier data.
"""

MP3_PREROLL_FRAMES = 16_384
"""Frames decoded and dropped before a part of an mp3 file: after a seek its bits start in earlier
frames, which libsndfile doesn't look for. Ten frames of 576 at 8 kbit/s fill the largest possible
reservoir.
"""

COUNTED_REMARK = (
    "mp3 without a Xing header: its length is counted, and the encoder's lead-in remains at the"
    " start"
)
GUESSED_REMARK = (
    "mp3 without a Xing header: its length is a guess, and anything after it is left out"
)

MP3_TAGS = (b"Xing", b"Info", b"VBRI")
"""In the first frame of an mp3 file that contains its length. Without it libsndfile estimates the
length from the size.
"""

ID3_TAG = b"ID3\x04\x00\x00\x00\x00\x00\x20" + bytes(32)
"""An empty tag: libsndfile recognizes an mp3 file by it, or by the file's ending, but not by a
stereo frame alone.
"""

OGG_PAGE_BYTES = 65_307
"""Largest size of a page (RFC 3533, section 6)."""

STATED_SIZE = re.compile(
    r"^ *(?:data|SSND|Data Size|Riff size|riff) *: (\d+) \(should be (\d+)\)$", re.MULTILINE
)
"""In libsndfile's log: the bytes of audio stated in the header of a wav, aiff, au, rf64 or w64
file, and the bytes that exist. It opens such a file as a shorter one and reports that nowhere else.
"""

SIZE_TOLERANCE_BYTES = 64
"""Difference that is considered a mistake of the program that wrote the file: some count the header
too.
"""

UNKNOWN_SIZE_BYTES = 0x7F00_0000
"""From this size on, a stated size means unknown: programs that write to a pipe state it, ffmpeg
all ones, sox slightly less than 2 GiB.
"""

ENDLESS_FRAMES = 2**62
"""libsndfile returns 2 ** 63 - 1 if the length is unknown."""

SYSTEM_ERROR = 2
"""libsndfile's SF_ERR_SYSTEM: the file couldn't be read, whatever it contains."""


class LengthUnknownError(Exception):
    """A FLAC stream that doesn't contain its length, and whose end libsndfile can't find."""


class SndFile:
    """An open file.

    Args:
        sample: the sample with the file.
        file: file that was just opened.
        num_frames: frames by its header.
        remarks: remarks on its length.
    """

    def __init__(
        self, sample: Sample, file: soundfile.SoundFile, num_frames: int, remarks: tuple[str, ...]
    ) -> None:
        self._sample, self._file = sample, file
        self.num_frames, self.remarks = num_frames, remarks
        self.num_there: int = min(file.frames, num_frames)
        self.rate_hz: int = file.samplerate
        self.num_channels: int = file.channels
        self.is_mp3: bool = file.format == "MP3"
        self.is_seekable: bool = file.seekable() and (file.subtype in SEEKABLE or self.is_mp3)

    def read(self, start: int, stop: int, pool: BufferPool) -> Frames:
        """Return the frames from `start` to before `stop`, fewer at the end of the file.

        Raises:
            SampleError: the frames are damaged.
            OSError: the file can't be reached.
        """
        begin = min(max(start - MP3_PREROLL_FRAMES * self.is_mp3, 0), self._file.frames)
        with (
            ExitStack() as stack,
            as_sample_error(
                f"damaged between {start / self.rate_hz:.3f} s and {stop / self.rate_hz:.3f} s"
            ),
        ):
            # The decoded values of an mp3 file depend on the decoder's previous position.
            file = _open(self._sample, stack) if self.is_mp3 else self._file
            if begin or not self.is_mp3:
                file.seek(begin)
            # Read at once, because soundfile ends every read with a seek.
            room = pool.get((stop - begin, self.num_channels), np.float32)
            frames: Frames = file.read(dtype="float32", out=room)
        return frames[start - begin :]


@contextmanager
def open_sndfile(sample: Sample) -> Iterator[SndFile]:
    """Open a sample's file. A path is read in place, and only as much as requested.

    Raises:
        soundfile.LibsndfileError: libsndfile doesn't know the format.
        LengthUnknownError: the length is unknown.
        SampleError: the file is empty.
        OSError: the file can't be reached.
    """
    with ExitStack() as stack:
        file = _open(sample, stack)
        if file.frames >= ENDLESS_FRAMES:
            raise LengthUnknownError
        if file.format == "MP3" and not _says_its_length(sample):
            yield SndFile(sample, file, *_measured_frames(sample, file))
        else:
            yield SndFile(sample, file, _stated_frames(file), _remarks(sample, file))


def decode_forward(sample: Sample, stack: ExitStack) -> Iterator[Frames]:
    """Yield all frames of a sample's file, in chunks. `stack` closes the file.

    Raises:
        SampleError: the file is damaged.
        OSError: the file can't be reached.
    """
    with as_sample_error("damaged at its start"):
        file, position = _open(sample, stack), 0
    rate_hz = file.samplerate

    def chunks() -> Iterator[Frames]:
        nonlocal position
        while True:
            with as_sample_error(
                f"damaged between {position / rate_hz:.3f} s and "
                f"{(position + CHUNK_FRAMES) / rate_hz:.3f} s"
            ):
                frames: Frames = file.read(CHUNK_FRAMES, dtype="float32", always_2d=True)
            if not len(frames):
                return
            position += len(frames)
            yield frames

    return chunks()


def convert_error(error: soundfile.LibsndfileError, what: str) -> Exception:
    """Return the error to raise. libsndfile's whole text is not used, because it contains the
    file's name or a memory address.
    """
    if error.code == SYSTEM_ERROR:
        return OSError(f"{what}: {error.error_string}")
    text: str = error.error_string
    if text.startswith("File does not exist"):  # libmpg123's word for a file without a frame
        text = "no frame in it can be decoded"
    return SampleError(f"{what}: {text}")


@contextmanager
def as_sample_error(what: str) -> Iterator[None]:
    """Turn libsndfile's errors into latentkit's."""
    try:
        yield
    except soundfile.LibsndfileError as err:
        raise convert_error(err, what) from err


# ---------------------------------------------------------------- opening


def _open(sample: Sample, stack: ExitStack) -> soundfile.SoundFile:
    # libsndfile itself doesn't say what is missing.
    file = stack.enter_context(open_media(sample))
    media = file if isinstance(file, io.BytesIO) else file.fileno()
    try:
        return stack.enter_context(soundfile.SoundFile(media, closefd=False))
    except soundfile.LibsndfileError as err:
        if err.code == SYSTEM_ERROR or not _begins_with_mp3(sample):
            raise
    if isinstance(sample.media, os.PathLike) and os.fspath(sample.media).lower().endswith(".mp3"):
        path = os.fspath(sample.media) if os.name == "nt" else os.fsencode(sample.media)
        return stack.enter_context(soundfile.SoundFile(path))
    return stack.enter_context(soundfile.SoundFile(io.BytesIO(ID3_TAG + sample.read())))


def open_media(sample: Sample) -> IO[bytes]:
    """Open a sample's media as a file.

    Raises:
        OSError: the file can't be reached.
    """
    media = sample.media
    return Path(media).open("rb") if isinstance(media, os.PathLike) else io.BytesIO(sample.read())


def read_bytes(sample: Sample, num_bytes: int, start: int = 0) -> bytes:
    """Return `num_bytes` of a sample's media from `start` on; a negative start counts from the end.

    Raises:
        OSError: the file can't be reached.
    """
    if not isinstance(sample.media, os.PathLike):
        return bytes(memoryview(sample.read())[start:][:num_bytes])
    with Path(sample.media).open("rb") as file:
        file.seek(max(start + os.path.getsize(sample.media), 0) if start < 0 else start)
        return file.read(num_bytes)


def _begins_with_mp3(sample: Sample) -> bool:
    """Return whether the first bytes are a frame of layer III: 11 bits of ones, a version, and the
    layer (ISO 11172-3, 2.4.1.3).
    """
    head = read_bytes(sample, 2)
    return len(head) == 2 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2


# ---------------------------------------------------------------- lengths


def id3_size(sample: Sample) -> int:
    """Return the bytes of the tag before the audio (id3.org/id3v2.4.0-structure, 3.1); 0 without
    one.

    Raises:
        OSError: the file can't be reached.
    """
    head = read_bytes(sample, 10)
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum(byte << (7 * place) for place, byte in enumerate(reversed(head[6:10])))


def _says_its_length(mp3: Sample) -> bool:
    """Return whether the first frame of an mp3 file contains the number of frames."""
    first = read_bytes(mp3, 1500, id3_size(mp3))
    return any(tag in first for tag in MP3_TAGS)


def _measured_frames(sample: Sample, file: soundfile.SoundFile) -> tuple[int, tuple[str, ...]]:
    """Return the frames of an mp3 file whose header doesn't contain them, counted up to
    libsndfile's guess, and remarks on a file that may continue. Those of a file with many spans are
    counted once.
    """
    media, properties = sample.media, (file.frames, file.samplerate)
    if isinstance(media, os.PathLike):
        return _measured_of_file(Path(media), file_state(media), *properties)
    return count_frames(sample, *properties)


@functools.lru_cache(maxsize=256)
def _measured_of_file(
    path: Path, state: tuple[int, int], guess: int, rate_hz: int
) -> tuple[int, tuple[str, ...]]:
    return count_frames(Sample("", path), guess, rate_hz)


def count_frames(sample: Sample, guess: int, behind: int) -> tuple[int, tuple[str, ...]]:
    """See `_measured_frames`.

    Args:
        behind: frames in front of the guess to look for the end in, at first.
    """
    while True:
        begin = max(guess - behind, 0)
        with ExitStack() as stack, as_sample_error("damaged near its end"):
            end = _open(sample, stack)
            end.seek(begin)
            found = len(end.read(guess - begin, dtype="float32"))
        if found or not begin:
            break
        behind *= 4
    return begin + found, (COUNTED_REMARK if begin + found < guess else GUESSED_REMARK,)


def _remarks(sample: Sample, file: soundfile.SoundFile) -> tuple[str, ...]:
    """Return remarks on an Ogg file whose last page isn't marked as such (RFC 3533, section 6: flag
    4).
    """
    if file.format != "OGG":
        return ()
    tail = read_bytes(sample, OGG_PAGE_BYTES, -OGG_PAGE_BYTES)
    last = tail.rfind(b"OggS")
    if last >= 0 and tail[last + 5 : last + 6] and tail[last + 5] & 4:
        return ()
    return ("its last page is missing (Ogg): what exists is used as the whole",)


def _stated_frames(file: soundfile.SoundFile) -> int:
    """Return the frames in the header, which are more than exist in a file that is cut off."""
    found = STATED_SIZE.search(file.extra_info)
    stated, there = (int(size) for size in found.groups()) if found else (0, 0)
    num_frames: int = file.frames
    if not there or stated <= there + SIZE_TOLERANCE_BYTES or stated >= UNKNOWN_SIZE_BYTES:
        return num_frames
    return round(num_frames * stated / there)
