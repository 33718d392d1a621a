"""The commands that upload a latent dataset to the hub, and download it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from latentkit.cli.shared_arguments import printable
from latentkit.contracts import CommandSpec
from latentkit.errors import InterruptedRunError

if TYPE_CHECKING:
    from latentkit.publishing.push_plan import PushPlan


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


@contextmanager
def _continuable() -> Iterator[None]:
    """Say how to go on when the command is stopped."""
    try:
        yield
    except InterruptedRunError as error:
        text = f"{error}; the same command goes on from here"
        raise InterruptedRunError(text, error.exit_code) from error


def _push(options: argparse.Namespace) -> int:
    from latentkit.publishing.push_dataset import check_account, push_dataset
    from latentkit.publishing.push_plan import PushOptions, plan_push

    if not sys.stderr.isatty():
        _hide_bars()
    if not options.dry_run:
        check_account()
    chosen = PushOptions(
        license=options.license,
        public=options.public,
        keep_paths=options.keep_paths,
        preview=not options.no_preview,
        replace=options.replace,
    )
    with _continuable():
        plan = plan_push(options.path, options.name, chosen)
        print(printable(_describe(plan, options.dry_run)), flush=True)
        if not options.dry_run:
            address = f"hf://datasets/{plan.place.repository}@{push_dataset(plan)}"
            print(printable(f'read it  latentkit.open("{address}")'))
    return 0


def _hide_bars() -> None:
    """Hide the bars of the hub's library, of which there is one for each file."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()


def _describe(plan: PushPlan, is_dry: bool) -> str:
    """Return what is published; of a dry run every file, and the card."""
    sent = [*plan.added, *plan.changed]
    megabytes = sum(file.size for file in sent) / 1e6
    what = "nothing" if plan.is_empty else f"{len(sent)} files ({megabytes:.1f} MB)"
    where = "public: everybody" if plan.is_public else "private: only who has access"
    lines = [
        f"{plan.place}: {'would upload' if is_dry else 'uploading'} {what}, removing"
        f" {len(plan.removed)}; {plan.num_same} are there",
        *(f"note     {note}" for note in [f"{where} can read it", *plan.notes]),
    ]
    if is_dry:
        lines += [f"upload   {file.name} ({file.size / 1e6:.1f} MB)" for file in sent]
        lines += [f"remove   {name}" for name in plan.removed]
        lines += ["", "README.md:", plan.card]
    return "\n".join(lines)


def _pull(options: argparse.Namespace) -> int:
    from latentkit.publishing.pull_dataset import pull_dataset
    from latentkit.runtime.paths import in_shell
    from latentkit.store.contents import counted

    _hide_bars()
    with _continuable():
        done = pull_dataset(options.name, options.output)
    size = f"{counted(done.num_units, 'unit')}, {done.num_bytes / 1e6:.1f} MB"
    print(printable(f"{done.folder}: {size} of {done.address}"))
    print(printable(f"check every byte with latentkit verify {in_shell(done.folder)}"))
    return 0


COMMANDS = (
    CommandSpec("push", "upload a latent dataset to the Hugging Face hub", _add_push, _push),
    CommandSpec("pull", "download a latent dataset from the Hugging Face hub", _add_pull, _pull),
)
