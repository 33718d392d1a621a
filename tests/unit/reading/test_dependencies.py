"""Reading latents needs torch, numpy, pyarrow and a few small packages, and nothing that encodes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import latentkit as lk

READS = """
import importlib.metadata as metadata
import re
import sys
from importlib.abc import MetaPathFinder


def find_dependencies(roots):
    found, waiting = set(), list(roots)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            wanted = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        found.add(name)
        waiting += [re.match(r"[\\w.-]+", one)[0] for one in wanted if "extra ==" not in one]
    return found


# safetensors is not among them: units are read by the package's own code.
ROOTS = ["torch", "numpy", "pyarrow", "pydantic", "fsspec", "filelock"]
allowed = find_dependencies(ROOTS)
provided = metadata.packages_distributions()
names = {re.sub(r"[-_.]+", "-", one).lower() for owners in provided.values() for one in owners}
BLOCKED = {
    module
    for module, owners in provided.items()
    if not {re.sub(r"[-_.]+", "-", one).lower() for one in owners} & (allowed | {"latentkit"})
} - {"__pycache__"}
MUST_BE_BLOCKED = {
    "diffusers", "datasets", "accelerate", "PIL", "yaml", "pluggy", "psutil", "tqdm",
    "huggingface_hub", "safetensors",
}
assert MUST_BE_BLOCKED <= BLOCKED, MUST_BE_BLOCKED - BLOCKED


class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is not for reading", name=name)
        return None


sys.meta_path.insert(0, Blocker())
try:
    import PIL
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("nothing is blocked")

import latentkit as lk
from torch.utils.data import DataLoader

if __name__ == "__main__":
    data = lk.open(sys.argv[1], columns=["text"], views="random")
    assert len(data) == 6 and data[0]["latent"].shape == data.moments(0)["mean"].shape
    assert sum(len(batch["key"]) for batch in data.batches(4, shuffle=True)) == 6
    for workers in (0, 1):
        loader = DataLoader(data, batch_size=3, collate_fn=lk.collate, num_workers=workers)
        assert [len(batch["text"]) for batch in loader] == [3, 3]
    part = data.select([4, 1])
    assert part.keys == [data.keys[4], data.keys[1]]
    assert len(data.filter(text="picture number 2")) == 1
    train, holdout = data.split(0.5)
    assert sorted(train.keys + holdout.keys) == data.keys
    assert lk.open(sys.argv[1], views="random", keys=data.keys[:2]).keys == data.keys[:2]
    joined = lk.join(part, lk.open(sys.argv[1], views=["plain"]), names=["a", "b"])
    (batch,) = joined.batches(8)
    assert batch["key"] == part.keys and batch["a"].shape == batch["b"].shape
    print(repr(data).splitlines()[0])
    loaded = sorted(BLOCKED & {name.partition(".")[0] for name in sys.modules} - {"PIL"})
    print("loaded:", *loaded)
"""


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]
) -> Path:
    base = tmp_path_factory.mktemp("alone")
    overrides = {"preview": 0, "modality.with.views": ["plain", "hflip"]}
    lk.encode(write_photos(base / "photos", 6), base / "out", size=32, overrides=overrides)
    return base / "out"


def test_reading_loads_nothing_that_encodes(folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "read.py"
    program.write_text(READS)
    done = subprocess.run(
        [sys.executable, str(program), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"LatentDataset of 6 rows: {folder}", "loaded:"]
