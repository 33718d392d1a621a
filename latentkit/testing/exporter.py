"""Checks for exporters."""

from __future__ import annotations

import functools
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from latentkit.contracts import (
    Entry,
    Exporter,
    ExporterSpec,
    InputSpec,
    LatentLayout,
    NamedSpec,
    Normalization,
    Prepared,
    Sample,
)
from latentkit.errors import SampleError
from latentkit.testing.plugin import PluginContract

KEYS = ("a.png", "b/a.png", "../up.png", "zoë, 'x'\n.png", "con.tar.gz", "bad.png", "a")
"""As sources give them: in folders, climbing, with quotes, line ends and dots, one the beginning of
another, one that is skipped.
"""
SIDES = ((16, 16), (16, 32))
VIEWS = ("plain", "hflip")
DATASET = "latents"


class ExporterContract(PluginContract, ABC):
    """What an `Exporter` promises. Give `spec` and `read`."""

    spec_type: ClassVar[type[NamedSpec]] = ExporterSpec
    protocols: ClassVar[tuple[type, ...]] = (Exporter,)

    tolerance: float = 1e-6
    """Largest difference, absolute and relative, of what is read back; larger for a format of half
    precision.
    """

    # ------------------------------------------------------------ what a plugin author overrides

    @abstractmethod
    def read(self, folder: Path) -> Iterable[tuple[str, str, Tensor]]:
        """Key, view and latent of every row that an export has, by the format's own reader, in any
        order.
        """

    def expected(self, dataset: Any) -> list[tuple[str, str, Tensor]]:
        """What `read` should give: unless overridden the latents as a trainer sees them, (C, h, w)
        float32.
        """
        return [
            (row["key"], row["view"], row["latent"])
            for row in (dataset[index] for index in range(len(dataset)))
        ]

    # ------------------------------------------------------------ checks

    def test_every_row_is_there_with_its_latent(self, tmp_path: Path) -> None:
        """What the format's own reader gives is every row once, under its key and view, with its
        latent.
        """
        dataset, folder = self.export(tmp_path)
        wanted = {(key, view): latent for key, view, latent in self.expected(dataset)}
        rows = list(self.read(folder))
        names = sorted((key, view) for key, view, _ in rows)
        assert names == sorted(wanted), f"rows read back: {names}; expected {sorted(wanted)}"
        for key, view, latent in rows:
            other = wanted[key, view]
            same = latent.shape == other.shape and torch.allclose(
                latent.double(), other.double(), self.tolerance, self.tolerance
            )
            assert same, f"{key!r}, {view}: what is read back is not the latent that was exported"

    def test_an_export_stays_in_its_folder(self, tmp_path: Path) -> None:
        """Nothing is written beside the folder, whatever keys look like, and no link leads out of
        it.
        """
        _, folder = self.export(tmp_path)
        beside = sorted(
            path.name for path in tmp_path.iterdir() if path.name not in (folder.name, DATASET)
        )
        links = sorted(path.name for path in folder.rglob("*") if path.is_symlink())
        assert (
            not beside
        ), f"written beside the folder: {beside}; keys are no paths: number the files"
        assert not links, f"links: {links}; copy what they lead to"

    def test_an_export_leaves_the_dataset_alone(self, tmp_path: Path) -> None:
        """Every file of the latent dataset is the same after an export as before."""
        before = files_of(_made_dataset())
        self.export(tmp_path)
        assert files_of(tmp_path / DATASET) == before, "the export changed the dataset it reads"

    def test_an_export_again_is_the_same(self, tmp_path: Path) -> None:
        """Two exports of a dataset are equal, byte for byte: no times, no addresses, no order of a
        set.
        """
        found = []
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            found.append(files_of(self.export(tmp_path / name)[1]))
        assert (
            found[0].keys() == found[1].keys()
        ), f"other files the second time: {sorted(found[0].keys() ^ found[1].keys())}"
        different = sorted(name for name in found[0] if found[0][name] != found[1][name])
        assert (
            not different
        ), f"these files differ the second time: {different}; leave out times, and sort"

    # ------------------------------------------------------------ for the checks

    def export(self, tmp_path: Path) -> tuple[Any, Path]:
        """A dataset of two views of six samples in two shapes, and the folder that it was exported
        to.
        """
        from latentkit.tasks.export import open_for_export

        copy_dataset(tmp_path / DATASET)
        dataset, folder = open_for_export(str(tmp_path / DATASET)), tmp_path / "export"
        folder.mkdir()
        exporter: Exporter = self.build(tmp_path)
        exporter.export(dataset, folder)
        return dataset, folder


def copy_dataset(folder: Path) -> Path:
    """A finished latent dataset of 12 rows, copied to a folder that isn't there yet; the folder."""
    shutil.copytree(_made_dataset(), folder)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---------------------------------------------------------------- the dataset


class _Source:
    def __len__(self) -> int:
        return len(KEYS)

    def __getitem__(self, index: int) -> Sample:
        entry = list(self.entries())[index]
        return Sample(entry.key, entry.key, entry.attributes, entry.stamp)

    def entries(self) -> Iterator[Entry]:
        return (
            Entry(key, "1", {"text": f"{key} \\ \"'\t", "label": number})
            for number, key in enumerate(KEYS)
        )


class _Modality:
    metrics: Sequence[str] = ()

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        if sample.key == "bad.png":
            raise SampleError("no picture")
        number = KEYS.index(sample.key)
        height, width = SIDES[number % 2]
        picture = torch.rand((3, height, width), generator=torch.Generator().manual_seed(number))
        for view in VIEWS:
            yield Prepared(
                view, f"{height}x{width}", picture if view == "plain" else picture.flip(-1)
            )

    def render(self, tensors: Any, path: Path) -> None:
        raise AssertionError("the dataset has no preview")


class _Encoder:
    modality = "image"
    input = InputSpec(channels=3, range=(0.0, 1.0))
    layout = LatentLayout("latent", "gaussian", "CHW", 3, 8)
    normalization = Normalization(shift=0.25, scale=2.0)

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        mean = avg_pool2d(batch, 8)
        return {"mean": mean, "logvar": mean - 1}

    def fingerprint(self) -> dict[str, str]:
        return {"weights": "none"}


@functools.cache
def _kept_folder() -> tempfile.TemporaryDirectory[str]:
    """Removed when the interpreter ends."""
    return tempfile.TemporaryDirectory()


@functools.cache
def _made_dataset() -> Path:
    """A finished latent dataset, made once per process."""
    from latentkit.encoding.encode_source import encode_source
    from latentkit.encoding.make_plan import EncodeInputs, EncodeSettings
    from latentkit.executors.local import LocalExecutor
    from latentkit.store.local_folder import LocalFolder

    path = Path(_kept_folder().name) / DATASET
    inputs = EncodeInputs(
        _Source(), _Modality(), list(VIEWS), lambda device: _Encoder(), {"encoder.name": "test"}
    )
    settings = EncodeSettings(batch_size=2, unit_size=4, threads=1, compile=False)
    encode_source(
        LocalFolder(path), inputs, LocalExecutor("cpu"), "cpu", settings, "", show_progress=False
    )
    return path
