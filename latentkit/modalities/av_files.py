"""Opens containers with FFmpeg (PyAV), for plugins of audio and video. Core itself doesn't need
PyAV.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from latentkit.contracts import Sample
from latentkit.errors import SampleError

if TYPE_CHECKING:
    from av.container import InputContainer

READ_BYTES = 1 << 18


@contextmanager
def open_with_av(
    sample: Sample, kind: str, formats: Sequence[str], install: str = "pip install av"
) -> Iterator[InputContainer]:
    """Open the media of a sample inside the context. It is read while it is decoded.

    Args:
        sample: sample whose media is a path, bytes, or anything that `Sample.read` reads.
        kind: what the media should be, for messages, such as "a video".
        formats: FFmpeg's names of the containers that may be opened. FFmpeg detects which one it
            is; a single name is used without detection. Without a list FFmpeg would also open
            playlists, which name other files and addresses.
        install: advice for the message if PyAV is missing.

    Raises:
        SampleError: the media isn't of that kind, is empty or is damaged (also if this is noticed
            inside the context); or PyAV is missing.
        OSError: the media can't be reached.
    """
    try:
        import av
    except ImportError:
        raise SampleError(
            f"{kind} in a container, which needs the package PyAV: {install}"
        ) from None
    # Through Python's file, so that OSErrors stay those of the medium, and FFmpeg sees no name that
    # it could take for an address.
    options = {"format_whitelist": ",".join(formats), "protocol_whitelist": "none"}
    only = formats[0] if len(formats) == 1 else None
    with _open_media(sample) as file:
        with av_errors(f"not {kind}, or damaged at its start"):
            container = av.open(
                file,
                "r",
                format=only,
                buffer_size=READ_BYTES,
                options=options,
                metadata_errors="replace",
            )
        with container, av_errors("damaged, or cut off"):
            yield container


@contextmanager
def av_errors(problem: str) -> Iterator[None]:
    """Turn FFmpeg's errors about a file into a `SampleError` whose text is the same in every run:
    the problem, and FFmpeg's name of the error.
    """
    import av

    try:
        yield
    except av.FFmpegError as error:
        raise SampleError(f"{problem}: {error.strerror}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # A size in the file is wrong: FFmpeg seeks to before its start, which files on disk refuse.
        raise SampleError(f"{problem}: Invalid data found when processing input") from error


def _open_media(sample: Sample) -> IO[bytes]:
    """Open a sample's media as a file at its start."""
    media: IO[bytes]
    if isinstance(sample.media, os.PathLike):
        media = Path(sample.media).open("rb")  # noqa: SIM115
    else:
        media = io.BytesIO(sample.read())
    if not media.seek(0, os.SEEK_END):
        media.close()
        raise SampleError("empty file: 0 bytes")
    media.seek(0)
    return media
