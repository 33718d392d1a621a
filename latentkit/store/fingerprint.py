"""The fingerprint: a hash of everything that decides a latent's value."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from latentkit.errors import FingerprintError
from latentkit.store.folder import Folder, canonical_json

RECORDED_ONLY = ("encoder.decoder", "encoder.hub_commit")


def fingerprint_of(parts: Mapping[str, str]) -> str:
    """Return the sha256 of the pairs; "decoder..." and "hub_commit" of encoders don't count."""
    return hashlib.sha256(canonical_json(fingerprinted_parts(parts)).encode()).hexdigest()


def fingerprinted_parts(parts: Mapping[str, str]) -> dict[str, str]:
    """The parts that decide a latent's value."""
    return {name: value for name, value in parts.items() if not name.startswith(RECORDED_ONLY)}


def different_parts(one: Mapping[str, str], other: Mapping[str, str], start: str = "") -> list[str]:
    """Sorted names of the parts that decide a latent's value and differ.

    Args:
        start: only names that start with this, such as "encoder.".
    """
    one, other = fingerprinted_parts(one), fingerprinted_parts(other)
    names = sorted(name for name in {*one, *other} if name.startswith(start))
    return [name for name in names if one.get(name) != other.get(name)]


def check_parts(
    folder: Folder, there: Mapping[str, str], wanted: Mapping[str, str], defaults: Mapping[str, str]
) -> None:
    """Hold what decides a latent's value to what the folder's latents were made with.

    Raises:
        FingerprintError: names every field that differs; an option in neither has its default.
    """
    lines = [
        f"  {name}: {_value(there, name, defaults)} there, {_value(wanted, name, defaults)} now"
        for name in different_parts(there, wanted)
    ]
    if lines:
        begin = f"{folder} holds latents that were made otherwise:"
        advice = "Write to another output, or set these back"
        raise FingerprintError("\n".join([begin, *lines, advice]))


def _value(parts: Mapping[str, str], name: str, defaults: Mapping[str, str]) -> str:
    value = parts.get(name)
    if value is None:
        return f"{defaults[name]} (the default)" if name in defaults else "not set"
    return value if len(value) <= 60 else f"{value[:16]}..."
