"""The base classes of every task's recipe model. Importing this loads no torch.

Plugins import these from `latentkit.contracts`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr


class RecipePart(BaseModel):
    """Base of each mapping in a recipe: unknown keys are errors, values can't be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Use(RecipePart):
    """A plugin by name, with its options."""

    use: str = Field(min_length=1, description="name of the plugin")
    with_: dict[str, Any] = Field(
        default_factory=dict, alias="with", description="options of the plugin"
    )


class Recipe(RecipePart):
    """Base of the recipe model of every task. A task adds its keys, each with a description.

    A relative `output.path` or `latents` starts from the recipe's folder and becomes absolute; a
    URL stays. Other relative paths start from `base_dir`.
    """

    task: str = Field(description="what the recipe does")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random draw")

    _origin: str = PrivateAttr("recipe")
    _base_dir: Path = PrivateAttr(default_factory=Path)

    @property
    def origin(self) -> str:
        """Path of the recipe's file, or another name for it in messages."""
        return self._origin

    @property
    def base_dir(self) -> Path:
        """The folder that relative paths start from, absolute."""
        return self._base_dir

    def place(self, origin: str, base_dir: Path) -> None:
        """Set `origin` and `base_dir`; called by the loader of recipes."""
        self._origin, self._base_dir = origin, base_dir

    def uses(self) -> Iterator[tuple[str, str, Use]]:
        """Kind of plugin, key and use of every plugin the recipe names, in its order, such as
        ("source", "source", self.source). `latentkit check` looks each up and checks its options.
        """
        yield from ()
