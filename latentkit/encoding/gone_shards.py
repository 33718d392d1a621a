"""A stream whose plan still names shards that it no longer has."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from latentkit.contracts import Sample, Shard, StreamSource


@dataclass(frozen=True)
class WithGoneShards:
    """A stream with the shards that are gone too, empty: the next plan leaves them out."""

    source: StreamSource
    gone: Collection[str]

    def shards(self) -> list[Shard]:
        return [*self.source.shards(), *(Shard(name, "") for name in self.gone)]

    def read(self, shard: Shard) -> Iterator[Sample]:
        return iter(()) if shard.name in self.gone else self.source.read(shard)
