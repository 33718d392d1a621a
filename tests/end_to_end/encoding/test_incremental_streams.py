"""A stream whose shards change: the units of the others stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from latentkit.contracts import BuildContext, Entry, Sample, Shard
from latentkit.encoders.diffusers import DiffusersEncoder
from latentkit.encoding.encode_source import EncodeSummary, encode_source
from latentkit.encoding.make_plan import EncodeInputs, EncodeSettings
from latentkit.errors import SourceError
from latentkit.executors.local import LocalExecutor
from latentkit.modalities.image import ImageModality
from latentkit.modalities.options import ImageConfig
from latentkit.reading.dataset import open_dataset
from latentkit.store.compact import compact
from latentkit.store.local_folder import LocalFolder

Shards = dict[str, tuple[str, list[int]]]
"""Name of a shard to its stamp and the numbers of its pictures."""


class Stream:
    def __init__(self, photos: Path, shards: Shards) -> None:
        self.photos, self.by_name = photos, shards

    def shards(self) -> list[Shard]:
        return [Shard(name, stamp) for name, (stamp, _) in self.by_name.items()]

    def read(self, shard: Shard) -> Iterator[Sample]:
        for number in self.by_name[shard.name][1]:
            media = (self.photos / f"{number:03d}.png").read_bytes()
            yield Sample(f"{number:03d}", media, {"text": f"number {number}"}, "stamp")


class Singles:
    """The shards, taken for samples."""

    def __init__(self, photos: Path, shards: Shards) -> None:
        self.stream, self.all = Stream(photos, shards), Stream(photos, shards).shards()

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, index: int) -> Sample:
        return next(self.stream.read(self.all[index]))

    def entries(self) -> Iterator[Entry]:
        return (Entry(shard.name, shard.stamp) for shard in self.all)


Encode = Callable[..., EncodeSummary]


@pytest.fixture
def encode(make_photos: Callable[..., Path], kl_folder: Path, tmp_path: Path) -> Encode:
    """Encode shards of ten photographs into an output of some name; two shards make a unit."""
    encoder = DiffusersEncoder(kl_folder, None, torch.float32, False, "cpu")
    photos = make_photos(10)

    def run(
        shards: Shards, name: str, kind: type[Stream | Singles] = Stream, **options: Any
    ) -> EncodeSummary:
        modality = ImageModality(ImageConfig(size=32), BuildContext(input=encoder.input))
        inputs = EncodeInputs(
            kind(photos, shards),
            modality,
            ["plain"],
            lambda device: encoder,
            {"encoder.name": "test"},
        )
        settings = EncodeSettings(**{"batch_size": 2, "unit_size": 2, "threads": 1, **options})
        return encode_source(
            LocalFolder(tmp_path / name),
            inputs,
            LocalExecutor("cpu"),
            "cpu",
            settings,
            "",
            show_progress=False,
        )

    return run


BEFORE: Shards = {"a": ("1", [0, 1]), "b": ("1", [2]), "c": ("1", [3, 4]), "d": ("1", [5])}
AFTER: Shards = {
    "a": ("1", [0, 1]),
    "b": ("1", [2]),
    "c": ("2", [4, 6]),
    "d": ("1", [5]),
    "e": ("1", [7, 8, 9]),
}


def rows(path: Path) -> dict[str, tuple[str, torch.Tensor]]:
    data = open_dataset(path, posterior="mean", columns=["text"])
    return {
        item["key"]: (item["text"], item["latent"])
        for item in (data[index] for index in range(len(data)))
    }


def assert_equal_rows(path: Path, other: Path) -> None:
    ours, theirs = rows(path), rows(other)
    assert list(ours) == list(theirs)
    for key, (text, latent) in ours.items():
        assert text == theirs[key][0]
        torch.testing.assert_close(latent, theirs[key][1], rtol=0, atol=1e-2)


def test_shards_of_unchanged_units_are_kept(
    encode: Encode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode(BEFORE, "out").num_ok == 6
    capsys.readouterr()
    assert encode(AFTER, "out").num_ok == 6  # c changed, d shares its unit, e is new
    assert "1 added, 2 changed; 3 to encode" in capsys.readouterr().err
    encode(AFTER, "scratch")
    assert_equal_rows(tmp_path / "out", tmp_path / "scratch")
    assert encode(AFTER, "out") == EncodeSummary()
    assert encode(BEFORE, "out").num_ok == 3
    assert list(rows(tmp_path / "out")) == [f"{number:03d}" for number in range(6)]


def test_compacted_stream_is_kept_and_goes_on(encode: Encode, tmp_path: Path) -> None:
    encode(BEFORE, "out")
    encode(AFTER, "out")
    before = rows(tmp_path / "out")
    done = compact(LocalFolder(tmp_path / "out"))
    assert (done.num_dropped, done.units_before, done.units_after) == (3, 4, 3)
    after = rows(tmp_path / "out")
    assert list(after) == list(before)
    assert all(torch.equal(after[key][1], before[key][1]) for key in before)
    assert encode(AFTER, "out") == EncodeSummary()
    reordered = {"e": AFTER["e"], **AFTER}
    assert encode(reordered, "out").num_ok == 0
    assert list(rows(tmp_path / "out"))[:3] == ["007", "008", "009"]
    assert encode(reordered, "out") == EncodeSummary()
    assert (
        encode({**reordered, "e": ("2", [8])}, "out").num_ok == 1
    )  # the units of the others are still their own


def test_shards_of_a_unit_stay_together_in_another_order(encode: Encode, tmp_path: Path) -> None:
    encode(BEFORE, "out")
    assert encode({name: BEFORE[name] for name in "cabd"}, "out").num_ok == 0
    assert list(rows(tmp_path / "out")) == ["003", "004", "005", "000", "001", "002"]


def test_shard_that_is_gone_before_its_turn_locks_no_finished_dataset(
    encode: Encode, tmp_path: Path, begun: Callable[[], AbstractContextManager[None]]
) -> None:
    encode(BEFORE, "out")
    with begun():
        encode(AFTER, "out")
    left = {name: shard for name, shard in AFTER.items() if name != "e"}
    encode(left, "out")
    encode(left, "scratch")
    assert_equal_rows(tmp_path / "out", tmp_path / "scratch")


def test_shard_that_is_gone_from_a_first_run_is_named(
    encode: Encode, begun: Callable[[], AbstractContextManager[None]]
) -> None:
    with begun():
        encode(BEFORE, "out")
    with pytest.raises(SourceError, match=r"shard 'b'.* is missing"):
        encode({name: shard for name, shard in BEFORE.items() if name != "b"}, "out")


def test_units_with_skipped_samples_are_tried_again_when_asked(
    encode: Encode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "photos" / "003.png"
    good = picture.read_bytes()
    picture.write_bytes(b"broken")
    assert encode(BEFORE, "out", max_bad=0.5).num_skipped == 1
    picture.write_bytes(good)
    assert encode(BEFORE, "out") == EncodeSummary()
    capsys.readouterr()
    assert encode(BEFORE, "out", retry_skipped=True).num_ok == 3
    assert "2 skipped before and tried again; 2 to encode" in capsys.readouterr().err
    assert list(rows(tmp_path / "out")) == [f"{number:03d}" for number in range(6)]
    assert encode(BEFORE, "out", retry_skipped=True) == EncodeSummary()


def test_single_samples_do_not_go_on_from_a_stream(encode: Encode) -> None:
    encode(BEFORE, "out")
    with pytest.raises(
        SourceError, match="made from a stream, but the source now has single samples"
    ):
        encode(BEFORE, "out", kind=Singles)
