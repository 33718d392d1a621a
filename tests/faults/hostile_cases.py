"""A tiny latent dataset, and as many hostile versions of it as asked for: opened, read and verified
in this process.

    python tests/faults/hostile_cases.py FOLDER SEED COUNT

prints a line for every case in which something else happened than a `StoreError`, a finding, or the
unchanged right answer, and exits with 1 when there was one. Memory is limited to what is in use at
the beginning and 512 MiB.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import latentkit as lk
from latentkit.contracts import Entry, LatentLayout, Normalization
from latentkit.errors import StoreError
from latentkit.store.dataset_json import Description, finalize
from latentkit.store.folder import canonical_json
from latentkit.store.local_folder import LocalFolder
from latentkit.store.plan import PlanSettings, list_entries, plan_of, write_plan
from latentkit.store.writer import RowLabel, UnitWriter
from latentkit.upkeep.verify import verify_folder

MORE_MEMORY = 512 << 20
LONGEST_SECONDS = 10.0
DATASET, INDEX, PLAN = "dataset.json", "index/000.parquet", "plans/000.parquet"
UNITS = ["units/000-000000.safetensors", "units/000-000001.safetensors"]
Files = dict[str, bytes]

DEEP: list[Any] = []
for _ in range(400):
    DEEP = [DEEP]
NASTY: list[Any] = [
    2**63,
    2**64 - 1,
    10**400,
    -1,
    0,
    1,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    True,
    None,
    "",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "nul\0",
    "x" * 100_000,
    [],
    {},
    [[]],
    {"": {}},
    [2**32, 2**32],
    [2**62, 2**62, 0],
    [-1, 5],
    [1.5],
    DEEP,
    "F64",
    "units/000-000000",
]
BEYOND_VERIFY = ("layout", "normalization", "source", "quantisation", "views")
"""What dataset.json alone says; `verify --deep` compares the first two with the encoder's."""


def make(folder: Path) -> None:
    """6 samples in 2 units, the fifth skipped; two views; captions."""
    store = LocalFolder(folder)
    settings = PlanSettings(
        {"encoder.name": "random", "store": "moments", "dtype": "float16"},
        2,
        3,
        1,
        False,
        {"latentkit": "0"},
    )
    entries = (
        Entry(f"photos/{i}.png", f"{i}-0", {"text": f"caption {i}", "label": i}) for i in range(6)
    )
    plan = plan_of(0, list_entries(entries), settings)
    write_plan(store, plan)
    generator = torch.Generator().manual_seed(0)
    for unit in plan.units():
        writer = UnitWriter(unit)
        for position in range(unit.start, unit.stop):
            labels = [
                RowLabel(position, view, number, "0" * 64, {"crop": [0, number]})
                for number, view in enumerate(("plain", "hflip"))
            ]
            if position == 4:
                for label in labels:
                    writer.skip(label, "not an image")
            else:
                writer.add(
                    "16x16",
                    labels,
                    {"moments": torch.randn(2, 8, 2, 2, generator=generator).half()},
                )
        writer.commit(
            store, {"batch_size": 2, "threads": 1, "compile": False}, settings.fingerprint
        )
    layout = LatentLayout("latent", "gaussian", "CHW", 4, 8)
    described = Description(
        layout,
        Normalization(0.5, [1.0, 2.0, 3.0, 4.0]),
        "moments",
        "float16",
        {"use": "folder"},
        ["plain", "hflip"],
    )
    finalize(store, [plan], described, lambda index: None)


# ---------------------------------------------------------------- mutations


def change_bytes(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Flipped, overwritten, cut, longer, spliced."""
    changed = bytearray(content)
    a, b = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    kind = draw.randrange(8)
    if kind <= 1:
        for _ in range(draw.choice([1, 1, 2, 8])):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    elif kind == 2:
        changed[a:b] = draw.randbytes(b - a) if draw.random() < 0.5 else bytes(b - a)
    elif kind == 3:
        del changed[a:]
    elif kind == 4:
        changed += draw.randbytes(draw.choice([1, 8, 4096]))
    elif kind == 5:
        changed[a:b] = draw.choice(others)[a:b]
    elif kind == 6:
        place = draw.choice(
            [0, 4, max(0, len(changed) - 8), max(0, len(changed) - 4), draw.randrange(len(changed))]
        )
        changed[place : place + 8] = draw.choice(
            [2**63, 2**64 - 1, 2**31, 2**40, 0, len(content)]
        ).to_bytes(8, "little")
    else:
        del changed[a:b]
    return bytes(changed)


def change_json(draw: random.Random, document: Any, top: Sequence[str] = ()) -> Any:
    """A value somewhere in it replaced, removed or moved."""
    document = copy.deepcopy(document)
    place = document
    if top:
        key: Any = draw.choice(list(top))
        if not isinstance(place[key], dict | list) or not place[key] or draw.random() < 0.2:
            place[key] = copy.deepcopy(draw.choice(NASTY))
            return document
        place = place[key]
    while True:
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place[key], dict | list) and place[key] and draw.random() < 0.8:
            place = place[key]
            continue
        kind = draw.randrange(8)
        if kind == 0:
            del place[key]
        elif kind == 1 and isinstance(place, dict):
            place[draw.choice(["../x", "units/000-000000", "", "x" * 5000, "16x16/moments"])] = (
                place.pop(key)
            )
        elif kind == 2 and isinstance(place[key], int | float):
            place[key] += draw.choice([1, -1, 4096, -4096])
        else:
            place[key] = copy.deepcopy(draw.choice(NASTY))
        return document


def change_header(draw: random.Random, unit: bytes) -> bytes:
    """A unit whose header says something else; as long as before where that fits."""
    length = int.from_bytes(unit[:8], "little")
    header = json.loads(unit[8 : 8 + length])
    text = json.dumps(change_json(draw, header)).encode()
    text = text.ljust(length) if draw.random() < 0.8 else text
    return len(text).to_bytes(8, "little") + text + unit[8 + length :]


def change_table(draw: random.Random, content: bytes) -> bytes:
    """A Parquet file whose columns have other types, names, values or lengths."""
    table = pq.read_table(io.BytesIO(content))
    number = draw.randrange(table.num_columns)
    name, column = table.column_names[number], table.column(number)
    kind = draw.randrange(8)
    if kind == 0:
        table = table.drop_columns([name])
    elif kind == 1:
        table = table.rename_columns(
            [draw.choice(table.column_names) if one == name else one for one in table.column_names]
        )
    elif kind == 2:
        table = table.set_column(
            number, name, pa.nulls(table.num_rows, draw.choice([pa.null(), column.type]))
        )
    elif kind == 3:
        rows = draw.choice(
            [[], [0], list(range(table.num_rows)) * 2, list(reversed(range(table.num_rows)))]
        )
        table = table.take(pa.array(rows, pa.int64()))
    elif kind == 4:
        values = [draw.choice([2**62, -1, 7, 0]) for _ in range(table.num_rows)]
        table = table.set_column(
            number,
            name,
            pa.array(values, pa.int64()).cast(draw.choice([pa.int64(), pa.float64()]), safe=False),
        )
    elif kind == 5:
        words = ["../../etc/passwd", "\0", "000-000001", "x" * 5000, "ok", "16x16", ""]
        texts = [draw.choice(words) for _ in range(table.num_rows)]
        table = table.set_column(
            number,
            name,
            pa.array(texts, draw.choice([pa.string(), pa.large_string(), pa.binary()])),
        )
    elif kind == 6:
        table = table.set_column(number, name, pa.array([[{"a": [1]}]] * table.num_rows))
    else:
        values = column.to_pylist()
        draw.shuffle(values)
        table = table.set_column(number, name, pa.array(values, column.type))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def seal(files: Files) -> None:
    """Give dataset.json the hashes of what is there: an attacker's work, no accident's."""
    document = json.loads(files[DATASET])
    document.pop("sha256", None)
    try:
        document["index"]["sha256"] = hashlib.sha256(files[INDEX]).hexdigest()
        document["plans"][PLAN] = hashlib.sha256(files[PLAN]).hexdigest()
        for name in UNITS:
            length = int.from_bytes(files[name][:8], "little")
            entry = document["units"][name[6:-12]]
            entry |= {
                "bytes": len(files[name]),
                "header_sha256": hashlib.sha256(files[name][: 8 + length]).hexdigest(),
            }
        document["sha256"] = hashlib.sha256(canonical_json(document).encode()).hexdigest()
    except (KeyError, TypeError, ValueError, AttributeError):
        document["sha256"] = "0" * 64
    files[DATASET] = json.dumps(document).encode()


@dataclass(frozen=True)
class Case:
    """Files that differ, whether their hashes were made to match, and a word for people."""

    files: Files
    sealed: bool
    name: str


def draw_case(draw: random.Random, base: Files) -> Case:
    files, names = dict(base), [DATASET, INDEX, PLAN, *UNITS]
    sealed = draw.random() < 0.5
    kind = draw.choice(["bytes", "bytes", "json", "header", "table", "exchange"])
    if kind == "bytes":
        name = draw.choice(names)
        files[name] = change_bytes(draw, files[name], list(base.values()))
        sealed = sealed and name != DATASET
    elif kind == "json":
        name = DATASET
        document = json.loads(files[name])
        changed = change_json(draw, document, draw.choice([(), list(document)]))
        files[name] = json.dumps(changed).encode()
    elif kind == "header":
        name = draw.choice(UNITS)
        files[name] = change_header(draw, files[name])
    elif kind == "table":
        name = draw.choice([INDEX, PLAN])
        files[name] = change_table(draw, files[name])
    else:
        name, other = draw.sample(names, 2)
        files[name] = base[other]
        sealed = sealed and DATASET not in (name, other)
    if sealed:
        seal(files)
    return Case(files, sealed, f"{kind} of {name}{', hashes made to match' if sealed else ''}")


# ---------------------------------------------------------------- what happens


def read(folder: Path) -> Any:
    """The first batch, and every key."""
    data = lk.open(folder, posterior="moments", columns=["text"])
    batch = next(iter(data.batches(64, prefetch=1)))
    return (
        data.keys,
        batch["key"],
        batch["view"],
        batch["text"],
        batch["moments"].view(torch.uint8).tolist(),
        data[0]["key"],
    )


def says_the_same(name: str, content: bytes, before: bytes) -> bool:
    """Whether nothing has changed but, in dataset.json, white space."""
    if content == before or name != DATASET:
        return content == before
    try:
        return json.dumps(json.loads(content)) == json.dumps(json.loads(before))
    except (ValueError, RecursionError):
        return False


def judge(folder: Path, case: Case, base: Files, right: Any) -> str | None:
    """What is wrong with how a case ended; None when nothing is."""
    changed = [name for name in base if not says_the_same(name, case.files[name], base[name])]
    try:
        answer = read(folder)
    except StoreError:
        answer = None
    except ValueError as error:
        if "column 'text' is not in" not in str(error):
            raise
        answer = None
    try:
        sound = not verify_folder(LocalFolder(folder)).report().damage
    except StoreError:
        sound = False
    if not changed:
        return None
    is_equal = answer is None or repr(answer) == repr(right)
    if not case.sealed:
        # Latents themselves are hashed by verify alone.
        if not is_equal and not all(name in UNITS for name in changed):
            return "a wrong answer"
        return "damage that verify doesn't find" if sound else None
    if sound and not is_equal:
        documents = [json.loads(files[DATASET]) for files in (base, case.files)]
        differing = {
            key
            for key in {*documents[0], *documents[1]}
            if documents[0].get(key) != documents[1].get(key)
        } - {"sha256"}
        return (
            None if differing <= set(BEYOND_VERIFY) else "a wrong answer that verify doesn't find"
        )
    return None


def run_case(folder: Path, case: Case, base: Files, right: Any) -> str | None:
    for name, content in case.files.items():
        if content != base[name]:
            (folder / name).write_bytes(content)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_SECONDS)
    try:
        return judge(folder, case, base, right)
    except Exception:  # noqa: BLE001  # whatever it is, it is what this program looks for
        return traceback.format_exc(limit=-6)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for name, content in case.files.items():
            if content != base[name]:
                (folder / name).write_bytes(base[name])


def stop(number: int, frame: object) -> None:
    raise TimeoutError(f"longer than {LONGEST_SECONDS} s")


def in_use() -> tuple[int, int]:
    """Bytes of address space, and the most that was ever resident."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def main(place: str, seed: int, count: int) -> int:
    folder = Path(place)
    make(folder)
    base = {name: (folder / name).read_bytes() for name in (DATASET, INDEX, PLAN, *UNITS)}
    right = read(folder)
    assert not verify_folder(LocalFolder(folder)).report().damage
    signal.signal(signal.SIGALRM, stop)
    space, resident = in_use()
    resource.setrlimit(resource.RLIMIT_AS, (space + MORE_MEMORY, resource.RLIM_INFINITY))
    draw, wrong = random.Random(seed), 0
    for number in range(count):
        case = draw_case(draw, base)
        problem = run_case(folder, case, base, right)
        if problem:
            wrong += 1
            print(f"case {number} of seed {seed}, {case.name}: {problem}", flush=True)
    grown = in_use()[1] - resident
    print(f"{count} cases, {wrong} wrong, {grown >> 20} MiB more at most")
    shutil.rmtree(folder)
    return int(wrong > 0 or grown > MORE_MEMORY)


if __name__ == "__main__":
    runner: Callable[[str, int, int], int] = main
    sys.exit(runner(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
