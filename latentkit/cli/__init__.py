"""The command line: `main` is what the installed command `latentkit` runs."""

from latentkit.cli.main import main

__all__ = ["main"]
