"""Hub ids, through the hub library's own cache: what a first download leaves is what every later run finds, offline too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import latentkit as lk

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fill_cache(cache: Path, repository: str, folder: Path, subfolder: str) -> None:
    """The files of `folder` as the hub library keeps a downloaded repository."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, place / "snapshots" / COMMIT / subfolder)


def test_hub_id_of_a_model_and_of_a_pipeline(make_photos: Callable[..., Path], kl_folder: Path, tmp_path: Path) -> None:
    photos = make_photos(3)
    fill_cache(tmp_path / "hub", "somebody/model", kl_folder, "")
    fill_cache(tmp_path / "hub", "somebody/pipeline", kl_folder, "vae")
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    fixed = ["--size", "32", "--set", "batch_size=3", "--set", "output.unit_size=3", "--set", "threads=1"]
    for name in ("model", "pipeline"):
        line = [sys.executable, "-m", "latentkit", "encode", str(photos), str(tmp_path / name), "--encoder", f"somebody/{name}", *fixed]
        done = subprocess.run(line, text=True, capture_output=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
        assert f"model: somebody/{name}" in (tmp_path / name / "recipe.yaml").read_text()
    fingerprints = {lk.open(tmp_path / name).fingerprint for name in ("model", "pipeline")}
    overrides = {"batch_size": 3, "output.unit_size": 3, "threads": 1, "preview": 0}
    assert fingerprints == {lk.encode(photos, tmp_path / "local", encoder=kl_folder, size=32, overrides=overrides).fingerprint}
