"""The base of all declarations, and the declaration of a command.

Importing this loads no pydantic, so that `latentkit --help` stays quick.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import argparse

NAME_PATTERN = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class NamedSpec:
    """Base of every declaration, with a name and a summary; checked when it is created.

    Args:
        name: kebab-case name used by recipes or on the command line.
        summary: one line for `latentkit plugins`.

    Raises:
        ValueError: a name that is not kebab-case, a summary of several lines.
    """

    name: str
    summary: str

    kind: ClassVar[str] = "plugin"

    def __post_init__(self) -> None:
        where = self._where()
        if not isinstance(self.name, str) or not NAME_PATTERN.fullmatch(self.name):
            raise ValueError(f"{where}: name must be kebab-case, such as 'my-{self.kind}'")
        if not isinstance(self.summary, str) or not self.summary.strip() or "\n" in self.summary:
            raise ValueError(f"{where}: summary must be one line of text, got {self.summary!r}")

    def _where(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def _check_callable(self, name: str) -> None:
        value = getattr(self, name)
        if not callable(value):
            raise TypeError(
                f"{self._where()}: {name} must be callable, got {type(value).__name__}"
            )


@dataclass(frozen=True)
class CommandSpec(NamedSpec):
    """A command: `latentkit NAME ...`. Returned by the hook `latentkit_commands`.

    Core's own commands are declared the same way. A plugin's command with the name of a core
    command never runs, and `latentkit plugins` lists it as a problem.

    Args:
        add_arguments: adds its arguments to a parser.
        run: runs the command with the parsed arguments and returns the exit code: 0 for success, 1
            if it found something wrong. A `LatentkitError` is printed as one message, with the exit
            code 2.
    """

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]

    kind: ClassVar[str] = "command"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_callable("add_arguments")
        self._check_callable("run")
