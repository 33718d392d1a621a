"""A stream whose plan contains shards that no longer exist."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from latentkit.contracts import Sample, Shard, StreamSource


@dataclass(frozen=True)
class WithRemovedShards:
    """A stream with its removed shards added as empty ones. The next plan drops them."""

    source: StreamSource
    gone: Collection[str]

    def shards(self) -> list[Shard]:
        return [*self.source.shards(), *(Shard(name, "") for name in self.gone)]

    def read(self, shard: Shard) -> Iterator[Sample]:
        return iter(()) if shard.name in self.gone else self.source.read(shard)
