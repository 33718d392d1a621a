"""Opens fsspec's driver for a URL."""

from __future__ import annotations

from typing import Any

import fsspec
from fsspec.registry import known_implementations

from latentkit.errors import StoreError
from latentkit.store.outage import explain_store_error


def open_driver(url: str) -> tuple[Any, str]:
    """Return fsspec's driver for a URL, and the URL as the driver's path. Listings are never
    cached.

    Raises:
        StoreError: the protocol is unknown, or its driver isn't installed or can't be set up.
    """
    try:
        try:
            driver, path = fsspec.url_to_fs(url, use_listings_cache=False)
        except TypeError:  # a driver without cached listings may not know the option
            driver, path = fsspec.url_to_fs(url)
    except ImportError as error:
        package = (
            known_implementations.get(url.partition("://")[0], {})
            .get("class", "")
            .partition(".")[0]
        )
        advice = f"; pip install {package}" if package not in ("", "fsspec") else ""
        raise StoreError(f"{url}: the driver is missing: {error}{advice}") from error
    except Exception as error:
        raise explain_store_error(error, url) from error
    return driver, path.rstrip("/")
