"""Endings of the files that the built-in sources and modalities read."""

from __future__ import annotations

IMAGE_SUFFIXES = (
    *(
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".jfi",
        ".jif",
        ".pjpeg",
        ".mpo",
        ".png",
        ".apng",
        ".webp",
        ".gif",
    ),
    *(".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jp2", ".j2k", ".jpx", ".jpf", ".qoi", ".avif", ".heic", ".heif", ".hif", ".jxl"),
)
IMAGE_PACKAGES = {
    ".heic": "pillow-heif",
    ".heif": "pillow-heif",
    ".hif": "pillow-heif",
    ".jxl": "pillow-jxl-plugin",
} | {".avif": "pillow>=11.3"}
"""Package that reads images with these endings, in addition to the required version of Pillow."""

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
LATENT_DATASET = {"plans", "units"}
"""Sub-folders that mark an earlier output, whose preview isn't a sample."""

TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Files that sources read as tables."""

TABLE_TEXTS = ("captions.txt",)
"""Names of text files that are tables, such as Flickr8k's."""


def is_table(path: str) -> bool:
    """Return whether sources read a file as a table, going by its name."""
    name = path.rsplit("/", 1)[-1].lower()
    return name.endswith(TABLE_ENDINGS) or name in TABLE_TEXTS
