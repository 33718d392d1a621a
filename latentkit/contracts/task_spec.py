"""A task: the model of its recipes, and what runs them.

Importing this loads no torch and no pydantic. Plugins import these from `latentkit.contracts`.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from latentkit.contracts.named_spec import NamedSpec
from latentkit.errors import PluginError

if TYPE_CHECKING:
    from latentkit.contracts.recipe_models import Recipe

@dataclass(frozen=True)
class TaskContext:
    """How a run is asked for, besides its recipe. For a live line see `latentkit.kit.Progress`.

    Args:
        dry_run: say what would be done, and do nothing; `TaskSpec.describe` is called then.
        prune: leave samples that are gone from the source out of the dataset, also when they are
            most of it.
        retry_skipped: encode once more the samples that were skipped.
        device: "auto", a kind such as "cuda", or one device such as "cuda:1"; goes before what the
            recipe says. `latentkit.kit.choose_device` gives the device that it means.
        devices: several, such as ("cuda:0", "cuda:1"), a process each. Empty: that one, or all
            where it is "auto".
        fits: where an encode recipe of one encoder leaves a size open whose default the encoder
            doesn't take, take its nearest.
        is_first_process: whether this is the only process, or the first of a launch, which alone
            prints and writes what all share.
    """

    dry_run: bool = False
    prune: bool = False
    retry_skipped: bool = False
    device: str = "auto"
    devices: tuple[str, ...] = ()
    fits: bool = False
    is_first_process: bool = True

    def say(self, text: str) -> None:
        """Print a remark for the user to stderr, from the first process only."""
        if self.is_first_process:
            print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Lazy:
    place: str


def lazy(place: str) -> Any:
    """A part of a `TaskSpec` that is loaded on first use, for one whose module takes long to load.

    Args:
        place: "package.module:name", as entry points have it.
    """
    return _Lazy(place)


TaskOption = Literal["prune", "retry_skipped", "devices", "precision"]


@dataclass(frozen=True)
class TaskSpec(NamedSpec):
    """A task: what `task: NAME` in a recipe does. Returned by the hook `latentkit_tasks`.

    Each part may be `lazy("package.module:name")`.

    Args:
        recipe: subclass of `Recipe` that validates the recipe.
        run: called with the recipe and a `TaskContext`; what it gives, `latentkit.run` gives.
            Called again with the same recipe, it goes on where it stopped, or makes the result
            again.
        describe: as `run`, for `--dry-run`: the text of what would be done, with nothing written.
            None: the task has no dry run.
        check: called by `latentkit check` with the recipe and the keys of those plugins that may
            have to download something; opens the others on the CPU as a run would, and writes
            nothing.
        report: what `run` gave to the lines that `latentkit run` prints at its end.
        takes: the fields of the context, besides `dry_run` and `device`, that have an effect on the
            task; others are refused. "precision": also the launcher's mixed precision, which is
            otherwise said to have none.

    Raises:
        ValueError: a name that is not kebab-case, a summary of several lines, a recipe model that
            refuses the task's own name or has a field without a description.
        TypeError: a part of the wrong type.
        PluginError: on first use of a part that is lazy and isn't there.
    """

    recipe: type[Recipe]
    run: Callable[[Any, TaskContext], Any]
    describe: Callable[[Any, TaskContext], str] | None = None
    check: Callable[[Any, Collection[str]], None] | None = None
    report: Callable[[Any], str] = str
    takes: Sequence[TaskOption] = ()

    kind: ClassVar[str] = "task"

    def __post_init__(self) -> None:
        super().__post_init__()
        where, known = self._where(), typing.get_args(TaskOption)
        if isinstance(self.takes, str) or not set(self.takes) <= set(known):
            raise ValueError(f"{where}: takes must be some of {known}, got {self.takes!r}")
        for name in ("recipe", "run", "describe", "check", "report"):
            if not isinstance(object.__getattribute__(self, name), _Lazy):
                self._check_part(name)

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not isinstance(value, _Lazy):
            return value
        import pkgutil  # here: discovery does without

        try:
            found = pkgutil.resolve_name(value.place)
        except (ImportError, AttributeError, ValueError) as error:
            where = f"{type(self).__name__}({self.name!r}): {name}"
            raise PluginError(f"{where}: {value.place} can't be loaded: {error}") from error
        object.__setattr__(self, name, found)
        self._check_part(name)
        return found

    def _check_part(self, name: str) -> None:
        """Refuse a recipe model or a function that can't be one."""
        if name == "recipe":
            self._check_recipe()
        elif getattr(self, name) is not None or name in ("run", "report"):
            self._check_callable(name)

    def _check_recipe(self) -> None:
        from latentkit.contracts.recipe_models import Recipe

        where = self._where()
        if not (isinstance(self.recipe, type) and issubclass(self.recipe, Recipe)):
            raise TypeError(
                f"{where}: recipe must be a subclass of latentkit.contracts.Recipe, got"
                f" {self.recipe!r}"
            )
        names = typing.get_args(self.recipe.model_fields["task"].annotation)
        if names and self.name not in names:
            raise ValueError(f"{where}: {self.recipe.__name__}.task takes {names} alone")
        bare = [name for name, info in self.recipe.model_fields.items() if not info.description]
        if bare:
            raise ValueError(f"{where}: recipe keys without a description: {', '.join(bare)}")
