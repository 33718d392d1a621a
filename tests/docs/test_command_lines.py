"""Command lines and recipes of the documentation are taken by the real parser and schema."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from documentation import PAGES, ROOT, Block, find_blocks, name_of, prose_of

from latentkit import builtin
from latentkit.builtin import latentkit_tasks
from latentkit.builtin.metrics import METRICS
from latentkit.cli.main import parser
from latentkit.contracts import PluginSpec
from latentkit.errors import LatentkitError
from latentkit.plugins import HOOKS
from latentkit.recipe.schema import Recipe, load_recipe

PACKAGES = sorted([*ROOT.glob("plugins/latentkit-*"), *ROOT.glob("examples/latentkit-*")])
FIRST_PLUGIN = "latentkit_mosaic/plugin.py"
DISTRIBUTION = "latentkit-diffusion"
SEPARATORS = {";", "&&", "||", "|", "(", ")", "&"}
LEADING = re.compile(r"\w+=.*|srun|if|then|do|exec|!")
"""Words before a command: variables, and what starts it."""

SPEC_KINDS = {
    **{"source": "source", "modality": "modality", "encoder": "encoder", "model": "encoder"},
    **{"losses": "loss", "executor": "executor", "metrics": "metric", "encoders": "encoder"},
}
"""Kind of plugin by the key of a recipe that names it."""

BASES = {
    "encode": ["source: {use: sample-photos}", "modality: {use: image}", "encoder: {use: tiny-kl}"],
    "train": [
        *("source: {use: sample-photos}", "modality: {use: image}", "model: {use: tiny-kl}"),
        *("losses: [{use: l1}]", "steps: 1"),
    ],
    "evaluate": [
        *("source: {use: sample-photos}", "modality: {use: image}", "model: {use: tiny-kl}"),
        "metrics: [{use: psnr}]",
    ],
}
"""The rest of a recipe, for blocks that show only some keys."""


@cache
def specs() -> Mapping[tuple[str, str], PluginSpec]:
    """Return what core, the packages in plugins/ and the examples declare, by kind and name."""
    found: list[PluginSpec] = list(METRICS.values())
    modules: list[Any] = [builtin, first_plugin()]
    for package in PACKAGES:
        sys.path.insert(0, str(package))
        name = package.name.replace("-", "_")
        modules.append(importlib.import_module(f"{name}.plugin"))
        sys.path.remove(str(package))
    for module in modules:
        for hook in HOOKS:
            given = getattr(module, hook)() if hasattr(module, hook) else []
            found += [given] if isinstance(given, PluginSpec) else list(given)
    return {(spec.kind, spec.name): spec for spec in found}


def first_plugin() -> ModuleType:
    """Return the plugin that readers of the tutorial make."""
    (block,) = [block for block in find_blocks("python") if block.marker.endswith(FIRST_PLUGIN)]
    module = ModuleType("plugin")
    exec(compile(block.code, block.name, "exec"), module.__dict__)
    return module


# ---------------------------------------------------------------- recipes


def check_parts(values: Any) -> None:
    """Validate the options of every plugin that a recipe names.

    Raises:
        KeyError: there is no such plugin.
        pydantic.ValidationError: it doesn't take these options.
    """
    for key, kind in SPEC_KINDS.items():
        used = values.get(key)
        parts = used if isinstance(used, list) else [used]
        if key == "encoders" and used:
            parts = list(used.values())
        for part in parts:
            if part and part["use"] != "auto":
                specs()[kind, part["use"]].config.model_validate(part["with"])
    if values.get("evaluate"):
        check_parts(values["evaluate"])


def load(text: str, folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a text, with every plugin's options validated."""
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    recipe = load_recipe(file, overrides)
    check_parts(recipe.model_dump(by_alias=True))
    return recipe


def complete(text: str, task: str) -> str:
    """Return the text with the keys that its task needs beside those it has."""
    given = set(re.findall(r"^(\w+):", text, flags=re.M))
    rest = [line for line in [*BASES[task], "output: {path: out}"] if line.split(":")[0] not in given]
    return "\n".join([f"task: {task}", *rest, text])


@pytest.mark.parametrize("block", find_blocks("yaml"), ids=name_of)
def test_recipes_are_valid(block: Block, tmp_path: Path) -> None:
    if block.code.startswith("task:"):
        load(block.code, tmp_path)
        return
    given = set(re.findall(r"^(\w+):", block.code, flags=re.M))
    models = {spec.name: spec.recipe for spec in latentkit_tasks() if spec.name in BASES}
    tasks = [task for task, model in models.items() if given <= set(model.model_fields)]
    assert tasks, f"no task has all of {sorted(given)}"
    load(complete(block.code, tasks[0]), tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "task: encode\nsauce: {use: folder}",
        "losses: [{use: l3}]",
        "modality: {use: image, with: {sice: 3}}",
        "modality: {use: video, with: {sice: 3}}",
    ],
)
def test_wrong_recipes_are_found(text: str, tmp_path: Path) -> None:
    task = "train" if text.startswith("losses") else "encode"
    with pytest.raises((LatentkitError, ValueError, KeyError)):
        load(text if text.startswith("task") else complete(text, task), tmp_path)


# ---------------------------------------------------------------- command lines


def commands_of(code: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell script, without what stands before it."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if word not in SEPARATORS:
                command.append(word)
                continue
            while command and LEADING.fullmatch(command[0]):
                del command[0]
            if command:
                yield command
            command = []


def check_command(command: Sequence[str], folder: Path) -> None:
    """Check what a command names.

    Raises:
        AssertionError: it is not there.
        SystemExit: latentkit's parser doesn't take it.
        LatentkitError, ValueError: an option that it sets is not there.
    """
    program = command[0].rpartition("/")[2]
    if program == "latentkit":
        check_latentkit(command[1:], folder)
    elif "-m" in command and command[command.index("-m") + 1] == "latentkit":
        check_latentkit(command[command.index("-m") + 2 :], folder)
    elif program in ("python", "python3") and len(command) > 1 and command[1].endswith(".py"):
        assert (ROOT / command[1]).is_file(), f"no program {command[1]}"
    elif program == "pip":
        check_pip(command[1:])
    elif program == "pytest":
        paths = [word for word in command[1:] if "/" in word]
        assert [path for path in paths if not (ROOT / path).exists()] == []


def check_latentkit(words: Sequence[str], folder: Path) -> None:
    if words == ["--version"]:
        return
    options = vars(parser().parse_args(list(words)))
    overrides = [word for word in options.get("set") or [] if "$" not in word]
    if words[0] == "run" and (ROOT / options["recipe"]).is_file():
        load_recipe(ROOT / options["recipe"], overrides)
    elif words[0] == "encode":
        encoder, source = options["encoder"] or "tiny-kl", options["source"]
        if ("encoder", encoder) not in specs():
            assert re.search(r"[/.]", encoder), f"no encoder {encoder}"
            encoder = "diffusers, with: {model: here}"
        is_hub = re.fullmatch(r"[\w-]+/[\w-]+", source) is not None
        use = "datasets" if is_hub else "folder"
        lines = [f"source: {{use: {use}, with: {{path: here}}}}", f"encoder: {{use: {encoder}}}"]
        load(complete("\n".join(lines), "encode"), folder, overrides)


def check_pip(words: Sequence[str]) -> None:
    if "-c" in words:
        assert (ROOT / words[words.index("-c") + 1]).is_file()
    for word in words:
        found = re.fullmatch(rf"({DISTRIBUTION}|\.[\w./-]*)(?:\[([\w,]+)\])?", word)
        if found is None:
            continue
        place = ROOT if found[1] == DISTRIBUTION else ROOT / found[1]
        project = tomllib.loads((place / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = set(found[2].split(",")) if found[2] else set()
        assert extras <= set(project.get("optional-dependencies", {})), f"{word}: no such extra"


SHELL = find_blocks("sh", "bash")


@pytest.mark.parametrize("block", SHELL, ids=name_of)
def test_command_lines_are_taken(block: Block, tmp_path: Path) -> None:
    for command in commands_of(block.code):
        check_command(command, tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "latentkit incode photos out",
        "srun latentkit run recipe.yaml --retries || code=$?",
        "latentkit encode photos out --encoder tiny-kl --set encoder.with.mode=x",
        "latentkit run recipes/quickstart.yaml --set modality.wiht.size=3",
        "latentkit encode photos out --encoder teeny-kl",
        "torchrun --nnodes=2 \\\n    -m latentkit rum train.yaml",
        'pip install "latentkit-diffusion[s4]"',
        "pip install ./plugins/latentkit-smell",
        "python recipes/nothere.py latents",
    ],
)
def test_wrong_command_lines_are_found(line: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, SystemExit, LatentkitError, OSError, ValueError, KeyError)):
        for command in commands_of(line):
            check_command(command, tmp_path)


JOBS = [block for block in SHELL if block.code.startswith("#!")]
SLURM = {
    "SLURM_CPUS_PER_TASK": "8",
    "SLURM_JOB_ID": "7",
    "SLURM_NNODES": "2",
    "SLURM_JOB_NODELIST": "a,b",
    **{"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"},
}


@pytest.mark.parametrize("block", JOBS, ids=name_of)
@pytest.mark.parametrize("code", [0, 143, 2])
def test_a_job_goes_back_to_the_queue_only_where_it_was_stopped(
    block: Block, code: int, tmp_path: Path
) -> None:
    for name, text in {"srun": f"exit {code}", "scontrol": 'echo "$@" >> queue'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    if code != 143:  # a training run that is done, or gave up for good
        (tmp_path / "runs" / "vae").mkdir(parents=True)
        (tmp_path / "runs" / "vae" / "result.json").touch()
    environment = {**os.environ, **SLURM, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-u", "-c", block.code], cwd=tmp_path, env=environment)
    queue = tmp_path / "queue"
    asked = queue.read_text() if queue.exists() else ""
    assert asked.count("requeue 7") == (code == 143)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_that_a_page_names_are_there(page: Path) -> None:
    named = set(re.findall(r"`latentkit ([a-z]+)\b[^`]*`", prose_of(page)))
    top = parser()
    known = {name for group in top._actions for name in getattr(group, "choices", None) or {}}
    assert named - known == set()
