"""Datasets whose keys differ are paired by stem or by a function of the key: a picture and a sound
of one name.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import latentkit as lk
from latentkit.reading.joined_dataset import stem_of

VIEWS = ("plain", "hflip")
Make = Callable[..., Any]


@pytest.fixture
def make(tmp_path: Path, write_dataset: Callable[..., Path]) -> Make:
    """A dataset of some keys, each of whose values is the number in its key, plus a half in the
    second view.
    """

    def write(
        folder: str, keys: Sequence[str], there: Sequence[str] = VIEWS[:1], **options: Any
    ) -> Any:
        rows = [(key, view) for key in keys for view in there]
        moments = np.full((len(rows), 4, 2, 3), -30, np.float16)
        numbers = [
            int("".join(filter(str.isdigit, key))) + VIEWS.index(view) / 2 for key, view in rows
        ]
        moments[:, :2] = np.array(numbers)[:, None, None, None]
        entries = [
            (key, view, "000-000000", "only", place) for place, (key, view) in enumerate(rows)
        ]
        plain = {"shift": 0.0, "scale": 1.0, "fold": {}}
        units = {"000-000000": {"only/moments": moments}}
        return lk.open(
            write_dataset(tmp_path / folder, units, entries, normalization=plain), **options
        )

    return write


def numbers(batch: Any, name: str) -> list[float]:
    return (batch[name].flatten(1).mean(1) * 2).round().div(2).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("on", ["stem", lambda key: key.split(".")[0]], ids=["stem", "function"])
def test_pictures_and_sounds_of_one_name_are_pairs(make: Make, on: Any) -> None:
    pictures = make("pictures", [f"a/{number}.png" for number in range(6)])
    sounds = make("sounds", [f"a/{number}.wav" for number in (5, 3, 1, 8, 0)])
    joined = lk.join(pictures, sounds, names=["picture", "sound"], on=on)
    (batch,) = joined.batches(9)
    assert batch["key"] == ["a/0.png", "a/1.png", "a/3.png", "a/5.png"]
    assert numbers(batch, "picture") == numbers(batch, "sound") == [0, 1, 3, 5]
    assert joined.left_out == (2, 1)
    said = repr(joined)
    assert said.splitlines()[0].startswith("JoinedDataset of 4 rows, on ")
    assert "pictures, 2 keys left out" in said
    assert "sounds, 1 key left out" in said
    if on == "stem":
        assert len(pickle.loads(pickle.dumps(joined))) == 4


def test_views_are_drawn_alike_when_joined_by_stem(make: Make) -> None:
    one = make("one", [f"{number}.png" for number in range(8)], VIEWS, views="random")
    two = make(
        "two", [f"{number}.npy" for number in range(7, -1, -1)], VIEWS, views="random", seed=3
    )
    joined = lk.join(one, two, names=["one", "two"], on="stem")
    for _ in range(3):
        (batch,) = joined.batches(8, shuffle=True)
        assert numbers(batch, "one") == numbers(batch, "two")


def test_a_state_of_other_pairs_is_refused(make: Make) -> None:
    pictures, sounds = make("pictures", ["1.png", "2.png"]), make("sounds", ["1.wav", "2.wav"])

    def loader(on: Any) -> Any:
        return lk.join(pictures, sounds, names=["a", "b"], on=on).batches(1)

    batches = loader("stem")
    next(iter(batches))
    resumed = loader("stem")
    resumed.load_state_dict(batches.state_dict())
    assert [batch["key"] for batch in resumed] == [["2.png"]]
    crossed = loader(lambda key: {"1.wav": "2", "2.wav": "1"}.get(key, key[0]))
    with pytest.raises(ValueError, match="index"):
        crossed.load_state_dict(batches.state_dict())


def test_what_cannot_be_paired_is_named(make: Make) -> None:
    pictures, sounds = make("pictures", ["1.png", "1.jpg", "2.png"]), make("sounds", ["1.wav"])
    join = functools.partial(cast("Any", lk.join), names=["a", "b"])
    wrong = [
        (
            lambda: join(pictures, sounds, on="stem"),
            r"pictures: '1\.png' and '1\.jpg' both give '1', so the row to join is ambiguous",
        ),
        (
            lambda: join(sounds, pictures, on="stem"),
            r"pictures: '1\.png' and '1\.jpg' both give '1'",
        ),
        (
            lambda: join(pictures, sounds, on="name"),
            "on must be 'key', 'stem' or a function of a key, got 'name'",
        ),
        (
            lambda: join(pictures, sounds, on=len),
            r"on= must return a text for each key; for '1\.png' it returned 5",
        ),
        (lambda: join(pictures, sounds), "have no key in common"),
        (lambda: join(sounds, make("others", ["7.png"]), on="stem"), "have no stem in common"),
    ]
    for attempt, message in wrong:
        with pytest.raises(ValueError, match=message):
            attempt()


@pytest.mark.parametrize(
    ("key", "stem"),
    [
        ("a/1.png", "a/1"),
        ("v1.0/clip", "v1.0/clip"),
        ("talk.mp4#t=0,2.5", "talk#t=0,2.5"),
        ("scan.nii.gz", "scan"),
        ("a#t=1.png", "a#t=1"),
        (".hidden", ".hidden"),
        ("00000001", "00000001"),
    ],
)
def test_stem_is_the_key_without_the_ending_of_its_file(key: str, stem: str) -> None:
    assert stem_of(key) == stem
