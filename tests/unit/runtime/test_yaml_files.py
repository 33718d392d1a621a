"""YAML of recipes: the scalars of YAML 1.2, and one clear error for everything a recipe may not
hold.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentkit.errors import RecipeError
from latentkit.runtime.yaml_files import dump_yaml, parse_yaml, read_yaml

# YAML 1.2.2, section 10.3.2, table of the core schema, and what YAML 1.1 read otherwise
SCALARS = [
    ("1e-6", 1e-6),
    ("1E3", 1000.0),
    ("-2.5e+3", -2500.0),
    (".5", 0.5),
    ("1.", 1.0),
    ("+12", 12),
    ("-7", -7),
    ("007", 7),
    ("0o17", 15),
    ("0x1F", 31),
    (".inf", math.inf),
    ("-.INF", -math.inf),
    ("true", True),
    ("FALSE", False),
    ("null", None),
    ("~", None),
    ("", None),
    ("no", "no"),
    ("yes", "yes"),
    ("on", "on"),
    ("off", "off"),
    ("y", "y"),
    ("1_000", "1_000"),
    ("1:30", "1:30"),
    ("190:20:30", "190:20:30"),
    ("0b11", "0b11"),
    ("2001-12-14", "2001-12-14"),
    ("2001-12-14 21:59:43", "2001-12-14 21:59:43"),
    ("=", "="),
    ("1e", "1e"),
    ("e5", "e5"),
    (".", "."),
    ("-.nan", "-.nan"),
    ("tRue", "tRue"),
    ("'1'", "1"),
    ('"no"', "no"),
]


@pytest.mark.parametrize(("text", "expected"), SCALARS)
def test_a_scalar_is_what_yaml_1_2_says(text: str, expected: object) -> None:
    value = parse_yaml(f"key: {text}", "text")["key"]
    assert value == expected
    assert type(value) is type(expected)


def test_nan_is_a_number() -> None:
    assert math.isnan(parse_yaml("key: .NaN", "text")["key"])


REFUSED = [
    ("a: 1\nb: 2\na: 3\n", 3, "key 'a' is repeated, first given on line 1"),
    ("a:\n  b: 1\n  'b': 2\n", 3, "key 'b' is repeated, first given on line 2"),
    ("a: &x 1\n", 1, "anchors and aliases"),
    ("a: 1\nb: *x\n", 2, "anchors and aliases"),
    ("a:\n  <<: {b: 1}\n", 2, "merge keys"),
    ("a: 1\n---\nb: 2\n", 2, "a second document"),
    ("a:\n\tb: 1\n", 2, "a tab"),
    ("a:\tb:\t1\n", 1, "a tab"),
    ("a: !!int '3'\n", 1, "tags are not allowed"),
    ("a: !!python/object/apply:os.system ['true']\n", 1, "tags are not allowed"),
    ("a: ! 3\n", 1, "tags are not allowed"),
    ("1: a\n", 1, "a key must be text, got '1'"),
    ("? [a]\n: b\n", 1, "a key must be text, got a list or a mapping"),
    ("null: a\n", 1, "a key must be text"),
    ("a: [1, 2\nb: 3\n", 2, "not valid YAML"),
    ("a: b: c\n", 1, "not valid YAML"),
    ("a: 1\nb: \x07\n", 2, "character 0x0007 is not allowed"),
    ("a: " + "9" * 5000, 1, "a number of 5000 digits is too long"),
]


@pytest.mark.parametrize(("text", "line", "problem"), REFUSED)
def test_what_a_recipe_may_not_hold_is_refused_with_its_line(
    text: str, line: int, problem: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, "photos.yaml")
    assert str(caught.value).startswith(f"photos.yaml, line {line}: ")
    assert problem in str(caught.value)


def test_text_nested_beyond_reason_is_refused() -> None:
    with pytest.raises(RecipeError, match="nested too deeply"):
        parse_yaml("[" * 20_000, "photos.yaml")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("a: 1\nb: naïve\n".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin\.yaml, line 2: not UTF-8 text: byte 0xef"):
        read_yaml(tmp_path / "latin.yaml")
    with pytest.raises(RecipeError, match=r"absent\.yaml: no such file"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match=r"is a folder, expected a YAML file$"):
        read_yaml(tmp_path)
    (tmp_path / "recipe.yaml").write_text("a: 1")
    with pytest.raises(RecipeError, match=r"is a folder, .*did you mean .*recipe\.yaml"):
        read_yaml(tmp_path)
    with pytest.raises(RecipeError, match=r"can't be read: Not a directory"):
        read_yaml(tmp_path / "recipe.yaml" / "below")


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "windows.yaml").write_bytes(b"\xef\xbb\xbftask: encode\r\nseed: 1\r\n")
    assert read_yaml(tmp_path / "windows.yaml") == {"task": "encode", "seed": 1}


def test_an_empty_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing but a comment\n")
    assert read_yaml(tmp_path / "empty.yaml") is None


@pytest.mark.parametrize(
    "text",
    [shown for shown, _ in SCALARS]
    + ["1e-06", "0o17", "<", "a: b", "- a", "# a", " a ", "é\n\n日本", os.sep],
)
def test_a_text_that_looks_like_something_else_is_written_in_quotes(text: str) -> None:
    assert parse_yaml(dump_yaml({"key": text, "again": [text]}), "text") == {
        "key": text,
        "again": [text],
    }


def test_the_same_value_twice_is_written_twice() -> None:
    shared = {"size": [256, 256]}
    assert parse_yaml(dump_yaml({"a": shared, "b": shared}), "text") == {
        "a": {"size": [256, 256]},
        "b": {"size": [256, 256]},
    }


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(TEXTS.filter(lambda key: key != "<<"), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.dictionaries(TEXTS.filter(lambda key: key != "<<"), PLAIN, max_size=5))
def test_plain_values_survive_writing_and_reading(values: dict[str, Any]) -> None:
    assert parse_yaml(dump_yaml(values), "text") == values
