"""Check a latent dataset on disk without its encoder: find what is missing, damaged, foreign or
left over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from latentkit.errors import DamagedError, SourceError, StoreError
from latentkit.runtime.cores import share_of_cores
from latentkit.runtime.paths import in_shell
from latentkit.store.claims import Claims
from latentkit.store.columns import read_parquet
from latentkit.store.dataset_json import (
    DATASET,
    RECIPE,
    accepts_statistics,
    check_complete,
    dataset_json,
    describe_again,
    read_dataset,
)
from latentkit.store.folder import Folder
from latentkit.store.format import unit_name
from latentkit.store.index import ReadUnit, committed_units, index_bytes, index_of_chain
from latentkit.store.plan import Plan, number_of, plan_name, plan_numbers, read_plan
from latentkit.upkeep.findings import Verification
from latentkit.upkeep.unit_checks import WantedUnit, plan_of_unit, read_whole


def verify_folder(folder: Folder) -> Verification:
    """Return everything that is wrong with a latent dataset; all of it is read, nothing written.

    Raises:
        StoreError: the latent dataset is missing or can't be reached.
    """
    if not folder.top_names() & {DATASET, "plans", "units"}:
        raise StoreError(f"{folder} is not a latent dataset: there is neither {DATASET} nor plans")
    found = Verification(folder)
    document_problem = _read_document(found)
    _read_plans(found)
    _read_units(found)
    _check_index(found)
    _check_document(found, document_problem)
    _list_foreign(found)
    _list_left_over(found)
    return found


def _read_document(found: Verification) -> str | None:
    """Read dataset.json; return what is wrong with it, None when nothing is or there is no file."""
    if not found.folder.exists(DATASET):
        return None
    try:
        found.document = read_dataset(found.folder)
    except DamagedError as error:
        return str(error).removeprefix(f"{found.folder}/{DATASET}").lstrip(": ")
    return None


# ---------------------------------------------------------------- plans


def _read_plans(found: Verification) -> None:
    """Read the plans back to the last finished compaction, and those in dataset.json."""
    there, stated = (
        plan_numbers(found.folder),
        (dict(found.document["plans"]) if found.document else {}),
    )
    done = committed_units(found.folder)
    known = sorted({*there, *map(number_of, stated)}, reverse=True)
    for number in known:
        name = plan_name(number)
        try:
            content = found.folder.read(name) if number in there else None
            if content is None:
                raise DamagedError("missing")
            if name in stated and hashlib.sha256(content).hexdigest() != stated[name]:
                raise DamagedError(f"not the plan that {DATASET} describes, by its sha256")
            plan = found.plans[number] = read_plan(found.folder, number)
        except StoreError as error:
            found.add("plan", name, _reason(found.folder, name, error), _restore_hint(found.folder))
            continue
        if plan.settings.compacts and all(unit.name in done for unit in plan.units()):
            break  # older ones were replaced
    else:
        _find_gaps(found, known)
    if found.document and any(
        found.plans[number].settings.fingerprint != found.document["fingerprint"]
        for number in found.plans
    ):
        found.add("dataset.json", DATASET, "of another dataset than its plans, by its fingerprint")
        found.document = None


def _find_gaps(found: Verification, known: Sequence[int]) -> None:
    """Add a finding for each missing plan that a later one builds on; `known`: newest first."""
    for number, older in zip(known, [*known[1:], -1], strict=False):  # may be none
        if older < number - 1 and not (
            number in found.plans and found.plans[number].settings.compacts
        ):
            found.add(
                "plan",
                plan_name(number - 1),
                f"missing, though {plan_name(number)} builds on it",
                _restore_hint(found.folder),
            )


def _restore_hint(folder: Folder) -> str:
    repair = f"`latentkit verify {in_shell(folder)} --repair`"
    return f"{repair} makes it again if the index still has its contents; else copy it back"


# ---------------------------------------------------------------- units


def _read_units(found: Verification) -> None:
    """Read every unit that should exist, and add a finding for each that is missing or damaged."""
    there = committed_units(found.folder)
    wanted = {
        unit.name: WantedUnit(unit.name, unit, plan, None)
        for plan in found.plans.values()
        for unit in plan.units()
    }
    for name, stated in (found.document["units"] if found.document else {}).items():
        known = wanted.get(name)
        wanted[name] = WantedUnit(
            name, known.unit if known else None, known.plan if known else None, stated
        )
    missing = [name for name in sorted(wanted) if name not in there]
    if found.newest > found.described:
        found.left = [name for name in missing if plan_of_unit(name) == found.newest]
    for name in sorted({*missing} - {*found.left}):
        found.add("unit", unit_name(name), "missing")
    headers = {
        stated["header_sha256"]: name
        for name, stated in (found.document["units"] if found.document else {}).items()
    }
    present = [wanted[name] for name in sorted(wanted) if name in there]
    with ThreadPoolExecutor(share_of_cores()) as pool:
        for one, result in zip(
            present,
            pool.map(lambda one: _read_or_error(found.folder, one, headers), present),
            strict=True,
        ):
            if isinstance(result, ReadUnit):
                found.units[one.name] = result
            else:
                found.add(
                    "unit", unit_name(one.name), _reason(found.folder, unit_name(one.name), result)
                )


def _read_or_error(
    folder: Folder, wanted: WantedUnit, headers: Mapping[str, str]
) -> ReadUnit | StoreError:
    """Return the unit, or the error that reading it raises."""
    try:
        return read_whole(folder, wanted, headers)
    except StoreError as error:
        return error


# ---------------------------------------------------------------- index and dataset.json


def _check_index(found: Verification) -> None:
    """Compare the index that dataset.json names with its sha256."""
    if not found.document:
        return
    name, stated = found.document["index"]["name"], found.document["index"]["sha256"]
    if not found.folder.exists(name):
        found.add("index", name, "missing")
    elif hashlib.sha256(found.folder.read(name)).hexdigest() != stated:
        found.add("index", name, f"not the index that {DATASET} describes, by its sha256")


def _check_document(found: Verification, problem: str | None) -> None:
    """Compare dataset.json with plans and units, if all of them are undamaged."""
    folder = found.folder
    run = f"`latentkit run {in_shell(f'{folder}/{RECIPE}')}` writes it"
    if problem:
        found.add("dataset.json", DATASET, problem)
    elif not found.document:
        if not found.left and not any(
            finding.part in ("plan", "unit", "dataset.json") for finding in found.findings
        ):
            found.add("dataset.json", DATASET, "missing, though every unit is there", run)
    else:
        if found.newest > found.described and not found.left:
            older = (
                f"of an older run: plan {found.newest:03d} is newer, and all of its units are there"
            )
            found.add("dataset.json", DATASET, older, run)
        chain = found.chain(found.described)
        if chain and all(unit.name in found.units for plan in chain for unit in plan.units()):
            _compare(found, chain, found.document)


def _compare(found: Verification, chain: Sequence[Plan], document: Mapping[str, Any]) -> None:
    """Compare index and dataset.json with those that plans and units give now."""
    units = {unit.name: found.units[unit.name] for plan in chain for unit in plan.units()}
    name = document["index"]["name"]
    described = describe_again(document)
    try:
        index = index_of_chain(chain, units)
        check_complete(found.folder, chain[-1], index, described.views)
    except (DamagedError, SourceError) as error:
        found.add("index", name, str(error).removeprefix(f"{found.folder}: "))
        return
    if not found.names("index") and not _same_table(found.folder.read(name), index):
        found.add("index", name, "not what plans and units give")
    # The index's own sha256 is compared above: another version of Parquet's library may write other
    # bytes.
    try:
        expected = json.loads(dataset_json(found.folder, chain, units, described, index, name, b""))
    except (ValueError, StoreError) as error:
        found.add(
            "unit",
            unit_name(chain[0].units()[0].name),
            f"the headers of units don't make a {DATASET} ({error})",
        )
        return
    skipped = {"index", "sha256"}
    expected |= {
        key: value for key, value in chain[-1].settings.parts.items() if key in ("store", "dtype")
    }
    if accepts_statistics(document, units, index):
        expected["statistics"] = document["statistics"]
    different = sorted(
        key for key in {*expected, *document} - skipped if expected.get(key) != document.get(key)
    )
    if different:
        found.add(
            "dataset.json", DATASET, f"not what plans and units give: {', '.join(different)} differ"
        )


def _same_table(content: bytes, index: pa.Table) -> bool:
    """Return whether a file's content is this index, in any encoding by Parquet."""
    written = index_bytes(index)
    if written == content:
        return True
    try:
        return bool(read_parquet(content).equals(read_parquet(written)))
    except (pa.ArrowException, OSError):
        return False


# ---------------------------------------------------------------- what else lies there


def _list_foreign(found: Verification) -> None:
    """List files that belong to none of the plans; those a compaction replaced as a remark."""
    unreadable = {number_of(name) for name in found.names("plan")}
    numbers = {*found.plans, *unreadable}
    oldest = min(numbers, default=0)
    units = {unit_name(name) for name in _all_units(found)}
    expected = {
        *map(plan_name, numbers),
        *(f"index/{number:03d}.parquet" for number in numbers),
        *units,
    }
    replaced = []
    for part in ("plans", "units", "index"):
        for name in found.folder.list(part):
            file = f"{part}/{name}"
            if file in expected:
                continue
            number = name.removesuffix(".parquet").split("-")[0]
            if number.isdecimal() and int(number) < oldest:
                replaced.append(file)
            elif not (part == "units" and number.isdecimal() and int(number) in unreadable):
                found.add(
                    "foreign", file, "belongs to no plan of this dataset", "move it elsewhere"
                )
    if replaced:
        what = (
            f"and {len(replaced) - 1} more files of plans that a compaction replaced"
            if replaced[1:]
            else "of a plan that was replaced"
        )
        found.add(
            "remark",
            replaced[0],
            what,
            f"`latentkit compact {in_shell(found.folder)}` removes what is left",
        )


def _all_units(found: Verification) -> Iterable[str]:
    yield from (unit.name for plan in found.plans.values() for unit in plan.units())
    yield from (found.document["units"] if found.document else {})


def _list_left_over(found: Verification) -> None:
    """Add remarks on a missing recipe and on files of processes that have ended."""
    if not found.folder.exists(RECIPE):
        found.add(
            "remark",
            RECIPE,
            "missing",
            "decoding and repair need it; run the recipe that made the dataset once more",
        )
    left = Claims(found.folder).left_over()
    if left:
        what = (
            "left by a process that has ended"
            if len(left) == 1
            else f"and {len(left) - 1} more files left by processes that have ended"
        )
        found.add("remark", left[0], what, "the next run removes them")


def _reason(folder: Folder, name: str, error: StoreError) -> str:
    """Return an error's text without the path, which the finding has already."""
    return str(error).removeprefix(f"{folder}/{name}").lstrip(": ")
