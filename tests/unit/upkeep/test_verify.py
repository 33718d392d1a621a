"""What `verify` looks at besides hashes: values, ledgers, plans that build on each other, and
latents encoded again.
"""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from verified import verify_dataset

import latentkit as lk
from latentkit import cli
from latentkit.contracts import Entry, Prepared, Sample
from latentkit.errors import DamagedError, FingerprintError, StoreError
from latentkit.modalities.image import ImageModality
from latentkit.store.compact import compact
from latentkit.store.format import LEDGER_COLUMNS, TensorToWrite, write_unit
from latentkit.store.local_folder import LocalFolder
from latentkit.store.plan import PlanSettings, list_entries, plan_of, read_chain, write_plan
from latentkit.store.writer import RowLabel, UnitWriter
from latentkit.upkeep.compare_values import compare_values
from latentkit.upkeep.repair import repair_dataset
from latentkit.upkeep.unit_checks import WantedUnit, read_whole
from latentkit.upkeep.verify import verify_folder

SETTINGS = PlanSettings({"encoder.name": "random"}, 2, 4, 1, False, {})
FIXED = {
    "batch_size": 3,
    "threads": 1,
    "output.unit_size": 4,
    "preview": 0,
    "output.dtype": "float32",
}


def ledger(**changes: list[Any]) -> bytes:
    """Rows of a unit of two samples, with columns replaced."""
    nulls: list[Any] = [None, None]
    columns = {
        "position": [0, 1],
        "view": ["plain"] * 2,
        "content": nulls,
        "status": ["ok"] * 2,
        "reason": nulls,
        "bucket": ["8x8"] * 2,
    }
    columns |= {"row": [0, 1], "geometry": nulls, "stamp": nulls, **changes}
    table = pa.table({name: pa.array(columns[name], kind) for name, kind in LEDGER_COLUMNS.items()})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def write(folder: Path, dtype: str, latents: bytes, rows: bytes) -> WantedUnit:
    """A unit whose hashes are right: (2, 4) values of one bucket."""
    plan = plan_of(0, list_entries([Entry("a"), Entry("b")]), SETTINGS)
    (folder / "units").mkdir()
    tensors = [
        TensorToWrite("8x8/latent", dtype, (2, 4), [latents]),
        TensorToWrite("rows", "U8", (len(rows),), [rows]),
    ]
    metadata = {"format": "latentkit-unit", "version": "1", "fingerprint": SETTINGS.fingerprint}
    with open(folder / "units" / "000-000000.safetensors", "w+b") as file:
        write_unit(file, tensors, metadata)
    (unit,) = plan.units()
    return WantedUnit(unit.name, unit, plan, None)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan"), -float("nan"), None])
def test_values_that_are_not_finite_are_found_in_every_dtype(
    dtype: torch.dtype, bad: float | None, tmp_path: Path
) -> None:
    largest = torch.finfo(dtype).max
    values = torch.tensor(
        [[largest, -largest, 0.0, -0.0], [1.0, -1.0, torch.finfo(dtype).tiny, 2.0]], dtype=dtype
    )
    if bad is not None:
        values[1, 2] = bad
    code = {
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.float32: "F32",
        torch.float64: "F64",
    }[dtype]
    wanted = write(tmp_path, code, values.view(torch.uint8).numpy().tobytes(), ledger())
    if bad is None:
        assert read_whole(LocalFolder(tmp_path), wanted, {}).rows.num_rows == 2
    else:
        with pytest.raises(DamagedError, match=r"'8x8/latent' holds values that are not finite"):
            read_whole(LocalFolder(tmp_path), wanted, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row": [0, 0]}, "twice or not at all"),
        ({"row": [0, 2]}, "twice or not at all"),
        ({"bucket": ["8x8", "9x9"]}, "same buckets and numbers of rows"),
        (
            {"status": ["ok", "skipped"], "bucket": ["8x8", None], "row": [0, None]},
            "without a reason",
        ),
        (
            {
                "status": ["ok", "skipped"],
                "reason": [None, "bad"],
                "bucket": ["8x8", None],
                "row": [0, None],
            },
            "numbers of rows",
        ),
        ({"status": ["ok", "lost"]}, "neither ok nor skipped"),
        ({"position": [0, 2]}, "another number or plan"),
        ({"position": [0, 0]}, "each of its 2 samples once per view"),
        ({"position": [None, 0]}, "are not a ledger"),
    ],
)
def test_ledger_that_contradicts_itself_or_the_plan_is_found(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    wanted = write(tmp_path, "F32", bytes(32), ledger(**changes))
    with pytest.raises(DamagedError, match=message):
        read_whole(LocalFolder(tmp_path), wanted, {})


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(StoreError, match="is not a latent dataset"):
            verify_dataset(path)


def test_plan_that_others_build_on_is_missed(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path)
    for number in (0, 1, 3, 4):
        write_plan(folder, plan_of(number, list_entries([Entry("a")]), SETTINGS))
    assert verify_folder(folder).names("plan") == ["plans/002.parquet"]
    with pytest.raises(DamagedError, match=r"002\.parquet is missing"):
        read_chain(folder)
    (tmp_path / "plans" / "999999999.parquet").write_bytes(b"")
    assert "plans/999999999.parquet" in verify_folder(folder).names("plan")


def test_units_without_any_plan_are_foreign(encoded: Path) -> None:
    shutil.rmtree(encoded / "plans")
    (encoded / "dataset.json").unlink()
    units = sorted(f"units/{path.name}" for path in (encoded / "units").iterdir())
    assert {*units} <= {finding.file for finding in verify_dataset(encoded).damage}


def test_a_compaction_that_lacks_a_unit_leaves_the_dataset_as_it_was(encoded: Path) -> None:
    (encoded / "units" / "000-000001.safetensors").unlink()
    before = sorted(path.relative_to(encoded) for path in encoded.rglob("*") if path.is_file())
    with pytest.raises(
        StoreError,
        match=r"units/000-000001\.safetensors is missing\. `latentkit verify .* --repair`",
    ):
        compact(LocalFolder(encoded))
    assert (
        sorted(path.relative_to(encoded) for path in encoded.rglob("*") if path.is_file()) == before
    )


def test_unit_without_a_plan_is_foreign_and_what_a_compaction_replaced_a_remark(
    encoded: Path,
) -> None:
    copy = encoded.parent / "old"
    shutil.copytree(encoded, copy)
    compact(LocalFolder(encoded))
    assert verify_dataset(encoded).findings == ()
    shutil.copy(copy / "units" / "000-000001.safetensors", encoded / "units")
    (remark,) = verify_dataset(encoded).findings
    assert (remark.part, remark.file) == ("remark", "units/000-000001.safetensors")
    shutil.copy(
        copy / "units" / "000-000001.safetensors", encoded / "units" / "002-000000.safetensors"
    )
    assert [finding.file for finding in verify_dataset(encoded).damage] == [
        "units/002-000000.safetensors"
    ]


def test_logs_that_older_versions_left_are_no_damage(encoded: Path) -> None:
    (encoded / "events").mkdir()
    (encoded / "events" / "host-1.jsonl").write_text('{"unit": "000-000000", "ok": 2}\n')
    assert verify_dataset(encoded).findings == ()
    assert len(lk.open(encoded)) == 6
    lk.run(encoded / "recipe.yaml")
    assert [path.name for path in (encoded / "events").iterdir()] == ["host-1.jsonl"]


@pytest.fixture
def encoded(make_photos: Callable[..., Path], kl_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(kl_folder, tmp_path / "vae")
    lk.encode(make_photos(6), tmp_path / "out", encoder=tmp_path / "vae", size=32, overrides=FIXED)
    return tmp_path / "out"


def rewrite_latents(output: Path, change: Callable[[np.ndarray[Any, Any]], None]) -> None:
    """Other latents in the second unit, with all hashes made to match: what an encoder on broken
    hardware leaves.
    """
    folder = LocalFolder(output)
    plan = read_chain(folder)[-1]
    unit = plan.units()[1]
    data = lk.open(output, posterior="moments")
    latents = np.stack([data[row]["moments"].numpy() for row in range(unit.start, unit.stop)])
    found = verify_folder(folder)
    rows = found.units[unit.name].rows
    change(latents)
    writer = UnitWriter(unit)
    labels = [
        RowLabel(
            row["position"],
            row["view"],
            0,
            row["content"],
            json.loads(row["geometry"]),
            stamp=row["stamp"],
        )
        for row in rows.to_pylist()
    ]
    writer.add(rows["bucket"][0].as_py(), labels, {"moments": torch.from_numpy(latents)})
    folder.remove(f"units/{unit.name}.safetensors")
    writer.commit(
        folder, {"batch_size": 3, "threads": 1, "compile": False}, plan.settings.fingerprint
    )
    (output / "dataset.json").unlink()
    (output / "index" / "000.parquet").unlink()
    lk.run(output / "recipe.yaml")


def compare(output: Path) -> str:
    """What a comparison of all units says of the second one."""
    for seed in range(20):
        (finding,) = compare_values(verify_folder(LocalFolder(output)), seed)
        if finding.file.endswith("000-000001.safetensors"):
            return f"{finding.part}: {finding.what}"
    raise AssertionError("never chosen")


def test_values_are_compared_with_what_the_encoder_gives_now(encoded: Path) -> None:
    assert compare(encoded) == "remark: 2 rows encoded again: equal bit for bit"
    std = lk.open(encoded).statistics["std"]  # type: ignore[index]

    def move(latents: np.ndarray[Any, Any]) -> None:
        latents[1, 2, 3, 4] += 0.005 * std[2]

    rewrite_latents(encoded, move)
    assert compare(encoded).startswith(
        "remark: 2 rows encoded again: the values differ by up to 0.005 standard deviations"
    )

    def spoil(latents: np.ndarray[Any, Any]) -> None:
        latents[1, :4] = latents[0, :4]

    rewrite_latents(encoded, spoil)
    assert verify_dataset(encoded).damage == ()
    assert compare(encoded).startswith("unit: 2 rows encoded again: the values differ by up to")


def test_deep_finds_a_wrong_row_and_repair_puts_in_the_right_one(
    encoded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = {file.name: file.read_bytes() for file in (encoded / "units").iterdir()}
    rewrite_latents(encoded, lambda latents: latents.__setitem__((1, 0), 0.0))
    findings = []
    for seed in range(20):
        findings += [
            finding
            for finding in compare_values(verify_folder(LocalFolder(encoded)), seed)
            if finding.part == "unit"
        ]
    repair = repair_dataset(str(encoded), findings[:1])
    assert repair.encoded == ("000-000001",)
    assert {file.name: file.read_bytes() for file in (encoded / "units").iterdir()} == right
    assert cli.main(["verify", str(encoded), "--deep"]) == 0
    assert "encoded again: equal bit for bit" in capsys.readouterr().out


def test_deep_prepares_without_seeking(encoded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Turned(ImageModality):
        """Gives other pictures than those encoded, as one whose seek went wrong then gives the
        right ones.
        """

        def prepare(self, sample: Sample) -> Iterator[Prepared]:
            for view in super().prepare(sample):
                assert isinstance(view.tensor, torch.Tensor)
                yield replace(view, tensor=view.tensor.flip(-1))

    def turned(self: ImageModality) -> ImageModality:
        other = copy.copy(self)
        other.__class__ = Turned
        return other

    assert compare(encoded).endswith("equal bit for bit")
    monkeypatch.setattr(ImageModality, "without_seeking", turned, raising=False)
    assert compare(encoded).startswith("unit: 2 rows encoded again: the values differ by up to")


def test_changed_encoder_is_refused_before_anything_is_encoded(
    encoded: Path, tmp_path: Path
) -> None:
    import diffusers

    vae = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae")
    vae.encoder.conv_in.weight.data.view(torch.int32)[0, 0, 0, 0] ^= 1
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(FingerprintError, match=r"encoder\.weights"):
        compare_values(verify_folder(LocalFolder(encoded)))


def test_command_says_what_is_broken_and_exits_1(
    encoded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", str(encoded)]) == 0
    assert capsys.readouterr().out.startswith(f"{encoded}: finished; 2 units, 6 rows")
    (encoded / "units" / "000-000000.safetensors").unlink()
    assert cli.main(["verify", str(encoded)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        f"{encoded}/units/000-000000.safetensors: missing; `latentkit verify"
    )
    assert lines[-1].endswith("1 found broken")
    assert cli.main(["verify", str(encoded), "--repair"]) == 0
    assert "encoded again: 000-000000" in capsys.readouterr().out
    assert cli.main(["verify", str(encoded.parent / "missing")]) == 2
