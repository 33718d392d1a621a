"""Every check for executors fails for an executor that is broken in that one way, and a good one
passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from latentkit.contracts import Config, ExecutorSpec, Unit, UnitResult, Worker
from latentkit.testing import ExecutorContract, check_names, find_failures

MakeWorker = Callable[[str], Worker]


class Plain:
    """A good executor: all units here, in one worker."""

    def run(self, units: Sequence[Unit], make_worker: MakeWorker) -> Iterator[UnitResult]:
        yield from make_worker("cpu")(iter(units))


class ForgetsTheLast(Plain):
    def run(self, units: Sequence[Unit], make_worker: MakeWorker) -> Iterator[UnitResult]:
        results = list(make_worker("cpu")(iter(units)))
        yield from results[:-1] if len(results) == 7 else results


class CountsOnEveryUnit(Plain):
    def run(self, units: Sequence[Unit], make_worker: MakeWorker) -> Iterator[UnitResult]:
        found = {result.unit: result for result in make_worker("cpu")(iter(units))}
        yield from (found.get(unit, UnitResult(unit, 0, 0, 0.0, 0.0)) for unit in units)


class NeedsWork(Plain):
    def run(self, units: Sequence[Unit], make_worker: MakeWorker) -> Iterator[UnitResult]:
        first = units[0]
        yield from make_worker("cpu")(iter([first, *units[1:]]))


class SwallowsErrors(Plain):
    def run(self, units: Sequence[Unit], make_worker: MakeWorker) -> Iterator[UnitResult]:
        for unit in units:
            try:
                yield from make_worker("cpu")(iter([unit]))
            except Exception:  # noqa: BLE001 (the fault that is looked for)
                continue


class WrapsErrors(Plain):
    def run(self, units: Sequence[Unit], make_worker: MakeWorker) -> Iterator[UnitResult]:
        try:
            yield from make_worker("cpu")(iter(units))
        except Exception as error:
            raise RuntimeError("a worker failed") from error


class InventsADevice(Plain):
    def run(self, units: Sequence[Unit], make_worker: MakeWorker) -> Iterator[UnitResult]:
        yield from make_worker("the first one")(iter(units))


class WorksOnce(Plain):
    def __init__(self) -> None:
        self._done: set[Unit] = set()

    def run(self, units: Sequence[Unit], make_worker: MakeWorker) -> Iterator[UnitResult]:
        for result in make_worker("cpu")(unit for unit in units if unit not in self._done):
            self._done.add(result.unit)
            yield result


class PlainContract(ExecutorContract):
    def __init__(self, executor: type[Plain]) -> None:
        self.spec = ExecutorSpec(
            "plain", "all units here", Config, lambda config, context: executor()
        )

    def entry_point(self) -> str | None:
        return None


ALL = "test_every_unit_is_done_and_its_result_given_once"
AGAIN = "test_the_executor_can_be_used_again"
BROKEN: dict[type[Plain], set[str]] = {
    ForgetsTheLast: {ALL, AGAIN},
    CountsOnEveryUnit: {"test_units_that_another_process_has_give_no_result"},
    NeedsWork: {"test_no_units_are_no_work"},
    SwallowsErrors: {"test_the_error_of_a_worker_is_the_error_of_the_run"},
    WrapsErrors: {"test_the_error_of_a_worker_is_the_error_of_the_run"},
    InventsADevice: {"test_workers_are_made_for_devices_of_torch"},
    WorksOnce: {AGAIN},
}


@pytest.mark.parametrize("executor", BROKEN, ids=lambda executor: executor.__name__)
def test_an_executor_broken_in_one_way_fails_the_check_for_it(
    executor: type[Plain], tmp_path: Path
) -> None:
    assert set(find_failures(PlainContract(executor), tmp_path)) == BROKEN[executor]


def test_a_good_executor_passes_every_check(tmp_path: Path) -> None:
    assert find_failures(PlainContract(Plain), tmp_path) == {}


def test_every_check_for_executors_is_proved() -> None:
    shared = {name for name in check_names(ExecutorContract) if name not in vars(ExecutorContract)}
    assert set().union(*BROKEN.values()) == set(check_names(ExecutorContract)) - shared
