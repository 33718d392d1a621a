"""Detects the distribution `latentkit` of another project, which installs into the same folder as
this package.

Whichever of the two is installed last replaces the other's `latentkit/__init__.py`, and
uninstalling either one removes that file.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

OTHER_NAME = "latentkit"
ADVICE = (
    "Remove both, then install this one: pip uninstall -y latentkit latentkit-diffusion && "
    "pip install latentkit-diffusion"
)


def find_other_version() -> str | None:
    """Return the version of the other project's distribution; None if it isn't installed."""
    try:
        other = metadata.distribution(OTHER_NAME)
    except metadata.PackageNotFoundError:
        return None
    # Before its first release, this project's distribution had that name.
    is_own = "latentkit.cli" in (other.read_text("entry_points.txt") or "")
    return None if is_own else other.version


def explain_other(version: str) -> str:
    """Return a message that the other distribution is installed too, and what to do."""
    folder = Path(__file__).parents[1]
    return (
        f"another project's distribution {OTHER_NAME} {version} is installed too, and has files in "
        f"{folder} as well: each breaks the other. {ADVICE}"
    )


def explain_lost_files() -> str:
    """Return a message on why `import latentkit` isn't this package although its other files
    exist.
    """
    version = find_other_version()
    if version is not None:
        return explain_other(version)
    file = Path(__file__).parents[1] / "__init__.py"
    return f"{file} is missing or another project's. {ADVICE}"
