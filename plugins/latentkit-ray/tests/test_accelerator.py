"""Workers on a device that is no CUDA GPU: the simulated one of the repository's tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SIM = Path(__file__).parents[3] / "tests" / "devices" / "sim"
SCRIPT = """
import sys
from pathlib import Path
from ray.cluster_utils import Cluster
import latentkit as lk
from latentkit.testing.executor import UNITS, MakeWorker
from latentkit_ray.executor import RayExecutor
from latentkit_ray.plugin import RayConfig

folder, photos, encoder = map(Path, sys.argv[1:])
node = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
try:
    executor = RayExecutor(RayConfig(address=cluster.address))
    assert executor.device == "sim:0"
    done = [result.unit for result in executor.run(UNITS, MakeWorker(folder))]
    assert sorted(unit.number for unit in done) == list(range(len(UNITS)))
    recipe = {
        "task": "encode",
        "source": {"use": "folder", "with": {"path": str(photos)}},
        "modality": {"use": "image", "with": {"size": 48}},
        "encoder": {"use": "diffusers", "with": {"model": str(encoder)}},
        "output": {"path": str(folder / "latents"), "unit_size": 4},
        "batch_size": 2, "threads": 1, "compile": False, "preview": 0,
        "executor": {"use": "ray", "with": {"address": cluster.address}},
    }
    assert len(lk.run(recipe)) == 8
finally:
    cluster.shutdown()
"""


def test_a_worker_takes_the_accelerator_of_its_node_whatever_its_kind(
    tmp_path: Path, make_photos: object, kl_folder: Path
) -> None:
    assert callable(make_photos)
    paths = [str(SIM), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "LATENTKIT_SIM": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(make_photos(8)), str(kl_folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.glob("device *")] == ["device sim:0"]
