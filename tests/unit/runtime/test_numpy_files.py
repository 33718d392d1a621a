"""Files as NumPy itself writes and reads them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from latentkit.runtime import numpy_files
from latentkit.runtime.numpy_files import npy_bytes, write_npy, write_npz

ARRAYS = {
    "latents": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "größe_2x3": np.array([640, 480]),
    "crop": np.array(0.5, np.float16),
    "empty": np.zeros((0, 3), bool),
    "turned": np.arange(6, dtype=np.int32).reshape(2, 3).T,
}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_npy_file_has_the_bytes_that_numpy_writes(name: str, tmp_path: Path) -> None:
    array, expected = ARRAYS[name], io.BytesIO()
    np.save(expected, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
    assert npy_bytes(array) == expected.getvalue()
    write_npy(tmp_path / "one.npy", array)
    assert (tmp_path / "one.npy").read_bytes() == expected.getvalue()


def test_a_npz_file_is_read_by_numpy_and_whole_for_zipfile(tmp_path: Path) -> None:
    write_npz(tmp_path / "one.npz", ARRAYS)
    with np.load(tmp_path / "one.npz") as read:
        assert read.files == [*ARRAYS]
        for name, array in ARRAYS.items():
            assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
            assert np.array_equal(read[name], array)
    np.savez(tmp_path / "numpy.npz", allow_pickle=False, **ARRAYS)
    with (
        zipfile.ZipFile(tmp_path / "one.npz") as file,
        zipfile.ZipFile(tmp_path / "numpy.npz") as numpys,
    ):
        assert file.testzip() is None
        for ours, theirs in zip(file.infolist(), numpys.infolist(), strict=True):
            for field in ("filename", "date_time", "compress_type", "CRC", "file_size"):
                if not theirs.filename.startswith("turned"):  # which it keeps in Fortran order
                    assert getattr(ours, field) == getattr(theirs, field)


def test_one_too_large_for_a_plain_zip_is_left_to_numpy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numpy_files, "LARGEST_ZIP", 8)
    write_npz(tmp_path / "one.npz", ARRAYS)
    np.savez(tmp_path / "numpy.npz", allow_pickle=False, **ARRAYS)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()


def test_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="array of objects"):
        write_npy(tmp_path / "one.npy", np.array([object()]))
    assert not (tmp_path / "one.npy").exists()
