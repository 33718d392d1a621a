"""Growing: plan, resume, finish, compare, open, inspect and verify for 10,000, 100,000 and a
million samples of 4 KiB.

    python tests/benchmarks/scale.py [--rows 10000 100000 1000000] [--scratch FOLDER]

The source is synthetic, the encoder is none: the latents are random and written through the store.
Every stage runs in a process of its own; its seconds don't count the start of Python and torch, its
memory is the most that the whole process ever held, torch's own 0.4 GiB included. The budget for a
million: plan and resume under 20 s, open under 1.5 s, verify under 60 s, each under 1.5 GiB.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROW = {"channels": 4, "side": 16}  # 4 KiB of float16 moments
CAPTION = "a caption of exactly sixty characters, number {:>8d} it is...."
UNIT_SIZE = 4096


class SyntheticSource:
    """So many samples that nobody reads."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        from latentkit.contracts import Sample

        return Sample(f"{index:08d}", b"media", {})

    def entries(self) -> Iterator[Any]:
        from latentkit.contracts import Entry

        return (
            Entry(f"{i:08d}", "", {"text": CAPTION.format(i)[:60], "label": i})
            for i in range(self.count)
        )


class Reached(Exception):  # noqa: N818  # nothing went wrong
    """The run knows what is left to do."""


class StopAtOnce:
    """An executor that ends the run where work would begin."""

    def run(self, units: Any, make_worker: Any) -> Any:
        raise Reached(f"{len(units)} units are left")


def encode_again(path: Path, count: int) -> None:
    """What `latentkit run` does before the first sample is read."""
    import torch

    from latentkit.contracts import InputSpec, LatentLayout, Normalization, Prepared
    from latentkit.encoding.encode_source import encode_source
    from latentkit.encoding.make_plan import EncodeInputs, EncodeSettings
    from latentkit.store.local_folder import LocalFolder

    class NoEncoder:
        modality, input, layout = (
            "none",
            InputSpec(3),
            LatentLayout("latent", "gaussian", "CHW", 4, 8),
        )
        normalization = Normalization(0.1, 0.5)

        def encode(self, batch: Any) -> Any:
            return {
                "mean": torch.zeros(len(batch), 4, 16, 16),
                "logvar": torch.zeros(len(batch), 4, 16, 16),
            }

        def fingerprint(self) -> dict[str, str]:
            return {}

    class NoModality:
        metrics = ()

        def prepare(self, sample: Any) -> Any:
            yield Prepared("plain", "128x128", torch.zeros(3, 128, 128))

        def render(self, tensors: Any, path: Any) -> None:
            """Nothing to see."""

    encoder = NoEncoder()
    parts = {"encoder.name": "random"}
    inputs = EncodeInputs(
        SyntheticSource(count), NoModality(), ["plain"], lambda device: encoder, parts
    )
    settings = EncodeSettings(batch_size=256, unit_size=UNIT_SIZE, compile=False, threads=1)
    encode_source(LocalFolder(path), inputs, StopAtOnce(), "cpu", settings, "", show_progress=False)


def make(path: Path, count: int) -> None:
    from make_dataset import make_dataset

    make_dataset(path, count, ROW["channels"], ROW["side"], UNIT_SIZE)


def plan(path: Path, count: int) -> None:
    other = path.with_name("fresh")
    shutil.rmtree(other, ignore_errors=True)
    try:
        encode_again(other, count)
    except Reached:
        return


def resume(path: Path, count: int) -> None:
    """Every third unit is still to be encoded."""
    half = path.with_name("half")
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(path / "plans", half / "plans")
    (half / "units").mkdir()
    for number, unit in enumerate(sorted((path / "units").iterdir())):
        if number % 3:
            (half / "units" / unit.name).symlink_to(unit)
    begin()
    try:
        encode_again(half, count)
    except Reached:
        return


def finish(path: Path, count: int) -> None:
    """All units are there, index and dataset.json are not."""
    (path / "dataset.json").unlink()
    shutil.rmtree(path / "index")
    begin()
    encode_again(path, count)


def compare(path: Path, count: int) -> None:
    encode_again(path, count)


def open_it(path: Path, count: int) -> None:
    import latentkit as lk

    lk.open(path, columns=["text"])


def inspect(path: Path, count: int) -> None:
    from latentkit.upkeep.inspect_dataset import inspect_dataset

    inspect_dataset(str(path))


def verify(path: Path, count: int) -> None:
    from latentkit.store.open_folder import open_folder
    from latentkit.upkeep.verify import verify_folder

    found = verify_folder(open_folder(str(path))).report()
    assert not found.damage, found.damage


STAGES: dict[str, Callable[[Path, int], None]] = {
    "make": make,
    "plan": plan,
    "resume": resume,
    "finish": finish,
    "compare": compare,
    "open": open_it,
    "inspect": inspect,
    "verify": verify,
}

BEGUN: list[float] = []


def begin() -> None:
    """Time counts from here."""
    BEGUN.append(time.perf_counter())


def run_stage(name: str, path: Path, count: int) -> None:
    """One stage in this process; prints seconds and GiB as JSON."""
    import torch  # noqa: F401  # not counted

    import latentkit as lk

    lk.open  # noqa: B018  # imports the reader
    begin()
    STAGES[name](path, count)
    seconds = time.perf_counter() - BEGUN[-1]
    print(
        json.dumps(
            {"seconds": seconds, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
        )
    )


def measure(name: str, path: Path, count: int) -> dict[str, float]:
    line = [sys.executable, __file__, "--stage", name, "--scratch", str(path), "--rows", str(count)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options.add_argument(
        "--scratch", type=Path, help="where the data sets go (default: a temporary folder)"
    )
    options.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.stage:
        run_stage(given.stage, given.scratch, given.rows[0])
        return
    print(f"{'samples':>10s} " + " ".join(f"{name:>18s}" for name in STAGES), flush=True)
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        for count in given.rows:
            found = [
                measure(name, Path(scratch) / str(count) / "latents", count) for name in STAGES
            ]
            print(
                f"{count:10,d} "
                + " ".join(f"{one['seconds']:8.2f} s {one['gib']:4.2f} GiB" for one in found),
                flush=True,
            )
            shutil.rmtree(Path(scratch) / str(count))


if __name__ == "__main__":
    main()
