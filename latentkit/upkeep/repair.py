"""Repair a latent dataset: make broken files again from the source and the encoder, and leave all
others as they are.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from latentkit.encoding.encode_source import describe_dataset_json
from latentkit.encoding.make_plan import library_versions
from latentkit.errors import LatentkitError, StoreError
from latentkit.store.claims import Claims
from latentkit.store.dataset_json import DATASET, describe_again, finalize, read_index
from latentkit.store.folder import Folder
from latentkit.store.format import unit_name
from latentkit.store.index import committed_units, first_rows, read_unit
from latentkit.store.local_folder import LocalFolder
from latentkit.store.open_folder import open_folder
from latentkit.store.plan import (
    Plan,
    PlanSettings,
    number_of,
    plan_name,
    plan_with_units,
    write_plan,
)
from latentkit.tasks.encode_task import BuiltEncode
from latentkit.upkeep.encode_again import build_encode_of, encode_again
from latentkit.upkeep.findings import Finding, Report, Verification
from latentkit.upkeep.verify import verify_folder


@dataclass(frozen=True)
class Repair:
    """The result of a repair.

    Args:
        encoded: names of the units that were encoded again.
        differing: units among `encoded` whose bytes changed.
        written: other files that were written again, or removed.
        report: the report of a check after the repair.
    """

    encoded: tuple[str, ...]
    differing: tuple[str, ...]
    written: tuple[str, ...]
    report: Report

    def __str__(self) -> str:
        lines = []
        if self.encoded:
            lines += [f"encoded again: {', '.join(self.encoded)}"]
        if self.differing:
            lines += [f"of these, not byte for byte as before: {', '.join(self.differing)}"]
        if self.written:
            lines += [f"written again: {', '.join(self.written)}"]
        return "\n".join([*lines, str(self.report)])


def repair_dataset(path: str, also: Sequence[Finding] = (), device: str = "auto") -> Repair:
    """Encode a dataset's damaged units again; write index and dataset.json where wrong.

    No unit is removed before what takes its place has been made. Files that belong to no plan stay
    where they are.

    Args:
        also: findings of `compare_values`.

    Raises:
        FingerprintError: the encoder is no longer the one that made the dataset.
        SourceError: the source no longer has the samples of damaged units.
        StoreError: another process is using the dataset, or a plan can't be restored.
    """
    folder = open_folder(path)
    found = verify_folder(folder)
    found.findings += also
    if not found.report().damage:
        return Repair((), (), (), found.report())
    claims = Claims(folder)
    with claims.heartbeat():
        if not claims.take("plan") or claims.holders():
            raise StoreError(
                f"{folder}: {', '.join(claims.holders())} is working on it; repair it afterwards"
            )
        plans = _restore_plans(found)
        if plans:
            found = verify_folder(folder)
            found.findings += also
        names = sorted({PurePosixPath(file).stem for file in found.names("unit")})
        opened = build_encode_of(found, device) if names or found.names("dataset.json") else None
        differing = _replace_units(found, opened, names) if names and opened else []
        written = _finalize(found, opened, bool(differing))
    return Repair(
        tuple(names), tuple(differing), (*plans, *written), verify_folder(folder).report()
    )


# ---------------------------------------------------------------- units, index, dataset.json


def _replace_units(found: Verification, opened: BuiltEncode, names: Sequence[str]) -> list[str]:
    """Encode units again and replace them; return those that are no longer byte for byte."""
    folder, stated, differing = found.folder, found.document["units"] if found.document else {}, []
    with tempfile.TemporaryDirectory(prefix="latentkit-") as workspace:
        again = encode_again(found, opened, names, Path(workspace))
        missing = set(names) - committed_units(again)
        if missing:
            raise StoreError(
                f"{folder}: no plan that can be read has the units {', '.join(sorted(missing))}"
            )
        for name in names:
            _move(again, folder, unit_name(name))
            if name in stated and _header_sha256(found, name) != stated[name]["header_sha256"]:
                differing.append(name)
    return differing


def _move(source: LocalFolder, folder: Folder, name: str) -> None:
    """Move a file from one folder to the other, replacing the file of that name."""
    folder.remove(name)
    with source.open_file(name) as made, folder.create(name) as file:
        shutil.copyfileobj(made, file)
    source.remove(name)


def _header_sha256(found: Verification, name: str) -> str:
    unit = next(unit for plan in found.plans.values() for unit in plan.units() if unit.name == name)
    return read_unit(found.folder, unit).header.sha256


def _finalize(found: Verification, opened: BuiltEncode | None, differing: bool) -> list[str]:
    """Write index and dataset.json again where they are wrong; return what was written."""
    folder = found.folder
    wrong = [*found.names("index"), *found.names("dataset.json")]
    if not wrong and not differing:
        return []
    # With units left to encode, describe what the previous run finished; the unfinished run writes
    # its own dataset.json at its end.
    chain = found.chain(found.newest - 1 if found.left else found.newest)
    if chain is None:
        return []
    if found.document and not found.names("dataset.json"):
        description = describe_again(found.document)
    elif opened:
        threads, device = chain[-1].settings.threads, opened.device
        description = describe_dataset_json(
            opened.inputs, opened.inputs.open_encoder(device), opened.settings, threads, device
        )
    else:
        raise AssertionError("a damaged dataset.json is described by its encoder")
    index = f"index/{chain[-1].number:03d}.parquet"
    folder.remove(index)
    finalize(folder, chain, description, lambda index: None)
    return [index, DATASET]


# ---------------------------------------------------------------- plans


def _restore_plans(found: Verification) -> list[str]:
    """Make lost plans again; remove damaged ones of which there is no unit."""
    names = found.names("plan")
    for name in names:
        number = number_of(name)
        has_units = any(unit.startswith(f"{number:03d}-") for unit in committed_units(found.folder))
        if number > found.described and not has_units:
            found.folder.remove(name)
            continue
        plan = _rebuild(found, number)
        if plan is None:
            raise StoreError(
                f"{found.folder}/{name} can't be made again: {DATASET} and index don't have all of"
                " its content. Copy it back from a backup; without it the latents can still be"
                " read, but neither repaired nor added to"
            )
        found.folder.remove(name)
        write_plan(found.folder, plan)
    return names


def _rebuild(found: Verification, number: int) -> Plan | None:
    """Return the plan whose file has the sha256 in dataset.json; None without one."""
    document = found.document
    if not document or number != found.described or found.names("index"):
        return None
    rows = first_rows(read_index(found.folder, document, ["key", "stamp", "attributes", "unit"]))
    try:
        own = pc.starts_with(rows["unit"], f"{number:03d}-")
        units = pc.if_else(
            own,
            pc.cast(pc.utf8_slice_codeunits(rows["unit"], len(f"{number:03d}-")), pa.int32()),
            None,
        ).combine_chunks()
        settings = _settings(found, number, units)
    except (LatentkitError, pa.ArrowException):
        return None
    previous = pc.if_else(own, None, rows["key"]).combine_chunks()
    with tempfile.TemporaryDirectory(prefix="latentkit-") as workspace:
        for compacts in (False, True):
            plan = plan_with_units(
                number,
                rows.select(["key", "stamp", "attributes"]),
                replace(settings, compacts=compacts),
                units,
                previous,
            )
            folder = LocalFolder(Path(workspace) / str(compacts))
            write_plan(folder, plan)
            if (
                hashlib.sha256(folder.read(plan_name(number))).hexdigest()
                == document["plans"][plan_name(number)]
            ):
                return plan
    return None


def _settings(found: Verification, number: int, units: pa.Array) -> PlanSettings:
    """Reconstruct the plan's settings from its units, assuming the installed library versions."""
    document = found.document or {}
    recorded = next(
        (
            unit.header.metadata["settings"]
            for name, unit in found.units.items()
            if name.startswith(f"{number:03d}-")
        ),
        "{}",
    )
    sizes = pc.value_counts(units.drop_null()).field("counts")
    made_with = {"batch_size": 1, "threads": 1, "compile": False, **json.loads(recorded)}
    return PlanSettings(
        document["parts"],
        unit_size=pc.max(sizes).as_py() or 1,
        versions=library_versions(),
        **made_with,
    )
