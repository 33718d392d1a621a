"""The video that shows clips."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor
from videos import Picture, make_modality

from latentkit.contracts import InputSpec


def color(
    red: float, green: float, blue: float, frames: int, height: int = 32, width: int = 48
) -> Tensor:
    """A clip of one color, of values from -1 to 1."""
    return torch.tensor([red, green, blue])[:, None, None, None].expand(3, frames, height, width)


def read(path: Path) -> tuple[list[Picture], float]:
    """The frames of a video, (H, W, 3), and its rate."""
    with av.open(path) as container:
        rate = container.streams.video[0].average_rate
        return [
            frame.to_ndarray(format="rgb24").astype(np.uint8) for frame in container.decode(video=0)
        ], float(rate or 0)


def test_clips_of_a_row_play_side_by_side_and_rows_below_each_other(tmp_path: Path) -> None:
    rows = [[color(1, -1, -1, 5), color(-1, 1, -1, 5)], [color(-1, -1, 1, 5)]]
    make_modality(fps=12.5).render(rows, tmp_path / "new" / "preview.mp4")
    frames, rate = read(tmp_path / "new" / "preview.mp4")
    assert (len(frames), rate) == (5, 12.5)
    places = {
        (20, 28): (255, 0, 0),
        (20, 80): (0, 255, 0),
        (56, 28): (0, 0, 255),
        (56, 80): (255, 255, 255),
    }
    for (row, column), expected in places.items():
        assert np.abs(frames[2][row, column].astype(int) - expected).max() <= 6, (row, column)


def test_a_shorter_clip_stays_on_its_last_frame(tmp_path: Path) -> None:
    short = torch.cat([color(-1, -1, -1, 1), color(1, -1, -1, 1)], 1)
    make_modality().render([[short, color(-1, -1, -1, 6, 31, 33)]], tmp_path / "a.mp4")
    frames, _ = read(tmp_path / "a.mp4")
    levels = [int(frame[20, 20, 0]) for frame in frames]
    assert len(levels) == 6
    assert levels[0] < 10
    assert min(levels[1:]) > 245


def test_clips_of_one_frame_are_shown_too(tmp_path: Path) -> None:
    modality = make_modality(InputSpec(3, (0.0, 1.0), axes="CTHW"))
    modality.render(
        [[torch.full((3, 1, 16, 16), float("nan")), torch.full((3, 1, 16, 16), 7.0)]],
        tmp_path / "a.png",
    )
    [frame], _ = read(tmp_path / "a.png")
    assert int(frame[12, 12].max()) < 10, "nan is black"
    assert int(frame[12, 32].min()) > 245, "what lies outside the range is clipped"


@pytest.mark.parametrize(
    "rows", [[], [[]], [[torch.zeros(3, 16, 16)]], [[torch.zeros(1, 4, 16, 16)]]]
)
def test_what_is_no_clip_is_refused(tmp_path: Path, rows: list[list[Tensor]]) -> None:
    with pytest.raises(ValueError, match="render"):
        make_modality().render(rows, tmp_path / "a.mp4")
