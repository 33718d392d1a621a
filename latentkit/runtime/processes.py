"""Operations that all processes of a training run do together.

Every process must call each of these functions. Each makes the same collective calls in all
processes, whatever data a process has, so none waits for a call that another never makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor, nn

from latentkit.errors import TrainingError

T = TypeVar("T")


def run_on_first(act: Callable[[], T]) -> T:
    """Call `act` in the first process only, and return its result in every process.

    Args:
        act: returns something that can be pickled.

    Raises:
        Exception: what `act` raised, in the first process.
        TrainingError: `act` failed, in all other processes, with the same message.
    """
    state = PartialState()
    if state.num_processes == 1:
        return act()
    try:
        outcome = [act() if state.is_main_process else None, None]
    except Exception as error:
        broadcast_object_list([None, str(error) or type(error).__name__])
        raise
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise TrainingError(f"the first process failed: {outcome[1]}")
    return cast(T, outcome[0])


def share(tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the first process's tensor in every process, on the CPU in the others.

    Args:
        tensor: the tensor in the first process; None in the others.
        shape, dtype: shape and dtype of the tensor, given in every process.
    """
    device = PartialState().device
    buffer = torch.empty(shape, dtype=dtype, device=device) if tensor is None else tensor.to(device)
    if buffer.numel():
        buffer = broadcast(buffer)
    return buffer.cpu() if tensor is None else tensor


@torch.no_grad()
def share_weights(module: nn.Module) -> None:
    """Copy the first process's weights and buffers into the module."""
    if PartialState().num_processes == 1:
        return
    for tensor in chain(module.parameters(), module.buffers()):
        if tensor.numel():
            tensor.copy_(broadcast(tensor.clone(memory_format=torch.contiguous_format)))


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Average the gradients over all processes.

    A process without a gradient for a parameter counts as zeros. If no process has one it stays
    None, so an optimizer leaves the parameter unchanged.
    """
    num_processes = PartialState().num_processes
    if num_processes == 1 or not parameters:
        return
    given = [parameter.grad is not None for parameter in parameters]
    sizes, device = [parameter.numel() for parameter in parameters], parameters[0].device
    flat = torch.zeros(sum(sizes) + len(sizes), dtype=torch.float32, device=device)
    *pieces, counts = torch.split(flat, [*sizes, len(sizes)])
    means = [
        piece.view(parameter.shape) for parameter, piece in zip(parameters, pieces, strict=True)
    ]
    for parameter, mean in zip(parameters, means, strict=True):
        if parameter.grad is not None:
            mean.copy_(parameter.grad)
    if all(given):
        counts.fill_(1)
    else:
        counts.copy_(torch.tensor(given))  # this waits for a GPU
    torch.distributed.all_reduce(flat)
    flat /= num_processes
    is_given_anywhere = given if all(given) else counts.tolist()  # reading them waits for a GPU
    for parameter, mean, wanted in zip(parameters, means, is_given_anywhere, strict=True):
        if parameter.grad is not None:
            parameter.grad.copy_(mean)
        elif wanted:
            parameter.grad = torch.empty_like(parameter).copy_(mean)


@torch.no_grad()
def average_buffers(modules: Iterable[nn.Module]) -> None:
    """Average float buffers, such as running statistics, over all processes. Values that are equal
    everywhere stay bitwise the same.
    """
    num_processes = PartialState().num_processes
    buffers = [
        buffer
        for module in modules
        for buffer in module.buffers()
        if buffer.is_floating_point() and buffer.numel()
    ]
    if num_processes == 1 or not buffers:
        return
    flat = torch.cat([buffer.flatten().float() for buffer in buffers])
    ends = torch.cat([flat, -flat])
    torch.distributed.all_reduce(ends, torch.distributed.ReduceOp.MIN)
    lowest, negated_highest = ends.chunk(2)
    torch.distributed.all_reduce(flat)
    sizes = [buffer.numel() for buffer in buffers]
    parts = zip(
        torch.split(flat / num_processes, sizes),
        torch.split(lowest == -negated_highest, sizes),
        strict=True,
    )
    for buffer, (mean, is_equal) in zip(buffers, parts, strict=True):
        shape = buffer.shape
        buffer.copy_(torch.where(is_equal.view(shape), buffer, mean.view(shape).to(buffer.dtype)))
