"""Checkpoints: whole or absent, exact, two of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from latentkit.errors import TrainingError
from latentkit.training.checkpoint import (
    Checkpoint,
    list_checkpoints,
    pack_optimizer,
    read_checkpoint,
    read_newest,
    unpack_optimizer,
    write_checkpoint,
)


def checkpoint(step: int) -> Checkpoint:
    weight = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensors = {"model": {"w": weight}, "random": {"cpu": torch.get_rng_state()[None]}}
    return Checkpoint(step, tensors, {"positions": [[1, 2]], "loss": 0.1})


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    written = checkpoint(12)
    path = write_checkpoint(tmp_path, written)
    found = read_checkpoint(path)
    assert (found.step, found.state) == (12, written.state)
    assert torch.equal(found.tensors["model"]["w"], written.tensors["model"]["w"])
    assert torch.equal(found.tensors["random"]["cpu"], written.tensors["random"]["cpu"])


def test_only_safetensors_and_json_are_written(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, checkpoint(1))
    assert path.name == "step-0000001"
    assert sorted(file.name for file in path.iterdir()) == [
        "model.safetensors",
        "random.safetensors",
        "state.json",
    ]


def test_the_newest_two_are_kept_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for step in (5, 900, 10_000_000):
        write_checkpoint(tmp_path, checkpoint(step))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-0000900", "step-10000000"]


def test_the_best_is_kept_besides_and_as_many_new_ones_as_wanted(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write_checkpoint(tmp_path, checkpoint(step), keep=1, best=2 if step > 1 else None)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-0000002", "step-0000004"]


def test_a_later_one_that_could_not_be_used_is_removed_and_takes_no_ones_place(
    tmp_path: Path,
) -> None:
    for step in (1, 2, 5):
        write_checkpoint(tmp_path, checkpoint(step))
    write_checkpoint(tmp_path, checkpoint(3))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-0000002", "step-0000003"]


def test_a_half_written_checkpoint_is_not_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(1))
    (tmp_path / ".step-0000002.part").mkdir()
    (tmp_path / ".step-0000002.part" / "model.safetensors").write_bytes(b"half")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-0000001"]
    write_checkpoint(tmp_path, checkpoint(2))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-0000001", "step-0000002"]
    assert not (tmp_path / ".step-0000002.part").exists()


def test_there_are_none_where_there_is_no_folder(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nothing") == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3] + b"!" + path.read_bytes()[-2:])


DAMAGES: list[Callable[[Path], object]] = [
    lambda path: cut(path / "model.safetensors"),
    lambda path: flip(path / "model.safetensors"),
    lambda path: (path / "random.safetensors").unlink(),
    lambda path: (path / "state.json").write_text("{"),
    lambda path: (path / "state.json").write_text("[]"),
    lambda path: (path / "state.json").write_text(
        (path / "state.json").read_text().replace('"loss": 0.1', '"loss": 0.2')
    ),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    path = write_checkpoint(tmp_path, checkpoint(1))
    damage(path)
    with pytest.raises(TrainingError, match="step-0000001: the checkpoint is damaged"):
        read_checkpoint(path)


def test_the_newest_whole_checkpoint_is_read_and_damaged_ones_are_told_of(tmp_path: Path) -> None:
    told: list[str] = []
    assert read_newest(tmp_path, told.append) is None
    for step in (1, 2):
        flip(write_checkpoint(tmp_path, checkpoint(step)) / "model.safetensors")
    with pytest.raises(
        TrainingError, match=r"every checkpoint in .* is damaged\. Move that folder away"
    ):
        read_newest(tmp_path, told.append)
    write_checkpoint(tmp_path, checkpoint(1))
    flip(write_checkpoint(tmp_path, checkpoint(2)) / "model.safetensors")
    found = read_newest(tmp_path, told.append)
    assert found is not None
    assert found.step == 1
    assert len(told) == 3
    assert "step-0000002: the checkpoint is damaged" in told[-1]


def test_a_place_that_cant_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="can't be written"):
        write_checkpoint(tmp_path / "file", checkpoint(1))


def test_a_state_that_isnt_finite_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_checkpoint(tmp_path, Checkpoint(1, {}, {"loss": float("nan")}))
    assert list_checkpoints(tmp_path) == []


def test_an_optimizer_goes_on_exactly_from_its_packed_state() -> None:
    def step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        inputs = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        module(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    module = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(module.parameters(), 0.1)
    step(module, optimizer, 1)
    copy = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    copy.load_state_dict(module.state_dict())
    restored = torch.optim.AdamW(copy.parameters(), 0.1)
    packed = {
        name: tensor.contiguous().clone() for name, tensor in pack_optimizer(optimizer).items()
    }
    assert sorted(packed) == sorted(
        f"{n}.{name}" for n in (0, 1) for name in ("step", "exp_avg", "exp_avg_sq")
    )
    unpack_optimizer(restored, packed)
    for pair in ((module, optimizer), (copy, restored)):
        step(*pair, 2)
    assert torch.equal(module.weight, copy.weight)
    assert json.dumps(optimizer.state_dict()["param_groups"]) == json.dumps(
        restored.state_dict()["param_groups"]
    )
