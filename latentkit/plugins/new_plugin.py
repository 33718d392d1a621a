"""Make a new plugin package that passes its contract's tests from the start. Loads no torch."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from string import Template

from latentkit._version import __version__
from latentkit.contracts.named_spec import NAME_PATTERN
from latentkit.errors import LatentkitError, PluginError
from latentkit.hooks import CONTRACT
from latentkit.plugins.registry import KINDS, discover
from latentkit.runtime.key_errors import suggest

PREFIX = "latentkit-"
TEMPLATES = Path(__file__).parent / "scaffolds"
SUFFIX = ".in"
MAX_NAME = 40
"""Most characters of a name."""
LINE_LENGTH = 100
"""Most characters of a line in a new package, as its pyproject.toml has it."""

USAGE = {
    "source": "    source: {use: $name, with: {path: list.txt}}      # in a recipe",
    "modality": (
        "    modality: {use: $name, with: {size: 64}}      # in a recipe, for an\n"
        '    # encoder whose modality is "$name"'
    ),
    "encoder": (
        "    encoder: {use: $name, with: {channels: 4}}      # in a recipe; or:\n"
        "    latentkit encode photos out --encoder $name\n"
        "    model: {use: $name}      # with task: train; then\n"
        "    encoder: {use: $name, with: {model: runs/vae/model}}"
    ),
    "loss": "    losses: [{use: $name, with: {power: 1.5}}]      # in a recipe",
    "executor": "    executor: {use: $name, with: {device: cpu}}      # in a recipe",
    "metric": "    metrics: [{use: $name, with: {power: 1.5}}]      # in a recipe",
    "task": "    latentkit run recipe.yaml",
    "command": "    latentkit $name latents/photos --limit 5",
    "exporter": "    latentkit export latents/photos OUT --to $name --set dtype=float16",
}


def new_plugin(name: str, kind: str, parent: Path) -> Path:
    """Make a package that installs and passes its own tests; return `parent`/latentkit-NAME.

    Args:
        name: the plugin's name in recipes, kebab-case; a leading "latentkit-" is removed.
        kind: "source", "modality", "encoder", "loss", "executor", "exporter", "metric",
            "task" or "command".
        parent: folder to make it in; made where it is missing.

    Raises:
        PluginError: an installed plugin has that name.
        LatentkitError: the name or kind is invalid, or the folder is there already or can't be
            written.
    """
    name = name.removeprefix(PREFIX)
    _check_name_and_kind(name, kind)
    _refuse_clash(name, kind)
    folder = parent / f"{PREFIX}{name}"
    package = folder.name.replace("-", "_")
    words = {
        "name": name,
        "kind": kind,
        "distribution": folder.name,
        "package": package,
        "module": kind,
        "title": _title(name, kind),
        "latentkit": __version__,
        "contract": str(CONTRACT),
    }
    words["usage"] = Template(USAGE[kind]).substitute(words)
    try:
        folder.mkdir(parents=True)
        for template, place in _list_templates(kind):
            target = folder / place.replace("package/", f"{package}/", 1)
            target.parent.mkdir(exist_ok=True)
            text = Template(template.read_text(encoding="utf-8")).substitute(words)
            target.write_text(_wrap_imports(text), encoding="utf-8")
    except FileExistsError as error:
        raise LatentkitError(
            f"{folder} is there already; choose another name, or another --path"
        ) from error
    except OSError as error:
        raise LatentkitError(f"{folder} can't be written: {error.strerror or error}") from error
    return folder


def _wrap_imports(text: str) -> str:
    """Return the text, each import that is too long for a line wrapped as isort does."""

    def wrap(found: re.Match[str]) -> str:
        line, indent, module, names = found.group(0, 1, 2, 3)
        if len(line) <= LINE_LENGTH:
            return line
        inside = "".join(f"{indent}    {name},\n" for name in names.split(", "))
        return f"{indent}from {module} import (\n{inside}{indent})"

    return re.sub(r"^( *)from (\S+) import (\w.*)$", wrap, text, flags=re.MULTILINE)


def describe_new(folder: Path) -> str:
    """Return the lines to print about a new package: how to install, test and list it."""
    num_files = sum(path.is_file() for path in folder.rglob("*"))
    where = shlex.quote(str(folder))
    return "\n".join(
        [
            f"{folder}: {num_files} files; README.md says what is where",
            f"  install it  pip install -e {where}",
            f"  test it     cd {where} && pytest",
            "  see it      latentkit plugins",
        ]
    )


def _check_name_and_kind(name: str, kind: str) -> None:
    if kind not in KINDS:
        raise LatentkitError(
            f"--kind {kind}: unknown kind of"
            f" plugin{suggest(kind, KINDS) or '; known: ' + ', '.join(KINDS)}"
        )
    if not NAME_PATTERN.fullmatch(name):
        near = "-".join(
            part
            for part in (
                "".join(char if char.isascii() and char.isalnum() else " " for char in name)
                .lower()
                .split()
            )
        )
        advice = f", such as {near!r}" if NAME_PATTERN.fullmatch(near) else f", such as 'my-{kind}'"
        raise LatentkitError(
            f"{name!r} can't be a plugin's name: expected lower-case letters, digits and single"
            f" dashes{advice}"
        )
    if len(name) > MAX_NAME:
        raise LatentkitError(
            f"{name!r} has {len(name)} characters; expected a name of at most {MAX_NAME}"
        )


def _refuse_clash(name: str, kind: str) -> None:
    """Raise an error if an installed plugin already has this name."""
    for row in discover().rows():
        if (row.kind, row.name) == (kind, name):
            raise PluginError(
                f"{row.provider} {row.version} provides the {kind} {name!r} already; choose another"
                " name"
            )
        if row.provider == f"{PREFIX}{name}":
            raise PluginError(
                f"{row.provider} {row.version} is installed already, with the {row.kind}"
                f" {row.name!r}; choose another name"
            )


def _title(name: str, kind: str) -> str:
    """Return the name in the form of class names, without the kind: "my-encoder" gives "My"."""
    words = name.split("-")
    if words[-1] == kind and len(words) > 1:
        words = words[:-1]
    return "".join(word.capitalize() for word in words)


def _list_templates(kind: str) -> list[tuple[Path, str]]:
    """Return each template of a kind, and its relative path in the new folder."""
    return [
        (template, template.relative_to(TEMPLATES / part).as_posix().removesuffix(SUFFIX))
        for part in ("every", kind)
        for template in sorted((TEMPLATES / part).rglob(f"*{SUFFIX}"))
    ]
