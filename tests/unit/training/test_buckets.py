"""Training on pictures of several shapes: aspect-ratio buckets, on one process and on two."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import launch
from PIL import Image

import latentkit
from latentkit.training.checkpoint import list_checkpoints, read_checkpoint

SIZES = ((48, 48), (64, 32), (32, 64), (48, 48), (64, 32))
RECIPE = """
task: train
source: {{use: folder, with: {{path: {photos}}}}}
modality: {{use: image, with: {{buckets: {{area: 2304, step: 16, aspect: 3}}, crop: random, views: [plain, hflip]}}}}
model: {{use: tiny-kl, with: {{init: random}}}}
losses: [{{use: l1}}, {{use: kl, weight: 1e-6}}]
steps: {steps}
batch_size: 2
output: {{path: {output}, checkpoint_every: 10}}
"""


@pytest.fixture
def photos(make_photos: Callable[..., Path]) -> Path:
    """Fifteen, six of them square, six flat and three tall."""
    folder = make_photos(15)
    for number, path in enumerate(sorted(folder.glob("*.png"))):
        with Image.open(path) as picture:
            changed = picture.resize(SIZES[number % 5])
        changed.save(path)
    return folder


def run(photos: Path, output: Path, steps: int, num_processes: int) -> None:
    recipe = output.with_suffix(".yaml")
    recipe.write_text(RECIPE.format(photos=photos, output=output, steps=steps))
    if num_processes == 1:
        latentkit.run(recipe)
        return
    done = launch("-m", "latentkit", "run", recipe, num_processes=num_processes)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_run_stopped_inside_an_epoch_goes_on_bit_for_bit_while_samples_wait(
    photos: Path, tmp_path: Path, num_processes: int
) -> None:
    run(photos, tmp_path / "straight", 7, num_processes)
    for steps in (3, 7):
        run(photos, tmp_path / "parts", steps, num_processes)
    stopped, last = (
        read_checkpoint(path) for path in list_checkpoints(tmp_path / "parts" / "checkpoints")
    )
    assert (stopped.step, last.step) == (3, 7)
    positions = stopped.state["positions"]
    assert len(positions) == num_processes
    assert any(len(position) > 1 for position in positions), "some wait for others of their shape"
    files = [
        list_checkpoints(tmp_path / name / "checkpoints")[-1] for name in ("straight", "parts")
    ]
    for file in files[0].iterdir():
        assert file.read_bytes() == (files[1] / file.name).read_bytes(), file.name
    lines = [
        json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == [3, 7]
