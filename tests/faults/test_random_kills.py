"""SIGKILL at random moments of everything that writes: what comes out is what would have come out
anyway, byte for byte.

    LATENTKIT_KILLS=60 LATENTKIT_KILL_SEED=1 pytest tests/faults/test_random_kills.py -s

kills so often (9 times when nothing is said), in 1 to 4 processes, and says at which moments.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from verified import verify_dataset

KILLS = int(os.environ.get("LATENTKIT_KILLS", "9"))
SEED = int(os.environ.get("LATENTKIT_KILL_SEED", "0"))
NUM_PHOTOS = 40
SIZE = 192
MOST_PER_STAGE = 8
"""Kills of one command before it is let through."""

REFUSE_LINKS = Path(__file__).parents[1] / "systems" / "refuse_links.py"
WITHOUT_LINKS = [sys.executable, str(REFUSE_LINKS), "links,renames"]
"""The last third of the kills is on a disk that has no hard links; what comes out is the same."""

Contents = dict[str, bytes]


def list_names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder))
    except FileNotFoundError:
        return []


@dataclass(frozen=True)
class Moment:
    """When to kill: so long after the first sign; `sign` says what is looked for, "start" for
    nothing at all.
    """

    sign: str
    delay_seconds: float

    def has_come(self, output: Path, more: int) -> Callable[[], bool]:
        """Whether the sign is there; for units, so many more than there are now."""
        before = len(list_names(output / "units"))

        def in_the_making(name: str) -> bool:
            return any(
                part.startswith(name) and part.endswith(".part")
                for part in list_names(output / "claims")
            )

        signs: dict[str, Callable[[], bool]] = {
            "start": lambda: True,
            "plan": lambda: in_the_making("plans-"),
            "unit in the making": lambda: in_the_making("units-"),
            "unit": lambda: len(list_names(output / "units")) >= before + more,
            "index": lambda: in_the_making("index-"),
            "dataset.json": lambda: in_the_making("dataset.json"),
        }
        return signs[self.sign]


def draw_moment(draw: random.Random, is_planned: bool, is_late: bool) -> Moment:
    """Of those that can still come; the last steps late, because there is nothing left to kill
    after them.
    """
    early = [] if is_planned else ["start", "plan", "plan"]
    sign = draw.choice(
        ["unit in the making", "index", "dataset.json"]
        if is_late
        else [*early, "unit in the making", "unit"]
    )
    return Moment(
        sign,
        (
            draw.uniform(0, 5)
            if sign == "start"
            else draw.choice([0, draw.uniform(0, 0.005), draw.uniform(0, 0.1)])
        ),
    )


@dataclass
class Stage:
    """One thing that a user does with a dataset: the command, the one to go on with, the source,
    and what has to come out.
    """

    name: str
    arguments: list[str]
    again: list[str]
    photos: Path
    keys: list[str]
    most_processes: int
    expected: Contents = field(default_factory=dict)


@dataclass
class Harness:
    """The stages in turn, on one output after another, until enough was killed."""

    start: Callable[..., Any]
    contents: Callable[[Path], Contents]
    place: Path
    output: Path
    stages: list[Stage]
    draw: random.Random
    prefix: list[str] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)

    def put_source(self, stage: Stage) -> None:
        """The stage's source in its place, files with the times they had."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(stage.photos, self.place)

    def expect(self) -> None:
        """What every stage ends with when nothing goes wrong, in one process."""
        for stage in self.stages:
            self.put_source(stage)
            self.start(stage.arguments).finish()
            stage.expected = self.contents(self.output)
            self.check(stage)
        shutil.rmtree(self.output)

    def kill_often(self, count: int) -> None:
        while (left := count - self.killed.total()) > 0:
            for stage, share in zip(self.stages, (0.5, 0.75, 1), strict=True):
                self.put_source(stage)
                self.kill_stage(
                    stage,
                    min(round(share * left) - (self.killed.total() - count + left), MOST_PER_STAGE),
                )
                if self.contents(self.output) != stage.expected or list_names(
                    self.output / "claims"
                ):
                    processes = self.draw.randint(1, min(2, stage.most_processes))
                    self.start(stage.again, processes, self.prefix).finish()
                if stage.again != stage.arguments:
                    self.start(stage.arguments, prefix=self.prefix).finish()
                self.check(stage)
            shutil.rmtree(self.output)

    def kill_stage(self, stage: Stage, most: int) -> None:
        """Start the command and kill it, until it has been killed so often or gets to its end."""
        for number in range(most):
            is_planned = len(list_names(self.output / "plans")) > self.stages.index(stage)
            moment = draw_moment(self.draw, is_planned, number >= most - 2)
            processes = min(self.draw.choice([1, 1, 1, 1, 1, 2, 2, 3, 4]), stage.most_processes)
            run = self.start(stage.again if number else stage.arguments, processes, self.prefix)
            run.wait_until(moment.has_come(self.output, self.draw.randint(1, 4)))
            time.sleep(moment.delay_seconds)
            if processes > 1 and self.draw.random() < 0.3 and (workers := run.workers()):
                self.draw.choice(workers).kill()  # the others notice, or go on alone
                time.sleep(self.draw.uniform(0, 1))
            if not run.kill():
                return
            self.killed[f"{stage.name}, {moment.sign}, {processes} processes"] += 1
            self.check_nothing_else(stage)

    def check_nothing_else(self, stage: Stage) -> None:
        """Whatever is there has to be whole, and to come from this stage or the one before;
        compaction removes what it has replaced.
        """
        allowed: dict[str, set[bytes]] = {}
        for one in self.stages[: self.stages.index(stage) + 1]:
            for name, content in one.expected.items():
                allowed.setdefault(name, set()).add(content)
        for name, content in self.contents(self.output).items():
            assert content in allowed.get(name, ()), f"{name} after {dict(self.killed)}"

    def check(self, stage: Stage) -> None:
        found = self.contents(self.output)
        assert [
            name
            for name in {*found, *stage.expected}
            if found.get(name) != stage.expected.get(name)
        ] == [], dict(self.killed)
        assert list_names(self.output / "claims") == []
        newest = self.output / "index" / list_names(self.output / "index")[-1]
        assert pq.read_table(newest)["key"].to_pylist() == stage.keys
        assert verify_dataset(self.output).damage == ()


@pytest.fixture
def harness(
    write_photos: Callable[..., Path],
    kl_folder: Path,
    tmp_path: Path,
    start: Callable[..., Any],
    contents: Any,
    encode_line: Any,
) -> Harness:
    first, second, place, output = (
        tmp_path / name for name in ("first", "second", "photos", "out")
    )
    write_photos(first, NUM_PHOTOS)
    shutil.copytree(first, second)
    (second / "004.png").unlink()
    (second / "005.png").rename(second / "100.png")
    (second / "005.txt").rename(second / "100.txt")
    (second / "007.txt").write_text("another caption")
    for number in range(8, 14):
        shutil.copy(first / f"{number + 8:03d}.png", second / f"{number:03d}.png")
    line = encode_line(place, output, kl_folder, SIZE)
    stages = [
        Stage("encode", line, line, first, pictures(first), 4),
        Stage("encode what changed", line, line, second, pictures(second), 4),
        Stage("compact", ["compact", str(output)], line, second, pictures(second), 1),
    ]
    return Harness(start, contents, place, output, stages, random.Random(SEED))


def pictures(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.png"))


@pytest.mark.timeout(60 + 80 * KILLS)
def test_killed_at_random_and_resumed_on_other_numbers_of_processes_ends_bit_identical(
    harness: Harness,
) -> None:
    harness.expect()
    harness.kill_often(round(KILLS * 2 / 3))
    harness.prefix = WITHOUT_LINKS
    harness.kill_often(KILLS)
    print("\n".join(f"{count} x {moment}" for moment, count in sorted(harness.killed.items())))
    assert harness.killed.total() >= KILLS
