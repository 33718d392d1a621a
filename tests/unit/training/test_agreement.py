"""Processes that see different disks and different data still agree.

Run as a script, this file is one of two processes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import launch
from torch import nn

import latentkit
from latentkit.errors import LatentkitError
from latentkit.runtime.processes import average_gradients, run_on_first
from latentkit.training.checkpoint import list_checkpoints
from latentkit.training.start import join_processes

TOLD = "the first process failed: "


def recipe(photos: Path, output: Path, steps: int = 1) -> dict[str, Any]:
    return {
        "task": "train",
        "source": {"use": "folder", "with": {"path": str(photos)}},
        "modality": {"use": "image", "with": {"size": 32}},
        "model": {"use": "tiny-kl", "with": {"init": "random"}},
        "losses": [{"use": "mse"}],
        "steps": steps,
        "batch_size": 2,
        "output": {"path": str(output), "checkpoint_every": 1},
    }


@pytest.fixture(scope="module")
def launched(
    tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]
) -> Path:
    """A folder with what two processes wrote: CASE-RANK.txt."""
    folder = tmp_path_factory.mktemp("launched")
    write_photos(folder / "photos", 4)
    done = launch(__file__, folder)
    assert done.returncode == 0, done.stderr
    return folder


def read_both(folder: Path, case: str) -> list[str]:
    return [(folder / f"{case}-{rank}.txt").read_text() for rank in range(2)]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("foreign", "contains other files and no recipe.yaml"),
        ("orphan", "model is there, but no checkpoint that it came from"),
        ("damaged", "every checkpoint in"),
        ("broken", "no room on the device"),
    ],
)
def test_an_error_of_the_first_process_ends_all_with_its_message(
    launched: Path, case: str, message: str
) -> None:
    first, second = read_both(launched, case)
    assert message in first
    assert second == f"TrainingError: {TOLD}{first.split(': ', 1)[1]}"


def test_the_first_processes_answer_is_everybodys(launched: Path) -> None:
    assert read_both(launched, "answer") == ["rank 0", "rank 0"]


def test_a_gradient_of_one_process_is_averaged_over_all_and_none_stays_none(launched: Path) -> None:
    assert read_both(launched, "gradients") == [str([[3.0, 3.0], [1.0, 1.0], [0.5, 0.5], None])] * 2


def test_a_run_goes_on_from_the_first_processes_folder_alone(launched: Path) -> None:
    assert read_both(launched, "resumed") == ["3", "3"]
    assert [path.name for path in list_checkpoints(launched / "resumed-0" / "checkpoints")][
        -1
    ] == "step-0000003"
    assert not (launched / "resumed-1").exists()


# ---------------------------------------------------------------- one of the processes


def spoil(folder: Path, case: str) -> None:
    """Make the first process's output folder one that no run can go on in."""
    if case == "foreign":
        folder.mkdir()
        (folder / "thesis.txt").touch()
    elif case == "orphan":
        (folder / "checkpoints").rename(folder / "elsewhere")
    else:
        for checkpoint in list_checkpoints(folder / "checkpoints"):
            (checkpoint / "model.safetensors").write_bytes(b"")


def train_spoilt(case: str, photos: Path, output: Path, rank: int) -> str:
    """What a run in a spoilt folder says."""
    if case != "foreign":
        latentkit.run(recipe(photos, output))
    if rank == 0:
        spoil(output, case)
    try:
        latentkit.run(recipe(photos, output, 2))
    except LatentkitError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def break_down() -> None:
    raise RuntimeError("no room on the device")


def find_message(act: Callable[[], object]) -> str:
    try:
        run_on_first(act)
    except (RuntimeError, LatentkitError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def find_gradients(rank: int) -> str:
    """After averaging: of a weight with a gradient everywhere, two with one in one process, and one
    with none.
    """
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(4)]
    for weight, own in zip(
        weights, [(2.0, 4.0), (2.0, None), (None, 1.0), (None, None)], strict=True
    ):
        value = own[rank]
        weight.grad = None if value is None else torch.full((2,), value)
    average_gradients(weights)
    return str([None if weight.grad is None else weight.grad.tolist() for weight in weights])


def main(folder: Path) -> None:
    """One of two processes; each has output folders of its own."""
    rank, photos = int(os.environ["RANK"]), folder / "photos"
    join_processes()
    found = {
        "answer": run_on_first(lambda: f"rank {rank}"),
        "broken": find_message(break_down),
        "gradients": find_gradients(rank),
    }
    for case in ("foreign", "orphan", "damaged"):
        found[case] = train_spoilt(case, photos, folder / f"{case}-{rank}", rank)
    for steps in (1, 3):
        found["resumed"] = str(
            latentkit.run(recipe(photos, folder / f"resumed-{rank}", steps)).steps
        )  # type: ignore[union-attr]
    for case, text in found.items():
        (folder / f"{case}-{rank}.txt").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
