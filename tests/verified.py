"""A latent dataset checked as `latentkit verify` checks it."""

from __future__ import annotations

import os

from latentkit.store.open_folder import open_folder
from latentkit.upkeep.findings import Report
from latentkit.upkeep.verify import verify_folder


def verify_dataset(path: str | os.PathLike[str]) -> Report:
    """Return everything that is wrong with the latent dataset at `path`, a folder or URL."""
    return verify_folder(open_folder(os.fspath(path))).report()
