"""Endings of the files that core's sources and modalities read."""

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
"""What reads pictures of these endings, beside Pillow as it is required."""

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
LATENT_DATASET = {"plans", "units"}
"""Sub-folders by which an earlier output is known, whose preview is no sample."""

TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Files that the sources take for tables."""
