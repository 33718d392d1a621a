"""First commit wins on disks without hard links, with processes that race, stop and are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from latentkit.errors import StoreError
from latentkit.store import commit
from latentkit.store.local_folder import LocalFolder

TESTS = Path(__file__).parents[1]
KINDS = ("links", "links,renames")
SHARED_LOCK = (
    "end_to_end/store/test_together.py::"
    "test_folder_discarded_by_one_process_is_made_again_by_another"
)
"""Its semaphores are made by hard links, in memory: the filter is for all folders."""

OF_COMMITS = {
    "links": ["unit/store/test_local_folder.py"],
    "links,renames": [
        "unit/store/test_local_folder.py",
        "end_to_end/store/test_together.py",
        "end_to_end/encoding/test_incremental_interrupted.py",
    ],
}

RENAME_METHODS = """
import os, sys
from pathlib import Path
from latentkit.store import commit
Path("part").write_text("")
for way in commit.RENAME_METHODS:
    try:
        way(Path("part"), Path("taken"))
        print(way.__name__, "works")
        break
    except OSError as error:
        print(way.__name__, os.strerror(error.errno))
try:
    commit.give_final_name(Path("taken"), Path("taken"))
except FileExistsError:
    print("taken")
"""

RACE = """
import hashlib, os, sys, time
from pathlib import Path
from latentkit.store.local_folder import LocalFolder
folder, number = LocalFolder(Path("out")), sys.argv[1]
Path(f"ready-{number}").touch()
while not Path("go").exists():
    time.sleep(0.001)
for name in (f"units/{place}" for place in range(40)):
    with folder.create(name) as file:
        file.write(number.encode() * 200_000)
    content = folder.read(name)
    assert len(content) == 200_000 and len(set(content)) == 1
    print(name, content[:1].decode())
"""

COMMIT = """
import os, signal, sys
from pathlib import Path
from latentkit.store.local_folder import LocalFolder
if sys.argv[1] == "stopped":
    replace = os.replace
    os.replace = lambda *paths: (os.kill(os.getpid(), signal.SIGSTOP), replace(*paths))
with LocalFolder(Path("out")).create("units/a") as file:
    file.write(sys.argv[1].encode())
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Run Python code in the test's folder where the kernel refuses `kind`, until the test ends."""
    begun: list[subprocess.Popen[str]] = []

    def begin(kind: str, code: str, *arguments: str) -> subprocess.Popen[str]:
        line = [*refusing(kind), sys.executable, "-c", code, *arguments]
        begun.append(
            subprocess.Popen(
                line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        with process:  # closes its pipe, and waits
            pass


def refusing(kind: str) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("refuse_links.py")), kind]


def finish(process: subprocess.Popen[str]) -> list[str]:
    """The lines that it printed."""
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    return printed.splitlines()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("nothing", ["link works", "taken"]),
        ("links", ["link Operation not permitted", "rename_without_replacing works", "taken"]),
        (
            "links,renames",
            [
                "link Operation not permitted",
                "rename_without_replacing Invalid argument",
                "rename_under_lock works",
                "taken",
            ],
        ),
    ],
)
def test_a_file_is_published_in_the_best_way_that_there_is(
    kind: str, expected: list[str], start: Start
) -> None:
    assert finish(start(kind, RENAME_METHODS)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_tests_of_commits_hold(kind: str) -> None:
    line = [
        *refusing(kind),
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--deselect=tests/{SHARED_LOCK}",
    ]
    done = subprocess.run(
        [*line, *(f"tests/{name}" for name in OF_COMMITS[kind])],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_of_processes_that_race_one_has_each_name_for_good(
    kind: str, start: Start, tmp_path: Path
) -> None:
    racers = [start(kind, RACE, str(number)) for number in range(4)]
    while not all((tmp_path / f"ready-{number}").exists() for number in range(4)):
        assert all(racer.poll() is None for racer in racers)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    seen = {line for racer in racers for line in finish(racer)}
    assert len(seen) == 40  # every process found the same one
    assert seen == {
        f"units/{file.name} {file.read_text()[0]}"
        for file in (tmp_path / "out" / "units").iterdir()
    }
    assert list((tmp_path / "out" / "claims").iterdir()) == []


@pytest.mark.parametrize(
    ("then", "expected"), [(signal.SIGKILL, "second"), (signal.SIGCONT, "stopped")]
)
def test_process_that_stops_between_look_and_rename_is_waited_for_and_a_killed_one_blocks_nobody(
    then: signal.Signals, expected: str, start: Start, tmp_path: Path
) -> None:
    stopped = start("links,renames", COMMIT, "stopped")
    wait_until(
        stopped,
        lambda: Path(f"/proc/{stopped.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T",
    )
    second = start("links,renames", COMMIT, "second")
    wait_until(
        second,
        lambda: any(
            f" {second.pid} " in line
            for line in Path("/proc/locks").read_text().splitlines()
            if "->" in line
        ),
    )
    assert list((tmp_path / "out" / "units").iterdir()) == []
    os.kill(stopped.pid, then)
    finish(second)
    stopped.communicate()
    assert (tmp_path / "out" / "units" / "a").read_text() == expected
    assert (list((tmp_path / "out" / "claims").iterdir()) == []) == (
        then == signal.SIGCONT
    )  # what a killed one wrote is swept later


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    while not condition():
        assert process.poll() is None, "it went on"
        time.sleep(0.01)


def test_disk_that_has_no_way_at_all_says_so_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(commit, "RENAME_METHODS", (refuse, refuse, commit.rename_under_lock))
    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        pytest.raises(
            StoreError,
            match=r"no hard links, .* and no file locks; write to another disk",
        ),
        LocalFolder(tmp_path / "out").create("units/a") as file,
    ):
        file.write(b"x")
    assert LocalFolder(tmp_path / "out").list("units") == []


def test_real_failure_is_not_taken_for_a_disk_without_links(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        commit.give_final_name(tmp_path / "part", tmp_path / "missing" / "a")
