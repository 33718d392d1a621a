"""DICOM series and NRRD files: the same volume as the NIfTI file of the same array, or a reason."""

from __future__ import annotations

import builtins
import bz2
import contextlib
import gzip
import io
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from latentkit_volume import dicom
from latentkit_volume.modality import VolumeModality
from latentkit_volume.plugin import DicomConfig, VolumeConfig, latentkit_sources
from latentkit_volume.reading import read_any
from latentkit_volume.series import (
    AGAIN,
    DAMAGED,
    HIDDEN,
    LOCALIZERS,
    NO_FILES,
    NO_PIXELS,
    NOT_DICOM,
    DicomSource,
)
from latentkit_volume.volumes import Volume
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)
from torch import Tensor

from latentkit.contracts import BuildContext, InputSpec, Sample
from latentkit.errors import SampleError, SourceError
from latentkit.tasks.recipe_from_arguments import encode_recipe
from latentkit.testing import SourceContract

MakeFile = Callable[..., bytes]

SLOPE, INTERCEPT = 2.5, -1000.0

TILTED = np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1.0]])


@pytest.fixture
def voxels() -> Any:
    """(X, Y, Z) = (5, 4, 6) whole numbers, all different."""
    return np.random.default_rng(0).permutation(120).astype(np.int16).reshape(5, 4, 6)


def affine_of(
    axes: Any = None, sides: Any = (0.7, 0.8, 2.5), place: Any = (-10.0, 20.0, 30.0)
) -> Any:
    """From numbers of voxels to millimeters right, front, up, for columns of directions."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if axes is None else np.asarray(axes, float)) * sides
    affine[:3, 3] = place
    return affine


def meta(uid: str, syntax: str) -> Any:
    found: Any = FileMetaDataset()
    found.MediaStorageSOPClassUID, found.MediaStorageSOPInstanceUID = CTImageStorage, uid
    found.TransferSyntaxUID = syntax
    return found


def to_bytes(file: Any) -> bytes:
    media = io.BytesIO()
    pydicom.dcmwrite(media, file, enforce_file_format=True)
    return media.getvalue()


def pixel_module(plane: Any) -> Any:
    """A data set with (columns, rows) of one slice, or (columns, rows, frames)."""
    file = Dataset()
    uid = generate_uid()
    file.file_meta = meta(uid, ExplicitVRLittleEndian)
    file.SOPClassUID, file.SOPInstanceUID, file.Modality = CTImageStorage, uid, "CT"
    file.Columns, file.Rows = plane.shape[:2]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 8 * plane.itemsize
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, int(plane.dtype.kind == "i")
    file.PixelData = np.ascontiguousarray(plane.T).tobytes()
    return file


def make_series(voxels: Any, affine: Any, series: str = "1.2.3", **changes: Any) -> list[Any]:
    """A data set per slice along Z; DICOM counts millimeters to the left and to the back."""
    to_left = np.diag([-1.0, -1.0, 1.0])
    directions, sides = to_left @ affine[:3, :3], np.linalg.norm(affine[:3, :3], axis=0)
    files = []
    for number in range(voxels.shape[2]):
        file = pixel_module(voxels[:, :, number])
        file.SeriesInstanceUID, file.InstanceNumber = series, 100 - number  # numbers tell no order
        file.ImageOrientationPatient = [
            *(directions[:, 0] / sides[0]),
            *(directions[:, 1] / sides[1]),
        ]
        file.ImagePositionPatient = list(to_left @ (affine @ [0, 0, number, 1])[:3])
        file.PixelSpacing, file.SliceThickness = (
            [sides[1], sides[0]],
            1.0,
        )  # thinner than their distance
        file.RescaleSlope, file.RescaleIntercept = SLOPE, INTERCEPT
        for name, value in changes.items():
            setattr(file, name, value)
        files.append(file)
    return files


def pack(files: list[Any]) -> bytes:
    media = io.BytesIO()
    with zipfile.ZipFile(media, "w") as packed:
        for number, file in enumerate(files):
            packed.writestr(str(number), file if isinstance(file, bytes) else to_bytes(file))
    return media.getvalue()


def read(media: bytes, assume: str | None = None) -> Volume:
    return read_any(media, None, assume, 10**6)


def assert_same(found: Volume, expected: Volume) -> None:
    np.testing.assert_array_equal(found.voxels, expected.voxels)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    assert found.axes == expected.axes


# ---------------------------------------------------------------- DICOM


@pytest.mark.parametrize(
    "axes",
    [
        np.eye(3),
        -np.eye(3),
        np.diag([-1, -1, 1]),
        np.diag([1, -1, 1]),
        TILTED,
        TILTED[:, [1, 2, 0]],
        np.eye(3)[:, [1, 2, 0]],
    ],
)
def test_a_series_is_the_volume_of_its_nifti_file(nifti: MakeFile, voxels: Any, axes: Any) -> None:
    """Whatever the order of its files, and wherever its slices are stacked to: the normal of the
    slices may point against it.
    """
    affine = affine_of(axes)
    files = make_series(voxels, affine)
    expected = read(nifti(voxels, affine, slope=SLOPE, inter=INTERCEPT))
    for shuffled in (files, files[::-1], [files[place] for place in (3, 0, 5, 1, 4, 2)]):
        found = read(pack(shuffled))
        np.testing.assert_array_equal(found.voxels, expected.voxels)
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)


def test_slope_and_intercept_are_those_of_each_slice(nifti: MakeFile, voxels: Any) -> None:
    """PET scanners write another slope into each."""
    files = make_series(voxels, affine_of())
    for number, file in enumerate(files):
        file.RescaleSlope = 1.0 + number
    scaled = voxels * (1.0 + np.arange(6)) + INTERCEPT
    assert_same(read(pack(files)), read(nifti(scaled.astype(np.float32), affine_of())))


def test_a_file_of_many_frames_is_a_volume(nifti: MakeFile, voxels: Any) -> None:
    affine = affine_of(np.diag([-1, -1, 1]))
    file = pixel_module(voxels)
    file.SOPClassUID, file.NumberOfFrames = EnhancedCTImageStorage, voxels.shape[2]
    frames = []
    for one in make_series(voxels, affine):
        plane, place = Dataset(), Dataset()
        place.ImagePositionPatient = one.ImagePositionPatient
        plane.PlanePositionSequence = Sequence([place])
        frames.append(plane)
    shared, measures, turn, rescale = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, turn.ImageOrientationPatient = (
        one.PixelSpacing,
        one.ImageOrientationPatient,
    )
    rescale.RescaleSlope, rescale.RescaleIntercept = SLOPE, INTERCEPT
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = (
        Sequence([measures]),
        Sequence([turn]),
    )
    shared.PixelValueTransformationSequence = Sequence([rescale])
    file.SharedFunctionalGroupsSequence, file.PerFrameFunctionalGroupsSequence = (
        Sequence([shared]),
        Sequence(frames),
    )
    assert_same(read(to_bytes(file)), read(nifti(voxels, affine, slope=SLOPE, inter=INTERCEPT)))


def test_monochrome1_is_inverted_and_said(nifti: MakeFile, voxels: Any) -> None:
    files = make_series(
        voxels.astype(np.uint16),
        affine_of(),
        PhotometricInterpretation="MONOCHROME1",
        BitsStored=12,
        HighBit=11,
    )
    found = read(pack(files))
    assert_same(
        found, read(nifti((4095 - voxels) * np.float32(SLOPE) + np.float32(INTERCEPT), affine_of()))
    )
    assert found.remarks == ("MONOCHROME1: inverted, so that high values are bright",)


def test_monochrome1_is_said_of_any_slice(voxels: Any) -> None:
    files = make_series(voxels.astype(np.uint16), affine_of())
    files[3].PhotometricInterpretation = "MONOCHROME1"
    assert read(pack(files)).remarks == ("MONOCHROME1: inverted, so that high values are bright",)


def test_packed_pixels_are_unpacked_or_named(nifti: MakeFile, voxels: Any) -> None:
    files = make_series(voxels, affine_of())
    for file in files:
        file.compress(RLELossless)
    assert_same(read(pack(files)), read(nifti(voxels, affine_of(), slope=SLOPE, inter=INTERCEPT)))
    for file in files:
        file.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.80"
    with pytest.raises(SampleError, match=r"compressed as JPEG-LS Lossless.*pip install pylibjpeg"):
        read(pack(files))


def without(number: int) -> Callable[[list[Any]], list[Any]]:
    return lambda files: files[:number] + files[number + 1 :]


def with_changed(number: int, **changes: Any) -> Callable[[list[Any]], list[Any]]:
    def change(files: list[Any]) -> list[Any]:
        for name, value in changes.items():
            if value is None:
                delattr(files[number], name)
            else:
                setattr(files[number], name, value)
        return files

    return change


BAD: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "a missing slice": (
        without(2),
        "5 mm between slices 2 and 3 of 5, 2.5 mm elsewhere; is one missing",
    ),
    "a slice twice": (
        lambda files: [*files, files[1]],
        "two slices at the same position .* dcm2niix",
    ),
    "slices in two directions": (
        with_changed(1, ImageOrientationPatient=[0, 1, 0, 1, 0, 0]),
        "different directions.*dcm2niix",
    ),
    "two spacings": (with_changed(1, PixelSpacing=[1, 1]), "differ in spacing"),
    "a slice beside the line": (
        with_changed(1, ImagePositionPatient=[0, 0, 32.5]),
        "straight line",
    ),
    "no place": (with_changed(0, ImagePositionPatient=None), "lacks 'ImagePositionPatient'"),
    "colors": (
        with_changed(0, PhotometricInterpretation="PALETTE COLOR"),
        "pixels of the kind PALETTE COLOR",
    ),
    "no pixels": (with_changed(0, PixelData=None), "without pixels"),
    "too few pixels": (with_changed(0, PixelData=b"12"), "pixels can't be read|damaged"),
    "something else in the zip": (lambda files: [*files, b"text"], "1 of which aren't DICOM"),
    "a damaged zip": (lambda files: b"PK\x03\x04text", "a damaged zip"),
    "one slice alone": (
        lambda files: to_bytes(files[0]),
        "one slice of a DICOM series; source: {use: dicom}",
    ),
}


@pytest.mark.parametrize("what", list(BAD))
def test_what_makes_no_volume_is_refused_with_the_reason(voxels: Any, what: str) -> None:
    change, reason = BAD[what]
    changed = change(make_series(voxels, affine_of()))
    with pytest.raises(SampleError, match=reason):
        read(changed if isinstance(changed, bytes) else pack(changed))


# ---------------------------------------------------------------- the source


def write_study(folder: Path, voxels: Any) -> None:
    """Two series of one folder, a localizer, a report, and a text; files without endings."""
    folder.mkdir(parents=True, exist_ok=True)
    for series, offset in (("1.2.3", 0), ("1.2.4", 500)):
        for number, file in enumerate(
            make_series(
                voxels + np.int16(offset), affine_of(), series, SeriesDescription=f"S{offset}"
            )
        ):
            (folder / f"IM{offset + 7 * number % 6}").write_bytes(to_bytes(file))
    (folder / "localizer").write_bytes(
        to_bytes(
            make_series(
                voxels, affine_of(), "1.2.5", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]
            )[0]
        )
    )
    report = make_series(voxels, affine_of(), "1.2.6")[0]
    for name in ("Rows", "Columns", "PixelData"):
        delattr(report, name)
    (folder / "report").write_bytes(to_bytes(report))
    (folder / "notes.txt").write_text("notes")


class TestDicom(SourceContract):
    spec = latentkit_sources()

    def make_config(self, tmp_path: Path) -> DicomConfig:
        voxels = np.arange(120, dtype=np.int16).reshape(5, 4, 6)
        if not (tmp_path / "study").exists():
            write_study(tmp_path / "study", voxels)
        return DicomConfig(path=str(tmp_path))


def test_each_series_of_a_folder_is_a_sample(tmp_path: Path, nifti: MakeFile, voxels: Any) -> None:
    write_study(tmp_path / "study" / "day 1", voxels)
    source = DicomSource(DicomConfig(path="study"), BuildContext(recipe_dir=tmp_path))
    assert [entry.key for entry in source.entries()] == ["day 1/1.2.3", "day 1/1.2.4"]
    for number, offset in enumerate((0, 500)):
        sample = source[number]
        assert sample.attributes == {"modality": "CT", "series": f"S{offset}"}
        assert_same(
            read(sample.read()),
            read(nifti(voxels + np.int16(offset), affine_of(), slope=SLOPE, inter=INTERCEPT)),
        )
    said = {remark.text: (remark.count, remark.example) for remark in source.remarks()}
    assert said == {
        LOCALIZERS: (1, "day 1/localizer"),
        NO_PIXELS: (1, "day 1/report"),
        NOT_DICOM: (1, "day 1/notes.txt"),
    }


def open_folder(folder: Path) -> tuple[DicomSource, dict[str, tuple[int, str]]]:
    """The source, and what it remarks."""
    source = DicomSource(DicomConfig(path=str(folder)), BuildContext())
    return source, {remark.text: (remark.count, remark.example) for remark in source.remarks()}


def write_series(folder: Path, voxels: Any, series: str = "1.2.3", ending: str = ".dcm") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(make_series(voxels, affine_of(), series)):
        (folder / f"{number}{ending}").write_bytes(to_bytes(file))


def test_linked_folders_are_read_and_links_to_nothing_are_said(tmp_path: Path, voxels: Any) -> None:
    write_series(tmp_path / "here" / "b", voxels)
    write_series(tmp_path / "elsewhere", voxels, "1.2.4")
    write_series(tmp_path / "here" / ".hidden", voxels, "1.2.5")
    here = tmp_path / "here"
    (here / "c").symlink_to(tmp_path / "elsewhere")
    (here / "a").symlink_to(here / "b")
    (here / "circle").symlink_to(here)
    (here / "gone.dcm").symlink_to("nowhere")
    os.mkfifo(here / "pipe.dcm")
    source, said = open_folder(here)
    assert [entry.key for entry in source.entries()] == ["b/1.2.3", "c/1.2.4"]
    assert all(read(source[place].read()).voxels.shape == (1, 6, 4, 5) for place in (0, 1))
    assert said == {
        HIDDEN: (1, ".hidden"),
        NO_FILES: (2, "gone.dcm"),
        AGAIN: (6, "a/0.dcm"),
    }


def test_a_folder_that_can_not_be_read_is_an_error(
    tmp_path: Path, voxels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "a", voxels)
    write_series(tmp_path / "b", voxels, "1.2.4")
    original = os.scandir

    def scandir(path: Any) -> Any:
        if os.path.basename(os.path.normpath(path)) == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SourceError, match=r"can't be read: .*Permission denied: .*b"):
        open_folder(tmp_path)


@pytest.mark.parametrize("number", [0, 3, 5])
def test_a_slice_cut_in_its_header_refuses_its_series_alone(
    tmp_path: Path, voxels: Any, number: int
) -> None:
    """Wherever it is cut, and at the series' end too, where the others make a volume. Only in
    front of its number of series it may belong to all series of its folder.
    """
    write_series(tmp_path / "a", voxels)
    write_series(tmp_path / "a", voxels, "1.2.4", ending="")
    write_series(tmp_path / "b", voxels, "1.2.5")
    cut = tmp_path / "a" / f"{number}.dcm"
    whole = cut.read_bytes()
    for size in (0, 100, 132, 150, 200, whole.index(b"1.2.3\0") + 6, whole.index(b"\x28\0\x10\0")):
        cut.write_bytes(whole[:size])
        source, said = open_folder(tmp_path)
        assert said == {DAMAGED: (1, f"a/{number}.dcm")}
        refused = [entry.key for entry in source.entries() if entry.key != "b/1.2.5"]
        assert refused == ["a/1.2.3", "a/1.2.4"]
        is_known = size > 250
        for place in range(1 if is_known else 2):
            with pytest.raises(SampleError, match=rf"a/{number}.dcm has a damaged header"):
                source[place]
        for place in range(1 if is_known else 2, 3):
            assert read(source[place].read()).voxels.shape == (1, 6, 4, 5)
    cut.write_bytes(whole)
    source, said = open_folder(tmp_path)
    assert not said
    assert read(source[0].read()).voxels.shape == (1, 6, 4, 5)


def test_a_repaired_slice_changes_the_stamp_of_its_series(tmp_path: Path, voxels: Any) -> None:
    write_series(tmp_path, voxels)
    last, stamps = tmp_path / "5.dcm", set()
    whole = last.read_bytes()
    for content in (whole[:200], None, whole):
        if content is None:
            last.unlink()
        else:
            last.write_bytes(content)
        stamps |= {entry.stamp for entry in open_folder(tmp_path)[0].entries()}
    assert len(stamps) == 3


def test_other_files_than_pictures_are_not_taken_for_damaged_ones(
    tmp_path: Path, voxels: Any
) -> None:
    """Reports, directories, and classes of one vendor; a marker without content."""
    write_series(tmp_path, voxels)
    classes = {"report": "1.2.840.10008.5.1.4.1.1.88.11", "vendor": "1.3.12.2.1107.5.9.1"}
    for name, kind in {**classes, "DICOMDIR": "1.2.840.10008.1.3.10"}.items():
        file = make_series(voxels, affine_of(), "1.2.6")[0]
        for tag in ("Rows", "Columns", "PixelData"):
            delattr(file, tag)
        file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = kind
        if name == "DICOMDIR":
            del file.SOPClassUID
        (tmp_path / name).write_bytes(to_bytes(file))
    (tmp_path / "DONE").touch()
    source, said = open_folder(tmp_path)
    assert said == {NO_PIXELS: (3, "DICOMDIR"), NOT_DICOM: (1, "DONE")}
    assert read(source[0].read()).voxels.shape == (1, 6, 4, 5)


def test_a_changed_file_changes_its_series_alone(tmp_path: Path, voxels: Any) -> None:
    write_study(tmp_path, voxels)
    config, context = DicomConfig(path=str(tmp_path)), BuildContext(recipe_dir=tmp_path)
    before = [
        (entry.stamp, DicomSource(config, context)[place].content())
        for place, entry in enumerate(DicomSource(config, context).entries())
    ]
    path = tmp_path / "IM500"
    path.write_bytes(path.read_bytes()[:-2] + b"\x01\x02")
    after = [
        (entry.stamp, DicomSource(config, context)[place].content())
        for place, entry in enumerate(DicomSource(config, context).entries())
    ]
    assert before[0] == after[0]
    assert before[1][0] != after[1][0]
    assert before[1][1] != after[1][1]


def test_a_folder_without_series_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(
        SourceError,
        match=r"no series of images below .*; files there: 1 left out, because they aren't DICOM",
    ):
        DicomSource(DicomConfig(path=str(tmp_path)), BuildContext())


def test_series_and_nifti_file_give_equal_rows(
    tmp_path: Path, nifti: MakeFile, voxels: Any
) -> None:
    """What goes into the encoder is the same tensor, bit for bit."""
    write_study(tmp_path, voxels)
    config = VolumeConfig(size=4, window=(-1000.0, 0.0), views=["plain", "crop-1"])
    modality = VolumeModality(config, BuildContext(input=InputSpec(channels=1, axes="CDHW")))
    series = DicomSource(DicomConfig(path=str(tmp_path)), BuildContext())[0]
    twin = Sample(series.key, nifti(voxels, affine_of(), slope=SLOPE, inter=INTERCEPT))
    for found, expected in zip(modality.prepare(series), modality.prepare(twin), strict=True):
        assert isinstance(found.tensor, Tensor)
        assert isinstance(expected.tensor, Tensor)
        assert found.tensor.equal(expected.tensor)


@pytest.mark.parametrize("ending", [".DCM", ".840.113619", ""])
def test_a_folder_of_dicom_files_is_known(tmp_path: Path, voxels: Any, ending: str) -> None:
    """By their endings, or by how they begin where these tell nothing."""
    for number, file in enumerate(make_series(voxels, affine_of())):
        (tmp_path / f"{number}{ending}").write_bytes(to_bytes(file))
    values, remarks = encode_recipe(str(tmp_path), "out", "volume-kl")
    assert values["source"] == {"use": "dicom", "with": {"path": str(tmp_path)}}
    assert values["modality"]["use"] == "volume"
    assert any("source dicom" in remark for remark in remarks)
    assert encode_recipe("dicom", "out", "volume-kl")[0]["modality"]["use"] == "volume"


# ---------------------------------------------------------------- NRRD


def nrrd_file(
    voxels: Any,
    affine: Any,
    space: str = "right-anterior-superior",
    encoding: str = "raw",
    endian: str = "little",
    **fields: str,
) -> bytes:
    """A .nrrd by hand: the header of teem.sourceforge.net/nrrd/format.html, then the first axis
    fastest.
    """
    wanted = ("right", "anterior", "superior")
    given = space.split("-") if space else wanted
    signs = np.array(
        [1 if found == want else -1 for found, want in zip(given, wanted, strict=True)]
    )
    vectors = (affine[:3, :3] * signs[:, None]).T
    stored = voxels.astype(voxels.dtype.newbyteorder("<" if endian == "little" else ">"))
    payload = stored.tobytes(order="F")
    if encoding == "gzip":
        payload = gzip.compress(payload, mtime=0)
    if encoding == "ascii":
        payload = " ".join(map(str, voxels.ravel(order="F"))).encode()
    text = {
        "type": {"i2": "short", "f4": "float", "u1": "uchar"}[voxels.dtype.str[1:]],
        "dimension": str(voxels.ndim),
        "space": space,
        "sizes": " ".join(map(str, voxels.shape)),
        "space directions": (
            " ".join("(" + ",".join(map(repr, map(float, row))) + ")" for row in vectors)
            + " none" * (voxels.ndim - 3)
        ),
        "space origin": "(" + ",".join(map(repr, map(float, affine[:3, 3] * signs))) + ")",
        "endian": endian,
        "encoding": encoding,
        **fields,
    }
    lines = "".join(f"{name}: {value}\n" for name, value in text.items() if value)
    return bytes(b"NRRD0005\n" + lines.encode() + b"\n" + payload)


@pytest.mark.parametrize("encoding", ["raw", "gzip", "ascii"])
@pytest.mark.parametrize(
    "space", ["right-anterior-superior", "left-posterior-superior", "left-anterior-superior"]
)
@pytest.mark.parametrize("endian", ["little", "big"])
def test_a_nrrd_file_is_the_volume_of_its_nifti_file(
    nifti: MakeFile, voxels: Any, encoding: str, space: str, endian: str
) -> None:
    affine = affine_of(TILTED[:, [1, 2, 0]])
    assert_same(
        read(nrrd_file(voxels, affine, space, encoding, endian)), read(nifti(voxels, affine))
    )


def test_frames_of_a_nrrd_file_are_taken(nifti: MakeFile) -> None:
    series = np.arange(96, dtype=np.int16).reshape(4, 3, 4, 2)
    media = nrrd_file(series, affine_of())
    for frame in (0, 1, "channels"):
        assert_same(
            read_any(media, frame, None, 10**6),
            read_any(nifti(series, affine_of()), frame, None, 10**6),
        )
    with pytest.raises(SampleError, match="4-D volume of 4 x 3 x 4 x 2 voxels where 3-D is needed"):
        read(media)


def test_a_nrrd_file_without_space_needs_an_assumption(nifti: MakeFile, voxels: Any) -> None:
    plain = {"space": "", "space directions": "", "space origin": "", "spacings": "0.7 0.8 2.5"}
    media = nrrd_file(voxels, affine_of(), **plain)
    assert_same(read(media, "RAS"), read(nifti(voxels, affine_of(place=(0, 0, 0)))))
    with pytest.raises(SampleError, match=r"doesn't say where its axes point \(it has no space"):
        read(media)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda media: media[:-20], "damaged NRRD"),
        (
            lambda media: media.replace(b"encoding: raw", b"data file: a.raw\nencoding: raw"),
            "detached NRRD header .*unu save",
        ),
        (lambda media: media.replace(b"sizes: 5 4 6", b"sizes: 5 4 x"), "damaged NRRD"),
        (lambda media: b"ObjectType = Image\nNDims = 3\n", "MetaImage file .* convert it to"),
    ],
)
def test_nrrd_files_that_can_not_be_read_say_why(
    voxels: Any, change: Callable[[bytes], bytes], reason: str
) -> None:
    with pytest.raises(SampleError, match=reason):
        read(change(nrrd_file(voxels, affine_of())))


@pytest.mark.parametrize("package", ["pydicom", "nrrd"])
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, voxels: Any, package: str
) -> None:
    media = (
        nrrd_file(voxels, affine_of())
        if package == "nrrd"
        else pack(make_series(voxels, affine_of()))
    )
    original = builtins.__import__

    def without_it(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_it)
    with pytest.raises(SampleError, match=r"pip install 'latentkit-volume\[formats\]'"):
        read(media)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["dicom", "nrrd"])
def test_damage_is_a_reason_and_never_another_error(voxels: Any, kind: str) -> None:
    """A changed byte, a hole or an end anywhere: a volume, or `SampleError`."""
    drawn = np.random.default_rng(0)
    files = make_series(voxels, affine_of())
    whole = (
        to_bytes(files[0]) if kind == "dicom" else nrrd_file(voxels, affine_of(), encoding="gzip")
    )
    for _ in range(150):
        damaged, place = bytearray(whole), int(drawn.integers(len(whole)))
        match drawn.integers(3):
            case 0:
                damaged[place] = int(drawn.integers(256))
            case 1:
                del damaged[place : place + int(drawn.integers(1, 40))]
            case _:
                del damaged[place:]
        media = bytes(damaged) if kind == "nrrd" else pack([bytes(damaged), *files[1:]])
        with contextlib.suppress(SampleError):
            read(media)


# ---------------------------------------------------------------- more than max_voxels


def deflated(file: Any) -> bytes:
    """The file packed as a whole (PS3.5, A.5)."""
    file.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return to_bytes(file)


def zipped(content: bytes, stated: int | None = None) -> bytes:
    """A packed file in a zip, of which a wrong size may be stated."""
    media = io.BytesIO()
    with zipfile.ZipFile(media, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a", content)
    whole = media.getvalue()
    if stated is None:
        return whole
    size, wrong = (number.to_bytes(4, "little") for number in (len(content), stated))
    return whole.replace(size, wrong)


LARGE = 24 << 20


@pytest.mark.parametrize(
    "bomb",
    [
        lambda: nrrd_file(np.zeros((4, 4, 4), np.uint8), affine_of()).replace(b"raw", b"gzip")[:-64]
        + gzip.compress(bytes(LARGE)),
        lambda: nrrd_file(np.zeros((4, 4, 4), np.uint8), affine_of()).replace(b"raw", b"bz2")[:-64]
        + bz2.compress(bytes(LARGE)),
        lambda: zipped(bytes(LARGE)),
        lambda: zipped(bytes(LARGE), 1000),
        lambda: deflated(pixel_module(np.zeros((4096, LARGE // 4096), np.uint8))),
        lambda: pack([deflated(pixel_module(np.zeros((4096, LARGE // 4096), np.uint8)))] * 2),
    ],
    ids=["gzip", "bzip2", "zip", "zip that states less", "deflated", "deflated in a zip"],
)
def test_a_bomb_is_refused_before_it_is_unpacked(bomb: Callable[[], bytes]) -> None:
    media = bomb()
    tracemalloc.start()
    try:
        with pytest.raises(SampleError, match=r"unpacks to more|damaged zip"):
            read_any(media, None, None, 64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < LARGE / 4


def test_deflated_files_are_read(nifti: MakeFile, voxels: Any) -> None:
    media = pack([deflated(file) for file in make_series(voxels, affine_of())])
    assert_same(read(media), read(nifti(voxels, affine_of(), slope=SLOPE, inter=INTERCEPT)))


def test_slices_of_a_series_are_counted_as_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch, voxels: Any
) -> None:
    decoded, original = [], dicom.make_slice

    def make_slice(*args: Any) -> Any:
        decoded.append(args)
        return original(*args)

    monkeypatch.setattr(dicom, "make_slice", make_slice)
    with pytest.raises(SampleError, match="5 x 4 x 3 voxels, more than max_voxels: 59"):
        read_any(pack(make_series(voxels, affine_of())), None, None, 59)
    assert len(decoded) == 3


@pytest.mark.parametrize("encoding", ["gzip", "bz2"])
@pytest.mark.parametrize("skip", ["", "lines", "bytes", "to the end"])
def test_packed_nrrd_files_are_read_behind_what_is_to_be_skipped(
    nifti: MakeFile, voxels: Any, encoding: str, skip: str
) -> None:
    """Lines lie in front of what is packed, bytes in it (teem.sourceforge.net/nrrd/format.html)."""
    pack_with: Any = {"gzip": gzip.compress, "bz2": bz2.compress}[encoding]
    field = {"lines": "line skip: 2\n", "bytes": "byte skip: 7\n", "to the end": "byte skip: -1\n"}
    header = nrrd_file(voxels, affine_of(), encoding=encoding).partition(b"\n\n")[0]
    in_front = b"one\ntwo\n" if skip == "lines" else b""
    content = (b"skipped" if skip in ("bytes", "to the end") else b"") + voxels.tobytes(order="F")
    media = header + b"\n" + field.get(skip, "").encode() + b"\n" + in_front + pack_with(content)
    assert_same(read(media), read(nifti(voxels, affine_of())))


@pytest.mark.parametrize("change", [-1, 1])
def test_packed_nrrd_files_hold_as_much_as_they_say(voxels: Any, change: int) -> None:
    header = nrrd_file(voxels, affine_of(), encoding="gzip").partition(b"\n\n")[0] + b"\n\n"
    content = voxels.tobytes() + b"\0" if change > 0 else voxels.tobytes()[:-1]
    with pytest.raises(SampleError, match="damaged NRRD"):
        read(header + gzip.compress(content))
