"""Streams of one's own: empty shards, media out of reach for a while, keys that clash."""

from __future__ import annotations

import io
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentkit.contracts import BuildContext, Prepared, Sample, Shard
from latentkit.encoders.diffusers import DiffusersEncoder
from latentkit.encoding.encode_source import EncodeSummary, encode_source
from latentkit.encoding.make_plan import EncodeInputs, EncodeSettings
from latentkit.errors import SourceError
from latentkit.executors.local import LocalExecutor
from latentkit.modalities.image import ImageModality
from latentkit.modalities.options import ImageConfig
from latentkit.reading.dataset import open_dataset
from latentkit.runtime.cores import num_cores
from latentkit.store.local_folder import LocalFolder


class Stream:
    """Pictures of a folder in shards of given sizes; reading fails once after `fails_after`
    samples.
    """

    def __init__(
        self,
        photos: Path,
        sizes: list[int],
        fails_after: int | None = None,
        same_keys: bool = False,
    ) -> None:
        self.files = sorted(photos.glob("*.png"))
        self.sizes, self.fails_after, self.same_keys = sizes, fails_after, same_keys

    def shards(self) -> list[Shard]:
        return [Shard(str(number)) for number in range(len(self.sizes))]

    def read(self, shard: Shard) -> Iterator[Sample]:
        number = int(shard.name)
        start = sum(self.sizes[:number])
        for place, file in enumerate(self.files[start : start + self.sizes[number]]):
            if place == self.fails_after:
                self.fails_after = None
                raise ConnectionResetError("the line went dead")
            key = str(place) if self.same_keys else file.name
            yield Sample(
                key, io.BytesIO(file.read_bytes()).getvalue(), {"text": file.stem}, "stamp"
            )


def encode(stream: Stream, output: Path, encoder: DiffusersEncoder) -> EncodeSummary:
    modality = ImageModality(ImageConfig(size=32), BuildContext(input=encoder.input))
    inputs = EncodeInputs(
        stream, modality, ["plain"], lambda device: encoder, {"encoder.name": "test"}
    )
    settings = EncodeSettings(batch_size=2, unit_size=1, threads=1)
    return encode_source(
        LocalFolder(output), inputs, LocalExecutor("cpu"), "cpu", settings, "", show_progress=False
    )


@pytest.fixture
def encoder(kl_folder: Path) -> DiffusersEncoder:
    return DiffusersEncoder(kl_folder, None, torch.float32, False, "cpu")


def test_empty_shards_are_units_without_rows(
    make_photos: Callable[..., Path], encoder: DiffusersEncoder, tmp_path: Path
) -> None:
    summary = encode(Stream(make_photos(5), [0, 3, 0, 2]), tmp_path / "out", encoder)
    assert summary.num_ok == 5
    data = open_dataset(tmp_path / "out", columns=["text"])
    assert data.keys == [f"{number:03d}.png" for number in range(5)]
    assert data[4]["text"] == "004"


def test_line_that_breaks_in_a_shard_loses_and_repeats_nothing(
    make_photos: Callable[..., Path], encoder: DiffusersEncoder, tmp_path: Path
) -> None:
    photos = make_photos(6)
    encode(Stream(photos, [6], fails_after=3), tmp_path / "out", encoder)
    assert open_dataset(tmp_path / "out").keys == [f"{number:03d}.png" for number in range(6)]


def test_keys_that_clash_over_shards_are_named(
    make_photos: Callable[..., Path], encoder: DiffusersEncoder, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=r"the key '[01]' more than once"):
        encode(Stream(make_photos(4), [2, 2], same_keys=True), tmp_path / "out", encoder)


class Bytes:
    """Tiny tensors from anything."""

    metrics: Sequence[str] = ()

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        yield Prepared("plain", "8x8", torch.full((3, 8, 8), float(int(sample.key) % 7)))

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        """Nothing to look at."""


class LongShard:
    """One shard of samples that are made as they are read; counts those that are alive."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.alive = self.most = 0

    def shards(self) -> list[Shard]:
        return [Shard("long")]

    def read(self, shard: Shard) -> Iterator[Sample]:
        for number in range(self.count):
            sample = Sample(f"{number:05d}", b"x" * 100)
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(sample, self.forget)
            yield sample

    def forget(self) -> None:
        self.alive -= 1


def test_few_samples_of_a_long_shard_are_in_memory_at_a_time(
    encoder: DiffusersEncoder, tmp_path: Path
) -> None:
    stream = LongShard(2000)
    inputs = EncodeInputs(
        stream, Bytes(), ["plain"], lambda device: encoder, {"encoder.name": "test"}
    )
    settings = EncodeSettings(batch_size=16, unit_size=1, threads=1, compile=False)
    summary = encode_source(
        LocalFolder(tmp_path / "out"),
        inputs,
        LocalExecutor("cpu"),
        "cpu",
        settings,
        "",
        show_progress=False,
    )
    assert summary.num_ok == 2000
    ahead, in_hand = max(2 * 16, 4 * num_cores()), 8 + 1
    assert stream.most <= ahead + in_hand


class Shrinking(Stream):
    """Whose last shard is gone as soon as the first is read."""

    def read(self, shard: Shard) -> Iterator[Sample]:
        yield from super().read(shard)
        self.sizes = self.sizes[:1]


def test_a_shard_gone_before_it_is_read_is_named(
    make_photos: Callable[..., Path], encoder: DiffusersEncoder, tmp_path: Path
) -> None:
    stream = Shrinking(make_photos(4), [2, 2])
    with pytest.raises(
        SourceError, match="shard '1', which is not encoded yet, is missing from the source"
    ):
        encode(stream, tmp_path / "out", encoder)


def test_shards_may_have_any_name(
    make_photos: Callable[..., Path], encoder: DiffusersEncoder, tmp_path: Path
) -> None:
    class Renamed(Stream):
        def shards(self) -> list[Shard]:
            return [Shard("\udcff")]

        def read(self, shard: Shard) -> Iterator[Sample]:
            return super().read(Shard("0"))

    encode(Renamed(make_photos(2), [2]), tmp_path / "out", encoder)
    assert open_dataset(tmp_path / "out").keys == ["000.png", "001.png"]
