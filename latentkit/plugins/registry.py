"""Find installed plugins, check what they declare, look them up, and validate their options.

A plugin is an entry point in the group `latentkit` that names a module (see `latentkit.hooks`).
An error in a hook is recorded as a `Problem`; other plugins, and the plugin's other hooks, still
work. Core's own plugin, `latentkit.builtin`, is loaded the same way.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from types import ModuleType
from typing import Any

import pluggy
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from latentkit import hooks
from latentkit._version import __version__
from latentkit.contracts import (
    CommandSpec,
    EncoderSpec,
    ExecutorSpec,
    ExporterSpec,
    LossSpec,
    MetricSpec,
    ModalitySpec,
    NamedSpec,
    SourceSpec,
    TaskSpec,
)
from latentkit.errors import PluginError
from latentkit.runtime.key_errors import suggest, validate
from latentkit.runtime.other_distribution import OTHER_NAME, explain_other, find_other_version

CORE = "latentkit-diffusion"
GROUP = "latentkit"
DISABLE = "LATENTKIT_DISABLE"
REQUIRES = "requires_contract"

COMPANIONS = {
    "audio": "latentkit-audio",
    "audio-clips": "latentkit-audio",
    "fast-dit": "latentkit-trainers",
    "kohya": "latentkit-trainers",
    "lightningdit": "latentkit-trainers",
    "mar": "latentkit-trainers",
    "musubi": "latentkit-trainers",
    "perceptual": "latentkit-perceptual",
    "ray": "latentkit-ray",
    "repa": "latentkit-trainers",
    "text": "latentkit-text",
    "text-encoder": "latentkit-text",
    "video": "latentkit-video",
    "video-clips": "latentkit-video",
    "volume": "latentkit-volume",
    "volume-kl": "latentkit-volume",
}
"""Plugin names of the project's other packages, to name the package that must be installed."""

HOOKS: dict[str, type[NamedSpec]] = {
    "latentkit_sources": SourceSpec,
    "latentkit_modalities": ModalitySpec,
    "latentkit_encoders": EncoderSpec,
    "latentkit_losses": LossSpec,
    "latentkit_executors": ExecutorSpec,
    "latentkit_exporters": ExporterSpec,
    "latentkit_metrics": MetricSpec,
    "latentkit_tasks": TaskSpec,
    "latentkit_commands": CommandSpec,
}
KINDS = tuple(spec.kind for spec in HOOKS.values())


@dataclass(frozen=True)
class Problem:
    """An error in one plugin: its distribution and version, where it happened, and the cause."""

    distribution: str
    version: str
    where: str
    cause: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}".rstrip() + f": {self.where}: {self.cause}"


@dataclass(frozen=True)
class Provided:
    """A spec (a `NamedSpec`, of its kind's class), and the distribution that provides it."""

    spec: Any
    distribution: str
    version: str


@dataclass(frozen=True)
class Row:
    """One line of `latentkit plugins`."""

    kind: str
    name: str
    provider: str
    version: str
    summary: str


@dataclass(frozen=True)
class _Plugin:
    """An entry point that has not been loaded."""

    distribution: str
    version: str
    where: str
    load: Callable[[], Any]

    def problem(self, where: str, cause: str | BaseException) -> Problem:
        return Problem(self.distribution, self.version, where, _one_line(cause))


def _one_line(cause: str | BaseException) -> str:
    """Return a cause without line breaks; an exception other than PluginError with its type."""
    text = (
        f"{type(cause).__name__}: {cause}"
        if isinstance(cause, BaseException) and not isinstance(cause, PluginError)
        else str(cause)
    )
    return " ".join(text.split()).removesuffix(":")


# ---------------------------------------------------------------- looking up


@dataclass(frozen=True)
class Registry:
    """Everything the plugins of this environment provide, and every problem they have.

    Args:
        provided: the specs of all plugins, in the order they were found.
        problems: in the order they were found.
        disabled: name and version of each distribution left out by LATENTKIT_DISABLE.
    """

    provided: Sequence[Provided] = ()
    problems: Sequence[Problem] = ()
    disabled: Sequence[tuple[str, str]] = ()

    def find(self, kind: str, name: str) -> Provided:
        """Return the plugin of a kind ("source", "encoder" ...) with a name.

        Raises:
            PluginError: no plugin has the name (the message lists similar names, all known names,
                and problems that may be the reason), or several have.
            ValueError: the kind is unknown.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown kind of plugin {kind!r}; known: {', '.join(KINDS)}")
        found = self._named(kind, name)
        if len(found) == 1:
            return found[0]
        raise PluginError(_explain_clash(found) if found else self._explain_unknown(kind, name))

    def configure(
        self, kind: str, name: str, options: Mapping[str, Any], where: str, origin: str = ""
    ) -> Any:
        """Validate the options of a plugin; return its config, of the class that its spec names.

        Args:
            options: the values under `with:`.
            where: key of the recipe that uses the plugin, such as "losses[1]".
            origin: the recipe's file, put before every line of an error.

        Raises:
            PluginError: as for `find`.
            RecipeError: options that the config class refuses, one line each, such as
                "losses[1].with.nett: unknown key, did you mean 'net'?".
        """
        try:
            spec = self.find(kind, name).spec
        except PluginError as err:
            raise PluginError(f"{origin + ': ' if origin else ''}{where}.use: {err}") from err
        return validate(spec.config, options, origin, f"{where}.with")

    def rows(self) -> list[Row]:
        """Return one row per provided spec, by kind in the order of the hooks, then by name."""
        rows = [
            Row(one.spec.kind, one.spec.name, one.distribution, one.version, one.spec.summary)
            for one in self.provided
        ]
        return sorted(rows, key=lambda row: (KINDS.index(row.kind), row.name, row.provider))

    def _named(self, kind: str, name: str) -> list[Provided]:
        return [one for one in self.provided if (one.spec.kind, one.spec.name) == (kind, name)]

    def names(self, kind: str) -> list[str]:
        """Return the names of all plugins of a kind, in the order they were found: core's first."""
        return list(dict.fromkeys(one.spec.name for one in self.provided if one.spec.kind == kind))

    def advise(self, name: str) -> list[str]:
        """Return lines that say why a name may be unknown: a package that isn't installed, a plugin
        that is left out, or a plugin with a problem.
        """
        lines = []
        if name in COMPANIONS:
            lines.append(f"  {name} is in {COMPANIONS[name]}: pip install {COMPANIONS[name]}")
        if self.disabled:
            lines.append(
                f"  left out by {DISABLE}: {', '.join(' '.join(one) for one in self.disabled)}"
            )
        return lines + [f"  a plugin has a problem: {problem}" for problem in self.problems]

    def _explain_unknown(self, kind: str, name: str) -> str:
        known = sorted(self.names(kind))
        unknown = f"no {kind} is named {name!r}{suggest(name, known) or '.'} Known:"
        return "\n".join([f"{unknown} {', '.join(known) or 'none'}", *self.advise(name)])


def _explain_clash(providers: Sequence[Provided]) -> str:
    """Return a message that several distributions provide the same plugin."""
    spec = providers[0].spec
    who = " and ".join(f"{one.distribution} {one.version}" for one in providers)
    return (
        f"{spec.kind} {spec.name!r} is provided by {who}; uninstall one, or leave one out with"
        f" {DISABLE}=DISTRIBUTION"
    )


# ---------------------------------------------------------------- discovery


@functools.cache
def discover() -> Registry:
    """Return the registry of this environment, made once per process; errors become problems."""
    names = {_normalize(name) for name in os.environ.get(DISABLE, "").split(",") if name.strip()}
    problems: list[Problem] = []
    provided: list[Provided] = []
    disabled: dict[str, str] = {}
    for plugin in _find_plugins(problems):
        if _normalize(plugin.distribution) in names:
            disabled[plugin.distribution] = plugin.version
        else:
            provided += _load(plugin, problems)
    for name in sorted(names - {_normalize(one) for one in disabled}):
        problems.append(
            Problem(name, "", DISABLE, "no installed distribution of this name has plugins")
        )
    if (other := find_other_version()) is not None:
        problems.append(Problem(OTHER_NAME, other, "its files", explain_other(other)))
    return Registry(tuple(provided), (*problems, *_find_clashes(provided)), tuple(disabled.items()))


def _normalize(name: str) -> str:
    """Return a distribution's name in the form in which PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _find_plugins(problems: list[Problem]) -> list[_Plugin]:
    """Return core's plugin, then the installed ones by distribution and entry point."""
    found: dict[str, list[_Plugin]] = {}
    for distribution in metadata.distributions():
        try:
            # parsing the metadata of every distribution would take longer than all the rest
            if f"[{GROUP}]" in (distribution.read_text("entry_points.txt") or ""):
                if "Name" not in distribution.metadata:
                    raise PluginError(
                        "its METADATA is missing or names no distribution; install it again"
                    )
                name = _normalize(distribution.name)
                if name not in found:
                    # where several have one name, modules are imported from the first on sys.path
                    found[name] = _read_entry_points(metadata.distribution(name))
        except (Exception, SystemExit) as err:  # noqa: BLE001 (plugin boundary)
            folder = os.path.basename(str(getattr(distribution, "_path", "a distribution")))
            problems.append(Problem(folder, "", "entry_points.txt", _one_line(err)))
    core = _Plugin(
        CORE, __version__, "latentkit.builtin", lambda: importlib.import_module("latentkit.builtin")
    )
    return [core, *(plugin for name in sorted(found) for plugin in found[name])]


def _read_entry_points(distribution: metadata.Distribution) -> list[_Plugin]:
    """Return the plugins that a distribution's entry points name."""
    entries = sorted(
        distribution.entry_points.select(group=GROUP), key=lambda entry: (entry.name, entry.value)
    )
    return [
        _Plugin(
            distribution.name,
            distribution.version,
            f"{entry.name} = {entry.value}",
            functools.partial(_load_entry, entry),
        )
        for entry in entries
    ]


def _find_clashes(provided: Iterable[Provided]) -> Iterator[Problem]:
    """Yield a problem for each kind and name that several distributions provide, naming all."""
    by_name: dict[tuple[str, str], list[Provided]] = {}
    for one in provided:
        by_name.setdefault((one.spec.kind, one.spec.name), []).append(one)
    for (kind, name), providers in by_name.items():
        if len(providers) > 1:
            who = ", ".join(dict.fromkeys(one.distribution for one in providers))
            versions = ", ".join(one.version for one in providers)
            yield Problem(who, versions, f"{kind} {name}", _explain_clash(providers))


# ---------------------------------------------------------------- loading one plugin


def _load_entry(entry: metadata.EntryPoint) -> Any:
    """Import and return the module that an entry point names.

    Each package around it is imported first and its `requires_contract` checked: a newer contract
    gets a clear message before an import of a new name can fail.
    """
    names = entry.module.split(".")
    for depth in range(1, len(names) + 1):
        module = importlib.import_module(".".join(names[:depth]))
        wanted = getattr(module, REQUIRES, 1)
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
            raise PluginError(
                f"{module.__name__}.{REQUIRES}: expected a whole number from 1, got {wanted!r}"
            )
        if wanted > hooks.CONTRACT:
            mine = f"this is {CORE} {__version__}, which has version {hooks.CONTRACT}"
            raise PluginError(
                f"made for version {wanted} of the plugin contract; {mine}: install a newer"
                f" {CORE}, or an older plugin"
            )
    return entry.load()


def _load(plugin: _Plugin, problems: list[Problem]) -> list[Provided]:
    """Return the specs of a plugin; a hook with an error adds to `problems` and gives no specs."""
    try:
        module = plugin.load()
        functions = _find_hook_functions(module)
    except (Exception, SystemExit) as err:  # noqa: BLE001 (plugin boundary)
        problems.append(plugin.problem(plugin.where, err))
        return []
    if not functions:
        problems.append(plugin.problem(plugin.where, "implements no hook; is @hookimpl missing?"))
    provided: list[Provided] = []
    for name, function in functions.items():
        try:
            with warnings.catch_warnings(record=True) as remarks:
                warnings.simplefilter("always")  # a retired hook warns, and works
                specs = _call_hook(name, function)
        except (Exception, SystemExit) as err:  # noqa: BLE001 (plugin boundary)
            problems.append(plugin.problem(f"{plugin.where}: {name}", err))
        else:
            problems += [
                plugin.problem(f"{plugin.where}: {name}", str(remark.message)) for remark in remarks
            ]
            provided += [Provided(spec, plugin.distribution, plugin.version) for spec in specs]
    return provided


def _find_hook_functions(module: Any) -> dict[str, Callable[[], Any]]:
    """Return by name the functions marked as hooks, and those named like one but not marked."""
    manager = pluggy.PluginManager(hooks.PROJECT)
    names = [
        name
        for name in dir(module)
        if name in HOOKS or manager.parse_hookimpl_opts(module, name) is not None
    ]
    return {name: getattr(module, name) for name in names}


def _call_hook(name: str, function: Callable[[], Any]) -> list[NamedSpec]:
    """Call one hook implementation and return its specs, checked to be of the hook's kind.

    Each has its own plugin manager, so that a hook that pluggy refuses doesn't affect the others.
    """
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks)
    holder = ModuleType("plugin")
    setattr(holder, name, function)
    try:
        manager.register(holder)
    except pluggy.PluginValidationError as err:
        raise PluginError(f"{str(err).splitlines()[-1]}; hooks take no arguments") from err
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as err:
        raise PluginError(
            f"there is no such hook{suggest(name, HOOKS) or '; known: ' + ', '.join(HOOKS)}"
        ) from err
    if not manager.get_hookcallers(holder):
        raise PluginError("not marked as a hook; add @hookimpl (from latentkit.hooks)")
    specs: list[NamedSpec] = []
    for hook, kind in HOOKS.items():
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            specs += _check_specs(implementation.function(), kind)
    return specs


def _check_specs(result: Any, kind: type[NamedSpec]) -> list[NamedSpec]:
    """Return a hook's result as a list of specs, after checking their class."""
    if result is None:
        return []
    if not isinstance(result, NamedSpec) and not isinstance(result, Iterable):
        raise PluginError(
            f"expected {kind.__name__} or an iterable of them, got {type(result).__name__}"
        )
    specs = [result] if isinstance(result, NamedSpec) else list(result)
    for spec in specs:
        if not isinstance(spec, kind):
            raise PluginError(f"expected {kind.__name__}, got {type(spec).__name__}")
    return specs


# ---------------------------------------------------------------- fingerprints


def fingerprint_fields(config: BaseModel) -> dict[str, str]:
    """Return fields that can change a value and aren't at their default, as canonical JSON.

    A field can give versions to its choices, by `json_schema_extra={"versions": {choice: number}}`.
    Such a choice is written with its version, `"lanczos" (version 2)`: what it computes can then
    change without a new version of the whole plugin.
    """
    return {
        name: json.dumps(value, sort_keys=True, separators=(",", ":"))
        + _choice_version(type(config).model_fields[name], value)
        for name, value in _changed_fields(config).items()
    }


def parse_fingerprint_field(text: str) -> Any:
    """Return the JSON-like value of a field from the text that `fingerprint_fields` wrote."""
    return json.JSONDecoder().raw_decode(text)[0]


def _choice_version(field: FieldInfo, value: Any) -> str:
    """Return " (version N)" where the field gives a version to the choice `value`, else ""."""
    extra = field.json_schema_extra
    versions = extra.get("versions") if isinstance(extra, dict) else None
    if not isinstance(versions, dict) or not isinstance(value, str) or value not in versions:
        return ""
    return f" (version {versions[value]})"


def default_fields(config: BaseModel) -> dict[str, str]:
    """Return the defaults of optional fields, in the form of `fingerprint_fields`."""
    infos = type(config).model_fields.items()
    defaults = {
        name: info.get_default(call_default_factory=True)
        for name, info in infos
        if not info.is_required()
    }
    plain = {name: _to_plain(value) for name, value in defaults.items()}
    return {
        name: json.dumps(value, sort_keys=True, separators=(",", ":"))
        for name, value in plain.items()
    }


def _changed_fields(config: BaseModel) -> dict[str, Any]:
    """Return the fields that aren't at their default, without those that can't change a value."""
    changed = {}
    for name, info in type(config).model_fields.items():
        extra = info.json_schema_extra
        is_neutral = isinstance(extra, dict) and extra.get("neutral")
        value = getattr(config, name)
        if not is_neutral and value != info.get_default(call_default_factory=True):
            changed[name] = _to_plain(value)
    return changed


def _to_plain(value: Any) -> Any:
    """Return a JSON-like value; of a model, only the fields that differ from their defaults."""
    if isinstance(value, BaseModel):
        return _changed_fields(value)
    if isinstance(value, Mapping):
        return {str(name): _to_plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(part) for part in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_to_plain(part) for part in value), key=json.dumps)
    return to_jsonable_python(value)
