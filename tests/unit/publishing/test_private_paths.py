"""Which texts of a recipe tell about the machine that it ran on."""

from __future__ import annotations

import pyarrow as pa
import pytest

from latentkit.publishing.private_paths import (
    find_path_columns,
    find_private_texts,
    hide_texts,
)


@pytest.mark.parametrize(
    ("private", "public"),
    [
        ("/home/alice/photos", "./photos"),
        ("/home/alice/photos/", "./photos"),
        ("~/photos", "./photos"),
        ("~alice/photos", "./photos"),
        ("file:///home/alice/photos", "./photos"),
        (r"C:\Users\alice\photos", "./photos"),
        ("C:/Users/alice/photos", "./photos"),
        (r"\\server\alice\photos", "./photos"),
        ("/home/alice/a/*.tar", "./*.tar"),
        ("https://alice:secret@host/a.tar?token=1", "https://host/a.tar"),
        ("s3://bucket/photos", "s3://bucket/photos"),
        ("stabilityai/sd-vae-ft-mse", "stabilityai/sd-vae-ft-mse"),
        ("./photos", "./photos"),
        ("1/2", "1/2"),
        ("~5 files", "~5 files"),
        ("", ""),
        ("/", "/"),
    ],
)
def test_a_text_alone(private: str, public: str) -> None:
    document = {"with": [{"path": private}]}
    hidden = find_private_texts(document)
    assert hide_texts(document, hidden) == {"with": [{"path": public}]}


def test_paths_that_are_joined_or_in_a_sentence() -> None:
    hidden = find_private_texts({"path": "/home/alice/a::/home/alice/ab", "size": 3})
    assert hidden == {"/home/alice/a": "./a", "/home/alice/ab": "./ab"}
    document = {
        "path": "/home/alice/a::/home/alice/ab",
        "remarks": [{"text": "/home/alice/ab: 3 files in '/home/alice/a' not used", "count": 3}],
        "other": "s3://x/home/alice/a",
    }
    assert hide_texts(document, hidden) == {
        "path": "./a::./ab",
        "remarks": [{"text": "./ab: 3 files in './a' not used", "count": 3}],
        "other": "s3://x/home/alice/a",
    }


def test_columns_with_absolute_paths() -> None:
    rows = [
        {"text": "/shrug", "file": None, "size": 1},
        {"text": "either/or", "file": "/home/alice/a.png", "size": 2},
    ]
    index = pa.table({"key": ["a/1.png", "b"], "attributes": rows})
    assert find_path_columns(index) == {"file": "/home/alice/a.png"}
    keys = pa.table({"key": ["a", "C:\\x"], "attributes": pa.nulls(2)})
    assert find_path_columns(keys) == {"key": "C:\\x"}
