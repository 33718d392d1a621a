"""The fingerprint: a hash of everything that decides a latent's value."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from latentkit.store.folder import canonical_json

RECORDED_ONLY = ("encoder.decoder", "encoder.hub_commit")


def fingerprint_of(parts: Mapping[str, str]) -> str:
    """sha256 of name-value pairs; an encoder's "decoder..." and "hub_commit" are recorded but don't
    count.
    """
    return hashlib.sha256(canonical_json(fingerprinted_parts(parts)).encode()).hexdigest()


def fingerprinted_parts(parts: Mapping[str, str]) -> dict[str, str]:
    """The parts that decide a latent's value."""
    return {name: value for name, value in parts.items() if not name.startswith(RECORDED_ONLY)}
