"""Signals, and several runs at once: the command stops cleanly, says how to go on, and never harms
what is there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentkit.store.folder import host
from latentkit.store.index import committed_units
from latentkit.store.local_folder import LocalFolder

NUM_PHOTOS = 40
SIZE = 192
Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def photos(make_photos: Callable[..., Path]) -> Path:
    return make_photos(NUM_PHOTOS)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_ends_a_run_cleanly_and_it_says_how_to_go_on(
    photos: Path,
    kl_folder: Path,
    tmp_path: Path,
    start: Any,
    encode_line: Any,
    number: signal.Signals,
    code: int,
) -> None:
    output = tmp_path / "out"
    run = start(encode_line(photos, output, kl_folder, SIZE))
    run.wait_until(lambda: len(committed_units(LocalFolder(output))) >= 2)
    run.interrupt(number)
    printed = run.finish(code)
    assert f"go on with: latentkit run {output}/recipe.yaml" in printed
    assert "Traceback" not in printed
    assert not list((output / "claims").iterdir())
    assert 2 <= len(committed_units(LocalFolder(output))) < NUM_PHOTOS // 2
    start(["run", f"{output}/recipe.yaml"]).finish()
    assert len(committed_units(LocalFolder(output))) == NUM_PHOTOS // 2


def test_two_runs_on_one_output_share_the_work(
    photos: Path, kl_folder: Path, tmp_path: Path, start: Any, encode_line: Any, contents: Contents
) -> None:
    line, output = encode_line(photos, tmp_path / "out", kl_folder, SIZE), tmp_path / "out"
    first = start(line)
    second = start(line)
    first.finish()
    second.finish()
    together = contents(output)
    shutil.rmtree(output)
    start(line).finish()
    assert contents(output) == together
    assert not list((output / "claims").iterdir())


def test_claim_of_a_dead_process_is_taken_over_and_that_of_a_living_one_waited_for_by_name(
    photos: Path, kl_folder: Path, tmp_path: Path, start: Any, encode_line: Any
) -> None:
    line, claims = encode_line(photos, tmp_path / "out", kl_folder), tmp_path / "out" / "claims"
    claims.mkdir(parents=True)
    dead = {
        "host": host(),
        "pid": os.getpid(),
        "started": 1.0,
    }  # a process of an earlier life of this number
    (claims / "000-000003.json").write_text(json.dumps(dead))
    (claims / f"units-000-000004.safetensors~{host()}~{2**22 + 1}~00.part").write_bytes(b"half")
    elsewhere = claims / "000-000005.json"
    elsewhere.write_text(json.dumps({"host": "another-host", "pid": 77}))
    run = start(line)
    assert run.wait_until(lambda: "waiting for process 77 on another-host" in run.log.read_text())
    assert len(committed_units(LocalFolder(tmp_path / "out"))) == NUM_PHOTOS // 2 - 1
    elsewhere.unlink()
    run.finish()
    assert not list(claims.iterdir())
