"""Find plugins by entry points and keep them in a registry; see `latentkit.hooks`."""

from latentkit.plugins.registry import (
    HOOKS,
    KINDS,
    Problem,
    Provided,
    Registry,
    Row,
    discover,
    fingerprint_fields,
)

__all__ = [
    "HOOKS",
    "KINDS",
    "Problem",
    "Provided",
    "Registry",
    "Row",
    "discover",
    "fingerprint_fields",
]
