"""What can't fit memory is refused before it is tried, by what it would take and what there is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import latentkit as lk
from latentkit.errors import RecipeError
from latentkit.runtime.memory import available_bytes, describe_bytes, peak_bytes, reset_peak


def test_a_picture_size_that_cannot_fit_is_refused_before_a_picture_is_read(
    make_photos: Callable[..., Path], tmp_path: Path
) -> None:
    wanted = (
        r"modality\.with\.size: a row of 3 x 1000000 x 1000000 values in float32 takes 1\.2e\+04"
        r" GB, but only .* are free"
    )
    with pytest.raises(RecipeError, match=wanted):
        lk.encode(make_photos(2), tmp_path / "out", encoder="tiny-kl", size=1_000_000)


def test_a_batch_that_cannot_fit_is_refused_with_one_that_does(
    make_photos: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(
        RecipeError,
        match=(
            r"batch_size: 1000000000 rows of 32x32 are 1\.23e\+04 GB, .* Set batch_size to \d+ or"
            r" less"
        ),
    ):
        lk.encode(
            make_photos(2),
            tmp_path / "out",
            encoder="tiny-kl",
            size=32,
            overrides={"batch_size": 10**9},
        )


def test_memory_is_what_the_system_says() -> None:
    assert 0 < available_bytes() < 1 << 50
    held = bytes(bytearray(200 << 20))
    before = peak_bytes()
    del held
    reset_peak()
    if sys.platform == "linux":
        assert peak_bytes() < before - (100 << 20)
    else:
        assert peak_bytes() > 0


@pytest.mark.parametrize(("number", "text"), [(1_500_000, "1.5 MB"), (24_000_000_000, "24 GB")])
def test_bytes_are_said_as_people_do(number: int, text: str) -> None:
    assert describe_bytes(number) == text
