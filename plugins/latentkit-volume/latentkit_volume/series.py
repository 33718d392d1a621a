"""Source `dicom`: the DICOM series below a folder, each one sample."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentkit.contracts import BuildContext, Entry, Sample
from latentkit.errors import SourceError
from latentkit.samples import Remark
from latentkit_volume.dicom import BROKEN, DICOM_START, INSTALL, PREAMBLE_BYTES

if TYPE_CHECKING:
    from latentkit_volume.plugin import DicomConfig

TAGS = ["SeriesInstanceUID", "ImageType", "Rows", "Modality", "SeriesDescription"]

NOT_DICOM = "left out, as they aren't DICOM files"
NO_PIXELS = "left out, as they are DICOM files without pixels (reports, structures, directories)"
LOCALIZERS = "left out, as they are localizers (ImageType)"


@dataclass
class Series:
    """The files of one series.

    Args:
        uid: its SeriesInstanceUID.
        attributes: what there is to know of it.
        files: paths relative to the folder, with size and time of change in ns.
    """

    uid: str
    attributes: dict[str, Any]
    files: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The folder that all its files lie in, and its UID."""
        folder = os.path.commonpath([os.path.dirname(path) for path, _, _ in self.files])
        parts = [*Path(folder).parts, self.uid]
        return os.fsencode("/".join(parts)).decode("utf-8", "backslashreplace")

    @property
    def stamp(self) -> str:
        """Changes when a file comes, goes or changes."""
        return hashlib.sha256(json.dumps(self.files).encode()).hexdigest()[:32]


class DicomSource:
    """Samples whose media is a zip of a series' files, unpacked, in the order of their paths.

    Files are known by their content, whatever their names end in. Attributes are "modality", such
    as CT, and "series", its description; nothing that names a patient.

    Args:
        config: the folder.
        context: where the recipe lies.

    Raises:
        SourceError: no such folder, no series in it, or pydicom is missing.
    """

    def __init__(self, config: DicomConfig, context: BuildContext) -> None:
        self._root = (context.recipe_dir / Path(config.path).expanduser()).absolute()
        self._left_out: dict[str, list[str]] = {}
        if not self._root.is_dir():
            raise SourceError(
                f"source dicom: {self._root} is not a folder; expected one with DICOM files"
            )
        found: dict[str, Series] = {}
        try:
            for path in _walk(self._root):
                self._add(path, found)
        except OSError as err:
            raise SourceError(f"source dicom: {self._root} can't be read: {err}") from err
        self._series = sorted(found.values(), key=lambda series: series.key)
        if not self._series:
            left = "; ".join(f"{len(paths)} {text}" for text, paths in self._left_out.items())
            raise SourceError(
                f"source dicom: no series of pictures below {self._root}; "
                f"files there: {left or 'none'}"
            )

    def __len__(self) -> int:
        return len(self._series)

    def __getitem__(self, index: int) -> Sample:
        """The sample at a position, its files read.

        Raises:
            OSError: a file can't be reached.
        """
        series, packed = self._series[index], io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            for number, (path, _, _) in enumerate(series.files):
                # Without its name and time, which change nothing.
                archive.writestr(
                    zipfile.ZipInfo(f"{number:06d}.dcm"), (self._root / path).read_bytes()
                )
        return Sample(series.key, packed.getvalue(), series.attributes, series.stamp)

    def entries(self) -> Iterator[Entry]:
        """One entry per series, in the order of their keys."""
        return (Entry(series.key, series.stamp, series.attributes) for series in self._series)

    def remarks(self) -> Iterator[Remark]:
        """The files that are in no sample."""
        for text, paths in self._left_out.items():
            yield Remark(
                text, len(paths), os.fsencode(paths[0]).decode("utf-8", "backslashreplace")
            )

    def _add(self, path: str, found: dict[str, Series]) -> None:
        header = _read_header(self._root / path)
        if header is None:
            self._left_out.setdefault(NOT_DICOM, []).append(path)
        elif "Rows" not in header or "SeriesInstanceUID" not in header:
            self._left_out.setdefault(NO_PIXELS, []).append(path)
        elif "LOCALIZER" in (header.get("ImageType") or []):
            self._left_out.setdefault(LOCALIZERS, []).append(path)
        else:
            uid, status = str(header.SeriesInstanceUID), os.stat(self._root / path)
            about = {
                "modality": str(header.get("Modality", "")),
                "series": str(header.get("SeriesDescription", "")),
            }
            series = found.setdefault(uid, Series(uid, about))
            series.files.append((path, status.st_size, status.st_mtime_ns))


def _walk(root: Path) -> Iterator[str]:
    """Paths of the files below a folder, relative to it, in order; nothing hidden."""
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(parent, name), root)


def _read_header(path: Path) -> Any:
    """The tags of a DICOM file that tell its series; None of another file."""
    try:
        import pydicom
        from pydicom.errors import BytesLengthException, InvalidDicomError
    except ImportError:
        raise SourceError(f"source dicom takes pydicom: {INSTALL}") from None
    with path.open("rb") as file:
        if file.read(PREAMBLE_BYTES + len(DICOM_START))[PREAMBLE_BYTES:] != DICOM_START:
            return None
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
    except (InvalidDicomError, BytesLengthException, *BROKEN):
        return None
