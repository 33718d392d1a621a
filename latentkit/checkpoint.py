"""Checkpoints of a training run: a folder each, safetensors and JSON only, whole or absent.

    checkpoints/step-0001000/
      model.safetensors       weights and buffers
      optimizer.safetensors   "<number of the parameter>.<name of the state>"
      average.safetensors     the moving average, when there is one
      random.safetensors      torch's generators, one row a process
      state.json              steps done, position in the data, settings

A checkpoint is written aside, flushed to disk and renamed, so a killed process leaves none that is half written.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentkit.errors import TrainingError
from latentkit.store.folder import sync

KEPT = 2
NAME = re.compile(r"step-(\d{7,})")
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run goes on from.

    Args:
        step: optimiser steps done.
        tensors: by file stem ("model", "optimizer" ...), then by name.
        state: JSON values.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any] = field(default_factory=dict)


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """The folder of the checkpoint, now on disk; all but the newest two are then removed.

    Raises:
        TrainingError: the disk is full, or the folder can't be written.
    """
    target = folder / f"step-{checkpoint.step:07d}"
    aside = folder / f".{target.name}.part"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for stem, tensors in checkpoint.tensors.items():
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside / f"{stem}.safetensors")
        content = {"step": checkpoint.step, **checkpoint.state}
        (aside / STATE).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        replace_folder(aside, target)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{target} can't be written: {error}; earlier checkpoints are untouched") from error
    for old in list_checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old)
    return target


def read_checkpoint(path: Path) -> Checkpoint:
    """What `write_checkpoint` wrote, on the CPU.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
        return Checkpoint(int(state.pop("step")), tensors, state)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise TrainingError(f"{path}: the checkpoint is damaged ({error}); remove it to go on from the one before") from error


def list_checkpoints(folder: Path) -> list[Path]:
    """Folders of all whole checkpoints, oldest first; empty when there are none."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def replace_folder(aside: Path, target: Path) -> None:
    """Put the folder `aside`, flushed to disk, in the place of `target`.

    Raises:
        OSError: the disk is full, or the place can't be written.
    """
    for path in [*aside.iterdir(), aside]:
        sync(path)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(aside, target)
    sync(target.parent)


# ---------------------------------------------------------------- the optimiser's state, as named tensors


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of the optimiser's state, as "<number of the parameter>.<name>"."""
    states = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, state in states.items() for name, value in state.items()}


def unpack_optimizer(optimizer: torch.optim.Optimizer, packed: Mapping[str, Tensor]) -> None:
    """Give the optimiser the state that `pack_optimizer` took, each tensor in its parameter's memory format."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in packed.items():
        number, name = key.split(".")
        parameter = parameters[int(number)]
        arranged = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
        states.setdefault(int(number), {})[name] = arranged
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
