"""Media that can't be reached is tried again, then ends the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from latentkit.errors import SourceError

T = TypeVar("T")

PAUSES_SECONDS = (0.2, 1.0, 3.0)


def retried(read: Callable[[], T], what: str) -> T:
    """What `read` gives, after up to three more tries when it raises `OSError`.

    Args:
        read: called again from the start.
        what: for the message, such as "sample 'a.jpg'".

    Raises:
        SourceError: it could not be reached at the last try either.
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
            f"{what} can't be reached: {error}; run again when it can, nothing is lost"
        ) from error
