"""Workers that cost nothing, on the real cluster: who gets which unit, and what is said when
somebody fails.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from latentkit_ray.cluster import Share, share_of
from latentkit_ray.executor import RayExecutor
from latentkit_ray.plugin import RayConfig
from ray.cluster_utils import Cluster
from ray.exceptions import RayTaskError

from latentkit.contracts import Unit, UnitResult, Worker
from latentkit.errors import LatentkitError, RecipeError
from latentkit.runtime import progress

UNITS = [Unit(0, number, 4 * number, 4 * number + 4) for number in range(8)]


def worker_that(happens: Callable[[Unit], bool]) -> Callable[[str], Worker]:
    """What makes workers that give a result for each unit where something happens; sent by value,
    as tests can't be imported there.
    """

    def make(device: str) -> Worker:
        def work(units: Iterator[Unit]) -> Iterator[UnitResult]:
            for unit in units:
                if happens(unit):
                    yield UnitResult(unit, 4, 0, 0.0, 0.0)

        return work

    return make


def run(cluster: Cluster, make_worker: Callable[[str], Worker], **options: Any) -> list[Unit]:
    executor = RayExecutor(RayConfig(address=cluster.address, **options))
    return [result.unit for result in executor.run(UNITS, make_worker)]


def test_every_unit_is_done_once(head: Cluster) -> None:
    assert run(head, worker_that(lambda unit: True)) == UNITS


def test_units_that_somebody_else_has_give_no_result(head: Cluster) -> None:
    assert run(head, worker_that(lambda unit: unit.number % 3 == 0)) == [
        UNITS[0],
        UNITS[3],
        UNITS[6],
    ]


def test_unit_that_kills_its_worker_once_is_done_by_the_next(head: Cluster, tmp_path: Path) -> None:
    mark = tmp_path / "killed"

    def kill_once(unit: Unit) -> bool:
        if unit.number == 2 and not mark.exists():
            mark.touch()
            os._exit(1)
        return True

    done = run(head, worker_that(kill_once))
    assert sorted(unit.number for unit in done) == list(range(8))
    assert done[-1] == UNITS[2]


def test_unit_that_kills_every_worker_ends_the_run_when_all_others_are_done(
    head: Cluster, tmp_path: Path
) -> None:
    def kill(unit: Unit) -> bool:
        if unit.number == 2:
            os._exit(1)
        (tmp_path / unit.name).touch()
        return True

    with pytest.raises(
        LatentkitError,
        match=(
            r"2 workers were lost without a unit being finished in between; the last had"
            r" 000-000002: "
        ),
    ):
        run(head, worker_that(kill), retries=1)
    assert len(list(tmp_path.iterdir())) == 7


def test_exception_that_is_no_users_error_keeps_its_type_and_its_traceback(head: Cluster) -> None:
    def divide(unit: Unit) -> bool:
        return 1 / (unit.number - 1) != 0

    with pytest.raises(ZeroDivisionError) as caught:
        run(head, worker_that(divide))
    assert caught.type is ZeroDivisionError
    assert isinstance(caught.value.__cause__, RayTaskError)
    assert "in divide" in str(caught.value.__cause__)


def test_worker_that_no_node_has_room_for_is_refused(head: Cluster) -> None:
    with pytest.raises(
        RecipeError, match=r"a worker needs 1 CPU and 1 GPU, and no living node .*\(nodes: 1 CPU\)"
    ):
        run(head, worker_that(lambda unit: True), gpus_per_worker=1)


def test_cluster_that_is_not_there_is_named() -> None:
    executor = RayExecutor(RayConfig(address="127.0.0.1:1"))
    with pytest.raises(
        RecipeError,
        match=r"executor\.with\.address: no Ray cluster can be reached at 127\.0\.0\.1:1: ",
    ):
        list(executor.run(UNITS, worker_that(lambda unit: True)))


def test_nothing_to_do_needs_no_cluster() -> None:
    assert (
        list(RayExecutor(RayConfig(address="127.0.0.1:1")).run([], worker_that(lambda unit: True)))
        == []
    )


@pytest.mark.parametrize(
    ("nodes", "options", "share", "num_workers"),
    [
        ([{"CPU": 8.0}, {"CPU": 8.0}], {}, Share(8, 0), 2),
        ([{"CPU": 0.0}, {"CPU": 8.0}, {"CPU": 20.0}], {}, Share(8, 0), 3),
        ([{"CPU": 8.0}], {"cpus_per_worker": 0.1}, Share(0.1, 0), 80),
        ([{"CPU": 16.0}, {"CPU": 64.0, "GPU": 8.0}], {}, Share(1, 1), 8),
        ([{"CPU": 4.0, "GPU": 8.0}], {}, Share(1, 1), 4),
        (
            [{"CPU": 64.0, "GPU": 2.0}],
            {"gpus_per_worker": 0.1, "cpus_per_worker": 2},
            Share(2, 0.1),
            20,
        ),
        ([{"CPU": 64.0, "GPU": 2.0}], {"gpus_per_worker": 0}, Share(64, 0), 1),
        ([], {}, Share(1, 0), 0),
    ],
)
def test_shares_follow_from_the_nodes(
    nodes: list[dict[str, float]], options: dict[str, Any], share: Share, num_workers: int
) -> None:
    assert share_of(RayConfig(**options), nodes) == share
    assert share.num_fitting(nodes) == num_workers
    assert share.device == ("auto" if share.gpus else "cpu")


@pytest.mark.parametrize("is_shown", [True, False])
def test_the_live_line_is_printed_where_the_job_says_so(
    head: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_shown: bool,
) -> None:
    def make(job: SimpleNamespace, device: str) -> Worker:
        return worker_that(lambda unit: True)(device)

    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    run(head, functools.partial(make, SimpleNamespace(show_progress=is_shown)))
    assert ("32/32 entries" in capsys.readouterr().err) is is_shown
