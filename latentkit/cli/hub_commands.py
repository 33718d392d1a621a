"""The commands that upload a latent dataset to the hub, and download it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from latentkit.cli.shared_arguments import printable
from latentkit.contracts import CommandSpec

if TYPE_CHECKING:
    from latentkit.publishing.push_dataset import Push


def _add_push(command: argparse.ArgumentParser) -> None:
    command.add_argument("path", metavar="PATH", help="folder of the latent dataset")
    command.add_argument(
        "name",
        metavar="OWNER/NAME",
        help="dataset repository on the hub, made if it is missing; @BRANCH behind it for another"
        " branch than main",
    )
    command.add_argument(
        "--license",
        metavar="ID",
        help="license of the samples, as the hub calls it, such as cc-by-4.0 (default: that of the"
        " card on the hub)",
    )
    command.add_argument(
        "--public", action="store_true", help="let everybody read a repository that is made now"
    )
    command.add_argument(
        "--dry-run", action="store_true", help="say what would be published, and write nothing"
    )
    command.add_argument(
        "--no-preview",
        action="store_true",
        help="don't publish the preview, which shows samples of the source",
    )
    command.add_argument(
        "--keep-paths",
        action="store_true",
        help="publish absolute paths, and logins in URLs, as they are",
    )
    command.add_argument(
        "--replace", action="store_true", help="replace another dataset in the repository"
    )


def _add_pull(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "name",
        metavar="OWNER/NAME",
        help="dataset repository on the hub; @REVISION behind it for a branch, tag or commit",
    )
    command.add_argument(
        "output", metavar="OUT", help="folder to write: missing, empty, or of an earlier pull"
    )


def _push(options: argparse.Namespace) -> int:
    from latentkit.publishing.push_dataset import PushOptions, push_dataset

    _show_bars_on_terminals()
    done = push_dataset(
        options.path,
        options.name,
        PushOptions(
            license=options.license,
            public=options.public,
            keep_paths=options.keep_paths,
            preview=not options.no_preview,
            replace=options.replace,
            dry_run=options.dry_run,
        ),
    )
    print(printable(_describe(done, options.dry_run)))
    return 0


def _show_bars_on_terminals() -> None:
    """Show the bars of the hub's library only where somebody looks at them."""
    if not sys.stderr.isatty():
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()


def _describe(done: Push, is_dry: bool) -> str:
    plan, lines = done.plan, [f"note     {note}" for note in done.notes]
    sent = [*plan.added, *plan.changed]
    if is_dry:
        lines = [
            *(f"upload   {file.name} ({file.size / 1e6:.1f} MB)" for file in sent),
            *(f"remove   {name}" for name in plan.removed),
            *lines,
            "",
            "README.md:",
            done.card,
        ]
    megabytes = sum(file.size for file in sent) / 1e6
    first = "nothing to upload" if plan.is_empty else f"{len(sent)} files, {megabytes:.1f} MB"
    rest = f"{plan.num_same} files are there already, {len(plan.removed)} removed"
    lines = [f"{done.place}: {'would upload ' if is_dry else ''}{first}; {rest}", *lines]
    if not is_dry:
        address = f"hf://datasets/{done.place.repository}@{done.commit}"
        lines.append(f'read it  latentkit.open("{address}")')
    return "\n".join(lines)


def _pull(options: argparse.Namespace) -> int:
    from latentkit.publishing.pull_dataset import pull_dataset
    from latentkit.runtime.paths import in_shell
    from latentkit.store.contents import counted

    _show_bars_on_terminals()
    done = pull_dataset(options.name, options.output)
    size = f"{counted(done.num_units, 'unit')}, {done.num_bytes / 1e6:.1f} MB"
    print(printable(f"{done.folder}: {size} of {done.address}"))
    print(printable(f"check every byte with latentkit verify {in_shell(done.folder)}"))
    return 0


COMMANDS = (
    CommandSpec("push", "upload a latent dataset to the Hugging Face hub", _add_push, _push),
    CommandSpec("pull", "download a latent dataset from the Hugging Face hub", _add_pull, _pull),
)
