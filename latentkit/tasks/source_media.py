"""The media of a latent dataset's samples, from its source if that still exists."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from latentkit.contracts import StreamSource
from latentkit.errors import LatentkitError, StoreError
from latentkit.store.columns import escape
from latentkit.store.open_folder import open_folder
from latentkit.tasks.build_parts import configured_encode_of


class SourceMedia:
    """Returns the media of a key; called from several threads at once.

    Args:
        path: the latent dataset, whose recipe.yaml names the source.

    Raises:
        StoreError: the source can't be opened, or can only be read from its start.
    """

    def __init__(self, path: str) -> None:
        try:
            line = configured_encode_of(open_folder(path))
            self._source = line.open_source()
        except (LatentkitError, OSError) as error:
            raise StoreError(
                f"{path}: the exporter needs the source that it was made from, which can't be"
                f" opened: {error}"
            ) from error
        if line.modality.provided.spec.name == "latents":
            raise StoreError(
                f"{path}: the exporter needs the media that were encoded, and these latents were"
                " imported; export without media, where the exporter has an option for that"
            )
        if isinstance(self._source, StreamSource):
            raise StoreError(
                f"{path}: the exporter needs media by their keys, and the source is a stream"
            )
        entries = enumerate(self._source.entries())
        self._places = {escape(entry.key): place for place, entry in entries}
        self._path = path

    def check(self, keys: Iterable[str]) -> None:
        """Check that the source still has all keys.

        Raises:
            StoreError: a key is missing; the message names the first.
        """
        missing = [key for key in keys if key not in self._places]
        if missing:
            raise StoreError(
                f"{self._path}: the exporter needs the media of every sample, and the source has no"
                f" {missing[0]!r} any more (and {len(missing) - 1} others)"
            )

    def __call__(self, key: str) -> Any:
        """Return the media of a key, as the source gives it."""
        assert not isinstance(self._source, StreamSource)
        return self._source[self._places[key]].media
