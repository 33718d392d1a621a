"""Builds diffusers models from their configs, before any weights are read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from diffusers.models.modeling_utils import no_init_weights

from latentkit.errors import EncoderError


def build_model(config: Mapping[str, Any]) -> Any:
    """Build a float32 model with random weights, drawn from torch's global generator.

    Raises:
        EncoderError: the config doesn't fit its class.
    """
    name = config["_class_name"]
    try:
        with quiet():
            return getattr(diffusers, name).from_config(config)
    except (
        ValueError,
        TypeError,
        RuntimeError,
        ArithmeticError,
        LookupError,
        ImportError,
        NameError,
    ) as error:
        raise EncoderError(
            f"{name} can't be built from its config: {str(error).strip()[:500]}"
        ) from error


def build_unset(config: Mapping[str, Any], dtype: torch.dtype, device: str = "cpu") -> Any:
    """Build a model with uninitialized weights, in the dtype except for what its class keeps in
    float32.

    Raises:
        EncoderError: the config doesn't fit its class.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), no_init_weights(), torch.random.fork_rng(devices=[]):
            model = build_model(config)
    finally:
        torch.set_default_dtype(before)
    kept = set(model._keep_in_fp32_modules or ())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if kept & set(name.split(".")) else dtype)
    return model


def build_shapes(config: Mapping[str, Any]) -> Any:
    """Build a model without weights, for the names and shapes of its tensors.

    Raises:
        EncoderError: the config doesn't fit its class.
    """
    try:
        return build_unset(config, torch.float32, "meta")
    except EncoderError:
        return build_unset(
            config, torch.float32
        )  # a few classes compute with their weights when they are made


@contextmanager
def quiet() -> Iterator[None]:
    """Silence diffusers' warnings about problems that `Fit` reports as errors, and torch's
    deprecation warnings about diffusers.
    """
    level = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity(50)
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield
    finally:
        diffusers.utils.logging.set_verbosity(level)
