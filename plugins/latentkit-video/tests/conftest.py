"""Videos that several tests read."""

from __future__ import annotations

from pathlib import Path

import pytest
from videos import encode, numbered


@pytest.fixture(scope="session")
def ten_a_second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 60 numbered frames, 10 a second, with key frames at each full second."""
    return encode(tmp_path_factory.mktemp("videos") / "ten.mp4", numbered(60))
