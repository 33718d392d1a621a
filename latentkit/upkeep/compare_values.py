"""Encode a random share of a latent dataset again and compare it value by value: finds wrong
values that no hash can find.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors import safe_open
from torch import Tensor

from latentkit.runtime.masks import MASK
from latentkit.runtime.paths import in_shell
from latentkit.store import int8
from latentkit.store.dataset_json import describe_again
from latentkit.store.format import OFFSETS, unit_name
from latentkit.store.index import ReadUnit, read_unit
from latentkit.store.local_folder import LocalFolder
from latentkit.upkeep.encode_again import NO_LONGER_NEEDED, build_encode_of, encode_again
from latentkit.upkeep.findings import Finding, Verification

SHARE = 0.01

TOLERANCE = {"float32": 0.01}
OTHER_TOLERANCE = 0.1
"""Root mean square difference of a row, in standard deviations of its channel, that other hardware
or thread counts explain, by the dtype that the encoder computes in; another model or image is
above 1.
"""

COMPARED_ROWS = 256


def compare_values(
    found: Verification, seed: int | None = None, device: str = "auto"
) -> list[Finding]:
    """Return a finding per compared unit: a remark if its values match the encoder's, else damage.

    About 1 % of the undamaged units, at least one, are encoded again with their own settings.

    Args:
        seed: decides which units are compared; None: others every time.
        device: as `choose_device` takes it.

    Raises:
        FingerprintError: the encoder is no longer the one that made the dataset.
        SourceError: the source no longer has the samples of the chosen units.
    """
    names = sorted(found.units)
    if not names:
        return []
    chosen = sorted(random.Random(seed).sample(names, max(1, math.ceil(SHARE * len(names)))))
    opened = build_encode_of(found, device)
    findings = list(_compare_description(found, opened.inputs.open_encoder(opened.device)))
    dtype = found.plans[found.newest].settings.parts.get("encoder.with.dtype", "float32")
    with tempfile.TemporaryDirectory(prefix="latentkit-") as workspace:
        again = encode_again(found, opened, chosen, Path(workspace))
        for name in chosen:
            difference = _compare_unit(found, again, found.units[name])
            allowed = TOLERANCE.get(dtype, OTHER_TOLERANCE)
            findings.append(_finding(found, name, difference, allowed))
    return findings


def _compare_description(found: Verification, encoder: Any) -> Iterator[Finding]:
    """Compare the layout and normalization in dataset.json with the encoder's."""
    if found.document:
        described = describe_again(found.document)
        for name, there, now in (
            ("layout", described.layout, encoder.layout),
            ("normalization", described.normalization, encoder.normalization),
        ):
            if _plain(there) != _plain(now):
                fix = (
                    f"`latentkit verify {in_shell(found.folder)} --deep --repair` writes it again"
                )
                yield Finding(
                    "dataset.json",
                    "dataset.json",
                    f"its {name} is {there}, but the encoder's is {now}",
                    fix,
                )


def _plain(value: Any) -> Any:
    """Return a dataclass as JSON would give it back."""
    return json.loads(json.dumps(asdict(value)))


@dataclass(frozen=True)
class Difference:
    """A unit's difference from what the encoder gives now, in channels' standard deviations.

    Args:
        num_rows: rows that were compared.
        num_other: rows whose media have changed since, not compared.
        largest: largest difference of a value.
        row_rms: largest root mean square difference of a row.
        problem: what is wrong other than values.
    """

    num_rows: int
    num_other: int
    largest: float
    row_rms: float
    problem: str = ""


def _finding(found: Verification, name: str, difference: Difference, tolerance: float) -> Finding:
    """Return the finding for a unit's difference: damage above the tolerance, else a remark."""
    rows = f"{difference.num_rows} rows encoded again"
    if difference.num_other:
        rows += f" ({difference.num_other} more have other media now)"
    largest = (
        f"differ by up to {difference.largest:.2g} standard deviations of their channel, by"
        f" {difference.row_rms:.2g} over a row"
    )
    fix = (
        f"`latentkit verify {in_shell(found.folder)} --deep --repair` replaces them with what the"
        " encoder gives"
    )
    if difference.problem:
        return Finding("unit", unit_name(name), f"{rows}: {difference.problem}", fix)
    if difference.row_rms > tolerance:
        return Finding("unit", unit_name(name), f"{rows}: the values {largest}", fix)
    same = (
        "equal bit for bit"
        if difference.largest == 0
        else f"the values {largest}, as on other hardware"
    )
    return Finding("remark", unit_name(name), f"{rows}: {same}", "")


# ---------------------------------------------------------------- one unit


def _compare_unit(found: Verification, again: LocalFolder, unit: ReadUnit) -> Difference:
    """Return the difference between a unit and the same unit encoded again in `again`."""
    new = read_unit(again, unit.unit)
    ours, theirs = unit.rows, new.rows
    if (
        not ours.select(["view"]).equals(theirs.select(["view"]))
        or ours.num_rows != theirs.num_rows
    ):
        return Difference(0, 0, 0.0, 0.0, "the unit has other samples or views")
    same = np.ones(ours.num_rows, np.bool_)
    for name in ("content", "position"):
        same &= pc.fill_null(pc.equal(ours[name], theirs[name]), False).to_numpy()
    same &= ~pc.fill_null(pc.equal(theirs["reason"], NO_LONGER_NEEDED), False).to_numpy()
    num_other = int((~same).sum())
    ours, theirs = ours.filter(pa.array(same)), theirs.filter(pa.array(same))
    for name in ("status", "bucket"):
        if not ours[name].equals(theirs[name]):
            return Difference(
                ours.num_rows, num_other, 0.0, 0.0, f"some rows have another {name} now"
            )
    stored, fresh = (
        folder.local_copy(unit_name(unit.unit.name)) for folder in (found.folder, again)
    )
    largest = row_rms = 0.0
    with safe_open(stored, framework="pt") as first, safe_open(fresh, framework="pt") as second:
        for bucket in ours["bucket"].unique().drop_null().to_pylist():
            chosen = pc.fill_null(pc.equal(ours["bucket"], bucket), False)
            rows = [
                torch.from_numpy(table.filter(chosen)["row"].to_numpy().copy())
                for table in (ours, theirs)
            ]
            for values, others in _blocks(bucket, first, second, rows):
                one, rms = _difference(values, others, (found.document or {}).get("statistics"))
                largest, row_rms = max(largest, one), max(row_rms, rms)
    return Difference(ours.num_rows, num_other, largest, row_rms)


def _blocks(
    bucket: str, first: Any, second: Any, rows: Sequence[Tensor]
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Yield the same rows of both files: tensors by name, (N, C, ...); ragged rows one by one."""
    keys = first.keys()  # a copy, as the mapping of the file may be closed
    names = [name for name in keys if name.startswith(f"{bucket}/")]
    ours, theirs = (
        {name.rpartition("/")[2]: file.get_tensor(name) for name in names}
        for file in (first, second)
    )
    if any(name.endswith(OFFSETS) for name in ours):
        for one, other in zip(*(part.tolist() for part in rows), strict=True):
            yield _ragged_row(ours, one), _ragged_row(theirs, other)
        return
    for start in range(0, len(rows[0]), COMPARED_ROWS):
        one, other = (part[start : start + COMPARED_ROWS] for part in rows)
        yield {name: tensor[one] for name, tensor in ours.items()}, {
            name: tensor[other] for name, tensor in theirs.items()
        }


def _ragged_row(tensors: Mapping[str, Tensor], row: int) -> dict[str, Tensor]:
    """Return one row, (1, C, positions, ...) whichever axis is the ragged one; scales (1, C)."""
    found = {}
    for name, tensor in tensors.items():
        if name + OFFSETS in tensors:
            start, stop = tensors[name + OFFSETS][row : row + 2].tolist()
            positions = tensor[start:stop]
            found[name] = (positions.movedim(0, 1) if positions.ndim > 1 else positions)[None]
        elif not name.endswith(OFFSETS):
            found[name] = tensor[row : row + 1]
    return found


def _difference(
    stored: Mapping[str, Tensor], fresh: Mapping[str, Tensor], statistics: Mapping[str, Any] | None
) -> tuple[float, float]:
    """Return the largest difference of a value and the largest root mean square of a row, both in
    standard deviations of the channel.

    For moments, means and posterior standard deviations are compared.
    """
    if all(torch.equal(stored[name], fresh[name]) for name in stored):
        return 0.0, 0.0
    name = next(name for name in stored if name != MASK and not name.endswith(int8.SCALE))
    same_mask = MASK not in stored or torch.equal(stored[MASK], fresh[MASK])
    if name == "indices" or stored[name].shape != fresh[name].shape or not same_mask:
        return math.inf, math.inf
    ours, theirs = (_as_float(tensors, name) for tensors in (stored, fresh))
    channels = ours.shape[1] // 2 if name == "moments" else ours.shape[1]
    if statistics:
        std = torch.tensor(statistics["std"], dtype=torch.float64)
    else:
        std = ours[:, :channels].transpose(0, 1).flatten(1).std(dim=1, correction=0)
    std = std.clamp(min=torch.finfo(torch.float32).tiny).reshape(-1, *[1] * (ours.ndim - 2))
    pairs = [(ours[:, :channels], theirs[:, :channels])]
    if name == "moments":
        pairs += [((ours[:, channels:] / 2).exp(), (theirs[:, channels:] / 2).exp())]
    gaps = [((a - b) / std).abs().flatten(1) for a, b in pairs]
    return max(float(gap.max()) for gap in gaps), max(
        float(gap.square().mean(dim=1).sqrt().max()) for gap in gaps
    )


def _as_float(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a tensor by name as float64, (N, C, ...), dequantized if it is int8."""
    if name + int8.SCALE not in tensors:
        return tensors[name].double()
    return torch.from_numpy(
        int8.dequantize(tensors[name].numpy(), tensors[name + int8.SCALE].numpy())
    ).double()
