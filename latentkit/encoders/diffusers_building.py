"""Models of diffusers by their config, before any weights."""

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
    """A model with random weights (torch's global generator), float32.

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
            f"{name} can't be built by its config: {str(error).strip()[:500]}"
        ) from error


def build_unset(config: Mapping[str, Any], dtype: torch.dtype, device: str = "cpu") -> Any:
    """Return a model in the dtype, but for what its class keeps in float32; weights unset.

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
    """A model without weights, for the names and shapes of its tensors.

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
    """Silence warnings about what a `Fit` turns into errors, or diffusers uses of torch."""
    level = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity(50)
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            yield
    finally:
        diffusers.utils.logging.set_verbosity(level)
