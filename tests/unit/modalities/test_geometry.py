"""Buckets, crop boxes and random draws, as pure arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentkit.contracts import SizeRule
from latentkit.modalities.buckets import SDXL_SHAPES, bucket_shapes, nearest_shape
from latentkit.modalities.geometry import (
    Box,
    crop_box,
    draw_fractions,
    left_out_share,
    nearest_allowed,
    whole,
)

SIDES = st.integers(1, 40_000)


def test_buckets_of_a_small_area_are_these_three() -> None:
    assert bucket_shapes(256 * 256, 64, None, None, 2.0) == [(192, 320), (256, 256), (320, 192)]


def test_buckets_of_a_megapixel_hold_the_ones_known_from_sdxl() -> None:
    shapes = bucket_shapes(1024 * 1024, 64, 512, 2048, 4.0)
    assert {
        (512, 2048),
        (640, 1536),
        (768, 1344),
        (832, 1216),
        (896, 1152),
        (1024, 1024),
        (1216, 832),
        (2048, 512),
    } <= set(shapes)


@given(st.integers(64, 2000), st.sampled_from([8, 16, 64]), st.floats(1.0, 4.0))
def test_every_bucket_keeps_the_limits_and_could_not_be_larger(
    root: int, step: int, aspect: float
) -> None:
    area = root * root
    shapes = bucket_shapes(area, step, None, None, aspect)
    assert len(set(shapes)) == len(shapes)
    for height, width in shapes:
        assert height % step == width % step == 0
        assert height * width <= area
        assert max(height, width) <= aspect * min(height, width)
        assert min(height, width) >= root // 2
        assert max(height, width) <= 2 * root
        assert (width, height) in shapes
        grown = [(height + step) * width <= area, height * (width + step) <= area]
        assert height == width or not all(grown)


def test_shapes_of_sdxl_are_the_published_ones() -> None:
    assert len(SDXL_SHAPES) == 40
    assert {(512, 2048), (832, 1216), (1024, 1024), (1152, 832), (2048, 512)} <= set(SDXL_SHAPES)
    assert all(height % 64 == width % 64 == 0 for height, width in SDXL_SHAPES)
    assert {height for height, _ in SDXL_SHAPES} == set(range(512, 2049, 64))
    areas = [height * width / 1024**2 for height, width in SDXL_SHAPES]
    assert 0.9 <= min(areas) <= max(areas) <= 1.01  # "as close to 1024 x 1024 as possible"
    mirrored = {(width, height) for height, width in SDXL_SHAPES}
    assert mirrored - set(SDXL_SHAPES) == {(1344, 704)}  # the one without its mirror image


def test_share_outside_a_crop_is_that_of_its_area() -> None:
    box = crop_box((400, 600), (100, 100))
    assert left_out_share(400.0, 600.0, box.height, box.width) == pytest.approx(1 / 3)
    columns = np.array([[400.0, 600, 400, 400], [100, 100, 100, 100], [100, 400, 50, 100]]).T
    np.testing.assert_allclose(left_out_share(*columns), [1 / 3, 0, 0.875])


def test_smallest_and_largest_side_of_a_bucket_are_kept() -> None:
    shapes = bucket_shapes(512 * 512, 64, 384, 640, 4.0)
    assert shapes == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]
    assert bucket_shapes(512 * 512, 64, 576, None, 4.0) == []


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ((500, 500), (256, 256)),
        ((400, 600), (192, 320)),
        ((600, 400), (320, 192)),
        ((1, 30000), (192, 320)),
        ((100, 115), (256, 256)),
    ],
)
def test_picture_goes_to_the_bucket_of_the_nearest_aspect(
    picture: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert nearest_shape([(192, 320), (256, 256), (320, 192)], picture) == expected


def test_tie_between_buckets_goes_to_the_larger_then_to_the_flatter_one() -> None:
    assert nearest_shape([(128, 64), (64, 128)], (70, 70)) == (64, 128)
    assert nearest_shape([(64, 128), (256, 128)], (70, 70)) == (256, 128)


@given(SIDES, SIDES, SIDES, SIDES, st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1))
def test_crop_lies_in_the_picture_and_has_the_aspect_of_the_target(
    height: int,
    width: int,
    target_height: int,
    target_width: int,
    across: float,
    down: float,
    scale: float,
) -> None:
    box = crop_box((height, width), (target_height, target_width), across, down, scale)
    left, top, right, bottom = box.edges()
    assert 0 <= left < right <= width * (1 + 1e-12)
    assert 0 <= top < bottom <= height * (1 + 1e-12)
    assert math.isclose(box.height / box.width, target_height / target_width, rel_tol=1e-9)
    assert math.isclose(max(box.height / height, box.width / width), scale, rel_tol=1e-9)


@pytest.mark.parametrize(
    ("across", "down", "expected"),
    [
        (0.5, 0.5, [0.0, 100.0, 400.0, 400.0]),
        (0.0, 0.3, [0.0, 0.0, 400.0, 400.0]),
        (1.0, 0.3, [0.0, 200.0, 400.0, 400.0]),
    ],
)
def test_crop_of_a_wide_picture_moves_across_alone(
    across: float, down: float, expected: list[float]
) -> None:
    assert crop_box((400, 600), (256, 256), across, down).rounded() == expected


def test_half_sized_crop_lies_in_the_middle() -> None:
    assert crop_box((400, 600), (100, 100), scale=0.5).rounded() == [100.0, 200.0, 200.0, 200.0]


def test_whole_picture_is_its_own_box() -> None:
    assert whole((3, 7)) == Box(0.0, 0.0, 3.0, 7.0)


def test_draws_are_the_same_in_every_process_and_release() -> None:
    # sha256 of the text '[7, "a/b.jpg", "plain"]', read off with sha256sum, 16 hexadecimal digits a
    # number.
    assert draw_fractions(7, "a/b.jpg", "plain", 2) == [
        0x15967C6FE8F98743 / 2**64,
        0xACAB99F1E8341230 / 2**64,
    ]


def test_draws_differ_with_seed_key_and_view_and_take_any_key() -> None:
    names = [
        (0, "a", "plain"),
        (1, "a", "plain"),
        (0, "b", "plain"),
        (0, "a", "crop-1"),
        (0, "\udcff\u00e4", "plain"),
    ]
    draws = [draw_fractions(*name, 1)[0] for name in names]
    assert len(set(draws)) == len(names)
    assert all(0 <= draw < 1 for draw in draws)


@pytest.mark.parametrize(
    ("size", "rule", "expected"),
    [
        (250, SizeRule(multiple=8), [248, 256]),
        (3, SizeRule(multiple=8), [8]),
        (20, SizeRule(multiple=8, minimum=64), [64]),
        (900, SizeRule(multiple=8, maximum=512), [512]),
        (16, SizeRule(multiple=8, offset=1), [9, 17]),
        (5, SizeRule(multiple=1, minimum=100, maximum=50), []),
    ],
)
def test_nearest_sizes_that_an_encoder_takes_are_named(
    size: int, rule: SizeRule, expected: list[int]
) -> None:
    assert nearest_allowed(size, rule) == expected
