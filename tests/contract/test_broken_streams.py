"""Every check for streams fails for a stream that is broken in that one way, and none for a good
one.

Checks that streams share with other sources are proved there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from latentkit.contracts import Config, Sample, Shard, SourceSpec
from latentkit.testing import SourceContract, StreamSourceContract, check_names, find_failures


class NoConfig(Config):
    """No options."""


class Lines:
    """A good stream: a shard per file, a sample per letter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = sorted(path.name for path in folder.glob("*.txt"))

    def shards(self) -> list[Shard]:
        return [Shard(name, str((self.folder / name).stat().st_size)) for name in self.names]

    def letters(self, shard: Shard) -> str:
        return (self.folder / shard.name).read_text()

    def read(self, shard: Shard) -> Iterator[Sample]:
        for number, letter in enumerate(self.letters(shard)):
            yield Sample(f"{shard.name}/{number}", letter, {"letter": letter}, shard.stamp)


class LinesContract(StreamSourceContract):
    def __init__(self, build: Callable[[Path], Any]) -> None:
        self.spec = SourceSpec(
            "lines",
            "letters of text files",
            NoConfig,
            lambda config, context: build(context.recipe_dir),
        )

    def make_config(self, tmp_path: Path) -> NoConfig:
        for name, text in (("a.txt", "one"), ("b.txt", "three"), ("c.txt", "fifteen")):
            (tmp_path / name).write_text(text)
        return NoConfig()

    def entry_point(self) -> None:
        """Declared here only."""


# ---------------------------------------------------------------- broken in one way each


class OneNameForAllShards(Lines):
    def shards(self) -> list[Shard]:
        return [Shard("letters", shard.name) for shard in super().shards()]

    def read(self, shard: Shard) -> Iterator[Sample]:
        return super().read(Shard(shard.stamp, "stamp"))


class NumberedShards(Lines):
    def shards(self) -> list[Shard]:
        return [Shard(shard.name, len(shard.name)) for shard in super().shards()]  # type: ignore[arg-type]

    def read(self, shard: Shard) -> Iterator[Sample]:
        return super().read(Shard(shard.name, "stamp"))


class ShardsTurnRound(Lines):
    def shards(self) -> list[Shard]:
        self.names.reverse()
        return super().shards()


class ReadOnce(Lines):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.done: set[str] = set()

    def letters(self, shard: Shard) -> str:
        is_first = shard.name not in self.done
        self.done.add(shard.name)
        return super().letters(shard) if is_first else ""


class OnePositionForAllShards(Lines):
    def read(self, shard: Shard) -> Iterator[Sample]:
        self.position = 0
        letters = self.letters(shard)
        while self.position < len(letters):
            self.position += 1
            yield Sample(f"{shard.name}/{self.position}", letters[self.position - 1])


BROKEN: dict[str, list[type[Lines]]] = {
    "test_shards_have_unique_names": [OneNameForAllShards, NumberedShards],
    "test_shards_can_be_listed_again": [ShardsTurnRound],
    "test_a_shard_read_again_is_equal": [ReadOnce],
    "test_shards_can_be_read_in_any_order_and_at_once": [OnePositionForAllShards],
}


@pytest.mark.parametrize(
    ("check", "double"),
    [(check, double) for check, doubles in BROKEN.items() for double in doubles],
)
def test_a_stream_broken_in_one_way_fails_the_check_for_it(
    check: str, double: type[Lines], tmp_path: Path
) -> None:
    assert set(find_failures(LinesContract(double), tmp_path)) == {check}


def test_a_good_stream_passes_every_check(tmp_path: Path) -> None:
    assert find_failures(LinesContract(Lines), tmp_path) == {}


def test_a_stream_that_lacks_a_member_breaks_its_protocol(tmp_path: Path) -> None:
    assert "test_build_gives_what_the_hook_promises" in find_failures(
        LinesContract(lambda folder: ["a", "b"]), tmp_path
    )


def test_every_check_for_streams_is_proved() -> None:
    assert set(BROKEN) == set(check_names(StreamSourceContract)) - set(check_names(SourceContract))
