"""Everything that can happen to a file of a finished dataset: `verify` finds it, and `verify
--repair` makes exactly that again.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
import torch
from verified import verify_dataset

import latentkit as lk
from latentkit.errors import FingerprintError, SourceError, StoreError
from latentkit.store.claims import Claims
from latentkit.store.folder import canonical_json
from latentkit.store.local_folder import LocalFolder
from latentkit.upkeep.repair import repair_dataset

FIXED = {
    "batch_size": 3,
    "threads": 1,
    "output.unit_size": 4,
    "preview": 0,
    "output.dtype": "float32",
}
FIRST, SECOND, LAST = (f"units/000-{number:06d}.safetensors" for number in range(3))
INDEX, PLAN, DATASET = "index/000.parquet", "plans/000.parquet", "dataset.json"
Change = Callable[[Path], object]
Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module")
def made(
    write_photos: Callable[..., Path], kl_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a finished dataset of 10 pictures, "out", and another of other pictures,
    "other".
    """
    folder = tmp_path_factory.mktemp("made")
    photos = write_photos(folder / "photos", 10)
    lk.encode(photos, folder / "out", encoder=kl_folder, size=32, overrides=FIXED)
    shutil.copytree(photos, folder / "reversed")
    for number in range(10):
        shutil.copy(photos / f"{number:03d}.png", folder / "reversed" / f"{9 - number:03d}.png")
    lk.encode(folder / "reversed", folder / "other", encoder=kl_folder, size=32, overrides=FIXED)
    lk.encode(photos, folder / "larger", encoder=kl_folder, size=40, overrides=FIXED)
    return folder


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made / "out", tmp_path / "out")
    return tmp_path / "out"


def flip(file: Path, place: int, bit: int = 0) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


def swap(a: Path, b: Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def seal(output: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change dataset.json and give it the sha256 that belongs to it."""
    document = json.loads((output / DATASET).read_text())
    del document["sha256"]
    change(document)
    document["sha256"] = hashlib.sha256(canonical_json(document).encode()).hexdigest()
    (output / DATASET).write_text(json.dumps(document))


def reword(output: Path) -> None:
    """Another index, with the sha256 that belongs to it."""
    table = pq.read_table(output / INDEX)
    keys = table["key"].to_pylist()
    pq.write_table(table.set_column(0, "key", [[*keys[1:], keys[0]]]), output / INDEX)
    digest = hashlib.sha256((output / INDEX).read_bytes()).hexdigest()
    seal(output, lambda document: document["index"].update(sha256=digest))


def header_length(file: Path) -> int:
    return 8 + int.from_bytes(file.read_bytes()[:8], "little")


DAMAGE: dict[str, tuple[Change, str, str]] = {
    "a unit deleted": (lambda out: (out / SECOND).unlink(), SECOND, "missing"),
    "a unit truncated": (
        lambda out: (out / SECOND).write_bytes((out / SECOND).read_bytes()[:-1]),
        SECOND,
        "truncated",
    ),
    "an empty unit": (
        lambda out: (out / SECOND).write_bytes(b""),
        SECOND,
        "not a safetensors file",
    ),
    "a bit of a unit's header": (lambda out: flip(out / SECOND, 300), SECOND, "header"),
    "a bit of a unit's latents": (
        lambda out: flip(out / SECOND, header_length(out / SECOND) + 77),
        SECOND,
        "sha256",
    ),
    "the last bit of a unit": (lambda out: flip(out / SECOND, -1, 7), SECOND, "sha256"),
    "units swapped": (
        lambda out: swap(out / FIRST, out / SECOND),
        FIRST,
        "the file of unit 000-000001",
    ),
    "an index deleted": (lambda out: (out / INDEX).unlink(), INDEX, "missing"),
    "a bit of the index": (lambda out: flip(out / INDEX, 100), INDEX, "sha256"),
    "an index that isn't the plan's": (reword, INDEX, "not what plans and units give"),
    "dataset.json deleted": (
        lambda out: (out / DATASET).unlink(),
        DATASET,
        "missing, though every unit is there",
    ),
    "a bit of dataset.json": (lambda out: flip(out / DATASET, 200), DATASET, "damaged"),
    "dataset.json emptied": (lambda out: (out / DATASET).write_bytes(b""), DATASET, "damaged"),
    "dataset.json with other statistics": (
        lambda out: seal(out, lambda document: document["statistics"].update(std=[1.0] * 4)),
        DATASET,
        "statistics differ",
    ),
    "dataset.json of another encoder": (
        lambda out: seal(out, lambda document: document.update(fingerprint="0" * 64)),
        DATASET,
        "of another dataset",
    ),
    "a plan deleted": (lambda out: (out / PLAN).unlink(), PLAN, "missing"),
    "a bit of the plan": (lambda out: flip(out / PLAN, 400), PLAN, "sha256"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_mended_byte_for_byte(
    name: str, output: Path, made: Path, contents: Contents
) -> None:
    change, file, what = DAMAGE[name]
    change(output)
    damage = verify_dataset(output).damage
    assert file in [finding.file for finding in damage]
    assert what in "\n".join(finding.what for finding in damage if finding.file == file)
    changed_units = (
        {FIRST, SECOND} if name == "units swapped" else {SECOND} if file == SECOND else set()
    )
    repair = repair_dataset(str(output))
    assert {f"units/{unit}.safetensors" for unit in repair.encoded} == changed_units
    assert repair.differing == ()
    assert repair.report.damage == ()
    assert contents(output) == contents(made / "out")


def test_unit_of_another_dataset_is_found_and_mended(
    output: Path, made: Path, contents: Contents
) -> None:
    for other in ("other", "larger"):
        shutil.copy(made / other / FIRST, output / FIRST)
        assert [finding.file for finding in verify_dataset(output).damage] == [FIRST]
        assert repair_dataset(str(output)).encoded == ("000-000000",)
        assert contents(output) == contents(made / "out")


def test_any_single_bit_of_any_file_is_found(output: Path) -> None:
    draw = random.Random(0)
    for name in (FIRST, LAST, INDEX, PLAN, DATASET):
        size = (output / name).stat().st_size
        for place in (0, 7, size - 1, *(draw.randrange(size) for _ in range(40))):
            bit = draw.randrange(8)
            flip(output / name, place, bit)
            assert name in [finding.file for finding in verify_dataset(output).damage], (
                name,
                place,
                bit,
            )
            flip(output / name, place, bit)
    assert verify_dataset(output).damage == ()


def test_dataset_json_of_an_older_run_is_found_and_mended(
    made: Path, kl_folder: Path, tmp_path: Path, contents: Contents
) -> None:
    photos, output = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(made / "photos", photos)
    lk.encode(photos, output, encoder=kl_folder, size=32, overrides=FIXED)
    old = (output / DATASET).read_bytes()
    shutil.copy(photos / "003.png", photos / "010.png")
    flip(photos / "010.png", -1)
    (photos / "002.png").unlink()
    (photos / "001.png").rename(photos / "011.png")
    lk.encode(photos, output, encoder=kl_folder, size=32, overrides=FIXED)
    whole = contents(output)
    (output / DATASET).write_bytes(old)
    assert "of an older run" in verify_dataset(output).damage[0].what
    assert repair_dataset(str(output)).report.damage == ()
    assert contents(output) == whole
    shutil.copytree(output, tmp_path / "whole")
    # A unit that holds a sample that is gone, and one that has another name by now.
    flip(output / FIRST, -1)
    repair = repair_dataset(str(output))
    assert (repair.encoded, repair.differing) == (("000-000000",), ("000-000000",))
    assert repair.report.damage == ()
    before, after = lk.open(tmp_path / "whole"), lk.open(output)
    assert after.keys == before.keys
    for row in range(len(after)):  # in other batches, so the last bits may differ
        torch.testing.assert_close(
            after.moments(row)["mean"], before.moments(row)["mean"], rtol=0, atol=1e-5
        )
    (output / "plans" / "000.parquet").unlink()
    with pytest.raises(StoreError, match="can't be made again"):
        repair_dataset(str(output))


def test_foreign_files_are_named_and_left_alone(output: Path) -> None:
    names = [
        "units/000-000099.safetensors",
        "units/photo.png",
        "plans/notes.txt",
        "index/007.parquet",
    ]
    for name in names:
        (output / name).write_text("precious")
    assert sorted(finding.file for finding in verify_dataset(output).damage) == sorted(names)
    repair = repair_dataset(str(output))
    assert [finding.fix for finding in repair.report.damage] == ["move it elsewhere"] * 4
    assert all((output / name).read_text() == "precious" for name in names)


def test_repair_that_can_not_be_done_takes_nothing_away(
    output: Path, made: Path, tmp_path: Path
) -> None:
    flip(output / SECOND, -1)
    before = (output / SECOND).read_bytes()
    recipe = (output / "recipe.yaml").read_text()
    (output / "recipe.yaml").write_text(recipe.replace("size: 32", "size: 40"))
    with pytest.raises(FingerprintError, match=r"modality\.with\.size"):
        repair_dataset(str(output))
    shutil.copytree(made / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "005.png").unlink()
    (output / "recipe.yaml").write_text(
        recipe.replace(str(made / "photos"), str(tmp_path / "photos"))
    )
    with pytest.raises(SourceError, match=r"005\.png"):
        repair_dataset(str(output))
    (output / "recipe.yaml").write_text(recipe)
    with Claims(LocalFolder(output)).heartbeat():
        other = Claims(LocalFolder(output))
        assert other.take("plan")
        with pytest.raises(StoreError, match="is working on it"):
            repair_dataset(str(output))
        other.drop("plan")
    assert (output / SECOND).read_bytes() == before


def test_unfinished_dataset_is_no_damage_and_its_units_are_checked(output: Path) -> None:
    (output / DATASET).unlink()
    (output / INDEX).unlink()
    (output / LAST).unlink()
    report = verify_dataset(output)
    assert report.damage == ()
    assert report.state == "unfinished, 2 of 3 units of plan 000 are done"
    swap(output / FIRST, output / SECOND)
    assert sorted(finding.file for finding in verify_dataset(output).damage) == [FIRST, SECOND]
    assert repair_dataset(str(output)).report.damage == ()
    assert lk.run(output / "recipe.yaml").keys == [f"{number:03d}.png" for number in range(10)]


def test_left_overs_are_remarks(output: Path) -> None:
    (output / "claims").mkdir(exist_ok=True)
    (output / "claims" / "000-000001.json").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    os.utime(output / "claims" / "000-000001.json", (0, 0))
    (output / "recipe.yaml").unlink()
    report = verify_dataset(output)
    assert report.damage == ()
    assert [finding.file for finding in report.findings] == [
        "recipe.yaml",
        "claims/000-000001.json",
    ]


def test_dataset_at_a_url_is_checked_and_mended(
    output: Path, made: Path, contents: Contents
) -> None:
    store = fsspec.filesystem("memory")
    for name, content in {
        **contents(output),
        "recipe.yaml": (output / "recipe.yaml").read_bytes(),
    }.items():
        store.pipe_file(f"/damage/{name}", content)
    assert verify_dataset("memory://damage").findings == ()
    store.pipe_file(f"/damage/{SECOND}", (made / "other" / FIRST).read_bytes())
    store.rm_file(f"/damage/{INDEX}")
    assert [finding.file for finding in verify_dataset("memory://damage").damage] == [SECOND, INDEX]
    assert repair_dataset("memory://damage").report.damage == ()
    assert {name: store.cat_file(f"/damage/{name}") for name in contents(output)} == contents(
        output
    )
