"""`latentkit export` to exporters that write item by item: what they are given, what is refused,
stopping and going on.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import Field

import latentkit as lk
from latentkit import cli
from latentkit.contracts import (
    DrawConfig,
    Export,
    ExporterSpec,
    ExportItem,
    ExportNeeds,
    Normalization,
    OtherScaleConfig,
)
from latentkit.errors import InterruptedRunError
from latentkit.exporting.names import make_unique, safe_name
from latentkit.exporting.row_block import draw_noise
from latentkit.plugins import Provided, Registry, discover
from latentkit.testing import copy_dataset
from latentkit.testing.exported_dataset import DatasetShape

WritePhotos = Callable[..., Path]


class KeptConfig(DrawConfig, OtherScaleConfig):
    """All common options."""

    text: str | None = Field(None, description="latent dataset of text embeddings")


class Kept:
    """Keeps what it is given, and writes a file per item."""

    closing_suffix = ".toml"

    def __init__(self, needs: ExportNeeds | None = None, size: int = 2) -> None:
        self.needs, self.items_per_part = needs or ExportNeeds(), size
        self.given: dict[str, ExportItem] = {}
        self.export: Export | None = None
        self.before: Callable[[ExportItem], None] = lambda item: None

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[str]:
        names = []
        for item in items:
            self.before(item)
            (folder / item.name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / f"{item.name}.bin").open("wb") as file:
                for row in item.rows.values():
                    file.write(row.latent.numpy().tobytes())
            self.given[item.key] = item
            names.append(item.name)
        return names

    def finish(self, records: Iterable[str], folder: Path, export: Export) -> str:
        self.export = export
        (folder / "names.json").write_text(json.dumps([*records]))
        return f"path = '{export.folder}'"


UseExporter = Callable[[Kept], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> UseExporter:
    def use_exporter(exporter: Kept) -> None:
        spec = ExporterSpec("kept", "keeps it", KeptConfig, lambda config, context: exporter)
        found = discover()
        registry: Registry = replace(
            found, provided=(*found.provided, Provided(spec, "acme", "1.0"))
        )
        monkeypatch.setattr("latentkit.tasks.export.discover", lambda: registry)

    return use_exporter


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    return copy_dataset(tmp_path / "latents")


def export(*words: str | Path) -> int:
    command, *options = map(str, words)
    out = str(Path(command).parent / "out")
    sets = [word for option in options for word in ("--set", option)]
    return cli.main(["export", command, out, "--to", "kept", *sets])


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


# ---------------------------------------------------------------- what is given


def test_a_sample_has_its_views_geometry_and_attributes(
    latents: Path, use: UseExporter, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Kept(ExportNeeds(views=("plain", "hflip"), label="label"))
    use(kept)
    assert export(latents, "posterior=mean") == 0
    out = latents.parent / "out"
    assert capsys.readouterr().out == (
        f"{out}: 6 samples (12 rows) as kept\npath = '{out}'\n(also in {out}.toml)\n"
    )
    assert (latents.parent / "out.toml").read_text() == f"path = '{out}'\n"
    data = lk.open(latents, posterior="mean", columns=["text"])
    item = kept.given["zoë, 'x'\n.png"]
    assert (item.number, item.label, item.attributes["text"]) == (3, 3, "zoë, 'x'\n.png \\ \"'\t")
    assert item.row.view == "plain"
    for view in ("plain", "hflip"):
        row, stored = item.rows[view], data.moments((item.key, view))
        assert torch.equal(row.latent, data[item.key, view]["latent"])
        assert torch.equal(row.mean, stored["mean"].float())
        assert torch.equal(row.logvar, stored["logvar"].float())
        assert torch.equal(row.raw, row.mean)
        assert (row.bucket, row.size) == ("16x32", (16, 32))
    assert kept.export is not None
    assert (kept.export.folder, kept.export.num_items) == (out, 6)
    assert kept.export.buckets == ["16x16", "16x32"]
    assert kept.export.label_names == ["0", "1", "2", "3", "4", "5", "6"]
    kinds = {name: str(kind) for name, kind in kept.export.attribute_types.items()}
    assert kinds == {"text": "string", "label": "int64"}


def test_geometry_and_media_are_those_of_the_photos(
    tmp_path: Path,
    use: UseExporter,
    write_photos: WritePhotos,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    (photos / "zebra").mkdir()
    names = sorted(photos.glob("*.png"))
    names[1].rename(photos / "zebra" / names[1].name)
    values = {
        "task": "encode",
        "source": {"use": "folder", "with": {"path": str(photos)}},
        "modality": {"use": "image", "with": {"size": 32, "views": ["plain", "hflip"]}},
        "encoder": {"use": "tiny-kl"},
        "output": {"path": str(tmp_path / "latents")},
        "batch_size": 2,
        "preview": 0,
    }
    data = lk.run(values)
    kept = Kept(ExportNeeds(media=True))
    use(kept)
    assert export(tmp_path / "latents") == 0
    assert len(kept.given) == len(set(data.keys)) == 2
    for item in kept.given.values():
        row = item.rows["hflip"]
        assert row.original_size == (row.geometry["height"], row.geometry["width"])
        assert (row.geometry["flip"], item.rows["plain"].geometry["flip"]) == (True, False)
        assert len(row.geometry["crop"]) == 4
        assert Path(str(item.media)).name == Path(item.key).name
    names[0].unlink()
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out.toml").unlink()
    assert export(tmp_path / "latents") == 2
    assert f"the source has no '{names[0].name}' any more" in capsys.readouterr().err


def test_names_of_classes_are_numbered_in_their_order(
    tmp_path: Path, use: UseExporter, write_photos: WritePhotos
) -> None:
    for name in ("zebra", "ant"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (first,) = write_photos(tmp_path / f"{name}s", 1).glob("*.png")
        first.rename(tmp_path / "photos" / name / first.name)
    lk.encode(tmp_path / "photos", tmp_path / "latents", encoder="tiny-kl", size=32)
    kept = Kept(ExportNeeds(label="label"))
    use(kept)
    assert export(tmp_path / "latents") == 0
    assert {key.split("/")[0]: item.label for key, item in kept.given.items()} == {
        "ant": 0,
        "zebra": 1,
    }
    assert kept.export is not None
    assert kept.export.label_names == ["ant", "zebra"]


def test_numbers_beyond_those_of_classes_are_no_labels(
    latents: Path,
    use: UseExporter,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("latentkit.exporting.items.MOST_LABELS", 6)
    use(Kept(ExportNeeds(label="label")))
    assert export(latents) == 2
    assert "label 6 of the attribute 'label' is too large" in capsys.readouterr().err


def test_text_embeddings_come_from_a_second_dataset_by_key(
    latents: Path, use: UseExporter, capsys: pytest.CaptureFixture[str]
) -> None:
    text = copy_dataset(latents.parent / "text", DatasetShape(("plain",), "CL", channels=5))
    kept = Kept(ExportNeeds(text=True))
    use(kept)
    assert export(latents) == 2
    assert "kept needs text embeddings" in capsys.readouterr().err
    assert export(latents, f"text={latents}") == 2
    assert "axes CL), got axes CHW" in capsys.readouterr().err
    assert export(latents, f"text={text}") == 0
    item, data = kept.given["a"], lk.open(text, posterior="mean")
    assert item.text is not None
    assert torch.equal(item.text["latent"], data["a"]["latent"])


def test_text_embeddings_of_many_lengths_are_refused_where_one_is_needed(
    latents: Path, use: UseExporter, capsys: pytest.CaptureFixture[str]
) -> None:
    ragged = Path(__file__).parents[1] / "golden" / "v1-ragged"
    use(Kept(ExportNeeds(text_one_length=True)))
    assert export(latents, f"text={ragged}") == 2
    assert "encode the captions again with encoder.with.padding" in capsys.readouterr().err


def test_a_draw_is_the_same_whatever_the_order_the_parts_and_the_limit(
    latents: Path, use: UseExporter
) -> None:
    found = []
    for size, options in ((1, []), (4, []), (4, ["limit=3"]), (4, ["views=[hflip]"])):
        kept = Kept(size=size)
        use(kept)
        assert export(latents, "seed=7", *options) == 0
        found.append(kept.given)
        for path in (latents.parent / "out", latents.parent / "out.toml"):
            path.rename(path.with_name(f"{path.name}-{len(found)}"))
    assert contents(latents.parent / "out-1") == contents(latents.parent / "out-2")
    assert len(found[2]) == 3
    raw = found[0]["b/a.png"].rows["hflip"].raw
    for given in found:
        assert torch.equal(given["b/a.png"].rows["hflip"].raw, raw)
    kept = Kept()
    use(kept)
    assert export(latents, "seed=8") == 0
    assert not torch.equal(kept.given["b/a.png"].rows["hflip"].raw, raw)


def test_draws_have_the_mean_and_the_variance_of_their_posterior(
    latents: Path, use: UseExporter
) -> None:
    kept = Kept()
    use(kept)
    assert export(latents) == 0
    row = kept.given["a.png"].rows["plain"]
    draws = []
    for seed in range(200):
        noise = draw_noise(seed, "a.png", "plain", row.mean.shape)
        draws.append(row.mean + (row.logvar / 2).exp() * noise)
    assert torch.equal(draws[0], row.raw)
    standard = (torch.stack(draws).double() - row.mean) / (row.logvar / 2).exp()
    count = standard.numel()
    assert abs(float(standard.mean())) < 3 / math.sqrt(count)
    assert abs(float(standard.square().mean()) - 1) < 3 * math.sqrt(2 / count)


def test_names_are_safe_and_told_apart(latents: Path, use: UseExporter) -> None:
    kept = Kept()
    use(kept)
    assert export(latents) == 0
    names = [kept.given[key].name for key in lk.open(latents, views=["plain"]).keys]
    assert names == ["a", "b/a", "up", "zoë_ _x__", "con_tar", "a-2"]
    assert safe_name("/etc/../C:\\x\\.hidden.png") == "etc/C_/x/_hidden"
    assert safe_name("..") == "_"
    assert len(safe_name("é" * 300).encode()) <= 120
    assert make_unique(["x", "X", "x-2", "x"]) == ["x", "X-3", "x-2", "x-4"]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("needs", "shape", "options", "message"),
    [
        (
            ExportNeeds(views=("plain", "hflip")),
            DatasetShape(views=("plain",)),
            [],
            "it needs the view hflip, and the dataset has plain; encode again with"
            " modality.with.views: [plain, hflip]",
        ),
        (
            ExportNeeds(channels=4, downscale=8),
            DatasetShape(),
            [],
            "it takes latents of 4 channels and 8 x downscale, and these have 3 channels and 8 x",
        ),
        (
            ExportNeeds(normalization=Normalization(0.0, 0.18215)),
            DatasetShape(),
            [],
            "its trainer always normalizes by scale 0.18215, and these latents need shift 0.25,"
            " scale 2; encode with that trainer's autoencoder, or export them anyway with"
            " allow_other_scale=true",
        ),
        (
            ExportNeeds(moments=True),
            DatasetShape(has_moments=False),
            [],
            "it takes mean and logvar, and the encoder is deterministic",
        ),
        (
            ExportNeeds(one_size=True),
            DatasetShape(),
            [],
            "it takes latents of one size, and the dataset has 2 (16x16, 16x32)",
        ),
        (
            ExportNeeds(square=True),
            DatasetShape(),
            [],
            "it takes square latents, and the dataset has 16x32",
        ),
        (
            ExportNeeds(size_multiple=32),
            DatasetShape(),
            [],
            "it takes sizes that are multiples of 32, and the dataset has 16x16; encode again with"
            " such a modality.with.size, or with buckets.step: 32",
        ),
        (
            ExportNeeds(sizes=((16, 16), (64, 64), (32, 32))),
            DatasetShape(),
            [],
            "it takes other sizes than 16x32; encode again with modality.with.buckets.shapes from"
            " among [16, 16], [32, 32], [64, 64]",
        ),
        (
            ExportNeeds(label="label"),
            DatasetShape(attributes=("text",)),
            [],
            "it needs the attribute 'label' of every sample, and the dataset has ['text']",
        ),
        (
            ExportNeeds(axes="CTHW"),
            DatasetShape(),
            [],
            "it takes latents of axes CTHW, and these have CHW",
        ),
        (
            ExportNeeds(axes="CHW"),
            DatasetShape(axes="CL", channels=5),
            [],
            "it takes latents of axes CHW, and these have CL; export to a format for their",
        ),
        (ExportNeeds(), DatasetShape(), ["views=[side]"], "views ['side'] are not in"),
        (ExportNeeds(), DatasetShape(), ["limit=0"], "limit: expected a number of at least 1"),
    ],
)
def test_what_a_dataset_lacks_is_said_before_the_first_file(
    needs: ExportNeeds,
    shape: DatasetShape,
    options: list[str],
    message: str,
    tmp_path: Path,
    use: UseExporter,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use(Kept(needs))
    assert export(copy_dataset(tmp_path / "latents", shape), *options) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert os.listdir(tmp_path) == ["latents"]


def test_another_scale_is_exported_where_one_insists(latents: Path, use: UseExporter) -> None:
    use(Kept(ExportNeeds(normalization=Normalization(0.0, 0.18215))))
    assert export(latents, "allow_other_scale=true") == 0


def test_the_same_scale_in_fewer_digits_or_per_channel_is_the_same(
    latents: Path, use: UseExporter
) -> None:
    use(Kept(ExportNeeds(normalization=Normalization([0.25, 0.25, 0.25], 2.000001))))
    assert export(latents) == 0


def test_a_file_beside_the_export_is_not_replaced(
    latents: Path, use: UseExporter, capsys: pytest.CaptureFixture[str]
) -> None:
    use(Kept())
    (latents.parent / "out.toml").write_text("precious")
    assert export(latents) == 2
    assert "out.toml is there already" in capsys.readouterr().err
    assert (latents.parent / "out.toml").read_text() == "precious"


# ---------------------------------------------------------------- stopping and going on


def test_a_stopped_export_goes_on_where_it_stood(
    latents: Path, use: UseExporter, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Kept(size=1)
    use(whole)
    assert export(latents) == 0
    expected = contents(latents.parent / "out")
    for path in (latents.parent / "out", latents.parent / "out.toml"):
        path.rename(path.with_name(f"whole-{path.name}"))

    def stop(item: ExportItem) -> None:
        if item.number == 4:
            raise InterruptedRunError("stopped", 130)

    stopped = Kept(size=1)
    stopped.before = stop
    use(stopped)
    assert export(latents) == 130
    assert "stopped; run the same command again to go on" in capsys.readouterr().err
    assert not (latents.parent / "out").exists()
    again = Kept(size=1)
    use(again)
    assert export(latents) == 0
    assert 0 < len(again.given) < 6
    assert "con.tar.gz" in again.given
    assert contents(latents.parent / "out") == expected
    there = {"latents", "out", "out.toml", "whole-out", "whole-out.toml"}
    assert {*os.listdir(latents.parent)} == there


def test_ctrl_c_ends_the_parts_at_work_and_no_more(latents: Path, use: UseExporter) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stopped = Kept(size=1)

    def interrupt(item: ExportItem) -> None:
        if item.number == 0:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)

    stopped.before = interrupt
    use(stopped)
    try:
        assert export(latents) == 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert len(stopped.given) < 6
    assert not (latents.parent / "out").exists()
    again = Kept(size=1)
    use(again)
    assert export(latents) == 0
    assert {*stopped.given} | {*again.given} == {*lk.open(latents).keys}


def test_other_options_start_over(latents: Path, use: UseExporter) -> None:
    stopped = Kept(size=1)

    def stop(item: ExportItem) -> None:
        if item.number == 4:
            raise InterruptedRunError("stopped", 130)

    stopped.before = stop
    use(stopped)
    assert export(latents) == 130
    again = Kept(size=1)
    use(again)
    assert export(latents, "seed=1") == 0
    assert len(again.given) == 6


def test_an_error_of_the_exporter_leaves_nothing(latents: Path, use: UseExporter) -> None:
    broken = Kept()

    def fail(item: ExportItem) -> None:
        raise ZeroDivisionError

    broken.before = fail
    use(broken)
    with pytest.raises(ZeroDivisionError):
        export(latents)
    assert os.listdir(latents.parent) == ["latents"]


def test_one_process_at_a_time_writes_an_export(
    latents: Path, use: UseExporter, capsys: pytest.CaptureFixture[str]
) -> None:
    first, codes, begun, may_end = Kept(), [], threading.Event(), threading.Event()

    def wait(item: ExportItem) -> None:
        begun.set()
        may_end.wait(60)

    first.before = wait
    use(first)

    def run() -> None:
        from latentkit.tasks.export import export_dataset

        export_dataset(str(latents), str(latents.parent / "out"), "kept", {})
        codes.append(0)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(60)
    assert export(latents) == 2
    assert "another process writes this export" in capsys.readouterr().err
    may_end.set()
    thread.join()
    assert codes == [0]
    assert len(contents(latents.parent / "out")) == 7


PROGRAM = """
import resource, sys
from latentkit import cli
if sys.argv[4] != "none":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
raise SystemExit(cli.main(["export", sys.argv[1], sys.argv[2], "--to", sys.argv[3]]))
"""


def test_a_file_that_cannot_be_written_leaves_nothing_that_looks_complete(latents: Path) -> None:
    """The system itself refuses to write on, in the middle of a tar file."""
    out = latents.parent / "out"
    command = [sys.executable, "-c", PROGRAM, str(latents), str(out), "webdataset"]
    done = subprocess.run([*command, "12000"], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "out can't be written: File too large" in done.stderr
    assert "run the same command again" in done.stderr
    assert {*os.listdir(latents.parent)} == {"latents", ".out.export"}
    done = subprocess.run([*command, "none"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {*os.listdir(out)} == {"000000.tar", "latents.json"}
    assert {*os.listdir(latents.parent)} == {"latents", "out"}
