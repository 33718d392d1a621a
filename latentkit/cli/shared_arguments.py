"""The options that several commands share, and text that is safe to print."""

from __future__ import annotations

import argparse


def printable(text: str) -> str:
    """Return a text with its control characters escaped; file names and captions may have some."""
    return "".join(
        char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text
    )


def add_set(command: argparse.ArgumentParser) -> None:
    summary = "override one key of the recipe, such as encoder.with.dtype=bfloat16"
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=summary)


def add_device(command: argparse.ArgumentParser) -> None:
    summary = (
        "auto (an accelerator if there is one), a kind such as cuda or mps, or one device, such as"
        " cuda:1"
    )
    command.add_argument("--device", default="auto", metavar="D", help=summary)


def add_devices(command: argparse.ArgumentParser) -> None:
    summary = (
        "devices to encode on, one process each, such as 0,1 (default: all accelerators of this"
        " machine)"
    )
    command.add_argument("--devices", default="", metavar="D,D", help=summary)


def split_devices(options: argparse.Namespace) -> tuple[str, ...]:
    """The names in `--devices`."""
    return tuple(name.strip() for name in options.devices.split(",")) if options.devices else ()
