"""Options of core's executors. Loads no torch."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from latentkit.contracts import (
    Config,
    neutral,
)

# ---------------------------------------------------------------- executors


class LocalConfig(Config):
    """Executor `local`."""

    device: str = neutral(
        "auto",
        description=(
            "auto (all accelerators, a process each, or the CPU), a kind such as cuda, or one"
            " device such as cuda:1"
        ),
    )
    devices: list[str] | None = neutral(
        None, description="several, a process each, such as [cuda:0, cuda:1]; null: see device"
    )

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.devices is not None and (not self.devices or self.device != "auto"):
            raise ValueError("give device or devices, and at least one")
        return self
