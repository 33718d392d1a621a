"""Every check for commands is proved by a command that is broken in one way and must fail it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from latentkit.contracts import CommandSpec
from latentkit.testing import CommandContract, check_names, find_failures


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("word", metavar="WORD", help="what is said")


def add_silently(parser: argparse.ArgumentParser) -> None:
    add(parser)
    parser.add_argument("--loud", action="store_true")


def make_forgetful() -> Callable[[argparse.ArgumentParser], None]:
    parsers: list[argparse.ArgumentParser] = []

    def add_once(parser: argparse.ArgumentParser) -> None:
        add(parser)
        if not parsers:
            parser.add_argument("--first", help="only once")
        parsers.append(parser)

    return add_once


def say(options: argparse.Namespace) -> int:
    return len(options.word) - 2


def say_nothing(options: argparse.Namespace) -> Any:
    return None


def fail(options: argparse.Namespace) -> int:
    return 1


class DoubleContract(CommandContract):
    def __init__(self, add_arguments: Any = add, run: Any = say) -> None:
        self.spec = CommandSpec("double", "say a word", add_arguments, run)

    def make_words(self, tmp_path: Path) -> Sequence[str]:
        return ["hi"]

    def entry_point(self) -> str | None:
        return None


BROKEN = {
    "silent": (
        lambda: DoubleContract(add_silently),
        "test_every_argument_says_what_it_does",
    ),
    "forgetful": (
        lambda: DoubleContract(make_forgetful()),
        "test_arguments_are_added_to_each_parser_anew",
    ),
    "no-code": (lambda: DoubleContract(run=say_nothing), "test_it_runs_and_gives_an_exit_code"),
    "fails": (lambda: DoubleContract(run=fail), "test_it_runs_and_gives_an_exit_code"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_command_broken_in_one_way_fails_the_check_for_it(name: str, tmp_path: Path) -> None:
    make, check = BROKEN[name]
    failures = set(find_failures(make(), tmp_path))
    assert check in failures
    assert failures <= {check, "test_every_argument_says_what_it_does"}


def test_a_good_command_passes_every_check(tmp_path: Path) -> None:
    assert find_failures(DoubleContract(), tmp_path) == {}


def test_every_check_for_commands_is_proved() -> None:
    shared = {name for name in check_names(CommandContract) if name not in vars(CommandContract)}
    assert {check for _, check in BROKEN.values()} == set(check_names(CommandContract)) - shared


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("My Command", "say", add, say), "name must be kebab-case, such as 'my-command'"),
        (("say", "two\nlines", add, say), "summary must be one line of text"),
        (("say", "say", None, say), "add_arguments must be callable, got NoneType"),
        (("say", "say", add, 3), "run must be callable, got int"),
    ],
)
def test_a_wrong_declaration_says_what_is_wrong(arguments: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        CommandSpec(*arguments)
