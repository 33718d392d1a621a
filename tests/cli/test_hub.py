"""Hub ids, through the hub library's own cache: what a first download leaves is what every later
run finds, offline too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from hub_server import FakeHub, commit_of, read_files
from huggingface_hub import constants

import latentkit as lk

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


def fill_cache(
    cache: Path,
    repository: str,
    folder: Path,
    subfolder: str,
    revision: str = "main",
    commit: str = COMMIT,
) -> None:
    """The files of `folder` as the hub library keeps a downloaded revision of a repository."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / revision).write_text(commit)
    shutil.copytree(folder, place / "snapshots" / commit / subfolder)


def test_hub_id_of_a_model_and_of_a_pipeline(
    make_photos: Callable[..., Path], kl_folder: Path, tmp_path: Path
) -> None:
    photos = make_photos(3)
    fill_cache(tmp_path / "hub", "somebody/model", kl_folder, "")
    fill_cache(tmp_path / "hub", "somebody/pipeline", kl_folder, "vae")
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    fixed = [
        "--size",
        "32",
        "--set",
        "batch_size=3",
        "--set",
        "output.unit_size=3",
        "--set",
        "threads=1",
    ]
    for name in ("model", "pipeline"):
        line = [
            sys.executable,
            "-m",
            "latentkit",
            "encode",
            str(photos),
            str(tmp_path / name),
            "--encoder",
            f"somebody/{name}",
            *fixed,
        ]
        done = subprocess.run(line, text=True, capture_output=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
        assert f"model: somebody/{name}" in (tmp_path / name / "recipe.yaml").read_text()
    fingerprints = {lk.open(tmp_path / name).fingerprint for name in ("model", "pipeline")}
    overrides = {"batch_size": 3, "output.unit_size": 3, "threads": 1, "preview": 0}
    assert fingerprints == {
        lk.encode(
            photos, tmp_path / "local", encoder=kl_folder, size=32, overrides=overrides
        ).fingerprint
    }


def test_address_of_a_page_is_encoded_with_and_its_commit_is_kept(
    hub: FakeHub, make_photos: Callable[..., Path], kl_folder: Path, tmp_path: Path
) -> None:
    diffusers.AutoencoderKL.from_pretrained(kl_folder).save_pretrained(
        tmp_path / "shards", max_shard_size="50KB"
    )
    files = read_files(tmp_path / "shards", "vae/")
    assert len(files) > 3
    hub.add("somebody/pipeline", files)
    line = [
        sys.executable,
        "-m",
        "latentkit",
        "encode",
        str(make_photos(2)),
        str(tmp_path / "out"),
        "--size",
        "32",
    ]
    line += ["--encoder", f"{hub.endpoint}/somebody/pipeline/tree/main"]
    done = subprocess.run(line, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "Loading" not in said
    assert "allow_patterns" not in said
    parts = json.loads((tmp_path / "out/dataset.json").read_text())["parts"]
    assert parts["encoder.hub_commit"] == f"somebody/pipeline@{commit_of(files)}"
    overrides = {"batch_size": 2, "threads": 1, "preview": 0}
    local = lk.encode(
        tmp_path / "photos", tmp_path / "local", encoder=kl_folder, size=32, overrides=overrides
    )
    assert lk.open(tmp_path / "out").fingerprint == local.fingerprint
    wrong = subprocess.run(
        [*line[:-1], "somebody/nothing"], text=True, capture_output=True, timeout=120
    )
    assert wrong.returncode == 2
    assert (
        "the hub has no model of that name (somebody/nothing). Check the spelling" in wrong.stderr
    )


def test_revision_and_subfolder_choose_the_weights(
    make_photos: Callable[..., Path],
    kl_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    photos, place = make_photos(3), "stages/first"
    newer = diffusers.AutoencoderKL.from_pretrained(kl_folder)
    with torch.no_grad():
        newer.quant_conv.bias[:4] += 2.0  # of the means
    newer.save_pretrained(tmp_path / "newer")
    fill_cache(tmp_path / "hub", "somebody/model", tmp_path / "newer", place)
    fill_cache(tmp_path / "hub", "somebody/model", kl_folder, place, "v1", OTHER_COMMIT)
    fixed = {
        "encoder.with.subfolder": place,
        "batch_size": 3,
        "output.dtype": "float32",
        "threads": 1,
        "preview": 0,
    }
    revisions = {
        "newest": {},
        "branch": {"encoder.with.revision": "v1"},
        "commit": {"encoder.with.revision": OTHER_COMMIT},
    }
    for name, revision in revisions.items():
        lk.encode(
            photos, tmp_path / name, encoder="somebody/model", size=32, overrides=fixed | revision
        )
    data = {name: lk.open(tmp_path / name) for name in revisions}
    for number in range(3):
        newest, branch, commit = (data[name].moments(number)["mean"] for name in revisions)
        torch.testing.assert_close(newest, branch + 2.0, rtol=1e-5, atol=1e-5)
        assert torch.equal(commit, branch)
    assert data["commit"].fingerprint == data["branch"].fingerprint != data["newest"].fingerprint
