"""Folders at URLs keep the promises of local ones: on a real S3 server, on fsspec's memory, and
while a store can't be reached.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from latentkit.cli.closing_words import how_to_continue
from latentkit.errors import RecipeError, StoreError
from latentkit.recipe.schema import EncodeRecipe, dump_recipe, load_recipe, parse_recipe
from latentkit.store import claims as claims_module
from latentkit.store import outage, url_folder
from latentkit.store.claims import Claims
from latentkit.store.folder import Folder, host
from latentkit.store.open_folder import open_folder

S3 = "s3://bucket/latents"
BIG = 101 << 20
"""Bytes of a file that the driver sends in several requests."""


def write(folder: Folder, name: str, content: bytes) -> None:
    with folder.create(name) as file:
        file.write(content)


@pytest.fixture(params=["s3", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://{tmp_path}/latents"
    request.getfixturevalue("s3_server")
    return S3


def test_folder_at_a_url_does_what_a_folder_does(url: str) -> None:
    folder = open_folder(url)
    assert str(folder) == url
    assert not folder.exists("units/a")
    assert folder.top_names() == set()
    assert folder.list("units") == []
    write(folder, "units/b", b"first")
    write(folder, "units/b", b"second")
    write(folder, "units/a", b"")
    folder.replace("dataset.json", b"1")
    folder.replace("dataset.json", b"23")
    assert folder.list("units") == ["a", "b"]
    assert folder.top_names() - {"claims"} == {"units", "dataset.json"}
    assert folder.list("claims") == []
    assert (folder.read("units/b"), folder.size("units/b"), folder.read("dataset.json")) == (
        b"first",
        5,
        b"23",
    )
    folder.remove("units/a")
    folder.remove("units/a")
    assert folder.list("units") == ["b"]
    with pytest.raises(ZeroDivisionError), folder.create("units/c") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert not folder.exists("units/c")
    for look in (folder.read, folder.size, folder.local_copy, folder.open_file):
        with pytest.raises(StoreError, match=rf"{url}/units/c: no such file"):
            look("units/c")


def test_open_file_reads_and_seeks_like_a_local_one(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(url_folder, "BLOCK_BYTES", 16)
    content = bytes(range(256))
    folder = open_folder(url)
    write(folder, "units/a", content)
    with folder.open_file("units/a") as file:
        assert file.read(3) == content[:3]
        assert file.seek(200) == 200
        assert file.read(40) == content[200:240]
        assert file.read() == content[240:]
        assert file.read(1) == b""
        assert file.seek(-2, os.SEEK_END) == 254
        assert file.read() == content[254:]


def test_what_another_process_wrote_is_seen_at_once(url: str) -> None:
    one, other = open_folder(url), open_folder(url)
    assert (one.list("units"), one.exists("units/a")) == ([], False)
    write(other, "units/a", b"x")
    assert (one.list("units"), one.exists("units/a")) == (["a"], True)
    other.remove("units/a")
    assert (one.list("units"), one.exists("units/a")) == ([], False)


def test_of_many_that_commit_at_once_one_wins_and_stays(s3_server: object) -> None:
    contents = [bytes([number]) * 300_000 for number in range(8)]
    won: list[bool] = []

    def commit(number: int) -> None:
        folder = open_folder(S3)
        write(folder, "units/a", contents[number])
        won.append(folder.claim("claims/a", str(number)))

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = open_folder(S3).read("units/a")
    assert winner in contents
    assert sorted(won) == [False] * 7 + [True]
    write(open_folder(S3), "units/a", b"late")
    assert open_folder(S3).read("units/a") == winner


def test_first_commit_of_a_file_of_several_requests_wins(s3_server: object, tmp_path: Path) -> None:
    folder = open_folder(S3, cache=tmp_path / "cache")
    write(folder, "units/a", b"1" * BIG)
    write(folder, "units/a", b"2" * (BIG + 1))
    assert folder.size("units/a") == BIG
    assert folder.local_copy("units/a").read_bytes() == b"1" * BIG


def test_claim_is_exclusive_until_dropped_and_found_again_by_its_owner(url: str) -> None:
    ours, theirs = Claims(open_folder(url)), Claims(open_folder(url))
    assert ours.take("unit")
    assert not theirs.take("unit")
    assert theirs.holders() == [f"process {os.getpid()} on {host()}"]
    assert (ours.is_free("unit"), theirs.is_free("unit"), theirs.is_free("other")) == (
        True,
        False,
        True,
    )
    assert ours.find_free(["unit", "other"]) == {"unit", "other"}
    assert theirs.find_free(["unit", "other"]) == {"other"}
    ours.drop("unit")
    assert theirs.take("unit")
    folder = open_folder(url)
    assert folder.claim("claims/other.json", "mine")
    assert folder.claim(
        "claims/other.json", "mine"
    )  # as when the answer to the first request was lost
    assert not folder.claim("claims/other.json", "another's")


def test_claim_of_a_killed_process_is_taken_over_and_swept(s3_server: object) -> None:
    code = (
        "import os\n"
        "from latentkit.store.claims import Claims\n"
        "from latentkit.store.open_folder import open_folder\n"
        f"claims = Claims(open_folder({S3!r}))\n"
        "assert claims.take('unit') and claims.take('other')\n"
        "os._exit(1)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 1
    folder = open_folder(S3)
    assert folder.list("claims") == ["other.json", "unit.json"]
    claims = Claims(folder)
    assert claims.holders() == []
    assert claims.take("unit")
    claims.sweep()
    assert folder.list("claims") == ["unit.json"]


def test_claim_of_another_host_is_dead_when_it_is_not_touched(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = open_folder(url), open_folder(url)
    assert theirs.claim("claims/unit.json", '{"host": "elsewhere", "pid": 1}')
    assert not Claims(ours).take("unit")
    time.sleep(1.1)  # S3 counts seconds
    assert ours.age_seconds("claims/unit.json") > 1
    theirs.touch("claims/unit.json")
    assert ours.age_seconds("claims/unit.json") == 0
    assert not Claims(ours).take("unit")
    monkeypatch.setattr(claims_module, "DEAD_AFTER_SECONDS", 0.0)
    assert Claims(ours).take("unit")


def test_folder_goes_to_other_processes(url: str) -> None:
    folder = open_folder(url)
    write(folder, "units/a", b"x")
    assert pickle.loads(pickle.dumps(folder)).read("units/a") == b"x"
    child = os.fork()
    if not child:
        os._exit(0 if folder.read("units/a") == b"x" else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_recipe_in_a_dataset_at_a_url_goes_on_with_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {
        "task": "encode",
        "source": {"use": "folder", "with": {"path": "photos"}},
    }
    values |= {"modality": {"use": "image"}, "encoder": {"use": "tiny-kl"}, "output": {"path": url}}
    recipe = parse_recipe(values, "encode", tmp_path)
    assert how_to_continue(recipe) == "nothing was committed yet; run the same command again"
    open_folder(url).replace("recipe.yaml", dump_recipe(values).encode())
    assert (
        how_to_continue(recipe)
        == f"what is committed is kept; go on with: latentkit run {url}/recipe.yaml"
    )
    again = load_recipe(f"{url}/recipe.yaml")
    assert isinstance(again, EncodeRecipe)
    assert (again.output.path, again.origin, again.base_dir) == (
        url,
        f"{url}/recipe.yaml",
        tmp_path,
    )
    for path, expected in (
        (".", url),
        ("../other", f"{url.rpartition('/')[0]}/other"),
        (str(tmp_path / "out"), str(tmp_path / "out")),
    ):
        open_folder(url).replace(
            "recipe.yaml", dump_recipe({**values, "output": {"path": path}}).encode()
        )
        moved = load_recipe(f"{url}/recipe.yaml")
        assert isinstance(moved, EncodeRecipe)
        assert moved.output.path == expected
    with pytest.raises(RecipeError, match=f"{url}/absent.yaml: no such file"):
        load_recipe(f"{url}/absent.yaml")
    with pytest.raises(
        RecipeError, match=r"nosuch://a/b.yaml: can't be read: ValueError: Protocol not known"
    ):
        load_recipe("nosuch://a/b.yaml")


# ---------------------------------------------------------------- what goes wrong


class UnreliableFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """fsspec's memory behind a line that breaks: the next requests meet `troubles`."""

    protocol = "unreliable"
    troubles: list[Exception] = []  # noqa: RUF012  # shared on purpose, as memory's own store is

    def cat_file(self, *args: Any, **options: Any) -> Any:
        if self.troubles:
            raise self.troubles.pop(0)
        return super().cat_file(*args, **options)


@pytest.fixture
def unreliable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(outage, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(outage, "SAY_AFTER_SECONDS", 0.0)
    fsspec.register_implementation("unreliable", UnreliableFileSystem, clobber=True)
    folder = open_folder(f"unreliable://{tmp_path}")
    folder.replace("a", b"x")
    UnreliableFileSystem.troubles.clear()
    return folder


def test_passing_trouble_is_waited_out_and_said_once(
    unreliable: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    UnreliableFileSystem.troubles += [
        ConnectionResetError("reset"),
        TimeoutError(),
        OSError(5, "SlowDown"),
        ConnectionRefusedError(),
    ]
    assert unreliable.read("a") == b"x"
    said = capsys.readouterr().err
    assert said == f"{unreliable} can't be reached; waiting\n{unreliable} can be reached again\n"


def test_lasting_outage_ends_in_one_clear_error(
    unreliable: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "GIVE_UP_AFTER_SECONDS", 0.01)
    UnreliableFileSystem.troubles += [ConnectionResetError("reset by peer")] * 100
    with pytest.raises(
        StoreError,
        match=r"/a can't be reached \(ConnectionResetError: reset by peer\). Run again when it can",
    ):
        unreliable.read("a")


def test_work_that_is_ending_does_not_wait(unreliable: Folder) -> None:
    unreliable.stop_waiting()
    UnreliableFileSystem.troubles += [ConnectionResetError(), ConnectionResetError()]
    with pytest.raises(StoreError, match="can't be reached"):
        unreliable.read("a")
    assert len(UnreliableFileSystem.troubles) == 1


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (
            PermissionError("Access Denied"),
            r"no permission \(PermissionError: Access Denied\); check the credentials",
        ),
        (ValueError("bad name"), "ValueError: bad name"),
        (OSError(28, "No space left"), "No space left"),
    ],
)
def test_lasting_trouble_is_explained_at_once(
    unreliable: Folder, trouble: Exception, message: str
) -> None:
    UnreliableFileSystem.troubles += [trouble, trouble]
    with pytest.raises(StoreError, match=message):
        unreliable.read("a")
    assert len(UnreliableFileSystem.troubles) == 1


def test_url_that_leads_nowhere_is_explained(s3_server: object) -> None:
    fsspec.register_implementation(
        "absent", "absent_driver.FileSystem", errtxt="Install absent_driver", clobber=True
    )
    with pytest.raises(
        StoreError, match=r"the driver is missing: Install absent_driver; pip install absent_driver"
    ):
        open_folder("absent://bucket/latents")
    with pytest.raises(
        StoreError, match="nosuch://bucket/latents: ValueError: Protocol not known: nosuch"
    ):
        open_folder("nosuch://bucket/latents")
    with pytest.raises(
        StoreError,
        match=(
            "contains no bucket or folder; expected something like s3://bucket/latents"
        ),
    ):
        open_folder("s3://")
    folder = open_folder("s3://nobody/latents")
    with pytest.raises(
        StoreError, match=r"s3://nobody/latents: no bucket 'nobody'\. Create it first"
    ):
        write(folder, "units/a", b"x")
    with pytest.raises(StoreError, match="no bucket"):
        folder.list("units")


ASK = """
import sys
from latentkit.store.open_folder import open_folder

folder = open_folder(sys.argv[1])
folder.ask_each(folder.read, [f"units/{number}" for number in range(500)])
"""


def test_many_are_asked_in_order_and_the_first_that_fails_is_told(url: str) -> None:
    folder = open_folder(url)
    names = [f"units/{number}" for number in range(40)]
    for name in names[:-2]:
        write(folder, name, name.encode())
    assert folder.ask_each(folder.read, names[:-2]) == [name.encode() for name in names[:-2]]
    with pytest.raises(StoreError, match="/units/38: no such file"):
        folder.ask_each(folder.read, names)
    assert folder.ask_each(folder.read, names[:2]) == [b"units/0", b"units/1"]


def test_ctrl_c_ends_many_requests_to_a_store_that_is_not_there(mortal_s3_server: Any) -> None:
    mortal_s3_server.kill()
    with subprocess.Popen(
        [sys.executable, "-c", ASK, S3], stderr=subprocess.PIPE, text=True
    ) as asking:
        assert asking.stderr is not None
        assert asking.stderr.readline() == f"{S3} can't be reached; waiting\n"
        asking.send_signal(signal.SIGINT)
        said = (
            asking.stderr.read()
        )  # to its end, which else would come after two minutes, with another error
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert "Run again when it can" not in said
