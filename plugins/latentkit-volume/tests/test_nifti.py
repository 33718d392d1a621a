"""NIfTI files: axes, values and frames as the header says, and one reason for each file that can't
be used.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from typing import Any

import nibabel
import numpy as np
import pytest
from latentkit_volume.nifti import read_volume
from latentkit_volume.volumes import Volume

from latentkit.errors import SampleError

MakeFile = Callable[..., bytes]


def read(
    media: bytes, frame: Any = None, assume: str | None = None, max_voxels: int = 10**6
) -> Volume:
    return read_volume(media, frame, assume, max_voxels)


@pytest.fixture
def voxels() -> Any:
    """(X, Y, Z) = (4, 3, 2) whole numbers, all different."""
    return np.arange(24, dtype=np.int16).reshape(4, 3, 2)


# ---------------------------------------------------------------- axes


def test_axes_are_up_front_and_right(nifti: MakeFile, voxels: Any) -> None:
    volume = read(nifti(voxels))
    assert volume.voxels.shape == (1, 2, 3, 4)
    for (x, y, z), (d, h, w) in {
        (3, 0, 0): (0, 0, 3),
        (0, 2, 0): (0, 2, 0),
        (0, 0, 1): (1, 0, 0),
    }.items():
        assert volume.voxels[0, d, h, w] == voxels[x, y, z]
    np.testing.assert_array_equal(volume.affine @ [1, 2, 3, 1], [3, 2, 1, 1])


@pytest.mark.parametrize(
    ("axes", "turned", "linear"),
    [
        ("LPS", lambda v: v[::-1, ::-1], np.diag([-1, -1, 1])),
        ("RAI", lambda v: v[:, :, ::-1], np.diag([1, 1, -1])),
        ("SRA", lambda v: v.transpose(2, 0, 1), [[0, 1, 0], [0, 0, 1], [1, 0, 0]]),
        (
            "PIL",
            lambda v: v.transpose(1, 2, 0)[::-1, ::-1, ::-1],
            [[0, 0, -1], [-1, 0, 0], [0, -1, 0]],
        ),
    ],
)
def test_a_volume_stored_in_another_order_is_the_same(
    axes: str, turned: Callable[[Any], Any], linear: Any, nifti: MakeFile, voxels: Any
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = linear
    stored = turned(voxels)
    corner = affine[:3, :3] @ (np.asarray(stored.shape) - 1)
    affine[:3, 3] = -np.minimum(corner, 0)  # so that both lie at one place
    expected, volume = read(nifti(voxels)), read(nifti(stored, affine))
    np.testing.assert_array_equal(volume.voxels, expected.voxels)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-6)
    assert volume.axes == axes


def test_an_oblique_volume_keeps_its_voxels_and_its_place(nifti: MakeFile, voxels: Any) -> None:
    tilt = math.radians(20)
    affine = np.array(
        [
            [2, 0, 0, -7],
            [0, math.cos(tilt), -math.sin(tilt), 3],
            [0, math.sin(tilt), math.cos(tilt), 5],
            [0, 0, 0, 1],
        ]
    )
    volume = read(nifti(voxels, affine))
    np.testing.assert_array_equal(volume.voxels[0], voxels.transpose(2, 1, 0))
    np.testing.assert_allclose(volume.affine @ [1, 2, 3, 1], affine @ [3, 2, 1, 1], atol=1e-6)


def test_microns_and_metres_become_millimeters(nifti: MakeFile, voxels: Any) -> None:
    for unit, factor in (("micron", 0.001), ("meter", 1000.0), ("mm", 1.0)):
        image = nibabel.Nifti1Image.from_bytes(nifti(voxels, np.diag([2.0, 3.0, 4.0, 1.0])))
        image.header.set_xyzt_units(unit)
        np.testing.assert_allclose(
            np.diag(read(image.to_bytes()).affine[:3, [2, 1, 0]]), np.array([2, 3, 4]) * factor
        )


# ---------------------------------------------------------------- values


def test_slope_and_intercept_are_applied(nifti: MakeFile, voxels: Any) -> None:
    volume = read(nifti(voxels, slope=2.5, inter=-1000.0))
    np.testing.assert_array_equal(volume.voxels[0], voxels.transpose(2, 1, 0) * 2.5 - 1000)
    assert volume.voxels.dtype == np.float32


@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64", ">i2", ">f4"]
)
def test_every_type_of_number_is_read(dtype: str, nifti: MakeFile, voxels: Any) -> None:
    stored = voxels.astype(dtype)
    header = nibabel.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    image = nibabel.Nifti1Image(stored, np.eye(4), header, dtype=stored.dtype)
    np.testing.assert_array_equal(read(image.to_bytes()).voxels[0], voxels.transpose(2, 1, 0))


def test_gzip_and_nifti_2_hold_the_same_volume(nifti: MakeFile, voxels: Any) -> None:
    expected = read(nifti(voxels)).voxels
    for kind, zipped in (
        (nibabel.Nifti1Image, True),
        (nibabel.Nifti2Image, False),
        (nibabel.Nifti2Image, True),
    ):
        np.testing.assert_array_equal(
            read(nifti(voxels, kind=kind, zipped=zipped)).voxels, expected
        )


# ---------------------------------------------------------------- frames


def test_a_frame_of_a_4d_volume_is_taken(nifti: MakeFile) -> None:
    video = np.arange(48, dtype=np.int16).reshape(4, 3, 2, 2)
    for frame in (0, 1):
        np.testing.assert_array_equal(
            read(nifti(video), frame).voxels[0], video[..., frame].transpose(2, 1, 0)
        )


def test_frames_become_channels(nifti: MakeFile, voxels: Any) -> None:
    video = np.arange(48, dtype=np.int16).reshape(4, 3, 2, 2)
    np.testing.assert_array_equal(
        read(nifti(video), "channels").voxels, video.transpose(3, 2, 1, 0)
    )
    assert read(nifti(voxels), "channels").voxels.shape == (1, 2, 3, 4)


def test_trailing_axes_of_one_are_none(nifti: MakeFile, voxels: Any) -> None:
    for shape in ((4, 3, 2, 1), (4, 3, 2, 1, 1)):
        np.testing.assert_array_equal(
            read(nifti(voxels.reshape(shape))).voxels, read(nifti(voxels)).voxels
        )


@pytest.mark.parametrize(
    ("shape", "frame", "reason"),
    [
        (
            (4, 3, 2, 5),
            None,
            (
                r"a 4-D volume of 4 x 3 x 2 x 5 voxels where 3-D is needed; modality\.with\.frame"
                r" takes one of its 5 frames"
            ),
        ),
        (
            (4, 3, 2, 5),
            5,
            "frame 5 is requested, but a volume of 4 x 3 x 2 x 5 voxels has 5, counted from 0",
        ),
        (
            (4, 3, 2),
            1,
            "frame 1 is requested, but a volume of 4 x 3 x 2 voxels has 1, counted from 0",
        ),
        ((4, 3, 2, 1, 3), None, "a 5-D volume of 4 x 3 x 2 x 1 x 3 voxels where 3-D is needed"),
        ((4, 3), None, "a 2-D volume of 4 x 3 voxels where 3-D is needed"),
    ],
)
def test_other_numbers_of_axes_are_refused(
    shape: tuple[int, ...], frame: int | None, reason: str, nifti: MakeFile
) -> None:
    with pytest.raises(SampleError, match=f"^{reason}$"):
        read(nifti(np.zeros(shape, np.int16)), frame)


# ---------------------------------------------------------------- what can't be used


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_nan_and_infinity_are_refused(value: float, nifti: MakeFile) -> None:
    voxels = np.zeros((4, 3, 2), np.float32)
    voxels[1, 1, 1] = value
    with pytest.raises(SampleError, match=r"^1 of 24 voxels are NaN, infinite, or beyond 1e\+30$"):
        read(nifti(voxels))


def test_colors_and_complex_numbers_are_refused(nifti: MakeFile) -> None:
    colors = np.zeros((4, 3, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for voxels in (colors, np.zeros((4, 3, 2), np.complex64)):
        with pytest.raises(SampleError, match="expected one number each"):
            read(nifti(voxels))


def test_a_file_without_orientation_is_refused_or_taken_as_told(
    nifti: MakeFile, voxels: Any
) -> None:
    image = nibabel.Nifti1Image.from_bytes(nifti(voxels, np.diag([0.5, 2.0, 3.0, 1.0])))
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    with pytest.raises(
        SampleError, match=r"doesn't say where its axes point .*; set modality\.with\.assume"
    ):
        read(image.to_bytes())
    volume = read(image.to_bytes(), assume="LSA")
    np.testing.assert_array_equal(volume.voxels[0], voxels.transpose(1, 2, 0)[:, :, ::-1])
    np.testing.assert_allclose(
        np.abs(volume.affine[:3, :3]), np.array([[0, 0, 0.5], [0, 3, 0], [2, 0, 0]])
    )
    assert volume.axes == "LSA"


@pytest.mark.parametrize("broken", [0.0, math.nan, 1e-9])
def test_an_affine_without_an_inverse_is_refused(
    broken: float, nifti: MakeFile, voxels: Any
) -> None:
    image = nibabel.Nifti1Image.from_bytes(nifti(voxels))
    image.header["srow_x"] = [broken, 1.0, 0.0, 0.0]
    image.header["srow_y"] = [broken, 1.0, 0.0, 0.0]
    content = bytearray(nifti(voxels))
    content[:348] = image.header.binaryblock
    content[252:256] = b"\x00\x00\x02\x00"  # qform none, sform aligned
    with pytest.raises(SampleError, match="affine is singular or not finite"):
        read(bytes(content))


def test_voxels_as_large_as_a_city_are_refused(nifti: MakeFile, voxels: Any) -> None:
    with pytest.raises(SampleError, match=r"^voxels of 1 x 1e\+07 x 2 mm$"):
        read(nifti(voxels, np.diag([1.0, 1e7, 2.0, 1.0])))


def test_too_many_voxels_are_refused_before_they_are_unpacked(nifti: MakeFile) -> None:
    content = bytearray(nifti(np.zeros((4, 3, 2), np.int16)))
    content[42:48] = np.array([3000, 3000, 3000], "<i2").tobytes()
    with pytest.raises(
        SampleError, match=r"^3000 x 3000 x 3000 voxels, more than max_voxels: 1000000$"
    ):
        read(gzip.compress(content))


@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_cut_off_anywhere_is_refused(zipped: bool, nifti: MakeFile) -> None:
    content = nifti(
        np.random.default_rng(0).integers(0, 999, (8, 8, 8)).astype(np.int16), zipped=zipped
    )
    for length in (
        0,
        1,
        5,
        100,
        347,
        352,
        400,
        len(content) // 2,
        len(content) - 9,
        len(content) - 1,
    ):
        with pytest.raises(SampleError, match=r"^not a NIfTI file|^a damaged NIfTI file: "):
            read(content[:length])


def test_damage_is_a_reason_and_never_another_error(nifti: MakeFile) -> None:
    random = np.random.default_rng(0)
    contents = [
        nifti(np.arange(512, dtype=np.int16).reshape(8, 8, 8), zipped=zipped)
        for zipped in (False, True)
    ]
    reasons: list[str] = []
    for trial in range(600):
        content = bytearray(contents[trial % 2])
        for place in random.integers(0, min(len(content), 352), random.integers(1, 12)):
            content[place] = random.integers(0, 256)
        try:
            volume = read(bytes(content), 0, "RAS")
        except SampleError as error:
            reasons.append(str(error))
        else:
            assert np.isfinite(volume.voxels).all()
    assert len(reasons) > 100
    assert not [reason for reason in reasons if "\n" in reason or "0x" in reason]
