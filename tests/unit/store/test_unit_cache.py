"""The cache of units: bounded, shared, never stale, and careful with what isn't its own."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentkit.errors import StoreError
from latentkit.store.folder import Folder
from latentkit.store.open_folder import open_folder
from latentkit.store.unit_cache import UnitCache, open_cache


def digest(number: int) -> str:
    return f"{number:064x}"


def give(number: int, size: int = 100) -> Callable[[Path], None]:
    def download(path: Path) -> None:
        path.write_bytes(bytes([number]) * size)

    return download


def refuse(path: Path) -> None:
    raise AssertionError("it was downloaded again")


def units(cache: UnitCache) -> list[Path]:
    return sorted(cache.folder.glob("*.unit"))


def test_what_was_used_last_stays_within_the_limit(tmp_path: Path) -> None:
    cache = UnitCache(tmp_path, 300)
    paths = [cache.fetch(digest(number), 100, give(number)) for number in range(3)]
    assert cache.fetch(digest(0), 100, refuse) == paths[0]
    paths.append(cache.fetch(digest(3), 100, give(3)))
    assert units(cache) == [paths[0], paths[2], paths[3]]
    assert [path.read_bytes() for path in units(cache)] == [
        bytes([number]) * 100 for number in (0, 2, 3)
    ]
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]


def test_mapped_unit_stays_readable_when_its_place_is_needed(tmp_path: Path) -> None:
    cache = UnitCache(tmp_path, 100)
    with (
        open(cache.fetch(digest(1), 100, give(1)), "rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        cache.fetch(digest(2), 100, give(2))
        assert [path.stem for path in units(cache)] == [digest(2)]
        assert mapped[:] == bytes([1]) * 100


def test_unit_beyond_the_limit_is_kept_alone(tmp_path: Path) -> None:
    cache = UnitCache(tmp_path, 150)
    cache.fetch(digest(1), 100, give(1))
    assert cache.fetch(digest(2), 1000, give(2, 1000)).stat().st_size == 1000
    assert [path.stem for path in units(cache)] == [digest(2)]


def test_files_that_are_not_the_caches_own_stay(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_bytes(b"x" * 1000)
    (tmp_path / "thesis.unit").write_bytes(b"x" * 1000)
    UnitCache(tmp_path, 10).fetch(digest(1), 100, give(1))
    assert {path.name for path in tmp_path.iterdir()} >= {"thesis.txt", "thesis.unit"}


def test_of_several_that_want_a_unit_one_downloads(tmp_path: Path) -> None:
    downloads = []

    def download(path: Path) -> None:
        downloads.append(path)
        path.write_bytes(b"x" * 100)

    # Each with a cache of its own on one folder, as several processes have.
    threads = [
        threading.Thread(target=UnitCache(tmp_path, 1000).fetch, args=(digest(1), 100, download))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(downloads) == 1


def test_failed_download_leaves_nothing(tmp_path: Path) -> None:
    def download(path: Path) -> None:
        path.write_bytes(b"half")
        raise StoreError("gone")

    with pytest.raises(StoreError, match="gone"):
        UnitCache(tmp_path, 1000).fetch(digest(1), 100, download)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StoreError, match=r"file: units can't be stored there: .*\. Give `cache` another folder"
    ):
        UnitCache(tmp_path / "file", 1000).fetch(digest(1), 100, give(1))


def test_changed_object_is_never_served_stale(tmp_path: Path) -> None:
    folder: Folder = open_folder(f"memory://{tmp_path}", cache=tmp_path / "cache")
    folder.replace("units/a", b"old")
    assert folder.local_copy("units/a").read_bytes() == b"old"
    folder.replace("units/a", b"new")
    assert folder.local_copy("units/a").read_bytes() == b"new"


def test_cache_is_described_by_bytes_folder_or_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own = tmp_path / "latentkit" / "units"
    assert open_cache(None) == UnitCache(own, 64 << 30)
    assert open_cache(1000) == UnitCache(own, 1000)
    assert open_cache(tmp_path / "x") == UnitCache(tmp_path / "x", 64 << 30)
    assert open_cache((str(tmp_path / "x"), 5)) == UnitCache(tmp_path / "x", 5)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_cache(None).folder == tmp_path / ".cache" / "latentkit" / "units"


@pytest.mark.parametrize("cache", [True, 1.5, ("x", "y"), (1, 2)])
def test_other_descriptions_of_a_cache_are_refused(cache: Any) -> None:
    with pytest.raises(TypeError, match="cache must be a number of bytes, a folder"):
        open_cache(cache)
    with pytest.raises(ValueError, match="0 bytes or more"):
        open_cache(-1)
