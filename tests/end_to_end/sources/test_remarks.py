"""Nothing is left out in silence: what a run found and didn't use is said at its end, by `inspect`
and by `--dry-run`.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from verified import verify_dataset

import latentkit as lk
from latentkit.cli.main import main
from latentkit.contracts import Prepared, Remark
from latentkit.errors import PluginError
from latentkit.runtime.source_remarks import list_remarks, merge_remarks
from latentkit.store.compact import compact
from latentkit.store.contents import column_filling, describe_fillings, row_remarks
from latentkit.upkeep.inspect_dataset import inspect_dataset
from latentkit.upkeep.repair import repair_dataset

LEFT_OUT = "left out because of their ending .heic"
MISSING = "a caption that names no file"
SHORT = "shorter than asked"
GIVEN = [
    Remark(MISSING, 2, "a\nb.txt"),
    Remark(LEFT_OUT, 1, "x.heic"),
    Remark(LEFT_OUT, 2, "y.heic"),
]
SAID = [f"3: {LEFT_OUT}, such as x.heic", rf"2: {MISSING}, such as a\nb.txt"]
"""By their number; the same text is one remark."""

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def recipe(waves: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A recipe of twelve waves, one of which is bad, from a source and by a modality that remark
    something.
    """
    monkeypatch.setattr(waves.Waves, "remarks", lambda self: iter(GIVEN), raising=False)
    prepare = waves.Wave.prepare

    def prepare_with_remarks(self: Any, sample: Any) -> Iterator[Prepared]:
        length = len(sample.media) // 4
        for view in prepare(self, sample):
            yield replace(view, remarks=[SHORT] * (length < 20) + ["even"] * (length % 2 == 0))

    monkeypatch.setattr(waves.Wave, "prepare", prepare_with_remarks)

    def make(folder: str = "out", **changes: Any) -> dict[str, Any]:
        return {
            "task": "encode",
            "source": {"use": "waves", "with": {"count": 12}},
            "modality": {"use": "waves", "with": {"pad": "all"}},
            "encoder": {"use": "waves"},
            "output": {"path": str(tmp_path / folder), "dtype": "float32", "unit_size": 4},
            "batch_size": 4,
            "threads": 1,
            "compile": False,
            "preview": 0,
            **changes,
        }

    return make


def of_samples(waves: Any) -> list[str]:
    """What the modality remarks, by hand: the most frequent text first."""
    lengths = {number: waves.length_of(number) for number in range(12) if number % 10 != waves.BAD}
    found = {
        SHORT: [n for n in lengths if lengths[n] < 20],
        "even": [n for n in lengths if lengths[n] % 2 == 0],
    }
    lines = [
        (-len(numbers), text, f"{len(numbers)}: {text}, such as {numbers[0]:03d}")
        for text, numbers in found.items()
    ]
    return [line for _, _, line in sorted(lines)]


def notes(text: str) -> list[str]:
    return [
        line.split("note", 1)[1].strip()
        for line in text.splitlines()
        if line.lstrip().startswith("note ")
    ]


def command(recipe: dict[str, Any], tmp_path: Path, *words: str) -> int:
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    return main(["run", str(tmp_path / "r.yaml"), *words])


def test_last_lines_inspect_and_dry_run_say_all_remarks(
    waves: Any, recipe: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(recipe(), tmp_path, "--dry-run") == 0
    assert notes(capsys.readouterr().out) == SAID
    assert not (tmp_path / "out").exists()
    assert command(recipe(), tmp_path) == 0
    said = capsys.readouterr().out
    assert notes(said) == [*SAID, *of_samples(waves)]
    assert "out: 11 latents, 1 skipped in " in said
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert notes(capsys.readouterr().out) == [*SAID, *of_samples(waves)]
    assert main(["inspect", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["remarks"]
    assert found["source"] == [
        {"text": LEFT_OUT, "count": 3, "example": "x.heic"},
        {"text": MISSING, "count": 2, "example": "a\nb.txt"},
    ]
    assert [str(Remark(**remark)) for remark in found["samples"]] == of_samples(waves)
    remarks = lk.open(tmp_path / "out").remarks
    assert [*map(str, remarks)][2:] == of_samples(waves)


def test_remarks_stay_when_a_dataset_is_compacted_or_repaired(recipe: Run, tmp_path: Path) -> None:
    folder = lk.run(recipe()).folder
    document = (tmp_path / "out" / "dataset.json").read_bytes()
    remarks = inspect_dataset(str(folder))["remarks"]
    (tmp_path / "out" / "dataset.json").write_text("{")
    repair_dataset(str(folder))
    assert (tmp_path / "out" / "dataset.json").read_bytes() == document
    assert compact(folder).units_after == 1
    assert inspect_dataset(str(folder))["remarks"] == remarks


def test_remarks_of_a_run_with_nothing_to_do_take_the_place_of_older_ones(
    waves: Any, recipe: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lk.run(recipe())
    before = json.loads((tmp_path / "out" / "dataset.json").read_text())
    for now in ([Remark("another", 4, "z\udcff")], []):
        monkeypatch.setattr(waves.Waves, "remarks", lambda self, now=now: now)
        data = lk.run(recipe())
        assert data.remarks[: len(now)] == [Remark("another", 4, "z\\udcff")][: len(now)]
        assert [str(remark) for remark in data.remarks[len(now) :]] == of_samples(waves)
    after = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert before["source"].pop("remarks")
    differing = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert differing == {"sha256"}
    assert not verify_dataset(str(tmp_path / "out")).damage
    assert not list((tmp_path / "out" / "claims").iterdir())


def test_skipped_samples_are_named(
    recipe: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(recipe(source={"use": "waves", "with": {"count": 60}}), tmp_path) == 0
    said = capsys.readouterr().out.splitlines()
    place = said.index("  skipped       6: a wave without values")
    assert said[place + 1].strip() == "such as 005, 015, 025"
    assert said[place + 2].startswith("  all of them   latentkit inspect ")
    assert said[place + 2].endswith("out --skipped")
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert "such as 005, 015, 025" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "out"), "--skipped"]) == 0
    keys = [f"{number:03d}" for number in range(5, 60, 10)]
    assert capsys.readouterr().out.splitlines() == [f"{key}: a wave without values" for key in keys]
    assert lk.open(tmp_path / "out").skipped == dict.fromkeys(keys, "a wave without values")
    assert main(["inspect", str(tmp_path / "out"), "--skipped", "--json"]) == 2


def test_last_lines_count_the_dataset_and_then_what_this_process_did(
    recipe: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(recipe(), tmp_path) == 0
    capsys.readouterr()
    assert command(recipe(source={"use": "waves", "with": {"count": 17}}), tmp_path) == 0
    assert (
        "out: 15 latents, 2 skipped; 4 latents, 1 skipped of them here in "
        in capsys.readouterr().out
    )
    assert command(recipe(source={"use": "waves", "with": {"count": 17}}), tmp_path) == 0
    assert (
        "out: 15 latents, 2 skipped; all were encoded already" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "given", ["text", Remark("two\nlines"), Remark(""), Remark("fewer than none", -1)]
)
def test_what_is_no_remark_is_refused_before_any_work(
    waves: Any, recipe: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any
) -> None:
    monkeypatch.setattr(waves.Waves, "remarks", lambda self: [given])
    with pytest.raises(PluginError, match=r"Waves\.remarks\(\) gave .*, expected"):
        lk.run(recipe())
    assert not (tmp_path / "out" / "units").exists()


def test_remarks_are_bounded_in_number() -> None:
    many = [Remark(f"kind {number:03d}", number, "one") for number in range(150)]
    kept = merge_remarks(many)
    assert [str(remark) for remark in kept[:2]] == [
        "149: kind 149, such as one",
        "148: kind 148, such as one",
    ]
    assert str(kept[100]) == f"{sum(range(50))}: of 49 other kinds, which are not listed"
    assert list_remarks(kept, 3, "do this") == [
        str(kept[0]),
        str(kept[1]),
        "99 other remarks; `do this` lists them",
    ]


def test_row_remarks_count_samples_and_not_views() -> None:
    rows = [("a", ["x"]), ("a", ["x", "y"]), ("b", None), ("c", ["y"]), ("d", ["y", "y"])]
    geometry = pa.array(
        [None if texts is None else {"remarks": texts, "top": 1} for _, texts in rows]
    )
    index = pa.table({"key": [key for key, _ in rows], "geometry": geometry})
    assert row_remarks(index) == [Remark("y", 3, "a"), Remark("x", 1, "a")]
    assert row_remarks(index.slice(2, 1)) == []
    assert row_remarks(pa.table({"key": ["a"], "geometry": pa.array([{"top": 1}])})) == []
    assert row_remarks(pa.table({"key": ["a"]})) == []


def test_columns_say_how_many_rows_have_them() -> None:
    rows = [{"text": "a", "tags": ["x"], "n": 1}, {"text": "", "tags": []}, {"text": None}]
    found = column_filling(pa.chunked_array([pa.array(rows)]))
    assert describe_fillings(found, 3, "row") == [
        "text (text): 2 of 3 rows, 1 of them empty",
        "tags (list of text): 2 of 3 rows, 1 of them empty",
        "n (integer): 1 of 3 rows",
    ]
    assert column_filling(pa.chunked_array([pa.nulls(1)])) == {}


def test_what_crops_leave_out_is_said_where_it_is_much(
    kl_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for name, size in {"wide": (96, 48), "square": (48, 48), "tall": (48, 80)}.items():
        Image.new("RGB", size, "teal").save(tmp_path / "photos" / f"{name}.png")
    options = {"batch_size": 2, "preview": 0, "threads": 1, "output.unit_size": 2, "compile": False}
    shares = {"center": (1 / 2 + 0 + 2 / 5) / 3, "none": 0}
    for crop, share in shares.items():
        out = tmp_path / crop
        lk.encode(
            tmp_path / "photos",
            out,
            encoder=kl_folder,
            size=32,
            overrides={**options, "modality.with.crop": crop},
        )
        assert inspect_dataset(str(out))["left_out_by_crops"] == pytest.approx(share)
        assert main(["inspect", str(out)]) == 0
        assert ("crops leave out 30% of the images' area" in capsys.readouterr().out) == (
            crop == "center"
        )


def test_two_processes_write_the_same_remarks_and_count_the_dataset(
    make_photos: Callable[..., Path], tmp_path: Path
) -> None:
    photos = make_photos(12)
    for name, content in {"bad.png": b"", "bad2.png": b"", "x.svg": b"", "y.svg": b""}.items():
        (photos / name).write_bytes(content)
    (photos / "003.txt").unlink()
    options = {"batch_size": 2, "preview": 0, "threads": 1, "output.unit_size": 2, "compile": False}
    lk.encode(photos, tmp_path / "alone", size=32, overrides=options)
    recipe = (tmp_path / "alone" / "recipe.yaml").read_text()
    (tmp_path / "r.yaml").write_text(recipe)
    words = [sys.executable, "-m", "latentkit", "run", "r.yaml", "--set", "output.path=both"]
    runs = [
        subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [run.communicate(timeout=300)[0] for run in runs]
    for text in said:
        assert text.startswith("both: 12 latents, 2 skipped")
        assert notes(text) == [
            "2: left out because of their ending .svg: a drawing or document without pixels;"
            " render it to PNG, such as x.svg"
        ]
        assert "text (text): 11 of 12 rows" in text
        assert "such as bad.png, bad2.png" in text
    alone, both = ((tmp_path / name / "dataset.json").read_bytes() for name in ("alone", "both"))
    assert alone == both


@pytest.mark.parametrize("rank", ["0", "1"])
def test_what_a_process_learned_by_reading_a_stream_is_said_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str
) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "teal").save(picture, "PNG")
    (tmp_path / "tars").mkdir()
    for name in ("0.tar", "1.tar"):
        with tarfile.open(tmp_path / "tars" / name, "w") as tar:
            for number in range(3):
                member = tarfile.TarInfo(f"{number}.png")
                member.size = len(picture.getvalue())
                tar.addfile(member, io.BytesIO(picture.getvalue()))
    whole = (tmp_path / "tars" / "1.tar").read_bytes()
    (tmp_path / "tars" / "1.tar").write_bytes(whole[: 2 * 512 + 1024 + 100])
    recipe = {
        "task": "encode",
        "source": {"use": "datasets", "with": {"path": str(tmp_path / "tars"), "streaming": True}},
        "modality": {"use": "image", "with": {"size": 32}},
        "encoder": {"use": "tiny-kl"},
        "output": {"path": str(tmp_path / "out")},
        "executor": {"use": "local"},
        "batch_size": 2,
        "threads": 1,
        "compile": False,
        "preview": 0,
    }
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setenv("RANK", rank)
    assert command(recipe, tmp_path) == 0
    said = capsys.readouterr()
    (note,) = [
        line
        for line in (said.out if rank == "0" else said.err).splitlines()
        if line.lstrip().startswith("note")
    ]
    assert "1.tar" in note
