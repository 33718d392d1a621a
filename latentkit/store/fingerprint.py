"""The fingerprint: a hash of everything that affects the value of a latent."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from latentkit.errors import FingerprintError
from latentkit.store.folder import Folder, canonical_json

RECORDED_ONLY = ("encoder.decoder", "encoder.hub_commit")


def fingerprint_of(parts: Mapping[str, str]) -> str:
    """Return the sha256 of name-value pairs. An encoder's "decoder..." and "hub_commit" are
    recorded but not included.
    """
    return hashlib.sha256(canonical_json(fingerprinted_parts(parts)).encode()).hexdigest()


def fingerprinted_parts(parts: Mapping[str, str]) -> dict[str, str]:
    """Return the parts that affect the value of a latent."""
    return {name: value for name, value in parts.items() if not name.startswith(RECORDED_ONLY)}


def different_parts(one: Mapping[str, str], other: Mapping[str, str], start: str = "") -> list[str]:
    """Return the sorted names of parts that affect the value of a latent and differ.

    Args:
        one, other: fingerprint parts, by name.
        start: only names that start with this, such as "encoder.".
    """
    one, other = fingerprinted_parts(one), fingerprinted_parts(other)
    names = sorted(name for name in {*one, *other} if name.startswith(start))
    return [name for name in names if one.get(name) != other.get(name)]


def check_parts(
    folder: Folder, there: Mapping[str, str], wanted: Mapping[str, str], defaults: Mapping[str, str]
) -> None:
    """Check that the parts are those that the folder's latents were made with.

    Raises:
        FingerprintError: parts differ; the message lists them. A missing option has its default.
    """
    lines = [
        f"  {name}: {_value(there, name, defaults)} there, {_value(wanted, name, defaults)} now"
        for name in different_parts(there, wanted)
    ]
    if lines:
        begin = f"{folder} contains latents that were made with other settings:"
        advice = "Choose another output.path, or restore these"
        raise FingerprintError("\n".join([begin, *lines, advice]))


def _value(parts: Mapping[str, str], name: str, defaults: Mapping[str, str]) -> str:
    """Return the value of a part for a message."""
    value = parts.get(name)
    if value is None:
        return f"{defaults[name]} (the default)" if name in defaults else "not set"
    return value if len(value) <= 60 else f"{value[:16]}..."
