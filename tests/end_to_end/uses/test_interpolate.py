"""The task interpolate on photos and tiny-kl: what it writes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import latentkit as lk
from latentkit import builtin, cli
from latentkit.errors import LatentkitError
from latentkit.testing import TaskContract
from latentkit.uses.paths import make_path
from latentkit.uses.raw_rows import RawRows, open_rows

MakeLatents = Callable[..., Path]
SPECS = {spec.name: spec for spec in builtin.latentkit_tasks()}
ENDS = ["003.png", "007.png"]


@pytest.fixture(scope="module")
def latents(make_latents: MakeLatents) -> Path:
    return make_latents(0, 12)


@pytest.fixture
def rows(latents: Path) -> RawRows:
    return open_rows(lk.open(latents), "mean", 0)


class TestInterpolateTask(TaskContract):
    spec = SPECS["interpolate"]

    @pytest.fixture(autouse=True)
    def _latents(self, latents: Path) -> None:
        self.latents = latents

    def make_values(self, tmp_path: Path) -> Mapping[str, Any]:
        values = {"task": "interpolate", "latents": str(self.latents), "between": ENDS, "steps": 3}
        return {**values, "output": {"path": "out"}}


@pytest.mark.parametrize("method", ["linear", "spherical", "neighbors"])
def test_a_path_goes_from_end_to_end(rows: RawRows, method: Any) -> None:
    ends = rows.moments(rows.find([*ENDS, ENDS[0]]))[0]
    std = torch.ones(rows.shape[0])
    pieces = make_path(ends, 6, method, rows, std)
    assert [tuple(piece.shape) for piece in pieces] == [(6, *rows.shape)] * 2
    for piece, start, end in zip(pieces, ends[:-1], ends[1:], strict=True):
        assert torch.allclose(piece[0], start, atol=1e-5)
        assert torch.allclose(piece[-1], end, atol=1e-5)
        if method == "linear":
            assert torch.allclose(piece[2] + piece[3], start + end, atol=1e-5)
    assert torch.allclose(pieces[0], pieces[1].flip(0), atol=1e-4)


def test_a_circle_keeps_the_length_of_normalized_latents(rows: RawRows) -> None:
    normalization, axes = rows.dataset.normalization, rows.dataset.layout.axes
    start = normalization.apply(rows.moments(rows.items[:1])[0], axes)
    other = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    other *= start.norm() / other.norm()
    ends = normalization.invert(torch.cat([start, other]), axes)
    (piece,) = make_path(ends, 5, "spherical", rows, torch.ones(rows.shape[0]))
    points = normalization.apply(piece, axes).flatten(1)
    assert torch.allclose(points.norm(dim=1), start.norm().expand(5), rtol=1e-4)
    turns = torch.nn.functional.cosine_similarity(points[:-1], points[1:])
    assert torch.allclose(turns, turns[:1].expand(4), atol=1e-4)
    same = ends[:1].expand(2, *ends.shape[1:])
    (still,) = make_path(same, 3, "spherical", rows, torch.ones(rows.shape[0]))
    assert torch.allclose(still, ends[:1].expand_as(still), atol=1e-5)


def test_neighbors_lead_around_a_gap(write_dataset: Callable[..., Path], tmp_path: Path) -> None:
    """Items on a quarter of a circle: the straight line leaves them, their neighbors don't."""
    angles = np.linspace(0, np.pi / 2, 9)
    points = np.stack([np.cos(angles), np.sin(angles)], 1).reshape(9, 1, 1, 2).astype(np.float16)
    names = [(f"{number}", "plain", "000-000000", "a", number) for number in range(9)]
    layout = {"name": "latent", "kind": "deterministic", "axes": "CHW", "channels": 1}
    more = {"layout": {**layout, "downscale": 8, "ragged_axis": None}, "store": "mean"}
    arrays = {"000-000000": {"a/latent": points}}
    rows = open_rows(lk.open(write_dataset(tmp_path / "z", arrays, names, **more)), "mean", 0)
    ends, std = rows.moments(rows.find(["0", "8"]))[0], torch.ones(1)
    (line,), (path,) = (make_path(ends, 21, way, rows, std) for way in ("linear", "neighbors"))
    assert float(line.flatten(1).norm(dim=1).min()) < 0.75
    assert float(path.flatten(1).norm(dim=1).min()) > 0.97
    steps = (path[1:] - path[:-1]).flatten(1).norm(dim=1)
    assert float(steps.max() / steps.min()) < 1.1


def test_points_are_written_with_what_is_known_of_them(latents: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    result = lk.interpolate(latents, tmp_path / "out", [*ENDS, "001.png"], steps=4, device="cpu")
    assert result is not None
    rows = load_dataset(str(tmp_path / "out" / "samples"), split="train", cache_dir=str(tmp_path))
    assert rows["position"] == pytest.approx([0, 1 / 3, 2 / 3, 1] * 2)
    assert rows["from"] == [ENDS[0]] * 4 + [ENDS[1]] * 4
    assert rows["nearest_key"][0] == ENDS[0]
    assert rows["nearest_distance"][0] == pytest.approx(0, abs=1e-6)
    with Image.open(tmp_path / "out" / "strip.png") as strip:
        assert strip.width > 4 * 64 > 3 * 64 > strip.height > 2 * 64
    summary = json.loads((tmp_path / "out" / "interpolate.json").read_text())
    sizes = summary["step_sizes"]
    assert [len(piece) for piece in sizes] == [3, 3]
    assert summary["unevenness"] == pytest.approx(max(max(p) / (sum(p) / 3) for p in sizes))
    assert summary["num_outside"] == sum(point["is_outside"] for point in result.points)
    images = [image.tobytes() for image in rows["image"]]
    again = lk.interpolate(latents, tmp_path / "b", [*ENDS, "001.png"], steps=4, device="cpu")
    assert again is not None
    assert again.points == result.points
    for number, content in enumerate(images):
        with Image.open(tmp_path / "b" / "samples" / f"{number:04d}.png") as image:
            assert image.tobytes() == content


def test_the_command(latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["interpolate", str(latents), str(tmp_path / "out"), "--between", *ENDS]
    assert cli.main([*words, "--steps", "3", "--method", "neighbors", "--device", "cpu"]) == 0
    assert "out: 3 points\n  largest step over mean step: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("between", "options", "message"),
    [
        (["003.png", "07.png"], {}, r"no item has the key '07\.png'; expected one such as '00"),
        (["003.png"], {}, "between"),
        (ENDS, {"steps": 2}, "steps"),
        (ENDS, {"method": "cubic"}, "method: expected"),
    ],
)
def test_bad_input_is_said(
    latents: Path, tmp_path: Path, between: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LatentkitError, match=message):
        lk.interpolate(latents, tmp_path / "out", between, device="cpu", **options)
    assert not (tmp_path / "out").exists()
