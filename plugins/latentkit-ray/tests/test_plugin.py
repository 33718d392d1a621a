"""The plugin is found, described, and refuses what can't be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from latentkit_ray.plugin import RayConfig, latentkit_executors
from pydantic import BaseModel, ValidationError

from latentkit.contracts import Executor, ExecutorSpec
from latentkit.kit import discover
from latentkit.testing import PluginContract


class TestRay(PluginContract):
    spec = latentkit_executors()
    spec_type = ExecutorSpec
    protocols = (Executor,)

    def make_config(self, tmp_path: Path) -> BaseModel:
        return RayConfig(address="10.0.0.1:6379", num_workers=4, gpus_per_worker=0.5)


def test_installed_plugin_is_listed_without_loading_ray() -> None:
    program = (
        "import sys, latentkit.cli as cli; cli.main(['plugins', '--json']); print('ray' in"
        " sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    listed, loaded = done.stdout.rstrip().rsplit("\n", 1)
    rows = json.loads(listed)["plugins"]
    assert [
        row["provider"] for row in rows if (row["kind"], row["name"]) == ("executor", "ray")
    ] == ["latentkit-ray"]
    assert loaded == "False False"


def test_no_option_counts_towards_the_fingerprint() -> None:
    from latentkit.plugins import fingerprint_fields

    config = RayConfig(
        address="auto", num_workers=2, gpus_per_worker=1, cpus_per_worker=3, retries=0
    )
    assert fingerprint_fields(config) == {}
    assert not [
        problem for problem in discover().problems if problem.distribution == "latentkit-ray"
    ]


def test_one_and_a_half_gpus_are_refused() -> None:
    with pytest.raises(
        ValidationError, match=r"expected a part of one GPU or a whole number of them, got 1\.5"
    ):
        RayConfig(gpus_per_worker=1.5)
