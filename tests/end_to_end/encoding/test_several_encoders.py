"""Several encoders in one recipe: one pass over the source, and what each run alone would have
made.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from verified import verify_dataset

import latentkit as lk
from latentkit.store.dataset_json import read_dataset
from latentkit.store.index import committed_units
from latentkit.store.local_folder import LocalFolder

COUNT = 40
ENCODERS: dict[str, dict[str, Any]] = {
    "ragged": {},
    "whole": {"ragged": False, "kind": "deterministic"},
    "codes": {"kind": "quantised"},
}
Recipe = Callable[..., dict[str, Any]]


@pytest.fixture
def recipe(waves: Any) -> Recipe:
    def make(
        output: Path, names: Any = ENCODERS, count: int = COUNT, **changes: Any
    ) -> dict[str, Any]:
        return {
            "task": "encode",
            "source": {"use": "waves", "with": {"count": count}},
            "modality": {"use": "waves"},
            "encoders": {name: {"use": "waves", "with": ENCODERS[name]} for name in names},
            "output": {"path": str(output), "unit_size": 4},
            "batch_size": 3,
            "threads": 1,
            "compile": False,
            "preview": 0,
            "max_bad": 0.2,
            **changes,
        }

    return make


@pytest.fixture
def prepared(waves: Any, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each sample was prepared."""
    counts: Counter[str] = Counter()
    prepare = waves.Wave.prepare

    def counted(self: Any, sample: Any) -> Any:
        counts[sample.key] += 1
        return prepare(self, sample)

    monkeypatch.setattr(waves.Wave, "prepare", counted)
    return counts


def contents(folder: Path) -> dict[str, bytes]:
    files = [folder / "dataset.json", *folder.glob("units/*"), *folder.glob("index/*")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def alone(recipe: Recipe, folder: Path, **options: Any) -> dict[str, dict[str, bytes]]:
    """Each encoder's dataset by a run of its own."""
    for name in ENCODERS:
        lk.run(recipe(folder, [name], **options))
    return {name: contents(folder / name) for name in ENCODERS}


def without_first(counts: Counter[str]) -> set[int]:
    """How often samples but the first were prepared: that one is also a probe before each plan."""
    return {count for key, count in counts.items() if key != "000"}


def test_samples_are_prepared_once_and_every_dataset_is_as_if_it_were_alone(
    recipe: Recipe, prepared: Any, tmp_path: Path
) -> None:
    datasets = lk.run(recipe(tmp_path / "one"))
    assert without_first(prepared) == {1}
    assert list(datasets) == list(ENCODERS)
    for name, files in alone(recipe, tmp_path / "each").items():
        assert contents(tmp_path / "one" / name) == files
        assert not verify_dataset(tmp_path / "one" / name).damage
    fingerprints = {data.fingerprint for data in datasets.values()}
    assert len(fingerprints) == len(ENCODERS)


def test_unit_sizes_that_are_measured_are_the_first_ones(
    recipe: Recipe, prepared: Any, tmp_path: Path
) -> None:
    values = recipe(tmp_path / "one", batch_size="auto")
    values["output"]["unit_size"] = "auto"
    datasets = lk.run(values)
    assert without_first(prepared) == {1}
    assert (
        len(
            {
                tuple(read_dataset(LocalFolder(data.folder.path))["units"])
                for data in datasets.values()
            }
        )
        == 1
    )


def test_a_further_encoder_encodes_for_itself_alone(
    recipe: Recipe, prepared: Any, tmp_path: Path
) -> None:
    lk.run(recipe(tmp_path / "one", ["ragged"]))
    before = contents(tmp_path / "one" / "ragged")
    prepared.clear()
    lk.run(recipe(tmp_path / "one"))
    assert without_first(prepared) == {1}
    assert contents(tmp_path / "one" / "ragged") == before
    prepared.clear()
    lk.run(recipe(tmp_path / "one"))
    assert not prepared


def test_new_samples_are_prepared_once_too(recipe: Recipe, prepared: Any, tmp_path: Path) -> None:
    lk.run(recipe(tmp_path / "one"))
    prepared.clear()
    datasets = lk.run(recipe(tmp_path / "one", count=COUNT + 6))
    assert prepared == {f"{number:03d}": 1 for number in range(COUNT, COUNT + 6)}
    assert len(set(map(len, datasets.values()))) == 1
    prepared.clear()
    lk.run({**recipe(tmp_path / "one", count=COUNT + 6)}, retry_skipped=True)
    assert prepared == {f"{number:03d}": 1 for number in range(5, COUNT + 6, 10)}


def test_what_one_has_done_is_not_done_again(recipe: Recipe, prepared: Any, tmp_path: Path) -> None:
    lk.run(recipe(tmp_path / "one"))
    expected = {name: contents(tmp_path / "one" / name) for name in ENCODERS}
    for name, lost in (("ragged", 2), ("whole", 5)):
        folder = tmp_path / "one" / name
        (folder / "dataset.json").unlink()
        for unit in sorted((folder / "units").iterdir())[-lost:]:
            unit.unlink()
    prepared.clear()
    lk.run(recipe(tmp_path / "one"))
    assert prepared == {f"{number:03d}": 1 for number in range(COUNT - 5 * 4, COUNT)}
    assert {name: contents(tmp_path / "one" / name) for name in ENCODERS} == expected


def test_units_of_other_sizes_are_encoded_one_after_the_other(
    recipe: Recipe, prepared: Any, tmp_path: Path
) -> None:
    for name in ENCODERS:
        values = recipe(tmp_path / "one", [name])
        values["output"]["unit_size"] = 4 if name == "ragged" else 7
        lk.run(values)
        (tmp_path / "one" / name / "dataset.json").unlink()
        for unit in (tmp_path / "one" / name / "units").iterdir():
            unit.unlink()
    prepared.clear()
    datasets = lk.run(recipe(tmp_path / "one"))
    assert set(prepared.values()) == {3}
    assert len(set(map(len, datasets.values()))) == 1


def test_encoders_of_other_input_are_said_and_run_apart(
    recipe: Recipe, prepared: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = recipe(tmp_path / "one")
    values["encoders"]["masked"] = {"use": "waves", "with": {"takes_mask": True}}
    lk.run(values)
    assert "prepared once for each of: ragged, whole, codes | masked" in capsys.readouterr().err
    assert without_first(prepared) == {2}


def test_killed_and_gone_on_with_by_two_processes_it_ends_bit_identical(
    recipe: Recipe, tmp_path: Path
) -> None:
    expected = alone(recipe, tmp_path / "each", count=120)

    def start(number: int) -> subprocess.Popen[bytes]:
        file = tmp_path / f"{number}.yaml"
        file.write_text(yaml.safe_dump(recipe(tmp_path / "one", count=120)))
        return subprocess.Popen(
            [sys.executable, "-m", "latentkit", "run", str(file)],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    process = start(0)
    while process.poll() is None and len(committed_units(LocalFolder(tmp_path / "one" / "codes"))) < 3:
        time.sleep(0.002)
    process.kill()
    process.wait()
    done = [len(committed_units(LocalFolder(tmp_path / "one" / name))) for name in ENCODERS]
    assert min(done) >= 1
    assert max(done) < 30
    pair = [start(number) for number in (1, 2)]
    assert [process.wait() for process in pair] == [0, 0]
    assert {name: contents(tmp_path / "one" / name) for name in ENCODERS} == expected
