"""Patches: values that belong to their place in the patient, windows, views, and the picture of
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latentkit_volume.modality import VolumeModality
from latentkit_volume.plugin import VolumeConfig
from PIL import Image
from pydantic import ValidationError

from latentkit.contracts import BuildContext, InputSpec, Prepared, Sample, SizeRule
from latentkit.errors import RecipeError, SampleError

MakeFile = Callable[..., bytes]
SPEC = InputSpec(channels=1, axes="CDHW")
TILT = math.radians(25)
AFFINES: Mapping[str, Any] = {
    "anisotropic": np.diag([0.8, 0.9, 3.0, 1.0]),
    "flipped": np.array([[-1.0, 0, 0, 20], [0, -2, 0, 30], [0, 0, 1.5, -9], [0, 0, 0, 1]]),
    "permuted": np.array([[0, 0, 1.0, 3], [-2.0, 0, 0, 4], [0, 1.3, 0, 5], [0, 0, 0, 1]]),
    "oblique": np.array(
        [
            [1, 0, 0, 5],
            [0, math.cos(TILT), -2 * math.sin(TILT), 6],
            [0, math.sin(TILT), 2 * math.cos(TILT), 7],
            [0, 0, 0, 1],
        ]
    ),
}
SHEARED = np.array([[1, 0, 0, 0], [0, 1, 0.5, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])


def prepare(
    content: bytes, spec: InputSpec = SPEC, seed: int = 0, key: str = "a.nii", **config: Any
) -> list[Prepared]:
    modality = VolumeModality(VolumeConfig(**config), BuildContext(input=spec, seed=seed))
    return list(modality.prepare(Sample(key, content)))


def values_of(prepared: Prepared) -> Any:
    """(D, H, W) of a view with one channel."""
    assert isinstance(prepared.tensor, torch.Tensor)
    return prepared.tensor[0].numpy()


# ---------------------------------------------------------------- place and resampling


@pytest.mark.parametrize("align", ["voxels", "patient"])
@pytest.mark.parametrize("kind", AFFINES)
@pytest.mark.parametrize("spacing", [None, 1.0, (2.5, 1.5, 4.0)])
def test_a_voxel_has_the_value_of_its_place_in_the_patient(
    kind: str, align: str, spacing: Any, nifti: MakeFile
) -> None:
    """Values that grow along a line through the patient still do, by each view's own affine,
    however it was stored or sampled.
    """
    affine, shape = AFFINES[kind], (48, 40, 44)
    slope = np.array([3.0, -2.0, 5.0])
    places = (
        np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T
        + affine[:3, 3]
    )
    window = (-2000.0, 2000.0)
    patch = prepare(
        nifti((places @ slope).astype(np.float32), affine),
        size=4,
        spacing=spacing,
        align=align,
        window=window,
    )[0]
    found = np.reshape(patch.geometry["affine"], (3, 4))
    numbers = np.stack(np.meshgrid(*map(np.arange, (4, 4, 4)), indexing="ij"), -1)
    expected = (numbers @ found[:, :3].T + found[:, 3]) @ slope
    np.testing.assert_allclose(values_of(patch) * 2000, expected, atol=0.1)
    if align == "patient":
        np.testing.assert_allclose(
            np.abs(found[:, :3]), np.fliplr(np.diag(np.diag(np.fliplr(found[:, :3])))), atol=1e-6
        )
    if spacing is not None:
        np.testing.assert_allclose(
            np.linalg.norm(found[:, :3], axis=0), np.broadcast_to(spacing, 3), atol=1e-5
        )


def test_a_volume_at_its_own_spacing_is_copied(nifti: MakeFile, smooth: Callable[..., Any]) -> None:
    voxels = smooth((7, 6, 5))
    for spacing in (None, (3.0, 0.9, 0.8)):
        content = nifti(voxels, AFFINES["anisotropic"].astype(np.float32))
        [view] = prepare(content, size=(5, 6, 7), spacing=spacing, window=(-1024, 1024))
        np.testing.assert_array_equal(
            values_of(view), voxels.transpose(2, 1, 0).astype(np.float32) / 1024
        )


def test_detail_too_fine_for_the_new_voxels_fades(nifti: MakeFile) -> None:
    """Stripes one voxel wide, sampled at every fourth voxel, would be black or white without a
    filter; they are gray.
    """
    stripes = np.broadcast_to(
        np.where(np.arange(64) % 2, 1000, 0)[:, None, None], (64, 8, 8)
    ).astype(np.int16)
    [view] = prepare(nifti(stripes), size=(8, 8, 10), spacing=(1.0, 1.0, 4.0), window=(0, 1000))
    assert float(np.abs(values_of(view)).max()) < 0.01


def test_a_patch_is_a_part_of_the_whole(nifti: MakeFile, smooth: Callable[..., Any]) -> None:
    content = nifti(smooth((40, 30, 20)), AFFINES["oblique"])
    for align in ("voxels", "patient"):
        options: dict[str, Any] = {"spacing": 2.5, "align": align, "window": (-900, 900)}
        grid = prepare(content, size=8, **options)[0].geometry["grid"]
        whole = values_of(prepare(content, size=grid, **options)[0])
        for view in prepare(
            content, size=8, views=["plain", "crop-1", "crop-2", "grid-1x2x1"], **options
        ):
            part = tuple(slice(start, start + 8) for start in view.geometry["start"])
            np.testing.assert_allclose(values_of(view), whole[part], atol=2e-5)


def test_axes_that_are_not_perpendicular_are_refused_or_straightened(
    nifti: MakeFile, smooth: Callable[..., Any]
) -> None:
    content = nifti(smooth((12, 12, 12)), SHEARED)
    with pytest.raises(
        SampleError,
        match=(
            r"^the volume's axes are 14\.0 degrees off being perpendicular; set"
            r" modality\.with\.align: patient"
        ),
    ):
        prepare(content, size=8)
    assert prepare(content, size=8, align="patient")[0].geometry["grid"] == [12, 18, 12]


# ---------------------------------------------------------------- sizes and windows


def test_small_volumes_are_padded_with_the_lowest_value_around_their_middle(
    nifti: MakeFile,
) -> None:
    [view] = prepare(nifti(np.full((2, 4, 6), 500, np.int16)), size=(6, 8, 5), window=(0, 1000))
    expected = np.full((6, 8, 5), -1.0, np.float32)
    expected[:, 2:6, 2:4] = 0.0
    np.testing.assert_array_equal(values_of(view), expected)
    assert view.geometry["start"] == [0, -2, -2]


def test_a_window_goes_to_the_encoders_range_and_clips(nifti: MakeFile) -> None:
    voxels = np.array([-3000, -1000, -500, 0, 500, 3000], np.int16).reshape(6, 1, 1)
    spec = InputSpec(channels=1, range=(0.0, 4.0), axes="CDHW")
    [view] = prepare(nifti(voxels), spec, size=(1, 1, 6), window=(-1000, 1000))
    assert values_of(view).flatten().tolist() == [0, 0, 1, 2, 3, 4]
    assert view.geometry["window"] == [-1000, 1000]


def test_percentiles_are_those_of_each_volume(nifti: MakeFile) -> None:
    voxels = np.arange(101, dtype=np.int16).reshape(101, 1, 1) * 7 + 30
    [view] = prepare(nifti(voxels), size=(1, 1, 101), percentiles=(10, 90))
    assert view.geometry["window"] == [100, 660]
    np.testing.assert_allclose(
        values_of(view).flatten(), np.clip((np.arange(101) - 10) / 40 - 1, -1, 1), atol=1e-6
    )


def test_a_volume_of_one_value_has_no_percentiles(nifti: MakeFile) -> None:
    with pytest.raises(
        SampleError,
        match=r"^nothing to see: the percentiles \(0\.5, 99\.5\) of its voxels are both 7$",
    ):
        prepare(nifti(np.full((4, 4, 4), 7, np.int16)), size=4)


def test_frames_that_are_channels_have_windows_of_their_own(
    nifti: MakeFile, smooth: Callable[..., Any]
) -> None:
    video = np.stack([smooth((4, 4, 4)), smooth((4, 4, 4)) * 5], -1)
    [view] = prepare(nifti(video), InputSpec(channels=2, axes="CDHW"), size=4, frame="channels")
    assert isinstance(view.tensor, torch.Tensor)
    torch.testing.assert_close(view.tensor[0], view.tensor[1])
    with pytest.raises(
        SampleError, match=r"^a volume of 1 frames, and the encoder takes 2 channels$"
    ):
        prepare(nifti(video[..., 0]), InputSpec(channels=2, axes="CDHW"), size=4, frame="channels")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (InputSpec(channels=3), "makes tensors of the axes CDHW, but the encoder takes CHW"),
        (
            InputSpec(channels=4, axes="CDHW"),
            r"modality\.with\.frame: the encoder takes 4 channels",
        ),
        (
            InputSpec(1, sizes={"H": SizeRule(multiple=8)}, axes="CDHW"),
            r"height of 12 voxels isn't .* multiple of 8; nearest: 8 and 16",
        ),
    ],
)
def test_what_the_encoder_does_not_take_is_refused_before_any_file(
    spec: InputSpec, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        VolumeModality(VolumeConfig(size=12), BuildContext(input=spec))


# ---------------------------------------------------------------- views


def test_patches_of_a_grid_reach_from_border_to_border(
    nifti: MakeFile, smooth: Callable[..., Any]
) -> None:
    views = prepare(nifti(smooth((16, 10, 4))), size=4, views=["grid-1x2x3"], window=(-900, 900))
    assert [view.view for view in views] == [f"grid-1x2x3-{number}" for number in range(1, 7)]
    assert [view.geometry["start"] for view in views] == [
        [0, h, w] for h in (0, 6) for w in (0, 6, 12)
    ]


def test_random_patches_follow_seed_and_key_and_stay_inside(
    nifti: MakeFile, smooth: Callable[..., Any]
) -> None:
    content = nifti(smooth((30, 30, 30)))
    views = [f"crop-{number}" for number in range(1, 31)]

    def draw(**options: Any) -> list[list[int]]:
        return [
            view.geometry["start"]
            for view in prepare(content, size=8, views=views, window=(-900, 900), **options)
        ]

    starts = draw()
    assert draw() == starts
    assert len({tuple(start) for start in starts}) == 30
    assert {min(map(min, starts)) >= 0, max(map(max, starts)) <= 22} == {True}
    assert draw(seed=1) != starts
    assert draw(key="b.nii") != starts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": ["hflip"]}, "unknown view 'hflip'; known: plain"),
        ({"views": ["grid-2x2x2-9"]}, "unknown view 'grid-2x2x2-9'"),
        ({"views": ["grid-1x2x1", "grid-1x2x1-2"]}, "a view is listed twice"),
        ({"views": ["crop-0"]}, "unknown view 'crop-0'"),
        ({"views": ["grid-100x1x1"]}, "unknown view 'grid-100x1x1'"),
        ({"window": (400, -400)}, "two finite numbers, the lower one first"),
        ({"window": (0, 1), "percentiles": (1, 99)}, "give window or percentiles, not both"),
        ({"percentiles": (0, 101)}, "between 0 and 100"),
        ({"spacing": (1, 1, 0)}, "from 1e-6 to 1e6 millimeters"),
        ({"size": 0}, "at least 1 voxel"),
        ({"assume": "RLS"}, "one each of R or L, A or P, S or I"),
        ({"frame": -1}, "at least 0, or channels"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VolumeConfig(**options)


def test_one_number_and_three_equal_ones_are_one_config() -> None:
    assert VolumeConfig(size=(8, 8, 8), spacing=(2.0, 2.0, 2.0)) == VolumeConfig(
        size=8, spacing=2.0
    )


# ---------------------------------------------------------------- pictures


def test_the_picture_shows_three_upright_middle_slices(tmp_path: Path) -> None:
    volume = torch.full((1, 96, 100, 104), -1.0)
    volume[0, 90:, 50, 52] = 1.0  # the head, in the coronal and the sagittal slice
    volume[0, 48, 97:, 52] = 0.0  # the nose, in the axial and the sagittal one
    volume[0, 48, 50, 100:] = 1.0  # the right, in the axial and the coronal one
    VolumeModality(VolumeConfig(size=8), BuildContext(input=SPEC)).render(
        [[volume, volume]], tmp_path / "new" / "a.png"
    )
    with Image.open(tmp_path / "new" / "a.png") as picture:
        sheet = np.asarray(picture)
    assert sheet.shape == (100, 2 * (104 + 104 + 100 + 8) + 4)
    axial, coronal, sagittal = sheet[:100, :104], sheet[:96, 108:212], sheet[:96, 216:316]
    assert (axial[0, 52], coronal[0, 52], sagittal[0, 50]) == (128, 255, 255)
    assert (axial[49, 103], coronal[47, 103], sagittal[47, 99]) == (255, 255, 128)
    np.testing.assert_array_equal(sheet[:, :316], sheet[:, 320:])


def test_slices_have_the_patients_proportions(tmp_path: Path) -> None:
    config = VolumeConfig(size=8, spacing=(4.0, 1.0, 1.0))
    rows = [[torch.zeros(1, 24, 96, 96)], [torch.zeros(1, 12, 16, 16)]]
    VolumeModality(config, BuildContext(input=SPEC)).render(rows, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (3 * 96 + 8, 96 + 4 + 6 * 48)


def test_what_is_no_volume_is_refused(tmp_path: Path) -> None:
    modality = VolumeModality(VolumeConfig(), BuildContext(input=SPEC))
    with pytest.raises(ValueError, match=r"takes tensors \(C, D, H, W\), got shape \(1, 8, 8\)"):
        modality.render([[torch.zeros(1, 8, 8)]], tmp_path / "a.png")
    with pytest.raises(ValueError, match="at least one tensor"):
        modality.render([[]], tmp_path / "a.png")
