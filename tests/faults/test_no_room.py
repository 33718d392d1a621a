"""No room, no permission: one clear message, exit code 2, nothing lost, and the run goes on when
there is room again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentkit.store.index import committed_units
from latentkit.store.local_folder import LocalFolder

Contents = Callable[[Path], dict[str, bytes]]

FULL = ["bash", "-c", 'ulimit -f 64; exec "$@"', "bash"]
"""No file may grow beyond 64 KiB, which to the writer looks like a full disk; a unit is larger."""

# Root may write where permissions say no, unless it gives that up.
WITHOUT_PRIVILEGE = (
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
)


@pytest.fixture
def begun(
    make_photos: Callable[..., Path], kl_folder: Path, tmp_path: Path, start: Any, encode_line: Any
) -> list[str]:
    """The command of a run that was stopped half-way."""
    line: list[str] = encode_line(make_photos(20), tmp_path / "out", kl_folder, 128)
    run = start(line)
    run.wait_until(lambda: len(committed_units(LocalFolder(tmp_path / "out"))) >= 2)
    run.kill()
    return line


def is_one_message(printed: str) -> bool:
    lines = [line for line in printed.splitlines() if line.startswith("latentkit: ")]
    return len(lines) == 1 and "Traceback" not in printed


def test_full_disk_loses_nothing_and_the_run_goes_on(
    begun: list[str], tmp_path: Path, start: Any, contents: Contents
) -> None:
    output = tmp_path / "out"
    before, left_by_the_kill = contents(output), set(os.listdir(output / "claims"))
    printed = start(begun, prefix=FULL).finish(2)
    assert is_one_message(printed)
    assert "can't be written: File too large; nothing that was there before is lost" in printed
    assert contents(output) == before
    assert set(os.listdir(output / "claims")) <= left_by_the_kill
    start(begun).finish()
    assert not os.listdir(output / "claims")
    finished = contents(output)
    assert {name: finished[name] for name in before} == before
    assert "nothing broken" in start(["verify", output]).finish()


def test_folder_that_can_not_be_written_is_said_and_left_alone(
    begun: list[str], tmp_path: Path, start: Any, contents: Contents
) -> None:
    output = tmp_path / "out"
    shutil.rmtree(output / "claims")
    before = contents(output)
    for folder in (output, *(path for path in output.iterdir() if path.is_dir())):
        folder.chmod(0o555)
    printed = start(begun, prefix=WITHOUT_PRIVILEGE).finish(2)
    assert is_one_message(printed)
    assert "can't be written: Permission denied" in printed
    assert contents(output) == before
    for folder in (output, *(path for path in output.iterdir() if path.is_dir())):
        folder.chmod(0o755)
    start(begun).finish()


def test_new_output_that_can_not_be_made_is_said(
    make_photos: Any, kl_folder: Path, tmp_path: Path, start: Any, encode_line: Any
) -> None:
    (tmp_path / "file").write_text("in the way")
    printed = start(encode_line(make_photos(2), tmp_path / "file" / "out", kl_folder)).finish(2)
    assert is_one_message(printed)
    assert "Not a directory" in printed
