"""Downloading a latent dataset from a real server on this machine with the hub's API."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import Failure, read_files
from hub_uploads import UploadHub
from huggingface_hub import constants

import latentkit as lk
from latentkit.errors import DamagedError, RecipeError, StoreError
from latentkit.publishing.pull_dataset import pull_dataset
from latentkit.publishing.push_dataset import push_dataset
from latentkit.publishing.push_plan import PushOptions, plan_push
from latentkit.store.open_folder import open_folder
from latentkit.upkeep.verify import verify_folder

NAME = "alice/photos"
OVERRIDES = {"batch_size": 2, "output.unit_size": 2, "threads": 1, "preview": 0}
DATASET = f"datasets/{NAME}"

# The hub's library sends large files in a way that its own client warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def pushed(uploads: UploadHub, encoded: Path) -> UploadHub:
    """A hub with the dataset."""
    push_dataset(plan_push(str(encoded / "latents"), NAME, PushOptions(license="mit")))
    uploads.requests.clear()
    return uploads


def names_in(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_a_pulled_dataset_is_whole_and_pulling_again_downloads_no_unit(
    pushed: UploadHub, encoded: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = pull_dataset(NAME, str(out))
    report = verify_folder(open_folder(str(out))).report()
    assert report.findings == ()
    assert names_in(out) == {*names_in(encoded / "latents"), "README.md"}
    for unit in (out / "units").iterdir():
        assert unit.read_bytes() == (encoded / "latents/units" / unit.name).read_bytes()
    assert done.address.startswith(f"hf://datasets/{NAME}@")
    pushed.downloads.clear()
    pull_dataset(done.address, str(out))
    assert not [name for name in pushed.downloads if "/units/" in name]
    assert plan_push(str(out), NAME, PushOptions()).is_empty


def test_a_killed_pull_is_no_dataset_and_goes_on(pushed: UploadHub, tmp_path: Path) -> None:
    out, running = tmp_path / "out", list[subprocess.Popen[bytes]]()

    def kill_at_the_second_unit(line: str) -> None:
        asked = [one for one in pushed.requests if one.startswith("GET") and "/units/" in one]
        if line in asked[1:]:
            running[0].kill()
            running[0].wait()

    pushed.on_request = kill_at_the_second_unit
    command = [sys.executable, "-m", "latentkit", "pull", NAME, str(out)]
    running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    assert running[0].wait(60) == -signal.SIGKILL
    assert not (out / "dataset.json").exists()
    with pytest.raises(StoreError):
        lk.open(out)
    pushed.on_request = lambda line: None
    pull_dataset(NAME, str(out))
    assert len(lk.open(out)) == 6
    assert verify_folder(open_folder(str(out))).report().findings == ()
    assert not (out / ".cache").exists()


def test_a_folder_with_something_else_is_left_alone(
    pushed: UploadHub, encoded: Path, golden: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="isn't empty, and has no download to continue"):
        pull_dataset(NAME, str(tmp_path / "notes"))
    with pytest.raises(StoreError, match=r"has what the hub doesn't, such as plans/000.parquet"):
        pull_dataset(NAME, str(golden))
    assert names_in(tmp_path / "notes") == {"mine.txt"}


def test_a_newer_commit_is_pulled_over_an_older_one_and_never_over_other_samples(
    uploads: UploadHub,
    make_photos: Callable[..., Path],
    write_photos: Callable[[Path, int], Path],
    tmp_path: Path,
) -> None:
    latents, out = tmp_path / "latents", tmp_path / "out"
    photos, other = make_photos(3), make_photos(3, "other")
    lk.encode(photos, latents, size=32, overrides=OVERRIDES)
    lk.encode(other, tmp_path / "other-latents", size=32, overrides=OVERRIDES)
    push_dataset(plan_push(str(latents), NAME, PushOptions(license="mit")))
    first = pull_dataset(NAME, str(out)).address
    write_photos(tmp_path / "more", 4)
    (tmp_path / "more/003.png").rename(photos / "003.png")
    lk.encode(photos, latents, size=32, overrides=OVERRIDES)
    push_dataset(plan_push(str(latents), NAME, PushOptions()))
    uploads.downloads.clear()
    pull_dataset(NAME, str(out))
    units = [name for name in uploads.downloads if "/units/" in name]
    assert units == [f"{DATASET}/units/001-000000.safetensors"]
    assert lk.open(out).keys == lk.open(latents).keys
    assert verify_folder(open_folder(str(out))).report().damage == ()
    before = read_files(tmp_path / "other-latents")
    for name, folder in ((first, out), (NAME, tmp_path / "other-latents")):
        with pytest.raises(StoreError, match="has what the hub doesn't, such as plans/00"):
            pull_dataset(name, str(folder))
    assert read_files(tmp_path / "other-latents") == before


def test_a_unit_that_is_not_what_was_published_is_found(pushed: UploadHub, tmp_path: Path) -> None:
    files = dict(pushed.repositories[DATASET].revisions["main"])
    one, other = (f"units/000-00000{number}.safetensors" for number in (0, 1))
    files[one] = files[other]
    pushed.repositories[DATASET].revisions["main"] = files
    with pytest.raises(DamagedError, match=f"{one} isn't the unit that dataset.json describes"):
        pull_dataset(NAME, str(tmp_path / "out"))
    assert not (tmp_path / "out/dataset.json").exists()


# ---------------------------------------------------------------- reading it where it is


def test_an_open_dataset_keeps_its_commit_in_other_processes(
    pushed: UploadHub, encoded: Path, tmp_path: Path
) -> None:
    data = pickle.dumps(lk.open(f"hf://datasets/{NAME}", cache=tmp_path / "cache"))
    pushed.repositories[DATASET].revisions["main"] = {"README.md": b"gone"}
    pushed.repositories[DATASET].revisions[str(pickle.loads(data).folder).rpartition("@")[2]] = (
        read_files(encoded / "latents")
    )
    assert len(pickle.loads(data)[:]["key"]) == 6
    with pytest.raises(StoreError, match=r"contains no dataset\.json"):
        lk.open(f"hf://datasets/{NAME}")


def test_the_address_of_its_page_opens_it(pushed: UploadHub) -> None:
    assert len(lk.open(f"{pushed.endpoint}/{DATASET}")) == 6
    assert len(lk.open(f"{pushed.endpoint}/{DATASET}/tree/main")) == 6


def test_a_dataset_in_a_folder_of_a_repository_opens(uploads: UploadHub, encoded: Path) -> None:
    uploads.add(NAME, read_files(encoded / "latents", "v1/sd/"), "datasets")
    data = lk.open(f"hf://datasets/{NAME}/v1/sd")
    assert len(data) == len(list(data.batches(1))) == 6


def test_nothing_is_written_to_the_hub_but_by_push(pushed: UploadHub, encoded: Path) -> None:
    with pytest.raises(RecipeError, match=r"hub can be read, not written.*latentkit push FOLDER alice/photos"):
        lk.encode(encoded / "photos", f"hf://datasets/{NAME}", size=32)
    folder = open_folder(f"hf://datasets/{NAME}")
    writes: list[Callable[[], object]] = [
        lambda: folder.create("a").__enter__(),
        lambda: folder.replace("dataset.json", b""),
        lambda: folder.remove("dataset.json"),
        lambda: folder.claim("claims/a", ""),
    ]
    for write in writes:
        with pytest.raises(StoreError, match="can't be written: datasets on the hub can be read, not written"):
            write()
    assert not [line for line in pushed.requests if line.startswith(("POST", "PUT"))]


@pytest.mark.parametrize("command", ["open", "pull"])
def test_errors_of_the_hub_are_explained(
    pushed: UploadHub, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str = NAME) -> str:
        with pytest.raises(StoreError) as caught:
            if command == "open":
                lk.open(f"hf://datasets/{name}")
            else:
                pull_dataset(name, str(tmp_path / "out"))
        return str(caught.value)

    repository = pushed.repositories[DATASET]
    assert "the hub has no dataset of that name (alice/phots)" in refused("alice/phots")
    assert f"{NAME} has no revision 'v9'" in refused(f"{NAME}@v9")
    repository.token = "hf_bob"
    assert "the hub has no dataset of that name" in refused()  # private
    repository.is_gated = True
    assert f"{NAME} is gated, and the account of your token has no access" in refused()
    monkeypatch.delenv("HF_TOKEN")
    assert f"{NAME} is gated: accept its terms at" in refused()
    pushed.failure = Failure(429, {"Retry-After": "17"})
    assert "limit of requests is reached (429): run again in 17 seconds" in refused()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused()
