"""Source `dicom`: the DICOM series below a folder, each one sample."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentkit.contracts import BuildContext, Entry, Remark, Sample
from latentkit.errors import SampleError, SourceError
from latentkit.kit import LocalFiles, is_clutter
from latentkit_volume.dicom import BROKEN, DICOM_START, INSTALL, PREAMBLE_BYTES
from latentkit_volume.plugin import DICOM_SUFFIXES

if TYPE_CHECKING:
    from latentkit_volume.plugin import DicomConfig

TAGS = ["SOPClassUID", "SeriesInstanceUID", "ImageType", "Rows", "Modality", "SeriesDescription"]

DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR (PS3.6, table A-1), the only DICOM file without a SOPClassUID."""

ROWS, PIXEL_DATA = 0x00280010, 0x7FE00010

NOT_DICOM = "left out, because they aren't DICOM files"
NO_PIXELS = (
    "left out, because they are DICOM files without pixels (reports, structures, directories)"
)
LOCALIZERS = "left out, because they are localizers (ImageType)"
DAMAGED = "DICOM files with a damaged header, whose series are refused"
NO_FILES = "left out, because they are broken links, or not files"
AGAIN = "left out, because they are links to files that are found anyway"
HIDDEN = "hidden (name starts with a dot), so not read"
LATENTS = "folders with a latent dataset, not searched"


@dataclass
class Series:
    """The files of one series.

    Args:
        uid: its SeriesInstanceUID.
        attributes: what is known about it.
        files: paths relative to the folder, with size and modification time in ns.
        damaged: the same for damaged files that are or may be its slices.
    """

    uid: str
    attributes: dict[str, Any]
    files: list[tuple[str, int, int]] = field(default_factory=list)
    damaged: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Return the folder that contains all its files, and its UID."""
        files = self.files or self.damaged
        folder = os.path.commonpath([os.path.dirname(path) for path, _, _ in files])
        parts = [*Path(folder).parts, self.uid]
        return os.fsencode("/".join(parts)).decode("utf-8", "backslashreplace")

    @property
    def stamp(self) -> str:
        """Return a hash that changes when a file is added, removed or changed."""
        return hashlib.sha256(json.dumps(self.files + self.damaged).encode()).hexdigest()[:32]


class DicomSource:
    """Samples whose media is an uncompressed zip of a series' files, in the order of their paths.

    Files are recognized by their content, whatever their ending. Attributes are "modality", such as
    CT, and "series", its description; nothing identifies a patient. Links are followed.

    Args:
        config: the folder.
        context: folder of the recipe.

    Raises:
        SourceError: the folder doesn't exist or contains no series, or pydicom is missing.
    """

    def __init__(self, config: DicomConfig, context: BuildContext) -> None:
        self._root = (context.recipe_dir / Path(config.path).expanduser()).absolute()
        self._left_out: dict[str, list[str]] = {}
        self._lost: list[tuple[str, int, int]] = []
        if not self._root.is_dir():
            raise SourceError(
                f"source dicom: {self._root} is not a folder; expected one with DICOM files"
            )
        found: dict[str, Series] = {}
        try:
            for path in self._list():
                self._add(path, found)
        except OSError as err:
            raise SourceError(f"source dicom: {self._root} can't be read: {err}") from err
        _share_damaged(self._lost, found.values())
        self._series = sorted(found.values(), key=lambda series: series.key)
        if not self._series:
            left = "; ".join(f"{len(paths)} {text}" for text, paths in self._left_out.items())
            raise SourceError(
                f"source dicom: no series of images below {self._root}; "
                f"files there: {left or 'none'}"
            )

    def __len__(self) -> int:
        return len(self._series)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at a position, with its files read.

        Raises:
            SampleError: a slice is or may be damaged, so the volume would lack it.
            OSError: a file can't be reached.
        """
        series, packed = self._series[index], io.BytesIO()
        if series.damaged:
            path = os.fsencode(series.damaged[0][0]).decode("utf-8", "backslashreplace")
            raise SampleError(
                f"{path} has a damaged header and is or may be a slice of this series. Restore it,"
                " or remove it if it belongs elsewhere"
            )
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            for number, (path, _, _) in enumerate(series.files):
                # Without name and time, which don't matter.
                archive.writestr(
                    zipfile.ZipInfo(f"{number:06d}.dcm"), (self._root / path).read_bytes()
                )
        return Sample(series.key, packed.getvalue(), series.attributes, series.stamp)

    def entries(self) -> Iterator[Entry]:
        """Yield one entry per series, in the order of their keys."""
        return (Entry(series.key, series.stamp, series.attributes) for series in self._series)

    def remarks(self) -> Iterator[Remark]:
        """Yield remarks on files that are in no sample."""
        for text, paths in self._left_out.items():
            yield Remark(
                text, len(paths), os.fsencode(paths[0]).decode("utf-8", "backslashreplace")
            )

    def _list(self) -> list[str]:
        """Return the paths of the files below the folder, each file once: files before folders,
        both by name, without hidden ones.
        """
        listing, paths = LocalFiles(self._root).list(True), {}
        real_root = os.path.realpath(self._root)
        self._leave_out(HIDDEN, *(path for path in sorted(listing.hidden) if not is_clutter(path)))
        self._leave_out(LATENTS, *sorted(listing.latent_datasets))
        links = []
        for path in sorted(listing.files, key=_place):
            real = os.path.realpath(self._root / path)
            if real == os.path.join(real_root, path):
                paths[real] = path
            else:
                links.append((real, path))
        for real, path in links:
            if paths.setdefault(real, path) != path:
                self._leave_out(AGAIN, path)
        return sorted(paths.values(), key=_place)

    def _leave_out(self, text: str, *paths: str) -> None:
        if paths:
            self._left_out.setdefault(text, []).extend(paths)

    def _add(self, path: str, found: dict[str, Series]) -> None:
        """Add a file to its series."""
        status = _find_status(self._root / path)
        header = None if status is None else _read_header(self._root / path)
        if status is None or header is None:
            self._leave_out(NO_FILES if status is None else NOT_DICOM, path)
            return
        uid, is_whole = str(header.get("SeriesInstanceUID", "")), "Rows" in header
        file, is_damaged = (path, status.st_size, status.st_mtime_ns), not (uid and is_whole)
        if is_damaged and not _should_have_pixels(header, self._root / path):
            self._leave_out(NO_PIXELS, path)
        elif "LOCALIZER" in (header.get("ImageType") or []):
            self._leave_out(LOCALIZERS, path)
        elif is_damaged and not uid:
            self._leave_out(DAMAGED, path)
            self._lost.append(file)
        else:
            about = {
                "modality": str(header.get("Modality", "")),
                "series": str(header.get("SeriesDescription", "")),
            }
            series = found.setdefault(uid, Series(uid, about))
            if is_damaged:
                self._leave_out(DAMAGED, path)
            (series.damaged if is_damaged else series.files).append(file)


def _find_status(path: Path) -> os.stat_result | None:
    """Return the status of a file; None for a broken link, a pipe or similar."""
    try:
        status = os.stat(path)
    except OSError:
        if path.is_symlink():
            return None
        raise
    return status if stat.S_ISREG(status.st_mode) else None


def _place(path: str) -> list[tuple[bool, str]]:
    """Return the key that sorts the files of a folder before its folders."""
    *folders, name = path.split("/")
    return [*((True, folder) for folder in folders), (False, name)]


def _share_damaged(lost: list[tuple[str, int, int]], found: Iterable[Series]) -> None:
    """Add damaged files of unknown series to every series in the same folder."""
    by_folder: dict[str, list[tuple[str, int, int]]] = {}
    for file in lost:
        by_folder.setdefault(os.path.dirname(file[0]), []).append(file)
    for series in found:
        for folder in sorted({os.path.dirname(path) for path, _, _ in series.files}):
            series.damaged += by_folder.get(folder, [])


def _should_have_pixels(header: Any, path: Path) -> bool:
    """Return whether a file without Rows is a damaged image: one that ends before Rows although its
    class has pixels, or before its class.
    """
    import pydicom

    kind = header.get("SOPClassUID")
    if not kind:
        meta = getattr(header, "file_meta", {})
        return bool(meta.get("MediaStorageSOPClassUID") != DIRECTORY)
    if "Image Storage" not in pydicom.uid.UID(kind).name:
        return False
    try:
        tags = pydicom.dcmread(path).keys()
    except BROKEN:
        return True
    return PIXEL_DATA in tags or max(tags) < ROWS


def _read_header(path: Path) -> Any:
    """Return the tags of a DICOM file that identify its series, no tags if it can't be read, or
    None for another file.
    """
    try:
        import pydicom
        from pydicom.errors import BytesLengthException, InvalidDicomError
    except ImportError:
        raise SourceError(f"source dicom needs pydicom: {INSTALL}") from None
    with path.open("rb") as file:
        head = file.read(PREAMBLE_BYTES + len(DICOM_START))
    if head[PREAMBLE_BYTES:] != DICOM_START:
        # An interrupted copy leaves nothing, or zeros.
        is_lost = path.suffix.lower() in DICOM_SUFFIXES and not head.strip(b"\0")
        return {} if is_lost else None
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
    except (InvalidDicomError, BytesLengthException, *BROKEN):
        return {}
