"""Checks for executors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from latentkit.contracts import Executor, ExecutorSpec, NamedSpec, Unit, UnitResult, Worker
from latentkit.errors import SourceError
from latentkit.testing.plugin import PluginContract

UNITS = tuple(Unit(0, number, 4 * number, 4 * number + 4) for number in range(7))
REASON = "the source went away"


@dataclass(frozen=True)
class MakeWorker:
    """Makes workers that only write a file for each unit and device to a folder. It can be pickled.

    Args:
        folder: folder of these files.
        but: "all": every unit has a result; "even": only even ones, as if another process had the
            rest; "fails": the third unit raises an error.
    """

    folder: Path
    but: Literal["all", "even", "fails"] = "all"

    def __call__(self, device: str) -> Worker:
        (self.folder / f"device {device.replace('/', ' ')}").touch()
        return self._work

    def _work(self, units: Iterator[Unit]) -> Iterator[UnitResult]:
        """Touch a file for each unit and yield its result."""
        for unit in units:
            if self.but == "fails" and unit.number == 2:
                raise SourceError(REASON)
            if self.but == "even" and unit.number % 2:
                continue
            (self.folder / f"unit {unit.name}").touch()
            yield UnitResult(unit, 4, 0, 0.0, 0.0)


class ExecutorContract(PluginContract):
    """Checks that every `Executor` must pass.

    Set `spec`, and override `make_config` so that the executor runs on this machine alone.
    """

    spec_type: ClassVar[type[NamedSpec]] = ExecutorSpec
    protocols: ClassVar[tuple[type, ...]] = (Executor,)

    def make_executor(self, tmp_path: Path) -> Executor:
        """Return the executor under test."""
        executor: Executor = self.build(tmp_path)
        return executor

    def test_every_unit_is_done_and_its_result_given_once(self, tmp_path: Path) -> None:
        """Each unit reaches a worker, and its result comes back, once, in any order."""
        numbers = sorted(unit.number for unit in self.run(tmp_path, MakeWorker(tmp_path)))
        worked = sorted(path.name for path in tmp_path.glob("unit *"))
        assert worked == [
            f"unit {unit.name}" for unit in UNITS
        ], f"units that reached a worker: {worked}; expected all of {len(UNITS)}"
        assert numbers == [
            unit.number for unit in UNITS
        ], f"results of the units {numbers}; expected one of each of {len(UNITS)}"

    def test_units_that_another_process_has_give_no_result(self, tmp_path: Path) -> None:
        """A worker leaves out units that another process encoded: the executor doesn't wait for
        their results, and doesn't hand them out again.
        """
        numbers = sorted(unit.number for unit in self.run(tmp_path, MakeWorker(tmp_path, "even")))
        wanted = [unit.number for unit in UNITS if unit.number % 2 == 0]
        assert (
            numbers == wanted
        ), f"results of the units {numbers}; the workers gave those of {wanted}"

    def test_no_units_are_no_work(self, tmp_path: Path) -> None:
        """Without units there are no results, and no error."""
        found = list(self.make_executor(tmp_path).run([], MakeWorker(tmp_path)))
        assert not found, f"no units gave the results {found}"

    def test_the_error_of_a_worker_is_the_error_of_the_run(self, tmp_path: Path) -> None:
        """An error of a worker is raised by `run`, with the same class and message, because it
        tells the user what to fix.
        """
        raised: Exception | None = None
        try:
            self.run(tmp_path, MakeWorker(tmp_path, "fails"))
        except Exception as error:  # noqa: BLE001 (plugin boundary)
            raised = error
        same = isinstance(raised, SourceError) and REASON in str(raised)
        assert same, (
            f"a worker raised SourceError({REASON!r}), and run() {raised!r}: let it through, or"
            " raise it again"
        )

    def test_workers_are_made_for_devices_of_torch(self, tmp_path: Path) -> None:
        """`make_worker` is called with the name of a device, such as "cpu" or "cuda:0"."""
        self.run(tmp_path, MakeWorker(tmp_path))
        names = [path.name.removeprefix("device ") for path in tmp_path.glob("device *")]
        assert names, "no worker was made: call make_worker(device)"
        wrong = [name for name in names if not is_device(name)]
        assert not wrong, f"workers were made for {wrong}: give torch's name of a device"

    def test_the_executor_can_be_used_again(self, tmp_path: Path) -> None:
        """A second `run` of an executor encodes its units too: with several encoders there is one
        run for each.
        """
        executor = self.make_executor(tmp_path)
        counts = [len(list(executor.run(UNITS, MakeWorker(tmp_path)))) for _ in range(2)]
        assert (
            counts == [len(UNITS)] * 2
        ), f"{counts} results of two runs; keep what a run needs inside run()"

    def run(self, tmp_path: Path, make_worker: MakeWorker) -> list[Unit]:
        """Run all units and return the units of the results, in the order in which they came."""
        return [result.unit for result in self.make_executor(tmp_path).run(UNITS, make_worker)]


def is_device(name: str) -> bool:
    """Return whether torch knows a device of this name."""
    try:
        torch.device(name)
    except RuntimeError:
        return False
    return True
