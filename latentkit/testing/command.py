"""Checks for commands."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from latentkit.contracts import CommandSpec, NamedSpec
from latentkit.testing.plugin import SpecContract


class CommandContract(SpecContract, ABC):
    """Checks that every command must pass. Set `spec`, and override `make_words`."""

    spec_type: ClassVar[type[NamedSpec]] = CommandSpec

    spec: CommandSpec

    # ------------------------------------------------------------ what a plugin author overrides

    @abstractmethod
    def make_words(self, tmp_path: Path) -> Sequence[str]:
        """Return the words after the command's name in a command line that works."""

    def entry_point(self) -> str | None:
        """See `SpecContract`. By default it is the module of `run`."""
        return self.spec.run.__module__

    # ------------------------------------------------------------ checks

    def test_every_argument_says_what_it_does(self, tmp_path: Path) -> None:
        """Each argument has a help text, which `latentkit NAME --help` shows."""
        silent = [
            "/".join(action.option_strings) or action.dest
            for action in self.make_parser()._actions
            if not action.help
        ]
        assert not silent, f"arguments without help=...: {', '.join(silent)}"

    def test_arguments_are_added_to_each_parser_anew(self, tmp_path: Path) -> None:
        """Two parsers get the same arguments: nothing is kept between two calls of `add_arguments`.
        """
        first, second = self.make_parser().format_help(), self.make_parser().format_help()
        assert first == second, f"first:\n{first}\nthe second time:\n{second}"

    def test_it_runs_and_gives_an_exit_code(self, tmp_path: Path) -> None:
        """With arguments that work, `run` returns 0."""
        code = self.run_words(self.make_words(tmp_path))
        assert type(code) is int, f"run returned {code!r}; expected an exit code, 0 for done"
        assert code == 0, f"run returned {code} with the arguments of make_words; expected 0"

    # ------------------------------------------------------------ for the checks

    def make_parser(self) -> argparse.ArgumentParser:
        """Return the command's own parser."""
        parser = argparse.ArgumentParser(f"latentkit {self.spec.name}")
        self.spec.add_arguments(parser)
        return parser

    def run_words(self, words: Sequence[str]) -> int:
        """Run the command with the words of a command line and return its exit code."""
        return self.spec.run(self.make_parser().parse_args(list(words)))
