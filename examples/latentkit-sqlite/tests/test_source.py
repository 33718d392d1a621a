"""The plugin is found, its source keeps the contract, and pictures in a database become latents."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import latentkit as lk
import pytest
from latentkit.contracts import BuildContext
from latentkit.errors import SampleError, SourceError
from latentkit.kit import discover
from latentkit.testing import SourceContract
from PIL import Image

from latentkit_sqlite.plugin import SqliteConfig, latentkit_sources

QUERY = "SELECT id AS key, image AS media, caption AS text, score FROM pictures"


def draw_png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 32), (60 * number, 0, 255)).save(file, format="PNG")
    return file.getvalue()


def write_database(path: Path, rows: Sequence[tuple[Any, ...]] = ()) -> Path:
    """A table of pictures; three of them unless said otherwise."""
    rows = rows or [
        (number, draw_png(number), f"picture {number}", number / 2) for number in (11, 2, 3)
    ]
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE pictures (id, image, caption TEXT, score REAL)")
        database.executemany("INSERT INTO pictures VALUES (?, ?, ?, ?)", rows)
    return path


def open_source(path: Path, query: str = QUERY) -> Any:
    return latentkit_sources().build(
        SqliteConfig(path=path.name, query=query), BuildContext(recipe_dir=path.parent)
    )


class TestSqlite(SourceContract):
    spec = latentkit_sources()

    def make_config(self, tmp_path: Path) -> SqliteConfig:
        write_database(tmp_path / "pictures.db")
        return SqliteConfig(path="pictures.db", query=QUERY)


def test_rows_come_in_the_order_of_their_keys(tmp_path: Path) -> None:
    source = open_source(write_database(tmp_path / "pictures.db"))
    assert [entry.key for entry in source.entries()] == ["2", "3", "11"]
    assert source[2].media == draw_png(11)
    assert source[-1].attributes == {"text": "picture 11", "score": 5.5}


def test_a_stamp_of_ones_own_is_used(tmp_path: Path) -> None:
    source = open_source(
        write_database(tmp_path / "pictures.db"),
        "SELECT id AS key, image AS media, score AS stamp FROM pictures;",
    )
    assert [(entry.stamp, dict(entry.attributes)) for entry in source.entries()] == [
        ("1.0", {}),
        ("1.5", {}),
        ("5.5", {}),
    ]


def test_pictures_in_a_database_become_latents(tmp_path: Path) -> None:
    path = write_database(tmp_path / "pictures.db")
    recipe = {
        "task": "encode",
        "source": {"use": "sqlite", "with": {"path": str(path), "query": QUERY}},
        "modality": {"use": "image", "with": {"size": 32}},
        "encoder": {"use": "tiny-kl"},
        "output": {"path": str(tmp_path / "out")},
        "batch_size": 2,
    }
    assert lk.run(recipe).keys == ["2", "3", "11"]
    assert lk.open(tmp_path / "out", columns=["text"])[1]["text"] == "picture 3"


@pytest.mark.parametrize(
    ("rows", "query", "message"),
    [
        (
            [],
            "SELECT id AS key FROM pictures",
            "expected a query with the columns key and media, it gives key",
        ),
        (
            [],
            "SELECT id AS key, image AS media FROM picture",
            "the query fails: no such table: picture",
        ),
        ([], QUERY + " WHERE score > 100", "the query gives no rows"),
        (
            [],
            "SELECT id AS key, image AS media, image FROM pictures",
            "attributes can't be BLOBs: image",
        ),
        ([], "DROP TABLE pictures", "the query fails: near"),
        ([(1, b"a", "", 0), ("1", b"b", "", 0)], QUERY, "two rows have one key"),
        ([(None, b"a", "", 0)], QUERY, "there are rows without a key"),
    ],
)
def test_a_query_that_gives_no_samples_is_one_clear_error(
    rows: list[tuple[Any, ...]], query: str, message: str, tmp_path: Path
) -> None:
    path = write_database(tmp_path / "pictures.db", rows)
    with pytest.raises(SourceError, match=message):
        open_source(path, query)


def test_a_database_that_is_not_there_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"nowhere\.db: the query fails: unable to open database file"
    ):
        open_source(tmp_path / "nowhere.db")
    assert not (tmp_path / "nowhere.db").exists()


def test_a_row_that_is_gone_or_empty_is_a_bad_sample(tmp_path: Path) -> None:
    path = write_database(tmp_path / "pictures.db", [(1, b"a", "", 0), (2, None, "", 0)])
    source = open_source(path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM pictures WHERE id = 1")
    with pytest.raises(SampleError, match="the row is no longer in the database"):
        source[0]
    with pytest.raises(SampleError, match="the row has no media"):
        source[1]


def test_a_database_that_went_away_is_an_os_error(tmp_path: Path) -> None:
    path = write_database(tmp_path / "pictures.db")
    source = open_source(path)
    path.unlink()
    with pytest.raises(OSError, match="unable to open database file"):
        source[0]


def test_the_installed_plugin_is_found() -> None:
    registry = discover()
    assert registry.find("source", "sqlite").distribution == "latentkit-sqlite"
    assert not [
        problem for problem in registry.problems if problem.distribution == "latentkit-sqlite"
    ]
