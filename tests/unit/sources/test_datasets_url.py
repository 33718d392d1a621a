"""Source `datasets` at a URL: tables, tars and tables of paths, one, a folder of them or by a
pattern, as from the files themselves.
"""

from __future__ import annotations

import functools
import io
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import pytest

from latentkit.contracts import BuildContext
from latentkit.errors import SampleError, SourceError
from latentkit.sources.datasets import open_datasets
from latentkit.sources.options import DatasetsConfig
from latentkit.tasks.recipe_from_arguments import encode_recipe

Rows = dict[str, tuple[bytes, str]]


@pytest.fixture
def memory(memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """fsspec's store in memory, empty, and a cache of the library's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(
        datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache" / "downloads"
    )
    return memory


def write_parquet(folder: Path, name: str, rows: Rows) -> None:
    folder.mkdir(exist_ok=True)
    table = {
        "id": list(rows),
        "photo": [photo for photo, _ in rows.values()],
        "text": [text for _, text in rows.values()],
    }
    datasets.Dataset.from_dict(table).to_parquet(folder / name)


def write_tar(folder: Path, name: str, rows: Rows) -> None:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w") as tar:
        for key, (photo, text) in rows.items():
            for ending, content in (("png", photo), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def samples(path: str | list[str], **options: Any) -> dict[str, tuple[bytes, Any]]:
    source = open_datasets(DatasetsConfig(path=path, **options), BuildContext(modality="image"))
    if hasattr(source, "shards"):
        found = [sample for shard in source.shards() for sample in source.read(shard)]
    else:
        found = [source[index] for index in range(len(source))]
        assert [entry.stamp for entry in source.entries()] == [sample.stamp for sample in found]
    return {sample.key: (sample.read(), sample.attributes.get("text")) for sample in found}


ONE: Rows = {"a": (b"\x89PNG a", "one"), "b": (b"\x89PNG b", "two")}
TWO: Rows = {"c": (b"\x89PNG c", "three")}


@pytest.fixture
def data(memory: Any, tmp_path: Path) -> Path:
    """Parquet files, tars and a table of paths, here and at memory://bucket."""
    for write, kind in ((write_parquet, "parquet"), (write_tar, "tar")):
        write(tmp_path / kind, f"0.{kind}", ONE)
        write(tmp_path / kind, f"1.{kind}", TWO)
    (tmp_path / "tar" / "0.json").write_text("{}")
    (tmp_path / "paths" / "img").mkdir(parents=True)
    for key, (photo, _) in ONE.items():
        (tmp_path / "paths" / "img" / f"{key}.png").write_bytes(photo)
    (tmp_path / "paths" / "table.csv").write_text(
        "file_name,text\nimg/b.png,two\nimg/a.png,one\nimg/gone.png,x\n"
    )
    for folder in ("parquet", "tar", "paths"):
        memory.put(str(tmp_path / folder), f"/bucket/{folder}", recursive=True)
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_files_of_data_give_the_samples_that_they_give_here(
    data: Path, kind: str, streaming: bool
) -> None:
    options = {"streaming": streaming, **({"key": "id"} if kind == "parquet" else {})}
    for ends in ("", f"/0.{kind}"):
        here, there = samples(f"{data}/{kind}{ends}", **options), samples(
            f"memory://bucket/{kind}{ends}", **options
        )
        assert here == there
        assert sorted(content for content, _ in there.values()) == [b"\x89PNG a", b"\x89PNG b"] + [
            b"\x89PNG c"
        ] * (not ends)


@pytest.mark.parametrize(
    "path",
    [
        "memory://bucket/tar/{0..1}.tar",
        "memory://bucket/tar/*.tar",
        ["memory://bucket/tar/0.tar", "memory://bucket/tar/1.tar"],
    ],
)
def test_patterns_and_lists_name_tars(data: Path, path: str | list[str]) -> None:
    assert [text for _, text in samples(path).values()] == ["one", "two", "three"]


def test_table_of_paths_reads_the_files_that_it_names(data: Path) -> None:
    source = open_datasets(DatasetsConfig(path="memory://bucket/paths/table.csv"), BuildContext())
    assert not hasattr(source, "shards")
    assert [entry.key for entry in source.entries()] == ["img/b.png", "img/a.png", "img/gone.png"]
    assert source[0].read() == b"\x89PNG b"
    assert source[0].attributes == {"text": "two"}


@pytest.mark.parametrize(
    "there",
    ["img/a.png", "memory://bucket/paths/img/a.png", "memory://bucket/paths/x/../img/a.png"],
)
def test_full_urls_of_a_table_name_files_below_its_root_and_no_others(
    there: str, data: Path, memory: Any
) -> None:
    memory.pipe("/bucket/paths/sub/gone.png", b"\x89PNG other")
    gone = [
        "memory://bucket/paths/gone.png",
        "memory://bucket/far/gone.png",
        "https://example.org/gone.png",
    ]
    memory.pipe(
        "/bucket/paths/urls.csv",
        "\n".join(["file_name,text", f"{there},one", *(f"{url},x" for url in gone)]).encode(),
    )
    source = open_datasets(DatasetsConfig(path="memory://bucket/paths/urls.csv"), BuildContext())
    assert [entry.key for entry in source.entries()] == ["img/a.png", "gone.png", *gone[1:]]
    assert source[0].read() == b"\x89PNG a"
    for index in (1, 2, 3):
        with pytest.raises(SampleError, match="a file that doesn't exist"):
            source[index]
    memory.pipe(
        "/bucket/paths/urls.csv",
        "\n".join(["file_name,text", *(f"{url},x" for url in gone)]).encode(),
    )
    with pytest.raises(SourceError, match="must be downloaded first"):
        open_datasets(DatasetsConfig(path="memory://bucket/paths/urls.csv"), BuildContext())


@pytest.mark.parametrize(
    "pattern", ["*.tar", "?.tar", "[a-z].tar", "**/*.tar", "*/*.tar", "old/*.tar", "**/b.tar"]
)
def test_patterns_take_the_files_that_they_take_here(
    pattern: str, memory: Any, tmp_path: Path
) -> None:
    for name in ("a.tar", "old/b.tar", "old/far/b.tar", "c.tar"):
        (tmp_path / "wds" / name).parent.mkdir(parents=True, exist_ok=True)
        write_tar(
            (tmp_path / "wds" / name).parent, name.rsplit("/", 1)[-1], {name: (name.encode(), name)}
        )
    memory.put(str(tmp_path / "wds"), "/bucket/wds", recursive=True)
    here = samples(f"{tmp_path}/wds/{pattern}")
    there = samples(f"memory://bucket/wds/{pattern}")
    assert sorted(here.values()) == sorted(there.values())


def test_what_lies_beside_tars_is_remarked(data: Path) -> None:
    source = open_datasets(
        DatasetsConfig(path="memory://bucket/tar"), BuildContext(modality="image")
    )
    [remark] = [one for one in source.remarks() if "other files" in one.text]
    assert (remark.count, remark.example) == (1, "0.json")


def test_splits_are_found_in_the_paths(memory: Any, tmp_path: Path) -> None:
    write_parquet(tmp_path / "d", "train-00000.parquet", ONE)
    write_parquet(tmp_path / "d", "test-00000.parquet", TWO)
    memory.put(str(tmp_path / "d"), "/d", recursive=True)
    assert list(samples("memory://d", key="id")) == ["a", "b"]
    assert list(samples("memory://d", key="id", split="test")) == ["c"]


def test_stamps_change_with_the_file(data: Path, memory: Any, tmp_path: Path) -> None:
    def stamps(path: str) -> list[str]:
        return [entry.stamp for entry in open_datasets(DatasetsConfig(path=path), BuildContext(modality="image")).entries()]  # type: ignore[union-attr]

    for path in ("memory://bucket/parquet", "memory://bucket/tar"):
        assert stamps(path) == stamps(path)
        before = stamps(path)
        kind = path.rsplit("/", 1)[1]
        write = write_parquet if kind == "parquet" else write_tar
        write(tmp_path / "new", f"0.{kind}", ONE | {"a": (b"\x89PNG z", "one")})
        memory.put_file(str(tmp_path / "new" / f"0.{kind}"), f"/bucket/{kind}/0.{kind}")
        assert stamps(path)[0] != before[0]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("memory://bucket/none.parquet", "memory://bucket/none.parquet: no such file"),
        ("memory://bucket/nothing", "memory://bucket/nothing: there are no files below"),
        ("memory://bucket/paths/img", "no file below memory://bucket/paths/img ends in"),
        ("memory://bucket/*/*", "expected files of one kind, got"),
        ("memory://bucket/x*.tar", "expected files of one kind, got none"),
        (
            ["memory://bucket/tar/0.tar", "here.tar"],
            "expected URLs of one protocol, or only paths",
        ),
    ],
)
def test_wrong_urls_are_named(data: Path, path: str | list[str], words: str) -> None:
    with pytest.raises(SourceError, match=words.replace("*", r"\*")):
        samples(path)


def test_file_url_is_the_file(data: Path) -> None:
    assert samples(f"file://{data}/tar") == samples(f"{data}/tar")


def test_sample_of_a_tar_at_a_url_is_read_without_the_others(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {f"{number:02d}": (bytes([number]) * 20_000, f"text {number}") for number in range(50)}
    write_tar(tmp_path, "a.tar", rows)
    memory.put(str(tmp_path / "a.tar"), "/bucket/a.tar")
    source: Any = open_datasets(
        DatasetsConfig(path="memory://bucket/a.tar"), BuildContext(modality="image")
    )
    read = []
    cat_file = type(memory).cat_file

    def count(
        self: Any, path: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        content = cat_file(self, path, start, end, **options)
        read.append(len(content))
        return content

    monkeypatch.setattr(type(memory), "cat_file", count)
    for number in (3, 49, 0):
        sample = source[number]
        assert (sample.read(), sample.attributes["text"]) == rows[f"{number:02d}"]
    assert (len(read), sum(read) < 3 * 23_000) == (3, True)


def test_files_of_a_sample_that_lie_far_apart_are_read_one_by_one(
    memory: Any, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (
            ("0.png", b"x" * 9),
            ("1.png", b"y" * 300_000),
            ("0.txt", b"zero"),
            ("1.txt", b"one"),
            ("0.npy", b"n"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    memory.put(str(tmp_path / "a.tar"), "/bucket/a.tar")
    assert (
        samples("memory://bucket/a.tar") == samples(str(tmp_path / "a.tar")) == {
            "0": (b"x" * 9, "zero"),
            "1": (b"y" * 300_000, "one"),
        }
    )


def test_web_server_gives_tables_and_tars(data: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(data))
    ) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            assert samples(f"{url}/tar/0.tar") == samples(f"{data}/tar/0.tar")
            source: Any = open_datasets(
                DatasetsConfig(path=f"{url}/tar/0.tar"), BuildContext(modality="image")
            )
            assert [source[index].read() for index in (1, 0)] == [b"\x89PNG b", b"\x89PNG a"]
            assert samples(f"{url}/parquet/0.parquet", key="id") == samples(
                f"{data}/parquet/0.parquet", key="id"
            )
            with pytest.raises(SourceError, match=r"tar/9\.tar: no such file"):
                samples(f"{url}/tar/9.tar")
        finally:
            server.shutdown()
            thread.join()


def test_short_command_takes_files_of_data_at_a_url(data: Path) -> None:
    for url in (
        "memory://bucket/tar",
        "memory://bucket/tar/{0..1}.tar",
        "memory://bucket/paths/table.csv",
        "memory://bucket/parquet",
    ):
        assert encode_recipe(url, "out", None)[0]["source"] == {
            "use": "datasets",
            "with": {"path": url},
        }
