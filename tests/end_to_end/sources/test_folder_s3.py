"""The source `folder` on a real S3 server: the dataset is that of the folder itself, and what did
not change is not read again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import fsspec
import pytest
import torch

import latentkit as lk
from latentkit.errors import SourceError
from latentkit.sources.url_files import UrlFiles
from latentkit.store import outage

NUM_PHOTOS = 30
FIXED = {
    "batch_size": 4,
    "threads": 2,
    "output.unit_size": 8,
    "preview": 0,
    "modality.with.size": 32,
}


class S3Server(Protocol):
    """What the fixture of that name gives."""

    def slow_down(self, delay_seconds: float) -> int: ...
    def log(self) -> list[str]: ...


def upload(photos: Path, prefix: str = "photos") -> Any:
    store = fsspec.filesystem("s3")
    store.put(f"{photos}/", f"bucket/{prefix}/", recursive=True)
    return store


def media_read(server: S3Server) -> list[str]:
    return [line for line in server.log() if re.match(r"GET \S+\.png", line)]


def test_latents_are_those_of_the_folder_and_only_what_changed_is_read_again(
    s3_server: S3Server, make_photos: Callable[..., Path], tmp_path: Path
) -> None:
    photos = make_photos(NUM_PHOTOS)
    store = upload(photos)
    here = lk.encode(photos, tmp_path / "here", overrides=FIXED)
    s3_server.log()
    s3_server.slow_down(0.02)
    there = lk.encode("s3://bucket/photos", tmp_path / "there", overrides=FIXED)
    assert s3_server.slow_down(0.0) > 4  # captions, many at once
    lines = s3_server.log()
    assert (
        sum(".png" in line for line in lines) == NUM_PHOTOS + 1
    )  # the first sample is looked at before
    assert sum(".txt" in line for line in lines) == NUM_PHOTOS
    assert there.keys == here.keys
    captions = lk.open(tmp_path / "there", columns=["text"])
    for index in range(NUM_PHOTOS):
        assert torch.equal(there.moments(index)["mean"], here.moments(index)["mean"])
        assert captions[index]["text"] == f"picture number {index}"
    lk.encode("s3://bucket/photos", tmp_path / "there", overrides=FIXED)
    assert media_read(s3_server) == []
    store.pipe_file("bucket/photos/007.png", (photos / "008.png").read_bytes())
    store.rm("bucket/photos/029.png")
    s3_server.log()
    again = lk.encode("s3://bucket/photos", tmp_path / "there", overrides=FIXED)
    assert {line.split()[1] for line in media_read(s3_server)} == {"/bucket/photos/007.png"}
    assert len(again) == NUM_PHOTOS - 1
    assert torch.equal(again.moments(7)["mean"], again.moments(8)["mean"])


def test_more_objects_than_a_page_of_a_listing_are_all_found(s3_server: S3Server) -> None:
    store = fsspec.filesystem("s3")
    store.touch("bucket/many/")
    store.pipe({f"bucket/many/{number:03d}.txt": b"x" for number in range(230)})
    store.touch("bucket/many/folder/")
    store.pipe_file("bucket/many2/other.txt", b"x")
    files = UrlFiles("s3://bucket/many")
    s3_server.log()
    listed = files.list(True).files
    assert (
        sum("list-type=2" in line for line in s3_server.log()) == 3
    )  # the server's pages hold 100
    assert sorted(set(listed) - {"folder"}) == [f"{number:03d}.txt" for number in range(230)]
    assert files.read("007.txt") == b"x"


@pytest.mark.parametrize(
    ("url", "setting", "words"),
    [
        (
            "s3://missing/photos",
            {},
            r"s3://missing/photos: no bucket 'missing'\. Create it first",
        ),
        ("s3://bucket/photos", {}, r"s3://bucket/photos: there are no files below"),
        (
            "s3://bucket/photos",
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            r"s3://bucket/photos\S* can't be reached \(EndpointConn",
        ),
        ("s3://bucket/photos", {"AWS_ENDPOINT_URL": "not a url"}, r"Invalid endpoint: not a url"),
        (
            "s3://bucket/photos",
            {"AWS_PROFILE": "nobody"},
            r"The config profile \(nobody\) could not be found",
        ),
    ],
)
def test_what_keeps_a_bucket_away_is_told(
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    url: str,
    setting: dict[str, str],
    words: str,
) -> None:
    monkeypatch.setattr(outage, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(outage, "GIVE_UP_AFTER_SECONDS", 0.05)
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(SourceError, match=words):
        lk.encode(url, tmp_path / "out")
