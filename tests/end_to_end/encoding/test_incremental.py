"""A source that changes: the same command again does only what has to be done, and the result is
that of doing all of it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import latentkit as lk
from latentkit.cli.main import main
from latentkit.contracts import UnitResult
from latentkit.encoding import encode_source
from latentkit.encoding.unit_workers import EncodeJob
from latentkit.errors import SourceError, StoreError
from latentkit.upkeep.inspect_dataset import inspect_dataset

MakePhotos = Callable[..., Path]
FIXED = {
    "batch_size": 2,
    "threads": 1,
    "output.unit_size": 2,
    "preview": 0,
    "output.dtype": "float32",
}
NUM_PHOTOS = 8


@pytest.fixture
def photos(make_photos: MakePhotos) -> Path:
    return make_photos(NUM_PHOTOS)


@pytest.fixture
def output(photos: Path, kl_folder: Path, tmp_path: Path) -> Path:
    """A finished dataset of the photographs."""
    encode(photos, tmp_path / "out", kl_folder)
    return tmp_path / "out"


def encode(photos: Path, output: Path, encoder: Path, **overrides: Any) -> lk.LatentDataset:
    return lk.encode(photos, output, encoder=encoder, size=32, overrides={**FIXED, **overrides})


def units(output: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((output / "units").iterdir())}


ENCODED: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def count_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the rows of each unit that a run has done, by the run's output."""
    add_result = encode_source.add_result

    def counted(job: EncodeJob, summary: Any, result: UnitResult, max_bad: float) -> Any:
        ENCODED[str(job.folder)] += result.num_ok + result.num_skipped
        return add_result(job, summary, result, max_bad)

    ENCODED.clear()
    monkeypatch.setattr(encode_source, "add_result", counted)


def num_encoded(output: Path) -> int:
    """Rows that any run has stored or skipped."""
    return ENCODED[str(output)]


def values(data: lk.LatentDataset) -> dict[tuple[str, str], tuple[str, torch.Tensor]]:
    """Caption and posterior mean of every row."""
    mean = lk.open(str(data.folder), posterior="mean", columns=["text"])
    return {
        (item["key"], item["view"]): (item["text"], item["latent"])
        for item in (mean[i] for i in range(len(mean)))
    }


def assert_same_rows(data: lk.LatentDataset, from_scratch: lk.LatentDataset) -> None:
    """Keys, captions and order equal, latents within the rounding that other batches make."""
    assert data.keys == from_scratch.keys
    ours, theirs = values(data), values(from_scratch)
    assert ours.keys() == theirs.keys()
    for row, (caption, latent) in ours.items():
        assert caption == theirs[row][0]
        torch.testing.assert_close(latent, theirs[row][1], rtol=0, atol=1e-5)


def redraw(file: Path, turns: int = 1) -> None:
    """Another picture under the same name."""
    with Image.open(file) as image:
        turned = image.rotate(90 * turns)
    turned.save(file)


def test_added_changed_renamed_and_removed_samples_alone_are_encoded(
    photos: Path, output: Path, kl_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = units(output)
    shutil.copy(photos / "000.png", photos / "004a.png")
    redraw(photos / "004a.png")
    (photos / "004a.txt").write_text("a new one")
    redraw(photos / "003.png", 2)
    (photos / "001.png").rename(photos / "zz.png")
    (photos / "001.txt").rename(photos / "zz.txt")
    (photos / "005.png").unlink()
    (photos / "006.txt").write_text("another caption")
    os.utime(photos / "007.png")
    capsys.readouterr()
    data = encode(photos, output, kl_folder)
    said = (
        "1 added, 1 changed, 1 renamed, 1 removed, 1 with other attributes, 1 touched, their media"
        " unchanged; 2 to encode"
    )
    assert said in capsys.readouterr().err
    assert num_encoded(output) == NUM_PHOTOS + 2
    assert before.items() <= units(output).items()
    assert_same_rows(data, encode(photos, tmp_path / "scratch", kl_folder))
    encode(photos, output, kl_folder)
    assert num_encoded(output) == NUM_PHOTOS + 2
    assert not list((output / "claims").iterdir())


def test_edited_captions_encode_nothing(
    photos: Path, output: Path, kl_folder: Path, tmp_path: Path
) -> None:
    before = units(output)
    (photos / "002.txt").write_text("edited")
    data = encode(photos, output, kl_folder)
    assert units(output) == before
    assert_same_rows(data, encode(photos, tmp_path / "scratch", kl_folder))


def test_unchanged_source_changes_nothing(photos: Path, output: Path, kl_folder: Path) -> None:
    before = {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}
    encode(photos, output, kl_folder)
    assert {file: file.read_bytes() for file in output.rglob("*") if file.is_file()} == before


def test_a_finished_dataset_that_lacks_a_unit_is_no_finished_one(
    photos: Path, output: Path, kl_folder: Path
) -> None:
    lost = sorted((output / "units").iterdir())[0]
    lost.unlink()
    with pytest.raises(
        StoreError, match=rf"{lost.name} is missing\. `latentkit verify .* --repair` encodes it again"
    ):
        encode(photos, output, kl_folder)


def test_most_of_a_source_gone_is_refused_without_prune(
    photos: Path, output: Path, kl_folder: Path
) -> None:
    for number in range(5):
        (photos / f"{number:03d}.png").unlink()
    recipe = (output / "recipe.yaml").read_bytes()
    with pytest.raises(SourceError, match=r"5 of the 8 samples .* are no longer in the source.* --prune"):
        encode(photos, output, kl_folder)
    moved = photos.rename(photos.with_name("moved"))
    with pytest.raises(SourceError, match=r"5 of the 8 samples .* are no longer in the source.* --prune"):
        encode(moved, output, kl_folder)
    assert (
        output / "recipe.yaml"
    ).read_bytes() == recipe  # what is refused leaves the dataset as it was
    moved.rename(photos)
    assert len(lk.open(output)) == NUM_PHOTOS
    data = lk.run(output / "recipe.yaml", prune=True)
    assert data.keys == ["005.png", "006.png", "007.png"]


def test_renamed_folder_is_found_by_content(photos: Path, output: Path, kl_folder: Path) -> None:
    (photos / "inner").mkdir()
    for file in list(photos.iterdir()):
        if file.is_file():
            file.rename(photos / "inner" / file.name)
    before = units(output)
    data = encode(photos, output, kl_folder)
    assert data.keys == [f"inner/{number:03d}.png" for number in range(NUM_PHOTOS)]
    assert units(output) == before


def test_skipped_samples_are_tried_again_when_asked(
    photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    good = (photos / "004.png").read_bytes()
    (photos / "004.png").write_bytes(good[:100])
    stamp = (photos / "004.png").stat()
    data = encode(photos, tmp_path / "out", kl_folder)
    assert "004.png" not in data.keys
    recipe = tmp_path / "out" / "recipe.yaml"
    lk.run(recipe)
    assert num_encoded(tmp_path / "out") == NUM_PHOTOS
    lk.run(recipe, retry_skipped=True)
    assert num_encoded(tmp_path / "out") == NUM_PHOTOS + 1
    (photos / "004.png").write_bytes(good)
    os.utime(photos / "004.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    data = lk.run(recipe, retry_skipped=True)
    assert "004.png" in data.keys
    found = inspect_dataset(str(tmp_path / "out"), with_ledger=True)
    assert found["rows"] == {"ok": NUM_PHOTOS, "superseded": 2}
    superseded = [row for row in found["ledger"] if row["status"] == "superseded"]
    assert [row["key"] for row in superseded] == ["004.png", "004.png"]


def test_dry_run_says_the_difference_and_writes_nothing(
    photos: Path, output: Path, kl_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}
    redraw(photos / "000.png")
    capsys.readouterr()
    assert main(["run", str(output / "recipe.yaml"), "--dry-run"]) == 0
    assert "1 changed; 1 to encode" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in output.rglob("*") if file.is_file()} == before
    assert (
        main(
            [
                "run",
                str(output / "recipe.yaml"),
                "--dry-run",
                "--set",
                f"output.path={tmp_path / 'other'}",
            ]
        )
        == 0
    )
    assert "8 samples to encode" in capsys.readouterr().out
    assert not (tmp_path / "other").exists()


def compacted_rows(output: Path) -> Mapping[str, Any]:
    data = lk.open(output, posterior="moments", columns=["text"])
    items = (data[index] for index in range(len(data)))
    return {
        item["key"]: (
            item["text"],
            item["moments"].contiguous().view(torch.uint8).numpy().tobytes(),
        )
        for item in items
    }


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
def test_compact_keeps_every_row_bit_for_bit_and_drops_the_others(
    photos: Path, kl_folder: Path, tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    encode(photos, output, kl_folder, **{"output.dtype": dtype})
    redraw(photos / "000.png")
    (photos / "002.png").unlink()
    (photos / "003.png").write_bytes(b"no picture")
    encode(photos, output, kl_folder, **{"output.dtype": dtype})
    rows, stated = compacted_rows(output), inspect_dataset(str(output))
    assert stated["rows"]["superseded"] == 3
    capsys.readouterr()
    assert main(["compact", str(output)]) == 0
    assert "3 superseded rows dropped, 5 units are now 1" in capsys.readouterr().out
    assert compacted_rows(output) == rows
    after = inspect_dataset(str(output))
    assert after["rows"] == {"ok": NUM_PHOTOS - 2, "skipped": 1}
    assert after["skipped"] == stated["skipped"]
    assert after.get("quantisation") == stated.get("quantisation")
    assert after["statistics"]["count"] == (NUM_PHOTOS - 2) * 8 * 8
    assert [file.name for file in (output / "units").iterdir()] == ["002-000000.safetensors"]
    assert [file.name for file in (output / "plans").iterdir()] == ["002.parquet"]
    assert [file.name for file in (output / "index").iterdir()] == ["002.parquet"]
    assert main(["compact", str(output)]) == 0
    (photos / "002.png").write_bytes((photos / "004.png").read_bytes())
    assert len(encode(photos, output, kl_folder, **{"output.dtype": dtype})) == NUM_PHOTOS - 1


def test_killed_compaction_is_finished_by_the_next(
    photos: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = compacted_rows(output)
    with monkeypatch.context() as patch:
        patch.setattr("latentkit.store.compact.finalize", lambda *args: sys.exit("killed"))
        with pytest.raises(SystemExit):
            main(["compact", str(output)])
    assert (output / "plans" / "001.parquet").exists()
    assert compacted_rows(output) == rows
    assert main(["compact", str(output)]) == 0
    assert compacted_rows(output) == rows
    assert [file.name for file in (output / "plans").iterdir()] == ["001.parquet"]


def test_unfinished_dataset_is_not_compacted(photos: Path, output: Path) -> None:
    (output / "dataset.json").unlink()
    with pytest.raises(StoreError, match="unfinished"):
        lk.open(output)
    assert main(["compact", str(output)]) == 2


def test_the_preview_follows_the_dataset(photos: Path, kl_folder: Path, tmp_path: Path) -> None:
    encode(photos, tmp_path / "out", kl_folder, preview=2)
    preview = tmp_path / "out" / "preview.png"
    before = preview.read_bytes()
    preview.write_bytes(b"left alone")
    encode(photos, tmp_path / "out", kl_folder, preview=2)
    assert preview.read_bytes() == b"left alone"
    redraw(photos / "000.png")
    encode(photos, tmp_path / "out", kl_folder, preview=2)
    assert preview.read_bytes() not in (before, b"left alone")
    with Image.open(preview) as image:
        image.verify()
