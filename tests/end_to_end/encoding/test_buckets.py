"""Pictures of several shapes: batches of one bucket, their fill, and what is compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from latentkit.contracts import BuildContext, InputSpec, LatentLayout, Normalization
from latentkit.encoding import filling_batches as pipeline
from latentkit.encoding.encode_source import EncodeSummary, encode_source
from latentkit.encoding.make_plan import EncodeInputs, EncodeSettings
from latentkit.errors import LatentkitError
from latentkit.executors.local import LocalExecutor
from latentkit.modalities.image import ImageModality
from latentkit.modalities.options import ImageConfig
from latentkit.reading.dataset import open_dataset
from latentkit.sources.folder import FolderSource
from latentkit.sources.options import FolderConfig
from latentkit.store.index import committed_units
from latentkit.store.local_folder import LocalFolder

BATCH = 3


class Pooling(nn.Module):
    def forward(self, pictures: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(pictures, 8)


class PoolingEncoder:
    """Means over 8 x 8 pixels; records the shape of every batch, and of every graph that torch
    compiles.
    """

    modality = "image"
    input = InputSpec(3)
    layout = LatentLayout("latent", "deterministic", "CHW", 3, 8)
    normalization = Normalization()

    def __init__(self, memory_rows: int = 1000) -> None:
        self.module = Pooling()
        self.batches: list[tuple[int, ...]] = []
        self.graphs: list[tuple[int, ...]] = []
        self.memory_rows = memory_rows

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        self.batches.append(tuple(batch.shape))
        if sum(shape[0] for shape in self.batches) > self.memory_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        with torch.no_grad():
            return {"latent": self.module(batch)}

    def compile(self) -> None:
        def backend(graph: Any, example: list[Tensor]) -> Any:
            self.graphs.append(tuple(example[-1].shape))
            return graph.forward

        self.module.compile(backend=backend, dynamic=False)

    def fingerprint(self) -> dict[str, str]:
        return {}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def write_pictures(folder: Path, shapes: list[tuple[int, int]]) -> Path:
    """Pictures of these (height, width)."""
    folder.mkdir()
    for number, (height, width) in enumerate(shapes):
        Image.new("RGB", (width, height), (number, 2 * number, 3 * number)).save(
            folder / f"{number:03d}.png"
        )
    return folder


def encode(photos: Path, output: Path, encoder: PoolingEncoder, unit_size: int) -> EncodeSummary:
    buckets = {"area": 32**2, "step": 8, "aspect": 8.0, "min": 8, "max": 128}
    modality = ImageModality(
        ImageConfig.model_validate({"buckets": buckets}), BuildContext(input=encoder.input)
    )
    source = FolderSource(FolderConfig(path=str(photos)), BuildContext())
    inputs = EncodeInputs(
        source, modality, ["plain"], lambda device: encoder, {"encoder.name": "test"}
    )
    settings = EncodeSettings(batch_size=BATCH, unit_size=unit_size, threads=1, compile=True)
    return encode_source(
        LocalFolder(output), inputs, LocalExecutor("cpu"), "cpu", settings, "", show_progress=False
    )


SQUARE, WIDE = (32, 32), (16, 64)


def test_batches_are_of_one_bucket_and_their_fill_is_reported(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", [SQUARE, WIDE, SQUARE, SQUARE, WIDE, SQUARE])
    encoder = PoolingEncoder()
    summary = encode(photos, tmp_path / "out", encoder, unit_size=6)
    assert encoder.batches == [(3, 3, 32, 32), (2, 3, 16, 64), (1, 3, 32, 32)]
    assert (summary.num_ok, summary.num_slots) == (6, 3 * BATCH)
    data = open_dataset(tmp_path / "out")
    for place in range(6):
        levels = torch.tensor([float(place), 2.0 * place, 3.0 * place]) / 127.5 - 1
        latent = data[place]["latent"]
        assert torch.allclose(latent, levels[:, None, None].expand_as(latent), atol=1e-3)


def test_the_fullest_bucket_is_encoded_when_too_much_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tall, small = (64, 16), (24, 40)
    photos = write_pictures(
        tmp_path / "photos", [WIDE, SQUARE, SQUARE, tall, tall, WIDE, small, WIDE, SQUARE]
    )
    monkeypatch.setattr(
        pipeline, "FILLING_BYTES", 0
    )  # then six rows of the largest, 1024 pixels, may wait
    encoder = PoolingEncoder()
    assert encode(photos, tmp_path / "out", encoder, unit_size=9).num_ok == 9
    assert encoder.batches == [
        (2, 3, *WIDE),
        (3, 3, *SQUARE),
        (1, 3, *WIDE),
        (1, 3, *small),
        (2, 3, *tall),
    ]
    data = open_dataset(tmp_path / "out")
    assert all(
        torch.allclose(data[place]["latent"][0], torch.tensor(place / 127.5 - 1), atol=1e-3)
        for place in range(9)
    )


def test_only_full_batches_are_compiled_once_for_each_shape(tmp_path: Path) -> None:
    photos = write_pictures(tmp_path / "photos", [SQUARE] * 7 + [WIDE] * 2 + [SQUARE] * 4)
    encoder = PoolingEncoder()
    encode(photos, tmp_path / "out", encoder, unit_size=13)
    assert [shape[0] for shape in encoder.batches] == [3, 3, 3, 2, 2]
    assert encoder.graphs == [(3, 3, 32, 32)]


def test_many_buckets_are_all_compiled(tmp_path: Path) -> None:
    shapes = [(8, 64), (16, 48), (24, 40), (32, 32), (40, 24), (48, 16), (64, 8)]
    photos = write_pictures(tmp_path / "photos", [shape for shape in shapes for _ in range(BATCH)])
    encoder = PoolingEncoder()
    with torch._dynamo.config.patch(recompile_limit=2):
        encode(photos, tmp_path / "out", encoder, unit_size=7 * BATCH)
        assert torch._dynamo.config.recompile_limit == 2
    full = {shape for shape in encoder.batches if shape[0] == BATCH}
    assert len(full) > 3
    assert sorted(encoder.graphs) == sorted(full)


def test_running_out_of_memory_keeps_what_is_committed_and_names_the_setting(
    tmp_path: Path,
) -> None:
    photos = write_pictures(tmp_path / "photos", [SQUARE] * 9)
    with pytest.raises(
        LatentkitError,
        match=r"out of memory while 3 rows of 32x32 were encoded: .* Set batch_size below 3",
    ):
        encode(photos, tmp_path / "out", PoolingEncoder(memory_rows=8), unit_size=3)
    assert len(committed_units(LocalFolder(tmp_path / "out"))) == 2
    assert encode(photos, tmp_path / "out", PoolingEncoder(), unit_size=3).num_ok == 3
