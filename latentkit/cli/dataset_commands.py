"""The commands on an existing latent dataset or training run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from latentkit.cli.shared_arguments import add_device, printable
from latentkit.contracts import CommandSpec
from latentkit.errors import LatentkitError


def _add_path(command: argparse.ArgumentParser) -> None:
    command.add_argument("path", metavar="PATH", help="folder of the latent dataset")


def _add_inspect(command: argparse.ArgumentParser) -> None:
    _add_path(command)
    command.add_argument("--json", action="store_true", help="print all of it, row by row, as JSON")
    command.add_argument(
        "--skipped",
        action="store_true",
        help="list every skipped sample with its reason, and nothing else",
    )


def _add_verify(command: argparse.ArgumentParser) -> None:
    _add_path(command)
    command.add_argument(
        "--deep",
        action="store_true",
        help="encode about 1 %% of the units again and compare values",
    )
    command.add_argument(
        "--repair",
        action="store_true",
        help="encode damaged units again, and write index and dataset.json again",
    )
    add_device(command)


def _add_preview(command: argparse.ArgumentParser) -> None:
    _add_path(command)
    command.add_argument(
        "output",
        metavar="OUT",
        type=Path,
        help="file to write: .png, or the modality's own kind of preview, such as .wav",
    )
    command.add_argument(
        "--rows", type=int, default=8, metavar="N", help="samples to show (default: 8)"
    )
    add_device(command)


def _add_export(command: argparse.ArgumentParser) -> None:
    _add_path(command)
    command.add_argument("output", metavar="OUT", help="folder to write, missing or empty")
    command.add_argument(
        "--to",
        required=True,
        metavar="FORMAT",
        help="name of an exporter, such as safetensors or webdataset",
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the exporter, such as values=moments",
    )


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN", help="folder of the training run")
    command.add_argument("output", metavar="OUT", help="folder to write, missing or empty")
    command.add_argument(
        "--step", type=int, metavar="N", help="step of the checkpoint (default: the newest)"
    )
    weights = "averaged or raw weights (default: averaged, where the recipe has ema)"
    command.add_argument("--weights", choices=("average", "raw"), help=weights)


def _inspect(options: argparse.Namespace) -> int:
    from latentkit.upkeep.inspect_dataset import describe, inspect_dataset, list_skipped

    if options.skipped:
        if options.json:
            raise LatentkitError(
                "--skipped can't be combined with --json; use --json alone, where `ledger` has"
                " every row with its status and reason"
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
        else f"wrote {options.output}: only the samples, as the encoder can't decode latents"
    )
    return 0


def _export(options: argparse.Namespace) -> int:
    from latentkit.recipe.overrides import apply_override, split_overrides
    from latentkit.tasks.export import export_dataset

    values: dict[str, Any] = {}
    for key, value in split_overrides(options.set):
        apply_override(values, key, value)
    done = export_dataset(options.path, options.output, options.to, values)
    print(printable(f"{options.output}: {done.what} as {options.to}"))
    for lines in (*done.remarks, done.closing):
        if lines:
            print(printable(lines))
    return 0


def _checkpoint(options: argparse.Namespace) -> int:
    from latentkit.tasks.train_task import export_checkpoint

    print(printable(export_checkpoint(options.run, options.output, options.step, options.weights)))
    return 0


COMMANDS = (
    CommandSpec("inspect", "say what is in a latent dataset", _add_inspect, _inspect),
    CommandSpec(
        "verify",
        "find missing, damaged and foreign files in a latent dataset; exit code 1 if any is found",
        _add_verify,
        _verify,
    ),
    CommandSpec(
        "compact",
        "drop superseded rows and merge small units, bit for bit",
        _add_path,
        _compact,
    ),
    CommandSpec(
        "preview", "show samples beside their decoded latents", _add_preview, _preview
    ),
    CommandSpec(
        "export", "write a latent dataset in the format of a trainer", _add_export, _export
    ),
    CommandSpec(
        "checkpoint",
        "write the model of a training run's checkpoint to a folder that encoders load",
        _add_checkpoint,
        _checkpoint,
    ),
)
