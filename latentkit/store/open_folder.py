"""Opens the folder at a path or URL."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from latentkit.errors import StoreError
from latentkit.runtime.hub_places import HubPlace, parse_hub_place
from latentkit.runtime.paths import is_url
from latentkit.store.folder import Folder
from latentkit.store.local_folder import LocalFolder
from latentkit.store.unit_cache import Cache, open_cache


def open_folder(output: str, cache: Cache = None) -> Folder:
    """Return the folder of an `output.path`: a path, or a URL of any protocol that fsspec has a
    driver for.

    Args:
        output: a path, file:// URL or other URL such as s3://bucket/latents. On the hub
            (hf://datasets/owner/name, or the address of its page) it is read at the commit that
            main, or the revision after "@", names now.
        cache: where units read from a URL are kept, and at most how many bytes; see `open_cache`.

    Raises:
        StoreError: the path isn't a folder, or the URL's driver is missing or can't be set up.
        TypeError, ValueError: the cache is invalid.
    """
    protocol, _, rest = output.partition("://") if is_url(output) else ("", "", output)
    if protocol and not rest.strip("/"):
        raise StoreError(
            f"{output} contains no bucket or folder; expected something like"
            f" {protocol}://bucket/latents"
        )
    if protocol and protocol not in ("file", "local"):
        if (place := find_hub_place(output)) is not None:
            from latentkit.store.hub_folder import open_hub_folder

            return open_hub_folder(place, open_cache(cache))
        from latentkit.store.url_folder import UrlFolder

        return UrlFolder(output, open_cache(cache))
    if re.match("/[A-Za-z]:", rest) and sys.platform == "win32":
        rest = rest[1:]  # file:///C:/latents
    path = Path(rest).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file; expected a folder for the output")
    return LocalFolder(path)


def find_hub_place(output: str) -> HubPlace | None:
    """Return the place on the hub that a URL names; None for other URLs, and for paths."""
    return parse_hub_place(output, "dataset") if is_url(output) else None
