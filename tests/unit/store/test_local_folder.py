"""Commits: the first wins, nothing half-written is ever visible, and every failure is explained."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from latentkit.errors import StoreError
from latentkit.runtime.paths import is_url
from latentkit.store.claims import Claims
from latentkit.store.commit import retry_while_in_use
from latentkit.store.folder import host
from latentkit.store.local_folder import LocalFolder
from latentkit.store.open_folder import open_folder


def write(folder: LocalFolder, name: str, content: bytes) -> None:
    with folder.create(name) as file:
        file.write(content)


def leftovers(folder: LocalFolder) -> list[str]:
    return [path.name for path in (folder.path / "claims").iterdir()]


def test_first_commit_wins(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path / "out")
    write(folder, "units/a", b"first")
    write(folder, "units/a", b"second")
    assert folder.read("units/a") == b"first"
    assert leftovers(folder) == []


def test_many_threads_commit_one_whole_file(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path / "out")
    contents = [bytes([number]) * 100_000 for number in range(8)]
    threads = [
        threading.Thread(target=write, args=(folder, "units/a", content)) for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folder.read("units/a") in contents
    assert leftovers(folder) == []


def test_exception_commits_nothing(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path / "out")
    with pytest.raises(ZeroDivisionError), folder.create("units/a") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert folder.list("units") == []
    assert leftovers(folder) == []


def test_replace_replaces(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path / "out")
    folder.replace("dataset.json", b"1")
    folder.replace("dataset.json", b"2")
    assert folder.read("dataset.json") == b"2"
    assert leftovers(folder) == []


def test_failure_to_write_is_explained(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(
        StoreError, match=r"can't be written: .*nothing that was there before is lost"
    ):
        write(LocalFolder(tmp_path / "out"), "units/a", b"x")


def test_url_of_a_local_folder_is_that_folder(tmp_path: Path) -> None:
    write(LocalFolder(tmp_path / "out"), "units/a", b"x")
    folder = open_folder(f"file://{tmp_path}/out")
    assert isinstance(folder, LocalFolder)
    assert folder.read("units/a") == b"x"


def test_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        open_folder(str(tmp_path / "file"))


def test_claim_is_exclusive_until_dropped(tmp_path: Path) -> None:
    ours = Claims(LocalFolder(tmp_path))
    assert ours.take("unit")
    assert not Claims(LocalFolder(tmp_path)).take("unit")
    assert Claims(LocalFolder(tmp_path)).holders() == [f"process {os.getpid()} on {host()}"]
    ours.drop("unit")
    assert Claims(LocalFolder(tmp_path)).take("unit")


def test_claim_and_part_of_a_dead_process_are_taken_over_and_swept(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from latentkit.store.claims import Claims\n"
        "from latentkit.store.local_folder import LocalFolder\n"
        "folder = LocalFolder(Path(sys.argv[1]))\n"
        "assert Claims(folder).take('unit') and Claims(folder).take('other')\n"
        "opened = folder.create('units/a')\n"
        "opened.__enter__().write(b'half')\n"
        "os._exit(1)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 1
    assert len(list((tmp_path / "claims").iterdir())) == 3
    claims = Claims(LocalFolder(tmp_path))
    assert claims.holders() == []
    assert claims.take("unit")
    claims.sweep()
    assert [path.name for path in (tmp_path / "claims").iterdir()] == ["unit.json"]


def test_claim_of_a_process_that_ended_and_that_nobody_waited_for_is_taken_over(
    tmp_path: Path,
) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from latentkit.store.claims import Claims\n"
        "from latentkit.store.local_folder import LocalFolder\n"
        "assert Claims(LocalFolder(Path(sys.argv[1]))).take('unit')\n"
        "os._exit(0)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as process:
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert Claims(LocalFolder(tmp_path)).take("unit")


def test_claims_are_dropped_when_work_ends(tmp_path: Path) -> None:
    claims = Claims(LocalFolder(tmp_path))
    with pytest.raises(ZeroDivisionError), claims.heartbeat():
        claims.take("unit")
        raise ZeroDivisionError
    assert list((tmp_path / "claims").iterdir()) == []


class Unreachable(LocalFolder):
    """From which nothing can be removed."""

    def remove(self, name: str) -> None:
        raise StoreError("out of reach")


def test_claim_that_this_process_could_not_drop_is_taken_over_and_swept(tmp_path: Path) -> None:
    lost = Claims(Unreachable(tmp_path))
    with lost.heartbeat():
        assert lost.take("unit")
        assert lost.take("other")
    assert len(list((tmp_path / "claims").iterdir())) == 2
    claims = Claims(LocalFolder(tmp_path))
    assert claims.holders() == []
    assert claims.take("unit")
    assert not Claims(LocalFolder(tmp_path)).take("unit")
    claims.sweep()
    assert [path.name for path in (tmp_path / "claims").iterdir()] == ["unit.json"]


def test_claim_of_a_process_that_may_not_be_looked_at_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Claims(LocalFolder(tmp_path)).take("unit")

    def refuse(process: psutil.Process) -> float:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "create_time", refuse)
    assert not Claims(LocalFolder(tmp_path)).take("unit")


def test_what_windows_refuses_while_a_file_is_open_is_tried_again() -> None:
    in_use, denied = PermissionError(13, "used by another process"), PermissionError(13, "denied")
    in_use.winerror = 32  # type: ignore[attr-defined]
    answers: list[Exception | None] = [in_use, in_use, None, denied]

    def replace() -> None:
        if (answer := answers.pop(0)) is not None:
            raise answer

    retry_while_in_use(replace)
    assert answers == [denied]
    with pytest.raises(PermissionError, match="denied"):
        retry_while_in_use(replace)


def test_name_of_the_host_fits_into_names_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "写真's PC:1~a")
    assert re.fullmatch(r"___s_PC_1_a(-\d+)?", host.__wrapped__())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/a", True),
        ("simplecache::s3://bucket/a", True),
        ("file:///a", True),
        ("a/b", False),
        ("C:\\a", False),
        ("C://a", False),
        ("./a://b", False),
    ],
)
def test_disk_of_windows_is_no_url(text: str, expected: bool) -> None:
    assert is_url(text) == expected


@pytest.mark.parametrize(
    "content",
    [5, [["host", "pid"]], *({"host": host(), "pid": pid} for pid in ("x", None, -1, 2**70, 1.5))],
)
def test_claim_that_says_nothing_is_an_unfinished_or_a_dead_one(
    tmp_path: Path, content: Any
) -> None:
    (tmp_path / "claims").mkdir()
    file = tmp_path / "claims" / "unit.json"
    file.write_text(json.dumps(content))
    os.utime(file, (1, 1))
    assert Claims(LocalFolder(tmp_path)).holders() == []
    assert Claims(LocalFolder(tmp_path)).take("unit")
