"""The texts of `latentkit plugins`: a list of all, or a description of one. Loads no torch."""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from latentkit.contracts import CommandSpec, PluginSpec, TaskSpec
from latentkit.errors import LatentkitError, PluginError
from latentkit.plugins import KINDS, Provided, Registry
from latentkit.runtime.key_errors import suggest


def plugins_as_text(registry: Registry) -> str:
    """Return a table of all plugins, then every problem."""
    rows = [
        (row.kind, row.name, f"{row.provider} {row.version}", row.summary)
        for row in registry.rows()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)] if rows else [0] * 3
    lines = [
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    ]
    lines += [f"disabled  {name} {version}" for name, version in registry.disabled]
    lines += [f"problem   {problem}" for problem in registry.problems]
    return "\n".join(lines)


def plugins_as_json(registry: Registry) -> str:
    """Return the JSON text {"plugins": [...], "problems": [...], "disabled": [...]}."""
    listing: dict[str, Any] = {
        "plugins": [dataclasses.asdict(row) for row in registry.rows()],
        "problems": [dataclasses.asdict(problem) for problem in registry.problems],
        "disabled": [
            {"distribution": name, "version": version} for name, version in registry.disabled
        ],
    }
    return json.dumps(listing, indent=1)


# ---------------------------------------------------------------- one plugin


def plugin_as_text(registry: Registry, words: Sequence[str]) -> str:
    """Describe the plugins of a name, of every kind or of one.

    Args:
        words: the name, or kind and name.

    Raises:
        PluginError: no plugin has that name, or several of one kind have.
        LatentkitError: the words are not [KIND] NAME.
    """
    return "\n\n".join("\n".join(_describe(one)) for one in _find(registry, words))


def plugin_as_json(registry: Registry, words: Sequence[str]) -> str:
    """Return the same as a JSON list, with the options as a JSON schema."""
    return json.dumps(
        [
            {
                "kind": one.spec.kind,
                "name": one.spec.name,
                "provider": one.distribution,
                "version": one.version,
                "summary": one.spec.summary,
                "options": model.model_json_schema() if (model := _model(one)) else {},
            }
            for one in _find(registry, words)
        ],
        indent=1,
    )


def _find(registry: Registry, words: Sequence[str]) -> list[Provided]:
    """Return the plugins that the words [KIND] NAME mean; of several kinds without KIND."""
    if len(words) > 2 or (len(words) == 2 and words[0] not in KINDS):
        known = suggest(words[0], KINDS) or f"; kinds are {', '.join(KINDS)}"
        raise LatentkitError(f"plugins {' '.join(words)}: expected [KIND] NAME{known}")
    if len(words) == 2:
        return [registry.find(words[0], words[1])]
    (name,) = words
    kinds = [kind for kind in KINDS if any((kind, name) == (row.kind, row.name) for row in
             registry.rows())]
    if not kinds:
        near = suggest(name, {row.name for row in registry.rows()})
        raise PluginError(f"no plugin is named {name!r}{near or '; `latentkit plugins` lists all'}")
    return [registry.find(kind, name) for kind in kinds]


def _model(one: Provided) -> type[BaseModel] | None:
    """Return the pydantic model of a plugin's options or a task's recipe; None for a command."""
    if isinstance(one.spec, TaskSpec):
        return one.spec.recipe
    return one.spec.config if isinstance(one.spec, PluginSpec) else None


def _describe(one: Provided) -> list[str]:
    """Return lines about one plugin: kind, name, summary, distribution and options."""
    spec = one.spec
    head = [
        f"{spec.kind} {spec.name}: {spec.summary}",
        f"  from {one.distribution} {one.version}",
    ]
    if isinstance(spec, CommandSpec):
        parser = argparse.ArgumentParser(f"latentkit {spec.name}", add_help=False)
        spec.add_arguments(parser)
        return head + [f"  {line}" for line in parser.format_help().splitlines() if line]
    model = _model(one)
    options = list(_options(model, "")) if model else []
    return head + (options or ["  no options"])


def _options(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yield two lines per option, nested ones with dotted keys: its type and default, what it does.
    """
    for name, info in model.model_fields.items():
        key = prefix + (info.alias or name)
        yield f"  {key}: {_name_type(info.annotation)}{_default(info)}"
        yield f"      {info.description}"
        for part in _models_in(info.annotation):
            yield from _options(part, f"{key}.")


def _default(info: FieldInfo) -> str:
    """Return the text that ends an option's line: its default, or that it is required; empty for
    nested options, which have lines of their own.
    """
    if info.is_required():
        return " (required)"
    value = info.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    return f" = {json.dumps(value, default=str, ensure_ascii=False)}"


def _name_type(annotation: Any) -> str:
    """Return a type in the words of recipes, such as "whole number | auto"."""
    words = {int: "whole number", float: "number", str: "text", bool: "true | false"}
    words |= {type(None): "null", Any: "anything"}
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " | ".join(str(part) for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(_name_type(part) for part in parts))
    if origin is tuple:
        return f"[{', '.join(_name_type(part) for part in parts if part is not Ellipsis)}]"
    if origin is typing.Annotated:
        return _name_type(parts[0])
    if origin is not None and parts:
        word = "mapping of" if issubclass(origin, dict) else "list of"
        return f"{word} {_name_type(parts[-1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the pydantic models in a type: the type itself, or parts of a union or a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models_in(part)
