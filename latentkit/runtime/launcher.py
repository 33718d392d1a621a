"""Reads the settings that a launcher passes in environment variables, or refuses them by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from latentkit.errors import LatentkitError

REFUSED = {
    "ACCELERATE_USE_FSDP": "FSDP (--use_fsdp)",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed (--use_deepspeed)",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM (--use_megatron_lm)",
    "ACCELERATE_USE_PARALLELISM_CONFIG": (
        "splitting a model over devices (--use_parallelism_config)"
    ),
    "ACCELERATE_IN_TPU_POD": "TPUs (--tpu)",
}
"""Variables of `accelerate launch` for features that latentkit doesn't have, and the features'
names.
"""

Precision = Literal["float32", "bf16", "fp16"]

PRECISIONS: dict[str, Precision | None] = {"": None, "no": None, "bf16": "bf16", "fp16": "fp16"}
"""A recipe's `precision` for each of the launcher's values; None means that the launcher sets
none.
"""


def check_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse settings of a launcher that latentkit doesn't support.

    Raises:
        LatentkitError: the message names the setting and says what to do.
    """
    asked = [name for variable, name in REFUSED.items() if _is_on(environment.get(variable, ""))]
    if environment.get("ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE", "NO") != "NO":
        asked.append("SageMaker's own data or model parallelism")
    if asked:
        raise LatentkitError(
            f"accelerate is set to {' and '.join(asked)}, which latentkit doesn't support: each"
            " process holds the whole model. Launch with accelerate launch --multi_gpu, or with"
            " torchrun"
        )
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "NO")
    if backend.upper() != "NO":
        raise LatentkitError(
            f"accelerate is set to the compiler {backend} (--dynamo_backend), which latentkit"
            " doesn't take from a launcher. Leave it out, and set compile: true in the recipe"
        )


def launched_precision(environment: Mapping[str, str] = os.environ) -> Precision | None:
    """Return the precision that `accelerate launch --mixed_precision` sets; None if it sets none.

    Raises:
        LatentkitError: a recipe has no such precision.
    """
    asked = environment.get("ACCELERATE_MIXED_PRECISION", "")
    if asked not in PRECISIONS:
        raise LatentkitError(
            f"accelerate is set to mixed precision {asked}, in which latentkit doesn't train."
            " Launch with --mixed_precision bf16, fp16 or no"
        )
    return PRECISIONS[asked]


def ignored_accumulation(environment: Mapping[str, str] = os.environ) -> int:
    """Return the launcher's number of gradient accumulation steps, which is ignored; 1 if it sets
    none.
    """
    asked = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "")
    return int(asked) if asked.isdecimal() else 1


def _is_on(value: str) -> bool:
    """Return whether a variable's value means true."""
    return value.lower() in ("1", "true", "yes", "y", "on", "t")
