"""The README's tables of recipe keys, options and hooks, made from the code.

python tests/docs/reference.py        rewrites them in README.md
"""

from __future__ import annotations

import argparse
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from latentkit import builtin, hooks
from latentkit.cli.main import parser
from latentkit.contracts import PluginSpec
from latentkit.recipe.schema import TASKS

README = Path(__file__).parents[2] / "README.md"
START, END = "<!-- reference: start -->", "<!-- reference: end -->"


def reference() -> str:
    """The text between the markers."""
    parts = [START, "", "### Commands", "", *_commands()]
    for task, model in TASKS.items():
        parts += [
            "",
            f"### `task: {task}`",
            "",
            "| key | default | meaning |",
            "|---|---|---|",
            *_rows(model, ""),
        ]
    for spec in _specs():
        rows = list(_rows(spec.config, ""))
        parts += [
            "",
            f"### {spec.kind} `{spec.name}`",
            "",
            f"{spec.summary[0].upper()}{spec.summary[1:]}.",
        ]
        parts += ["", "| option | default | meaning |", "|---|---|---|", *rows] if rows else []
    parts += ["", "### Hooks", "", "| hook | returns |", "|---|---|", *_hooks(), "", END]
    return "\n".join(parts)


def _commands() -> Iterator[str]:
    yield "| command | arguments | what it does |"
    yield "|---|---|---|"
    yield from _commands_of(parser(), "")


def _commands_of(command: argparse.ArgumentParser, prefix: str) -> Iterator[str]:
    """A row for each command below one, and the commands below that."""
    for group in (
        action for action in command._actions if isinstance(action, argparse._SubParsersAction)
    ):
        summaries = {choice.dest: choice.help for choice in group._choices_actions}
        for name in summaries:
            below = group.choices[name]
            words = [
                _argument(action)
                for action in below._actions
                if not isinstance(action, argparse._SubParsersAction)
            ]
            said = " ".join(f"`{word}`" for word in words if word != "-h")
            yield f"| `{prefix}{name}` | {said} | {summaries[name]} |"
            yield from _commands_of(below, f"{prefix}{name} ")


def _argument(action: argparse.Action) -> str:
    if not action.option_strings:
        return str(action.metavar)
    return action.option_strings[0] + (f" {action.metavar}" if action.metavar else "")


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        key = prefix + (info.alias or name)
        meaning = (info.description or "").replace("|", "\\|")
        yield f"| `{key}` | {_default(info.get_default(call_default_factory=True))} | {meaning} |"
        part = _model_in(info.annotation)
        if part is not None:
            yield from _rows(
                part, f"{key}[]." if get_origin(info.annotation) is list else f"{key}."
            )


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "(needed)"
    if isinstance(value, BaseModel):
        return ""
    return "none" if value is None else f"`{list(value) if isinstance(value, tuple) else value}`"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation holds, alone, optional, or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, list):
        return next((model for part in get_args(annotation) if (model := _model_in(part))), None)
    return None


def _specs() -> Iterator[PluginSpec]:
    for hook in ("sources", "modalities", "encoders", "losses", "executors", "exporters", "metrics"):
        yield from getattr(builtin, f"latentkit_{hook}")()


def _hooks() -> Iterator[str]:
    for name, hook in vars(hooks).items():
        if name.startswith("latentkit_"):
            yield f"| `{name}` | {(hook.__doc__ or '').splitlines()[0]} |"


def main() -> None:
    """Rewrite the README's reference."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(START)
    README.write_text(before + reference() + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
