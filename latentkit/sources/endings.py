"""File endings of each modality, and advice on files that a source leaves out."""

from __future__ import annotations

import os
from collections.abc import Sequence

from latentkit.plugins.registry import COMPANIONS, discover
from latentkit.runtime.file_endings import IMAGE_SUFFIXES

MODALITY_ENDINGS = {
    "image": IMAGE_SUFFIXES,
    "video": (
        *(".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".divx", ".mpg", ".mpeg"),
        *(".mpe", ".m1v", ".m2v", ".m2p", ".vob", ".ts", ".m2t", ".m2ts", ".mts", ".wmv", ".asf"),
        *(".flv", ".f4v", ".ogv", ".3gp", ".3g2", ".mxf", ".dv", ".y4m", ".ivf", ".rm", ".rmvb"),
        *(".wtv", ".h264", ".264", ".hevc", ".h265", ".265"),
    ),
    "audio": (
        *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff"),
        *(".aifc", ".au", ".snd", ".caf", ".w64", ".rf64", ".wma", ".m4b", ".mka", ".weba"),
        *(".amr", ".wv", ".tta", ".ape"),
    ),
    "volume": (".nii", ".nii.gz", ".nrrd", ".dcm", ".dicom", ".ima"),
}
"""Endings of each modality in latentkit and its plugins, whether installed or not."""

ADVICE_BY_ENDING = {
    "camera raw; develop it to TIFF or JPEG": (
        *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw"),
        *(".rw2", ".srw"),
    ),
    "a drawing or document without pixels; render it to PNG": (
        *(".ai", ".cdr", ".emf", ".eps", ".pdf", ".ps", ".svg", ".svgz", ".wmf"),
    ),
    "layers; export them to PNG or TIFF": (".clip", ".kra", ".psb", ".psd", ".xcf"),
    "light without a defined white; convert it to 8 or 16 bits": (".exr", ".hdr", ".pfm"),
    "a volume that isn't read; convert it to .nrrd or .nii.gz": (
        *(".mha", ".mhd", ".nhdr", ".mgh", ".mgz", ".mnc", ".mif"),
    ),
    "packed files; unpack them": (*(".7z", ".bz2", ".gz", ".rar", ".tgz", ".xz", ".zip", ".zst"),),
    "a tar; give it as the source": (".tar",),
    "an unfinished download": (".crdownload", ".download", ".part", ".partial"),
}
"""Advice, to the endings that it applies to."""

CLUTTER = {"desktop.ini", "thumbs.db", ".ds_store", ".localized", ".git", ".gitattributes"} | {
    ".gitignore",
    ".gitkeep",
    ".cache",
    ".ipynb_checkpoints",
}
"""Lower-case names of files that systems and tools leave in folders."""


def ending_of(path: str) -> str:
    """Return a file's ending in lower case, with the dot; "" if it has none."""
    name = path.rsplit("/", 1)[-1].lower()
    return ".nii.gz" if name.endswith(".nii.gz") else os.path.splitext(name)[1]


def is_clutter(path: str) -> bool:
    """Return whether systems or tools leave files or folders of this name."""
    name = path.rsplit("/", 1)[-1].lower()
    return name in CLUTTER or name.startswith("._")  # which macOS leaves on other disks


def explain_ending(ending: str) -> str:
    """Return what files with an ending are and how to use them; "" if unknown."""
    for remedy, endings in ADVICE_BY_ENDING.items():
        if ending in endings:
            return remedy
    modality = modality_of(ending)
    return f"the modality {modality} reads it if it is in source.with.suffixes" if modality else ""


def modality_of(ending: str) -> str | None:
    """Return the modality that reads files with an ending, or None."""
    return next((name for name, ends in MODALITY_ENDINGS.items() if ending in ends), None)


def describe_options(ending: str) -> str:
    """Return the options that use files of another modality, or the plugin to install."""
    modality = modality_of(ending)
    if modality is None:
        return explain_ending(ending)
    if plugin := missing_plugin(ending):
        return f"read by {plugin}: pip install {plugin}"
    return f"take them with --set modality.use={modality} --set 'source.with.suffixes=[{ending}]'"


def missing_plugin(ending: str) -> str:
    """Return the package that reads files with an ending; "" if it is installed, or none is known.
    """
    modality = modality_of(ending)
    installed = {row.name for row in discover().rows() if row.kind == "modality"}
    return "" if modality is None or modality in installed else COMPANIONS[modality]


def list_few(endings: Sequence[str], most: int = 4) -> str:
    """Return the first few of many endings as text."""
    rest = len(endings) - most
    return ", ".join(endings[:most]) + (f" or {rest} other endings" if rest > 0 else "")
