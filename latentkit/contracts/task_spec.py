"""The declaration of a task: the model of its recipes, and the functions that run them.

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
    """The options of a run that aren't in its recipe. For a progress line see
    `latentkit.kit.Progress`.

    Args:
        dry_run: print what would be done, and do nothing; `TaskSpec.describe` is called instead.
        prune: drop samples that are gone from the source, even if most of them are.
        retry_skipped: try to encode skipped samples again.
        device: "auto", a kind such as "cuda", or one device such as "cuda:1"; overrides the recipe.
            `latentkit.kit.choose_device` returns the device of such a name.
        devices: several devices, such as ("cuda:0", "cuda:1"), with one process each. Empty: only
            `device`, or all devices if it is "auto".
        fits: if a recipe sets no size and the encoder doesn't take the default, use the nearest
            size; only for encode recipes of one encoder.
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
        """Print a remark for the user to stderr, in the first process only."""
        if self.is_first_process:
            print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Lazy:
    place: str


def lazy(place: str) -> Any:
    """Return a part of a `TaskSpec` that is loaded on first use, as its module loads slowly.

    Args:
        place: "package.module:name", as in entry points.
    """
    return _Lazy(place)


TaskOption = Literal["prune", "retry_skipped", "devices", "precision"]


@dataclass(frozen=True)
class TaskSpec(NamedSpec):
    """A task: what `task: NAME` in a recipe does. Returned by the hook `latentkit_tasks`.

    Each part may be `lazy("package.module:name")`.

    Args:
        recipe: subclass of `Recipe` that validates the recipe.
        run: called with the recipe and a `TaskContext`; `latentkit.run` returns its result. Called
            again with the same recipe, it continues where it stopped, or makes the result again.
        describe: called like `run` for `--dry-run`; returns a text that says what would be done,
            and
            writes nothing. None: the task has no dry run.
        check: called by `latentkit check` with the recipe and the keys of the plugins that may have
            to download something. Opens the other plugins on the CPU as a run would, and writes
            nothing.
        report: called with the result of `run`; returns the lines that `latentkit run` prints.
        takes: fields of the context that have an effect on the task, in addition to `dry_run` and
            `device`; others are refused. "precision": the launcher's mixed precision has an effect
            too; otherwise a warning says that it has none.

    Raises:
        ValueError: a name that is not kebab-case, a summary of several lines, a recipe model that
            refuses the task's own name or has a field without a description.
        TypeError: a part of the wrong type.
        PluginError: on first use of a lazy part that doesn't exist.
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
        import pkgutil  # imported here to keep discovery quick

        try:
            found = pkgutil.resolve_name(value.place)
        except (ImportError, AttributeError, ValueError) as error:
            where = f"{type(self).__name__}({self.name!r}): {name}"
            raise PluginError(f"{where}: {value.place} can't be loaded: {error}") from error
        object.__setattr__(self, name, found)
        self._check_part(name)
        return found

    def _check_part(self, name: str) -> None:
        """Raise an error if a part isn't a recipe model or a function, as its field requires."""
        if name == "recipe":
            self._check_recipe()
        elif getattr(self, name) is not None or name in ("run", "report"):
            self._check_callable(name)

    def _check_recipe(self) -> None:
        """Check that the recipe model is strict, describes every key, and accepts the task's name.
        """
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
