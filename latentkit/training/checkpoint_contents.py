"""Converts everything of a training run that changes with a step to a checkpoint, and restores it
exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn

from latentkit.errors import TrainingError
from latentkit.runtime.device import kind_of, random_state, set_random_state
from latentkit.runtime.nested import find_differences
from latentkit.runtime.processes import run_on_first, share
from latentkit.training.batches import BatchSettings, Order, Position
from latentkit.training.checkpoint import Checkpoint, pack_optimizer, unpack_optimizer
from latentkit.training.ema import WeightAverage
from latentkit.training.settings import OptimizerSettings, TrainSettings

ORDER_VERSION = 2
"""Version of the meaning of positions in the data; 1 dropped what didn't fill an epoch's last
batches.
"""


@dataclass
class Discriminator:
    """A discriminator and its optimizer.

    Args:
        module: frozen except in its own pass.
        parameters: its trained parameters.
        num_steps: steps that it will have made at the end of the run.
        step: completed optimizer steps, which decide its learning rate.
        num_skipped_steps: steps of the run in which its loss or gradient wasn't finite.
    """

    module: nn.Module
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    settings: OptimizerSettings
    num_steps: int
    step: int = 0
    num_skipped_steps: int = 0


@dataclass(frozen=True)
class Best:
    """The best evaluation so far: its step, the metric's value, and the metric's name."""

    step: int
    value: float
    metric: str = ""


@dataclass
class TrainState:
    """The current state of a run: `step` counts completed optimizer steps, `position` is this
    process's in the data.

    `loss_modules` and `discriminators` are by the name of their loss; `evaluated` is the step of
    the newest evaluation. `is_whole` is False while optimizers change weights, which then belong
    neither to this step nor to the next.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: WeightAverage | None
    loss_modules: Mapping[str, nn.Module] = field(default_factory=dict)
    discriminators: Mapping[str, Discriminator] = field(default_factory=dict)
    step: int = 0
    position: Position = field(default_factory=Position)
    num_skipped_steps: int = 0
    best: Best | None = None
    evaluated: int | None = None
    is_whole: bool = True


def remember_position(state: TrainState, accelerator: Accelerator) -> Callable[[], None]:
    """Return a function that restores this process's current position and random numbers."""
    position, random = state.position, _random_states(accelerator)

    def go_back() -> None:
        state.position = position
        _restore_random(
            {name: value.expand(accelerator.num_processes, -1) for name, value in random.items()},
            accelerator,
        )

    return go_back


def pack(
    state: TrainState, settings: TrainSettings, num_samples: int, accelerator: Accelerator
) -> Checkpoint:
    """Return the state of all processes as a checkpoint. Every process must call it."""
    random = {
        name: accelerator.gather(value[None].to(accelerator.device))
        for name, value in _random_states(accelerator).items()
    }
    tensors: dict[str, Mapping[str, Tensor]] = {
        "model": state.module.state_dict(),
        "optimizer": pack_optimizer(state.optimizer),
        "random": random,
    }
    values: dict[str, Any] = {
        "positions": gather_object([[state.position.number, *state.position.waiting]]),
        "data": _data_order(settings, num_samples, accelerator),
        "num_skipped_steps": state.num_skipped_steps,
        "num_threads": torch.get_num_threads(),
        "scaler": state.scaler.state_dict(),
        **pack_evaluation(state),
        "discriminators": {
            name: {"step": found.step, "num_skipped_steps": found.num_skipped_steps}
            for name, found in state.discriminators.items()
        },
        "settings": asdict(settings),
        "torch": torch.__version__,
    }
    if state.average is not None:
        tensors["average"] = state.average.tensors
        values["num_average_updates"] = state.average.num_updates
    tensors |= {f"loss.{name}": module.state_dict() for name, module in state.loss_modules.items()}
    for name, found in state.discriminators.items():
        tensors |= {
            f"discriminator.{name}": found.module.state_dict(),
            f"discriminator-optimizer.{name}": pack_optimizer(found.optimizer),
        }
    return Checkpoint(state.step, tensors, values)


def pack_evaluation(state: TrainState) -> dict[str, Any]:
    """Return what an evaluation changes in a checkpoint."""
    return {"best": asdict(state.best) if state.best else None, "evaluated": state.evaluated}


def read_together(read: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """Return, in every process, the checkpoint that `read` returns in the first one.

    No other process reads its disk. Tensors are sent one by one, never pickled.

    Raises:
        TrainingError: raised by `read`.
    """
    own: list[Checkpoint] = []

    def outline() -> tuple[int, dict[str, Any], Mapping[str, Any]] | None:
        found = read()
        if found is None:
            return None
        own.append(found)
        forms = {
            stem: {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
            for stem, tensors in found.tensors.items()
        }
        return found.step, forms, found.state

    sent = run_on_first(outline)
    if sent is None or PartialState().num_processes == 1:
        return own[0] if own else None
    step, forms, values = sent
    tensors = {
        stem: {
            name: share(own[0].tensors[stem][name] if own else None, shape, dtype)
            for name, (shape, dtype) in parts.items()
        }
        for stem, parts in forms.items()
    }
    return Checkpoint(step, tensors, values)


def restore(
    state: TrainState,
    checkpoint: Checkpoint,
    settings: TrainSettings,
    num_samples: int,
    accelerator: Accelerator,
) -> list[str]:
    """Restore the checkpoint's state, and return lines on where the run continues and what has
    changed.

    With another batch size, seed, number of samples or number of processes the order of the data
    changes, and the run continues with the next epoch.

    Raises:
        TrainingError: the checkpoint belongs to another model or other losses.
    """
    values = checkpoint.state
    try:
        _restore_tensors(state, checkpoint)
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        raise TrainingError(
            "output.path contains a run of a different model. Choose another output.path, or"
            f" restore that model. {error}"
        ) from error
    if values["scaler"] and state.scaler.is_enabled():
        state.scaler.load_state_dict(values["scaler"])
    state.step, state.num_skipped_steps = checkpoint.step, values["num_skipped_steps"]
    state.best = Best(**values["best"]) if values["best"] else None
    state.evaluated = values.get(
        "evaluated", checkpoint.step
    )  # older versions evaluated before they wrote
    if accelerator.device.type == "cpu":
        torch.set_num_threads(values["num_threads"])  # another number adds up in another order
    now = asdict(settings)
    then = {name: values["settings"].get(name) for name in now}
    changes = [f"{line} from here on" for line in find_differences(then, now)]
    notes = [f"continuing from step {state.step}", *changes]
    if values["data"] == _data_order(settings, num_samples, accelerator):
        number, *waiting = values["positions"][accelerator.process_index]
        state.position = Position(number, tuple(waiting))
        _restore_random(checkpoint.tensors["random"], accelerator)
        return notes
    before, most = values["data"], max(number for number, *_ in values["positions"])
    # The next epoch that hasn't started; older positions are pairs of epoch and batch.
    epoch = (
        math.ceil(most * before["num_processes"] / before["num_samples"])
        if "version" in before
        else most + 1
    )
    state.position = Order(num_samples, batches_of(settings, accelerator)).start_of(epoch)
    torch.manual_seed(
        settings.seed
        + 1_000_003 * (state.step * accelerator.num_processes + accelerator.process_index)
    )
    return [*notes, f"the data comes in another order than before; continuing with epoch {epoch}"]


def _restore_tensors(state: TrainState, checkpoint: Checkpoint) -> None:
    """Load weights, optimizers, average, losses and discriminators from a checkpoint."""
    tensors, values = checkpoint.tensors, checkpoint.state
    state.module.load_state_dict(dict(tensors["model"]))
    unpack_optimizer(state.optimizer, tensors["optimizer"])
    if state.average is not None:
        state.average.load(
            tensors.get("average", tensors["model"]), values.get("num_average_updates", 0)
        )
    for name, module in state.loss_modules.items():
        module.load_state_dict(dict(tensors[f"loss.{name}"]))
    for name, found in state.discriminators.items():
        found.module.load_state_dict(dict(tensors[f"discriminator.{name}"]))
        unpack_optimizer(found.optimizer, tensors[f"discriminator-optimizer.{name}"])
        counts = values["discriminators"][name]
        found.step, found.num_skipped_steps = counts["step"], counts["num_skipped_steps"]


def batches_of(settings: TrainSettings, accelerator: Accelerator) -> BatchSettings:
    """Return the settings of this process's batches."""
    rank, world_size = accelerator.process_index, accelerator.num_processes
    return BatchSettings(
        settings.batch_size,
        settings.seed,
        rank,
        world_size,
        settings.on_bad_sample,
        settings.max_bad,
    )


def _data_order(
    settings: TrainSettings, num_samples: int, accelerator: Accelerator
) -> dict[str, int]:
    """Return everything that decides the order of the data."""
    return {
        "version": ORDER_VERSION,
        "num_samples": num_samples,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "num_processes": accelerator.num_processes,
    }


def _random_states(accelerator: Accelerator) -> dict[str, Tensor]:
    """Return the states of the CPU's and the device's generators, by kind of device."""
    return {kind_of(device): random_state(device) for device in ("cpu", accelerator.device)}


def _restore_random(states: Mapping[str, Tensor], accelerator: Accelerator) -> None:
    """Restore the generators' states."""
    # cloned, since torch reads a state from the start of its storage, which is another process's
    # row
    for device in ("cpu", accelerator.device):
        if kind_of(device) in states:
            set_random_state(
                device, states[kind_of(device)][accelerator.process_index].cpu().clone()
            )
