"""What a launcher asks for by its environment: followed, or refused by name."""

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
"""Variables of `accelerate launch` that ask for what latentkit doesn't do, with what that is
called.
"""

Precision = Literal["float32", "bf16", "fp16"]

PRECISIONS: dict[str, Precision | None] = {"": None, "no": None, "bf16": "bf16", "fp16": "fp16"}
"""A recipe's `precision` by the launcher's word for it; None: the launcher asks for nothing."""


def check_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse what a launcher asks for and can't have.

    Raises:
        LatentkitError: names it, and says what to do.
    """
    asked = [name for variable, name in REFUSED.items() if _is_on(environment.get(variable, ""))]
    if environment.get("ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE", "NO") != "NO":
        asked.append("SageMaker's own data or model parallelism")
    if asked:
        raise LatentkitError(
            f"accelerate asks for {' and '.join(asked)}, which latentkit doesn't do: each process"
            " holds the whole model. Launch with accelerate launch --multi_gpu, or with torchrun"
        )
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "NO")
    if backend.upper() != "NO":
        raise LatentkitError(
            f"accelerate asks for the compiler {backend} (--dynamo_backend), which latentkit"
            " doesn't take from a launcher: leave it out, and set compile: true in the recipe"
        )


def launched_precision(environment: Mapping[str, str] = os.environ) -> Precision | None:
    """Return what `accelerate launch --mixed_precision` asks for; None: nothing.

    Raises:
        LatentkitError: it is none of a recipe's.
    """
    asked = environment.get("ACCELERATE_MIXED_PRECISION", "")
    if asked not in PRECISIONS:
        raise LatentkitError(
            f"accelerate asks for mixed precision {asked}, which latentkit doesn't train in: launch"
            " with --mixed_precision bf16, fp16 or no"
        )
    return PRECISIONS[asked]


def ignored_accumulation(environment: Mapping[str, str] = os.environ) -> int:
    """Return the launcher's number of passes per optimizer step, which isn't followed; 1: none."""
    asked = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "")
    return int(asked) if asked.isdecimal() else 1


def _is_on(value: str) -> bool:
    return value.lower() in ("1", "true", "yes", "y", "on", "t")
