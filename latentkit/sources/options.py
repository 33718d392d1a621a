"""Options of the built-in sources. Loads no torch."""

from __future__ import annotations

from pydantic import Field, field_validator

from latentkit.contracts import (
    Config,
)
from latentkit.runtime.file_endings import IMAGE_SUFFIXES, TABLE_ENDINGS

# ---------------------------------------------------------------- sources


class FolderConfig(Config):
    """Options of the source `folder`: files below a folder, sorted by their relative path, which is
    the key.
    """

    path: str = Field(
        description="folder to read, relative to the recipe, or its URL, such as s3://bucket/photos"
    )
    recursive: bool = Field(True, description="look into sub-folders too")
    suffixes: list[str] = Field(
        list(IMAGE_SUFFIXES),
        min_length=1,
        description="endings of the files to use, in any case, with the dot",
    )
    metadata: str | None = Field(
        None,
        description=(
            "name of the tables with captions (csv, tsv, jsonl, json, parquet), or path of one; "
            "none: all tables whose rows name files here"
        ),
    )

    @field_validator("suffixes")
    @classmethod
    def _dotted(cls, suffixes: list[str]) -> list[str]:
        for suffix in suffixes:
            if not suffix.startswith(".") or len(suffix) < 2:
                raise ValueError(f"write a suffix with its dot, such as '.jpg', not {suffix!r}")
        return suffixes

    @field_validator("metadata")
    @classmethod
    def _known_table(cls, metadata: str | None) -> str | None:
        if metadata is not None and not metadata.lower().endswith(TABLE_ENDINGS):
            raise ValueError(f"must end in {', '.join(TABLE_ENDINGS)}, got {metadata!r}")
        return metadata


class DatasetsConfig(Config):
    """Options of the source `datasets`: anything that the library `datasets` opens."""

    path: str | list[str] = Field(
        description=(
            "hub id or address of its page, or local: parquet, arrow, csv, json, webdataset tars, a"
            " table of paths, image folder, what save_to_disk wrote; a URL such as s3://bucket/wds"
            " of such tables or tars; a pattern of files such as wds/*.tar or"
            " wds/{00000..00012}.tar, or a list of them"
        )
    )
    name: str | None = Field(None, description="configuration of the dataset; none: its default")
    split: str = Field(
        "train", description="split, slices such as train[:100] allowed when not streaming"
    )
    revision: str | None = Field(None, description="git revision on the hub; none: the newest")
    media: str | None = Field(
        None,
        description=(
            "column that contains the media; none: the only image, audio, video or bytes column"
        ),
    )
    attributes: list[str] | None = Field(
        None,
        description=(
            "columns to keep as attributes; none: every other column of numbers, texts, labels or"
            " lists of them"
        ),
    )
    key: str | None = Field(
        None,
        description=(
            "column that names each sample; none: its position (map-style), or its file"
            " (webdataset)"
        ),
    )
    streaming: bool = Field(
        False, description="read shard by shard without downloading all of it first"
    )
