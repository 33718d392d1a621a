"""The real command on the real cluster: what comes out is what the local executor gives, whoever is
killed on the way.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

import latentkit as lk
from latentkit.errors import SourceError

NUM_PHOTOS = 48
SETTINGS = {"batch_size": 2, "threads": 1, "preview": 0}


def recipe(photos: Path, output: Path, encoder: Path, executor: dict[str, Any]) -> dict[str, Any]:
    return {
        "task": "encode",
        "source": {"use": "folder", "with": {"path": str(photos)}},
        "modality": {"use": "image", "with": {"size": 256}},
        "encoder": {"use": "diffusers", "with": {"model": str(encoder)}},
        "output": {"path": str(output), "dtype": "float32", "unit_size": 2},
        "executor": executor,
        **SETTINGS,
    }


def on(cluster: Cluster, **options: object) -> dict[str, Any]:
    return {"use": "ray", "with": {"address": cluster.address, **options}}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], subprocess.Popen[str]]]:
    """Start `latentkit run`; killed at the latest when the test ends."""
    begun: list[subprocess.Popen[str]] = []

    def begin(values: dict[str, Any]) -> subprocess.Popen[str]:
        (tmp_path / "recipe.yaml").write_text(json.dumps(values))
        line = [sys.executable, "-m", "latentkit", "run", str(tmp_path / "recipe.yaml")]
        process = subprocess.Popen(
            line,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


Start = Callable[[dict[str, Any]], "subprocess.Popen[str]"]


def contents(output: Path) -> dict[str, bytes]:
    """All files that have to be the same."""
    files = [
        output / "dataset.json",
        *(
            file
            for part in ("plans", "units", "index")
            for file in sorted((output / part).iterdir())
        ),
    ]
    return {str(file.relative_to(output)): file.read_bytes() for file in files}


def num_committed(output: Path) -> int:
    return len(list((output / "units").glob("*.safetensors")))


def claiming_pids(output: Path) -> set[int]:
    pids = set()
    for file in (output / "claims").glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            pids.add(int(json.loads(file.read_text())["pid"]))
    return pids


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until it holds, or the process is at its end."""
    while process.poll() is None and not condition():
        time.sleep(0.01)


def test_dataset_is_bit_identical_to_a_local_one_though_a_node_is_killed(
    head: Cluster,
    second_node: Any,
    make_photos: Callable[[int], Path],
    kl_folder: Path,
    tmp_path: Path,
    start: Start,
) -> None:
    photos, output = make_photos(NUM_PHOTOS), tmp_path / "ray"
    lk.run(recipe(photos, tmp_path / "local", kl_folder, {"use": "local"}))
    process = start(recipe(photos, output, kl_folder, on(head)))
    raylet = psutil.Process(second_node.all_processes["raylet"][0].process.pid)
    wait_until(lambda: num_committed(output) >= 4, process)
    workers = {child.pid for child in raylet.children(recursive=True)}
    wait_until(lambda: bool(claiming_pids(output) & workers), process)
    head.remove_node(second_node, allow_graceful=False)
    for pid in workers:  # which would go on for a while without their node, perhaps to the end
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert num_committed(output) < NUM_PHOTOS // 2 - 1
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    assert "ray: lost a worker" in printed
    assert contents(output) == contents(tmp_path / "local")
    assert not list((output / "claims").iterdir())


def test_terminated_run_stops_its_actors_and_is_gone_on_with(
    head: Cluster, make_photos: Callable[[int], Path], kl_folder: Path, tmp_path: Path, start: Start
) -> None:
    photos, output = make_photos(NUM_PHOTOS), tmp_path / "ray"
    process = start(recipe(photos, output, kl_folder, on(head)))
    wait_until(lambda: num_committed(output) >= 2 and bool(claiming_pids(output)), process)
    workers = [psutil.Process(pid) for pid in claiming_pids(output)]
    os.kill(process.pid, signal.SIGTERM)
    printed = process.communicate()[0]
    assert process.returncode == 143, printed
    assert f"go on with: latentkit run {output}/recipe.yaml" in printed
    assert num_committed(output) < NUM_PHOTOS // 2
    assert not list((output / "claims").iterdir())
    assert not psutil.wait_procs(workers, timeout=30)[1]
    assert len(lk.run(output / "recipe.yaml", {"executor": {"use": "local"}})) == NUM_PHOTOS


def test_error_of_a_worker_is_the_error_of_the_run(
    head: Cluster, make_photos: Callable[[int], Path], kl_folder: Path, tmp_path: Path
) -> None:
    photos = make_photos(4)
    (photos / "002.png").write_bytes(b"no picture")
    values = recipe(photos, tmp_path / "ray", kl_folder, on(head)) | {"on_bad_sample": "fail"}
    said = r"^sample '002\.png' can't be used: .*on_bad_sample: skip"
    with pytest.raises(SourceError, match=said) as caught:
        lk.run(values)
    assert caught.type is SourceError
    assert not list((tmp_path / "ray" / "claims").iterdir())
