"""Retries media that can't be reached, then ends the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from latentkit.errors import SourceError

T = TypeVar("T")

PAUSES_SECONDS = (0.2, 1.0, 3.0)


def with_retries(read: Callable[[], T], what: str) -> T:
    """Return what `read` returns. If it raises `OSError`, try up to three more times.

    Args:
        read: called again from the start.
        what: text for the message, such as "sample 'a.jpg'".

    Raises:
        SourceError: the last try failed too.
    """
    for pause in PAUSES_SECONDS:
        try:
            return read()
        except OSError:
            time.sleep(pause)
    try:
        return read()
    except OSError as error:
        raise SourceError(
            f"{what} can't be reached: {error}. Run again when it can; nothing is lost"
        ) from error
