"""A long video is never held."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from videos import encode

MEASURE = """
import resource, sys
from pathlib import Path
from latentkit.contracts import BuildContext, Sample
from latentkit_video.modality import VideoModality
from latentkit_video.plugin import VideoConfig

modality = VideoModality(VideoConfig(frames=int(sys.argv[3]), size=32), BuildContext())
def prepare(path, start):
    [view] = modality.prepare(Sample("a", Path(path), span=(start, start + 15.0)))

prepare(sys.argv[1], 0.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare(sys.argv[2], 9.0)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_a_long_video_is_streamed(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    short = encode(tmp_path / "short.mkv", [picture] * 8, codec="rawvideo", pix_fmt="yuv420p")
    long = encode(tmp_path / "long.mkv", [picture] * 150, codec="rawvideo", pix_fmt="yuv420p")
    assert long.stat().st_size > 65 << 20
    command = [sys.executable, "-c", MEASURE, str(short), str(long), "8"]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (
        grown < 16 << 20
    ), "preparing a clip of a video of 65 MiB took as much more than one of 3.5 MiB"
