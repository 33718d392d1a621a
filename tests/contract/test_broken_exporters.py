"""Every check for exporters fails for an exporter that is broken in that one way, and a good one
passes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentkit.contracts import (
    Export,
    ExportConfig,
    ExporterSpec,
    ExportItem,
    ExportNeeds,
)
from latentkit.testing import ExporterContract, check_names, find_failures


class Numbered:
    """A good exporter: files 0.npy and so on, and names.txt; a hook for each way to fail."""

    def rows(self, dataset: Any) -> Iterator[dict[str, Any]]:
        return (dataset[index] for index in range(len(dataset)))

    def name(self, number: int, row: dict[str, Any]) -> str:
        return str(number)

    def values(self, latent: Tensor) -> Tensor:
        return latent

    def finish(self, dataset: Any, folder: Path) -> None:
        """Nothing more."""

    def export(self, dataset: Any, folder: Path) -> None:
        names = []
        for number, row in enumerate(self.rows(dataset)):
            name = self.name(number, row)
            np.save(folder / f"{name}.npy", self.values(row["latent"]).numpy())
            names.append(f"{name}\0{row['key']}\0{row['view']}\0")
        (folder / "names.txt").write_text("\0".join(names), newline="")
        self.finish(dataset, folder)


class LosesARow(Numbered):
    def rows(self, dataset: Any) -> Iterator[dict[str, Any]]:
        return (dataset[index] for index in range(1, len(dataset)))


class RoundsTooMuch(Numbered):
    def values(self, latent: Tensor) -> Tensor:
        return (latent * 8).round() / 8


class MixesRows(Numbered):
    def rows(self, dataset: Any) -> Iterator[dict[str, Any]]:
        for index in range(len(dataset)):
            yield {**dataset[index], "latent": dataset[(index + 4) % len(dataset)]["latent"]}


class ClimbsOut(Numbered):
    def name(self, number: int, row: dict[str, Any]) -> str:
        return (
            row["key"] if row["key"].startswith("../") and row["view"] == "plain" else str(number)
        )


class LinksIn(Numbered):
    def finish(self, dataset: Any, folder: Path) -> None:
        (folder / "dataset").symlink_to(str(dataset.folder))


class TidiesUp(Numbered):
    def finish(self, dataset: Any, folder: Path) -> None:
        os.remove(Path(str(dataset.folder)) / "recipe.yaml")


class SaysWhen(Numbered):
    def finish(self, dataset: Any, folder: Path) -> None:
        (folder / "when.txt").write_text(str(time.perf_counter_ns()))


class NamesTheDay(Numbered):
    def finish(self, dataset: Any, folder: Path) -> None:
        (folder / str(time.perf_counter_ns())).touch()


class SaysWhereItWrote(Numbered):
    def finish(self, dataset: Any, folder: Path) -> None:
        (folder / "where.txt").write_text(str(folder.resolve()))


class Named:
    """A good exporter of samples: a file per view, and names.txt; a hook for each way to fail."""

    needs = ExportNeeds()

    def views(self, item: ExportItem) -> Iterable[str]:
        return item.rows

    def name(self, item: ExportItem) -> str:
        return f"{item.name}-"

    def note(self, name: str, folder: Path) -> None:
        """Nothing more."""

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[str]:
        records = []
        for item in items:
            for view in self.views(item):
                name = f"{self.name(item)}{view}.npy"
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                np.save(folder / name, item.rows[view].latent.numpy())
                self.note(name, folder)
                records.append(f"{name.removesuffix('.npy')}\0{item.key}\0{view}\0")
        return records

    def finish(self, records: Iterable[str], folder: Path, export: Export) -> str:
        (folder / "names.txt").write_text("\0".join(records), newline="")
        return ""


class AppendsToOneFile(Named):
    def note(self, name: str, folder: Path) -> None:
        with (folder / "log.txt").open("a") as file:
            file.write(f"{name}\n")


class CountsByItself(Named):
    count = 0

    def name(self, item: ExportItem) -> str:
        self.count += 1
        return str(self.count)


class CutsNames(Named):
    def name(self, item: ExportItem) -> str:
        return Path(item.key.replace("\n", "")).stem


class MirrorsUnasked(Named):
    def views(self, item: ExportItem) -> Iterable[str]:
        return ("plain", "hflip")


class WantsCaptions(Named):
    def name(self, item: ExportItem) -> str:
        return f"{item.name}-{len(item.attributes['text'])}-"


class NumberedContract(ExporterContract):
    def __init__(self, exporter: type[Numbered] | type[Named]) -> None:
        self.spec = ExporterSpec(
            "numbered", "a file per row", ExportConfig, lambda config, context: exporter()
        )

    def entry_point(self) -> str | None:
        return None

    def read(self, folder: Path) -> Iterator[tuple[str, str, Tensor]]:
        words = (folder / "names.txt").read_bytes().decode().split("\0")[:-1]
        words = [word for number, word in enumerate(words) if number % 4 != 3]
        for name, key, view in zip(words[::3], words[1::3], words[2::3], strict=True):
            yield key, view, torch.from_numpy(np.load(folder / f"{name}.npy"))


BROKEN: dict[Callable[[], Numbered | Named], str] = {
    LosesARow: "test_every_row_is_there_with_its_latent",
    RoundsTooMuch: "test_every_row_is_there_with_its_latent",
    MixesRows: "test_every_row_is_there_with_its_latent",
    ClimbsOut: "test_an_export_stays_in_its_folder",
    LinksIn: "test_an_export_stays_in_its_folder",
    TidiesUp: "test_an_export_leaves_the_dataset_alone",
    SaysWhen: "test_an_export_again_is_the_same",
    NamesTheDay: "test_an_export_again_is_the_same",
    SaysWhereItWrote: "test_no_file_says_where_it_was_written",
    AppendsToOneFile: "test_items_in_any_order_and_again_give_the_same_files",
    CountsByItself: "test_items_in_any_order_and_again_give_the_same_files",
    CutsNames: "test_every_row_is_there_with_its_latent",
    MirrorsUnasked: "test_what_it_needs_is_enough",
    WantsCaptions: "test_what_it_needs_is_enough",
}


@pytest.mark.parametrize("exporter", BROKEN, ids=lambda exporter: exporter.__name__)
def test_an_exporter_broken_in_one_way_fails_the_check_for_it(
    exporter: type[Numbered] | type[Named], tmp_path: Path
) -> None:
    assert set(find_failures(NumberedContract(exporter), tmp_path)) == {BROKEN[exporter]}


@pytest.mark.parametrize("exporter", [Numbered, Named])
def test_a_good_exporter_passes_every_check(
    exporter: type[Numbered] | type[Named], tmp_path: Path
) -> None:
    assert find_failures(NumberedContract(exporter), tmp_path) == {}


def test_every_check_for_exporters_is_proved() -> None:
    shared = {name for name in check_names(ExporterContract) if name not in vars(ExporterContract)}
    assert set(BROKEN.values()) == set(check_names(ExporterContract)) - shared
