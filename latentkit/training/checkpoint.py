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
    """Everything that a run continues from.

    Args:
        step: completed optimizer steps.
        tensors: by file stem ("model", "optimizer" ...), then by name.
        state: JSON values.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any] = field(default_factory=dict)


def write_checkpoint(
    folder: Path, checkpoint: Checkpoint, keep: int = 2, best: int | None = None
) -> Path:
    """Write a checkpoint and return its folder, which is then on disk. Older ones are removed
    except the newest `keep` and that of step `best`.

    Later checkpoints, which were too damaged to continue from, are removed too.

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
    """Replace JSON values of a checkpoint, all at once, and remove others as when writing.

    Raises:
        TrainingError: the folder can't be written or is full; the checkpoint is then unchanged.
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
            f"{path / STATE} can't be written: {error}; the checkpoint is unchanged"
        ) from error
    _remove_old(folder, step, keep, best)


def _remove_old(folder: Path, step: int, keep: int, best: int | None) -> None:
    """Remove all checkpoints except the newest `keep` up to `step`, and the best."""
    earlier = [path for path in list_checkpoints(folder) if step_of(path) <= step]
    kept = {*earlier[-keep:], *(path for path in earlier if step_of(path) == best)}
    for old in set(list_checkpoints(folder)) - kept:
        shutil.rmtree(old)


def read_checkpoint(path: Path, only: str | None = None) -> Checkpoint:
    """Read what `write_checkpoint` wrote, on the CPU.

    Args:
        only: stem of the only file to read and check, or "" for state.json alone.

    Raises:
        TrainingError: the checkpoint is damaged.
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
            content = (
                path / name
            ).read_bytes()  # not mapped, because Windows couldn't remove it later
            if hashlib.sha256(content).hexdigest() != expected:
                raise ValueError(f"{name} is not what was written")
            tensors[stem] = load(content)
        return Checkpoint(int(state.pop("step")), tensors, state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise TrainingError(f"{path}: the checkpoint is damaged ({error})") from error


def read_weights(path: Path, raw: bool = False) -> dict[str, Tensor]:
    """Return the model's tensors in a checkpoint, on the CPU: their average if there is one, unless
    `raw`.

    Raises:
        TrainingError: the checkpoint is damaged.
    """
    stem = "model" if raw or not has_average(path) else "average"
    tensors = read_checkpoint(path, stem).tensors
    if stem not in tensors:
        raise TrainingError(f"{path}: the checkpoint is damaged (it has no {stem}.safetensors)")
    return dict(tensors[stem])


def has_average(path: Path) -> bool:
    """Return whether a checkpoint has a moving average of the weights.

    Raises:
        TrainingError: the checkpoint is damaged.
    """
    return "num_average_updates" in read_checkpoint(path, "").state


def pick_checkpoint(run: Path, step: int | None, weights: str | None) -> tuple[Path, int, bool]:
    """Return folder and step of a run's checkpoint, and whether its averaged weights are used.

    Args:
        step: None for the newest.
        weights: "average", "raw", or None for the average if there is one.

    Raises:
        TrainingError: the checkpoint doesn't exist, has no average, or is damaged.
    """
    paths = {step_of(path): path for path in list_checkpoints(run / "checkpoints")}
    if not paths:
        raise TrainingError(
            f"{run}: expected the folder of a training run with a checkpoint, found none"
        )
    chosen = max(paths) if step is None else step
    if chosen not in paths:
        raise TrainingError(
            f"{run} has no checkpoint of step {chosen}; available:"
            f" {', '.join(map(str, sorted(paths)))}"
        )
    is_average = weights != "raw" and has_average(paths[chosen])
    if weights == "average" and not is_average:
        raise TrainingError(
            f"{paths[chosen]} has no average of the weights, because the recipe has no ema. Leave"
            " out --weights"
        )
    return paths[chosen], chosen, is_average


def read_newest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest undamaged checkpoint, or None if there is none. `warn` is called for each
    newer damaged one.

    Raises:
        TrainingError: all checkpoints are damaged.
    """
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        try:
            return read_checkpoint(path)
        except TrainingError as error:
            warn(f"{error}; going back to the one before")
    if paths:
        raise TrainingError(
            f"every checkpoint in {folder} is damaged. Move that folder away to start again"
        )
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the folders of all complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """Return a checkpoint's completed optimizer steps, from its folder's name."""
    return int(path.name.removeprefix("step-"))


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state_text(content: Mapping[str, Any]) -> str:
    return json.dumps({**content, "sha256": _hash_json(content)}, indent=1, allow_nan=False) + "\n"


def _hash_json(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()


def replace_folder(aside: Path, target: Path) -> None:
    """Flush the folder `aside` to disk and move it to `target`, which is always complete, or absent
    for a moment.

    Raises:
        OSError: the disk is full, or the folder can't be written.
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
    """Return every tensor of the optimizer's state, as "<number of the parameter>.<name>"."""
    states = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, state in states.items()
        for name, value in state.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, packed: Mapping[str, Tensor]) -> None:
    """Restore the state that `pack_optimizer` returned, each tensor in its parameter's memory
    format.
    """
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
