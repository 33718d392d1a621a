"""The pages in docs/reference that are made from the code.

    python tests/docs/reference.py        rewrites them
"""

from __future__ import annotations

import argparse
import inspect
import types
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import latentkit
from latentkit import builtin, contracts, errors, hooks, testing
from latentkit.cli.main import parser
from latentkit.contracts import PluginSpec
from latentkit.errors import InterruptedRunError, LatentkitError
from latentkit.reading.batches import Batches

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
NOTE = "<!-- Made from the code: python tests/docs/reference.py -->"
OPTIONS_HEAD = ["", "| option | default | meaning |", "|---|---|---|"]


def pages() -> dict[str, str]:
    """The text of each generated page, by its name in docs/reference."""
    made = {
        "cli.md": _cli(),
        "recipes.md": _recipes(),
        "options.md": _options(),
        "errors.md": _errors(),
        "python.md": _python(),
        "plugin-api.md": _plugin_api(),
    }
    return {name: "\n".join(lines) + "\n" for name, lines in made.items()}


# ---------------------------------------------------------------- commands


def _cli() -> Iterator[str]:
    yield from [NOTE, "# Command line", "", "| command | what it does |", "|---|---|"]
    commands = list(_commands_of(parser(), ""))
    for name, _, summary in commands:
        yield f"| [`{name}`](#{name.replace(' ', '-')}) | {summary} |"
    yield from [
        "",
        "SOURCE and E are looked up in this order: the name of a plugin, a path that exists,",
        "`owner/name` on the Hugging Face hub. Write `./x` for a path that is also a plugin's name.",
        "`latentkit --version` prints the version.",
    ]
    for name, command, summary in commands:
        yield from ["", f"## {name}", "", f"{summary[0].upper()}{summary[1:]}.", "", "```text"]
        yield _usage(f"latentkit {name}", command)
        yield from ["```", "", "| argument | meaning |", "|---|---|"]
        yield from (f"| `{_argument(action)}` | {_help(action)} |" for action in _own(command))


def _commands_of(
    command: argparse.ArgumentParser, prefix: str
) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Name, parser and summary of each command below one, and of the commands below that."""
    for group in command._actions:
        if isinstance(group, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in group._choices_actions}
            for name in summaries:  # not those that only spell out another
                below = group.choices[name]
                yield prefix + name, below, summaries[name]
                yield from _commands_of(below, f"{prefix}{name} ")


def _own(command: argparse.ArgumentParser) -> list[argparse.Action]:
    hidden = (argparse._SubParsersAction, argparse._HelpAction)
    return [action for action in command._actions if not isinstance(action, hidden)]


def _usage(name: str, command: argparse.ArgumentParser) -> str:
    words = [
        _argument(action) if not action.option_strings or action.required else f"[{_argument(action)}]"
        for action in _own(command)
    ]
    return " ".join([name, *words])


def _argument(action: argparse.Action) -> str:
    if not action.option_strings:
        return str(action.metavar)
    value = "|".join(action.choices) if action.choices else action.metavar
    return action.option_strings[0] + (f" {value}" if value else "")


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("%%", "%").replace("|", "\\|")


# ---------------------------------------------------------------- recipes and options


def _recipes() -> Iterator[str]:
    yield from [NOTE, "# Recipe keys", ""]
    yield from [
        "A recipe is one YAML file for one task. `use` names a plugin and `with` holds its options,",
        "which are on the page [Options of built-ins](options.md). `[]` marks a list.",
    ]
    for spec in builtin.latentkit_tasks():
        summary = f"{spec.summary[0].upper()}{spec.summary[1:]}."
        yield from ["", f"## task: {spec.name}", "", summary]
        yield from ["", "| key | default | meaning |", "|---|---|---|", *_rows(spec.recipe, "")]


def _options() -> Iterator[str]:
    yield from [NOTE, "# Options of built-ins", ""]
    yield from [
        "What each part that comes with latentkit takes under `with`. Packages in `plugins/` have",
        "theirs in a README of their own; `latentkit plugins` lists every part that is installed.",
    ]
    for kind, specs in groupby(_specs(), key=lambda spec: spec.kind):
        yield from ["", f"## {PLURALS[kind]}"]
        for spec in specs:
            rows = list(_rows(spec.config, ""))
            summary = f"{spec.summary[0].upper()}{spec.summary[1:]}."
            yield from ["", f"### {kind} `{spec.name}`", "", summary]
            yield from [*OPTIONS_HEAD, *rows] if rows else ["", "It has no options."]


PLURALS = {
    "source": "Sources",
    "modality": "Modalities",
    "encoder": "Encoders",
    "loss": "Losses",
    "executor": "Executors",
    "exporter": "Exporters",
    "metric": "Metrics",
}


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        key = prefix + (info.alias or name)
        meaning = (info.description or "").replace("|", "\\|")
        yield f"| `{key}` | {_default(info.get_default(call_default_factory=True))} | {meaning} |"
        part = _model_in(info.annotation)
        if part is not None:
            is_list = get_origin(info.annotation) is list
            yield from _rows(part, f"{key}[]." if is_list else f"{key}.")


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "(required)"
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


# ---------------------------------------------------------------- errors


EXIT_CODES = {
    "0": "done",
    "1": "a bug of latentkit or of a plugin (with a traceback); or `verify` found damage",
    "2": "something that you can fix: one message says what failed, where, what was expected and"
    " found, and what to do",
    "130": "stopped by Ctrl-C (SIGINT); what is committed is kept",
    "143": "stopped by SIGTERM; what is committed is kept",
}


def _errors() -> Iterator[str]:
    yield from [NOTE, "# Errors and exit codes", "", "| exit code | means |", "|---|---|"]
    yield from (f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    yield from [
        "",
        "From Python, the errors below are raised. All but one are a `LatentkitError`, so that one",
        "`except latentkit.errors.LatentkitError` catches whatever a user can fix. Wrong arguments",
        "of a Python function are a `ValueError` or a `TypeError`.",
        "",
        "| error | is a | raised for |",
        "|---|---|---|",
    ]
    for name, found in vars(errors).items():
        if inspect.isclass(found) and issubclass(found, LatentkitError | InterruptedRunError):
            says = " ".join((found.__doc__ or "").split("\n\n")[0].split())
            yield f"| `{name}` | `{found.__base__.__name__}` | {says} |"


# ---------------------------------------------------------------- Python


FUNCTIONS = ("encode", "run", "open", "join", "collate")
MEMBERS = {
    "LatentDataset": (
        *("keys", "skipped", "remarks", "has_moments", "moments", "decode", "set_epoch", "batches"),
    ),
    "JoinedDataset": ("keys", "set_epoch", "batches"),
    "Batches": ("state_dict", "load_state_dict"),
}
"""What of each class is for trainers."""


def _python() -> Iterator[str]:
    yield from [NOTE, "# Python API", "", "```python", "import latentkit as lk", "```", ""]
    yield "Importing it loads nothing heavy; each name loads what it needs when it is first used."
    for name in FUNCTIONS:
        function = getattr(latentkit, name)
        yield from ["", f"## lk.{name}", "", "```text", f"lk.{name}{_signature(function)}"]
        yield from ["```", "", *_object(function)]
    for found in (latentkit.LatentDataset, latentkit.JoinedDataset, Batches):
        yield from ["", f"## {found.__name__}", "", *_object(found, MEMBERS[found.__name__])]


def _signature(function: Any) -> str:
    """Names and defaults; types stand in the table below."""
    bare = inspect.Parameter.empty
    signature = inspect.signature(function)
    parameters = [found.replace(annotation=bare) for found in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=bare))


def _plugin_api() -> Iterator[str]:
    yield from [NOTE, "# Plugin API", ""]
    yield "What a plugin may rely on; [how it grows](../contract.md). The contract's version is"
    yield f"{hooks.CONTRACT}."
    yield from ["", "## Hooks", "", "| hook | returns |", "|---|---|"]
    found = {name: hook for name, hook in vars(hooks).items() if name.startswith("latentkit_")}
    for name, hook in found.items():
        yield f"| [`{name}`](#{name}) | {(hook.__doc__ or '').splitlines()[0]} |"
    for name, hook in found.items():
        yield from ["", f"### {name}", "", inspect.cleandoc(hook.__doc__ or "").split("\n")[0]]
        yield from ["", "```python", _example(hook), "```"]
    yield from ["", "## Contracts", "", "Everything here is in `latentkit.contracts`."]
    for name in contracts.__all__:
        part = getattr(contracts, name)
        if hasattr(part, "__qualname__") and part.__module__.startswith("latentkit"):
            yield from ["", f"### {name}", "", *_object(part)]
    yield from ["", "## The contract kit", "", "Everything here is in `latentkit.testing`."]
    for name in testing.__all__:
        part = getattr(testing, name)
        members = sorted(name for name in dir(part) if name.startswith("make_"))
        yield from ["", f"### {name}", "", *_object(part, members)]


def _example(hook: Any) -> str:
    """Return the plugin in a hook's docstring."""
    _, _, code = inspect.cleandoc(hook.__doc__).partition("\n\n")
    return inspect.cleandoc(code)


def _object(part: Any, members: Sequence[str] | None = None) -> Iterator[str]:
    """Lines from which mkdocstrings makes the documentation of an object, where it is defined."""
    yield f"::: {part.__module__}.{part.__qualname__}"
    yield "    options:"
    yield "      show_root_heading: false"
    yield "      show_root_toc_entry: false"
    if members is not None:
        yield "      inherited_members: true"
        yield f"      members: [{', '.join(members)}]"


def main() -> None:
    """Rewrite the generated pages."""
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
