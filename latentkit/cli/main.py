"""Arguments to one call; printing; exit codes.

0 done, 1 our fault, 2 yours to mend, 130 or 143 stopped by a signal.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Any

from latentkit._version import __version__
from latentkit.errors import InterruptedRunError, LatentkitError

RECIPE_TASKS = ("train", "evaluate")
"""Tasks that have no command of their own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    if isinstance(sys.stdout, TextIOWrapper):  # a pipe of Windows can't encode every caption
        sys.stdout.reconfigure(errors="backslashreplace")
    if "LatentDataset" not in getattr(sys.modules["latentkit"], "__all__", ()):
        from latentkit.runtime.other_distribution import explain_lost_files

        print(f"latentkit: {explain_lost_files()}", file=sys.stderr)
        return 2
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not words:
        parser().print_help()
        return 0
    if words[0] in RECIPE_TASKS:
        advice = (
            f"a recipe with task: {words[0]} is run by `latentkit run RECIPE`; `latentkit recipes`"
            " lists some to begin with"
        )
        print(f"latentkit: there is no command {words[0]}; {advice}", file=sys.stderr)
        return 2
    options = parser().parse_args(words)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        code: int = options.command(options)
        return code
    except InterruptedRunError as error:
        print(f"latentkit: {error}", file=sys.stderr)
        return error.exit_code
    except LatentkitError as error:
        print(f"latentkit: {printable(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output (head, less) went away.
        sys.stderr.close()
        return 0


def _stop(number: int, frame: FrameType | None) -> None:
    """Stop in good order. Launchers send several signals; one is enough."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise InterruptedRunError("stopped" if number == signal.SIGINT else "terminated", 128 + number)


def printable(text: str) -> str:
    """Text that can't move a terminal's cursor or change its colors: control characters of file
    names and captions are escaped.
    """
    return "".join(
        char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text
    )


def parser() -> argparse.ArgumentParser:
    """All commands and options; a test freezes them."""
    top = argparse.ArgumentParser(
        "latentkit",
        description="Latent datasets for latent diffusion, and the autoencoders that make them.",
    )
    top.add_argument("--version", action="version", version=f"latentkit {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    encode = _command(
        commands,
        "encode",
        _encode,
        "encode a source into a latent dataset, without writing a recipe",
    )
    encode.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder or file, owner/name on the hub, or the name of a source plugin",
    )
    encode.add_argument("output", metavar="OUT", help="folder of the latent dataset")
    encode.add_argument(
        "--encoder",
        metavar="E",
        help="a folder or file, a hub id, or the name of an encoder plugin (default: tiny-kl)",
    )
    encode.add_argument("--size", type=int, metavar="N", help="side of the pictures, in pixels")
    _add_set(encode)
    _add_device(encode)
    _add_devices(encode)

    run = _command(commands, "run", _run, "run a recipe; again goes on where it stopped")
    run.add_argument("recipe", metavar="RECIPE", help="a YAML file")
    _add_set(run)
    _add_device(run)
    _add_devices(run)
    run.add_argument(
        "--dry-run", action="store_true", help="say what would be encoded, and write nothing"
    )
    run.add_argument(
        "--prune",
        action="store_true",
        help="leave out samples that are gone from the source, also when they are most of it",
    )
    run.add_argument(
        "--retry-skipped",
        action="store_true",
        help="encode once more the samples that were skipped",
    )

    check = _command(
        commands, "check", _check, "validate a recipe, and open all that it names; write nothing"
    )
    check.add_argument("recipe", metavar="RECIPE", help="a YAML file")
    _add_set(check)

    _add_dataset_commands(commands)

    _add_checkpoint_command(commands)

    _add_plugin_commands(commands)

    _add_recipe_commands(commands)
    return top


def _add_checkpoint_command(commands: Any) -> None:
    """What is done with a training run that is there."""
    checkpoint = _command(
        commands,
        "checkpoint",
        _checkpoint,
        "write the model of a training run's checkpoint as a folder to load",
    )
    checkpoint.add_argument("run", metavar="RUN", help="folder of the training run")
    checkpoint.add_argument("output", metavar="OUT", help="folder to write, missing or empty")
    checkpoint.add_argument(
        "--step", type=int, metavar="N", help="steps done (default: the newest checkpoint)"
    )
    weights = "averaged or raw weights (default: averaged, where the recipe has ema)"
    checkpoint.add_argument("--weights", choices=("average", "raw"), help=weights)


def _add_dataset_commands(commands: Any) -> None:
    """What is done with a latent dataset that is there."""
    inspect = _command(commands, "inspect", _inspect, "say what is in a latent dataset")
    inspect.add_argument("path", metavar="PATH", help="folder of the latent dataset")
    inspect.add_argument("--json", action="store_true", help="all of it, row by row, for programs")
    inspect.add_argument(
        "--skipped",
        action="store_true",
        help="list every skipped sample with its reason, and nothing else",
    )

    verify = _command(
        commands,
        "verify",
        _verify,
        "find what is missing, damaged or foreign in a latent dataset; exit code 1 when broken",
    )
    verify.add_argument("path", metavar="PATH", help="folder of the latent dataset")
    verify.add_argument(
        "--deep",
        action="store_true",
        help="encode about 1 %% of the units again and compare values",
    )
    verify.add_argument(
        "--repair",
        action="store_true",
        help="encode damaged units again, and write index and dataset.json again",
    )
    _add_device(verify)

    compact = _command(
        commands, "compact", _compact, "drop superseded rows and merge small units, bit for bit"
    )
    compact.add_argument("path", metavar="PATH", help="folder of the latent dataset")

    preview = _command(
        commands, "preview", _preview, "draw samples beside what their latents decode to"
    )
    preview.add_argument("path", metavar="PATH", help="folder of the latent dataset")
    preview.add_argument(
        "output",
        metavar="OUT",
        type=Path,
        help="file to write: .png, or what the modality draws or plays",
    )
    preview.add_argument(
        "--rows", type=int, default=8, metavar="N", help="samples to show (default: 8)"
    )
    _add_device(preview)

    export = _command(
        commands, "export", _export, "write a latent dataset in the format of a trainer"
    )
    export.add_argument("path", metavar="PATH", help="folder of the latent dataset")
    export.add_argument("output", metavar="OUT", help="folder to write, missing or empty")
    export.add_argument(
        "--to",
        required=True,
        metavar="FORMAT",
        help="name of an exporter, such as safetensors or webdataset",
    )
    export.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the exporter, such as values=moments",
    )


def _add_plugin_commands(commands: Any) -> None:
    """What is done with plugins: listing them, unless another word follows."""
    plugins = _command(
        commands, "plugins", _plugins, "list plugins, and what is wrong with any; or make a new one"
    )
    plugins.add_argument("--json", action="store_true", help="for programs")
    new = _command(
        plugins.add_subparsers(metavar="[new]"),
        "new",
        _new_plugin,
        "make a plugin package that passes its own tests",
    )
    new.add_argument("name", metavar="NAME", help="as recipes will use it, such as my-encoder")
    new.add_argument(
        "--kind",
        required=True,
        metavar="KIND",
        help="source, modality, encoder, loss, executor or exporter",
    )
    new.add_argument(
        "--path",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="folder to make it in (default: the working directory)",
    )


def _add_recipe_commands(commands: Any) -> None:
    """What is done with the recipes that come with the package: listing them, or copying one."""
    summary = "list the recipes that come with the package, or copy one"
    recipes = _command(commands, "recipes", _recipes, summary)
    below = recipes.add_subparsers(metavar="[copy]")
    copy = _command(
        below, "copy", _copy_recipe, "write a recipe to a folder, to run or to change it"
    )
    copy.add_argument("name", metavar="NAME", help="as listed, such as quickstart")
    copy.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        type=Path,
        default=Path("recipes"),
        help="folder to write it to (default: recipes)",
    )


def _command(commands: Any, name: str, function: Any, summary: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + "."
    )
    command.set_defaults(command=function)
    return command


def _add_set(command: argparse.ArgumentParser) -> None:
    summary = "override one key of the recipe, such as encoder.with.dtype=bfloat16"
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=summary)


def _add_device(command: argparse.ArgumentParser) -> None:
    summary = (
        "auto (an accelerator if there is one), a kind such as cuda or mps, or one device, such as"
        " cuda:1"
    )
    command.add_argument("--device", default="auto", metavar="D", help=summary)


def _add_devices(command: argparse.ArgumentParser) -> None:
    summary = (
        "encode on these, a process each, such as 0,1 (default: all accelerators of this machine)"
    )
    command.add_argument("--devices", default="", metavar="D,D", help=summary)


def _devices(options: argparse.Namespace) -> tuple[str, ...]:
    return tuple(name.strip() for name in options.devices.split(",")) if options.devices else ()


# ---------------------------------------------------------------- commands


def _encode(options: argparse.Namespace) -> int:
    from latentkit.recipe.schema import parse_recipe
    from latentkit.tasks.recipe_from_arguments import encode_recipe

    values, remarks = encode_recipe(
        options.source, options.output, options.encoder, options.size, options.set
    )
    for remark in remarks:
        print(remark, file=sys.stderr)
    from latentkit.tasks.encode_task import RunOptions

    recipe = parse_recipe(values, "encode", Path.cwd(), options.set)
    return _run_recipe(
        recipe, RunOptions(device=options.device, devices=_devices(options), fits=True)
    )


def _run(options: argparse.Namespace) -> int:
    from latentkit.recipe.schema import load_recipe
    from latentkit.tasks.encode_task import RunOptions

    run_options = RunOptions(
        options.dry_run, options.prune, options.retry_skipped, options.device, _devices(options)
    )
    return _run_recipe(load_recipe(options.recipe, options.set), run_options)


def _run_recipe(recipe: Any, options: Any) -> int:
    from latentkit.cli.closing_words import go_on_with, report
    from latentkit.tasks.encode_task import is_first_process
    from latentkit.tasks.run_recipe import run_recipe

    try:
        result = run_recipe(recipe, options)
    except InterruptedRunError as error:
        raise InterruptedRunError(f"{error}; {go_on_with(recipe)}", error.exit_code) from None
    if is_first_process():
        print(printable(result if isinstance(result, str) else report(result)))
    return 0


def _check(options: argparse.Namespace) -> int:
    from latentkit.plugins import discover
    from latentkit.recipe.schema import load_recipe
    from latentkit.runtime.other_distribution import explain_other, find_other_version
    from latentkit.tasks.check_recipe import check_recipe, find_odd_weights

    recipe = load_recipe(options.recipe, options.set)
    for plugin in check_recipe(recipe, discover()):
        print(
            f"{plugin.where}: {plugin.kind} {plugin.provided.spec.name}"
            f" ({plugin.provided.distribution} {plugin.provided.version})"
        )
    for warning in find_odd_weights(recipe):
        print(f"warning: {warning}")
    if (other := find_other_version()) is not None:
        print(f"warning: {explain_other(other)}")
    from latentkit.tasks.run_recipe import open_parts

    if unseen := open_parts(recipe):
        print(unseen)
    print(f"{options.recipe}: a valid {recipe.task} recipe")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from latentkit.upkeep.inspect_dataset import describe, inspect_dataset, list_skipped

    if options.skipped:
        if options.json:
            raise LatentkitError(
                "--skipped is a list to read; with --json alone, every row is in `ledger`, with its"
                " status and reason"
            )
        print(printable(list_skipped(options.path)))
        return 0
    found = inspect_dataset(options.path, with_ledger=options.json)
    print(
        json.dumps(found, indent=1, ensure_ascii=True)
        if options.json
        else printable(describe(found))
    )
    return 0


def _verify(options: argparse.Namespace) -> int:
    from latentkit.store.open_folder import open_folder
    from latentkit.upkeep.verify import verify_folder

    found, compared = verify_folder(open_folder(options.path)), []
    if options.deep:
        from latentkit.upkeep.compare_values import compare_values

        compared = compare_values(found, device=options.device)
        found.findings += compared
    report = found.report()
    print(printable(str(report)))
    if options.repair and report.damage:
        from latentkit.upkeep.repair import repair_dataset

        repair = repair_dataset(options.path, compared, options.device)
        print(printable(str(repair)))
        report = repair.report
    return int(bool(report.damage))


def _compact(options: argparse.Namespace) -> int:
    from latentkit.store.compact import compact
    from latentkit.store.contents import counted
    from latentkit.store.open_folder import open_folder

    done = compact(open_folder(options.path))
    dropped = counted(done.num_dropped, "superseded row")
    print(
        f"{options.path}: {dropped} dropped, {done.units_before} units are now {done.units_after}"
    )
    return 0


def _preview(options: argparse.Namespace) -> int:
    from latentkit.tasks.preview import preview_dataset

    if options.rows < 1:
        raise LatentkitError(f"--rows {options.rows}: expected at least 1")
    has_decoded = preview_dataset(options.path, options.output, options.rows, options.device)
    print(
        f"wrote {options.output}"
        if has_decoded
        else f"wrote {options.output}: samples alone, as the encoder can't decode"
    )
    return 0


def _export(options: argparse.Namespace) -> int:
    from latentkit.recipe.overrides import apply_override, split_overrides
    from latentkit.store.contents import counted
    from latentkit.tasks.export import export_dataset

    values: dict[str, Any] = {}
    for key, value in split_overrides(options.set):
        apply_override(values, key, value)
    num_rows = export_dataset(options.path, options.output, options.to, values)
    print(f"{options.output}: {counted(num_rows, 'row')} as {options.to}")
    return 0


def _checkpoint(options: argparse.Namespace) -> int:
    from latentkit.tasks.train_task import export_checkpoint

    print(printable(export_checkpoint(options.run, options.output, options.step, options.weights)))
    return 0


def _plugins(options: argparse.Namespace) -> int:
    from latentkit.cli.closing_words import plugins_as_json, plugins_as_text
    from latentkit.plugins import discover

    registry = discover()
    print(plugins_as_json(registry) if options.json else plugins_as_text(registry))
    return 0


def _new_plugin(options: argparse.Namespace) -> int:
    from latentkit.plugins.new_plugin import describe_new, new_plugin

    print(printable(describe_new(new_plugin(options.name, options.kind, options.path))))
    return 0


def _recipes(options: argparse.Namespace) -> int:
    from latentkit.cli.shipped_recipes import list_recipes

    print(list_recipes())
    return 0


def _copy_recipe(options: argparse.Namespace) -> int:
    from latentkit.cli.shipped_recipes import copy_recipe
    from latentkit.runtime.paths import in_shell

    recipe, *beside = copy_recipe(options.name, options.folder)
    print(printable("\n".join(f"wrote {path}" for path in (recipe, *beside))))
    command = "latentkit run" if recipe.suffix == ".yaml" else "python"
    print(printable(f"  run it  {command} {in_shell(recipe)}"))
    return 0
