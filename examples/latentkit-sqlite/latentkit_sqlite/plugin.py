"""The declarations of the plugin.

Importing this loads no torch, so that `latentkit plugins` answers in a blink.
"""

from __future__ import annotations

from latentkit.contracts import BuildContext, Config, Source, SourceSpec
from latentkit.hooks import hookimpl
from pydantic import Field


class SqliteConfig(Config):
    """Options of `sqlite`."""

    path: str = Field(description="file of the database")
    query: str = Field(
        description=(
            "SELECT with the columns key and media (a BLOB, or a text that is the media itself),"
            " and stamp if there is something that changes with the media; all other columns become"
            " attributes"
        )
    )


def _build(config: SqliteConfig, context: BuildContext) -> Source:
    from latentkit_sqlite.source import SqliteSource

    return SqliteSource(context.recipe_dir / config.path, config.query)


@hookimpl
def latentkit_sources() -> SourceSpec:
    """The source `sqlite`."""
    return SourceSpec("sqlite", "rows of an SQLite database", SqliteConfig, _build)
