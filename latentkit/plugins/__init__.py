"""Plugins: found by entry points, held by a registry; `latentkit.hooks` says what they offer."""

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
