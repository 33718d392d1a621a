"""Checkpoints of a training run: a folder each, safetensors and JSON only, whole or absent.

    checkpoints/step-0001000/
      model.safetensors       weights and buffers
      optimizer.safetensors   "<number of the parameter>.<name of the state>"
      average.safetensors     the moving average, when there is one
      random.safetensors      torch's generators, one row a process
      loss.NAME..., discriminator.NAME..., discriminator-optimizer.NAME...
                              of losses with weights of their own
      state.json              steps done, position in the data, settings, sha256 of every file and
                              of itself

A checkpoint is written aside, flushed to disk and renamed, so a killed process leaves none that is
half written. It is written before the model is evaluated; what the evaluation found is then put
into state.json, which is replaced in one step.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from latentkit.errors import TrainingError
from latentkit.store.commit import sync
from latentkit.store.folder import canonical_json

NAME = re.compile(r"step-(\d{7,})")
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run goes on from.

    Args:
        tensors: by file stem ("model", "optimizer" ...), then by name.
        state: JSON values.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any] = field(default_factory=dict)


def write_checkpoint(
    folder: Path, checkpoint: Checkpoint, keep: int = 2, best: int | None = None
) -> Path:
    """Write a checkpoint to disk; remove all but the newest `keep` and that of `best`.

    Later ones, which are those that were too damaged to go on from, are removed as well.

    Raises:
        TrainingError: the disk is full, or the folder can't be written.
    """
    target = folder / f"step-{checkpoint.step:07d}"
    aside = folder / f".{target.name}.part"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for stem, tensors in checkpoint.tensors.items():
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                aside / f"{stem}.safetensors",
            )
        content = {
            "step": checkpoint.step,
            **checkpoint.state,
            "files": {path.name: _hash(path) for path in sorted(aside.iterdir())},
        }
        (aside / STATE).write_text(_state_text(content), encoding="utf-8")
        replace_folder(aside, target)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{target} can't be written: {error}; earlier checkpoints are untouched"
        ) from error
    _remove_old(folder, checkpoint.step, keep, best)
    return target


def amend_checkpoint(
    folder: Path, step: int, changes: Mapping[str, Any], keep: int = 2, best: int | None = None
) -> None:
    """Replace JSON values of a checkpoint, all at once; then remove others as when writing.

    Raises:
        TrainingError: the folder can't be written, or is full; the checkpoint is then as it was.
    """
    path = folder / f"step-{step:07d}"
    aside = folder / f".{path.name}.{STATE}.part"
    try:
        content = json.loads((path / STATE).read_text(encoding="utf-8"))
        del content["sha256"]
        aside.write_text(_state_text({**content, **changes}), encoding="utf-8")
        sync(aside)
        os.replace(aside, path / STATE)
        sync(path)
    except OSError as error:
        raise TrainingError(
            f"{path / STATE} can't be written: {error}; the checkpoint is as it was"
        ) from error
    _remove_old(folder, step, keep, best)


def _remove_old(folder: Path, step: int, keep: int, best: int | None) -> None:
    earlier = [path for path in list_checkpoints(folder) if step_of(path) <= step]
    kept = {*earlier[-keep:], *(path for path in earlier if step_of(path) == best)}
    for old in set(list_checkpoints(folder)) - kept:
        shutil.rmtree(old)


def read_checkpoint(path: Path, only: str | None = None) -> Checkpoint:
    """What `write_checkpoint` wrote, on the CPU.

    Args:
        only: stem of the one file that is read and checked, or "" for state.json alone.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if state.pop("sha256") != _hash_json(state):
            raise ValueError(f"{STATE} is not what was written")
        tensors = {}
        for name, expected in state.pop("files").items():
            stem = name.removesuffix(".safetensors")
            if only not in (None, stem):
                continue
            content = (path / name).read_bytes()  # not mapped: Windows could not remove it later
            if hashlib.sha256(content).hexdigest() != expected:
                raise ValueError(f"{name} is not what was written")
            tensors[stem] = load(content)
        return Checkpoint(int(state.pop("step")), tensors, state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise TrainingError(f"{path}: the checkpoint is damaged ({error})") from error


def read_weights(path: Path, raw: bool = False) -> dict[str, Tensor]:
    """Return the model's tensors in a checkpoint, on the CPU: their average if any, unless `raw`.

    Raises:
        TrainingError: it is damaged.
    """
    stem = "model" if raw or not has_average(path) else "average"
    tensors = read_checkpoint(path, stem).tensors
    if stem not in tensors:
        raise TrainingError(f"{path}: the checkpoint is damaged (it has no {stem}.safetensors)")
    return dict(tensors[stem])


def has_average(path: Path) -> bool:
    """Whether a checkpoint has a moving average of the weights.

    Raises:
        TrainingError: it is damaged.
    """
    return "num_average_updates" in read_checkpoint(path, "").state


def pick_checkpoint(run: Path, step: int | None, weights: str | None) -> tuple[Path, int, bool]:
    """Return folder and step of a run's checkpoint, and whether its averaged weights are meant.

    Args:
        step: None for the newest.
        weights: "average", "raw", or None for the average where there is one.

    Raises:
        TrainingError: there is no such checkpoint, it has no average, or it is damaged.
    """
    paths = {step_of(path): path for path in list_checkpoints(run / "checkpoints")}
    if not paths:
        raise TrainingError(
            f"{run}: expected the folder of a training run with a checkpoint, found none"
        )
    chosen = max(paths) if step is None else step
    if chosen not in paths:
        raise TrainingError(
            f"{run} has no checkpoint of step {chosen}; "
            f"there are {', '.join(map(str, sorted(paths)))}"
        )
    is_average = weights != "raw" and has_average(paths[chosen])
    if weights == "average" and not is_average:
        raise TrainingError(
            f"{paths[chosen]} has no average of the weights, as the recipe has no ema; "
            "leave out --weights"
        )
    return paths[chosen], chosen, is_average


def read_newest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest whole checkpoint, None without any; `warn` hears of damaged ones.

    Raises:
        TrainingError: there are some, all of them damaged.
    """
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        try:
            return read_checkpoint(path)
        except TrainingError as error:
            warn(f"{error}; going back to the one before")
    if paths:
        raise TrainingError(
            f"every checkpoint in {folder} is damaged; move that folder away to start again"
        )
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """Folders of all whole checkpoints, oldest first; empty when there are none."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """Optimizer steps done at a checkpoint, by its folder's name."""
    return int(path.name.removeprefix("step-"))


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state_text(content: Mapping[str, Any]) -> str:
    return json.dumps({**content, "sha256": _hash_json(content)}, indent=1, allow_nan=False) + "\n"


def _hash_json(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()


def replace_folder(aside: Path, target: Path) -> None:
    """Put the flushed folder `aside` in the place of `target`, absent for a moment at most.

    Raises:
        OSError: the disk is full, or the place can't be written.
    """
    for path in [*aside.iterdir(), aside]:
        sync(path)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(aside, target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


# ---------------------------------------------------------------- the optimizer's state, as named
# tensors


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of the optimizer's state, as "<number of the parameter>.<name>"."""
    states = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, state in states.items()
        for name, value in state.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, packed: Mapping[str, Tensor]) -> None:
    """Restore what `pack_optimizer` took, tensors in their parameters' memory format."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in packed.items():
        number, name = key.split(".")
        parameter = parameters[int(number)]
        arranged = (
            torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
        )
        states.setdefault(int(number), {})[name] = arranged
    optimizer.load_state_dict(
        {"state": states, "param_groups": optimizer.state_dict()["param_groups"]}
    )
