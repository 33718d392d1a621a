"""Uploading a latent dataset, to a real server on this machine with the hub's API."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from hub_server import commit_of
from hub_uploads import UploadHub

import latentkit as lk
from latentkit.cli.main import main
from latentkit.errors import FingerprintError, StoreError
from latentkit.publishing import push_dataset as push_module
from latentkit.publishing.pull_dataset import pull_dataset
from latentkit.publishing.push_dataset import push_dataset
from latentkit.publishing.push_plan import PushOptions, PushPlan, plan_push
from latentkit.store.compact import compact
from latentkit.store.open_folder import open_folder
from latentkit.upkeep.verify import verify_folder

NAME = "alice/photos"
DATASET = f"datasets/{NAME}"

# The hub's library sends large files in a way that its own client warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
LICENSED = PushOptions(license="cc0-1.0")


def push(folder: Path, options: PushOptions = LICENSED, name: str = NAME) -> str:
    return push_dataset(plan(folder, options, name))


def plan(folder: Path, options: PushOptions = LICENSED, name: str = NAME) -> PushPlan:
    return plan_push(str(folder), name, options)


def hash_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def line_of(*words: str) -> list[str]:
    return [sys.executable, "-m", "latentkit", *words]


def test_a_pushed_dataset_reads_as_the_local_one(uploads: UploadHub, encoded: Path) -> None:
    commit = push(encoded / "latents")
    local, remote = lk.open(encoded / "latents"), lk.open(f"hf://datasets/{NAME}")
    assert str(remote.folder) == f"hf://datasets/{NAME}@{commit}"
    assert remote.keys == local.keys
    for row in range(len(local)):
        assert torch.equal(remote.moments(row)["mean"], local.moments(row)["mean"])
    assert remote.decode(remote[0]["latent"][None]).shape == (1, 3, 32, 32)  # by the recipe
    assert uploads.repositories[DATASET].token is not None  # private


def test_a_second_push_uploads_nothing(uploads: UploadHub, encoded: Path) -> None:
    push(encoded / "latents")
    num_commits, num_uploads = len(uploads.commits), len(uploads.uploads)
    assert plan(encoded / "latents", PushOptions()).is_empty  # the license is the card's
    assert push(encoded / "latents", PushOptions()) == commit_of(
        uploads.repositories[DATASET].revisions["main"]
    )
    assert (len(uploads.commits), len(uploads.uploads)) == (num_commits, num_uploads) == (1, 6)


def test_an_update_uploads_what_is_new_and_an_open_dataset_stays_at_its_commit(
    uploads: UploadHub,
    make_photos: Callable[..., Path],
    write_photos: Callable[[Path, int], Path],
    tmp_path: Path,
) -> None:
    photos, latents = make_photos(4), tmp_path / "latents"
    overrides = {"batch_size": 2, "output.unit_size": 2, "threads": 1, "preview": 0}
    lk.encode(photos, latents, size=32, overrides=overrides)
    first = push(latents)
    before = lk.open(f"hf://datasets/{NAME}", cache=tmp_path / "cache")
    more = write_photos(tmp_path / "more", 6)
    for number in (4, 5):
        (more / f"{number:03d}.png").rename(photos / f"{number:03d}.png")
    lk.encode(photos, latents, size=32, overrides=overrides)
    uploads.uploads.clear()
    second = push(latents)
    new = ["units/001-000000.safetensors", "plans/001.parquet", "index/001.parquet"]
    assert sorted(uploads.uploads) == sorted(hash_of(latents / name) for name in new)
    assert sorted(uploads.commits[-1]) == sorted(
        [*new, "dataset.json", "README.md", "index/000.parquet"]
    )
    assert "index/000.parquet" not in uploads.repositories[DATASET].revisions["main"]
    assert len(before) == 4
    for row in range(4):  # no unit of it has been read yet
        assert torch.equal(before.moments(row)["mean"], lk.open(latents).moments(row)["mean"])
    uploads.downloads.clear()
    after = lk.open(f"hf://datasets/{NAME}", cache=tmp_path / "cache")
    assert [len(after), len(lk.open(f"hf://datasets/{NAME}@{first}"))] == [6, 4]
    assert str(after.folder).endswith(f"@{second}")
    for row in range(6):
        after.moments(row)
    units = [name for name in uploads.downloads if "/units/" in name]
    assert units == [f"{DATASET}/units/001-000000.safetensors"]  # the others are in the cache

    compact(open_folder(str(latents)))
    assert "or this one before `latentkit compact`" in refused(latents)
    push(latents, PushOptions(replace=True))
    names = set(uploads.repositories[DATASET].revisions["main"])
    assert {name for name in names if name.startswith(("units/", "plans/", "index/"))} == {
        file.relative_to(latents).as_posix() for file in latents.glob("*/*.*")
    }


def test_units_come_first_and_no_commit_between_is_a_dataset(
    uploads: UploadHub, encoded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_module, "UNITS_PER_COMMIT", 1)
    push(encoded / "latents")
    first, second, last = uploads.commits
    assert [first, second] == [[f"units/000-{number:06d}.safetensors"] for number in range(2)]
    assert {"dataset.json", "README.md", "plans/000.parquet"} < set(last)
    revisions = uploads.repositories[DATASET].revisions
    between = [name for name, files in revisions.items() if len(files) in (2, 3)]
    assert len(between) == 2
    for commit in between:
        with pytest.raises(StoreError, match=r"contains no dataset\.json"):
            lk.open(f"hf://datasets/{NAME}@{commit}")
        with pytest.raises(StoreError, match="upload is unfinished; push it again"):
            pull_dataset(f"{NAME}@{commit}", str(encoded / "out"))


def test_a_killed_push_goes_on_where_it_stopped(uploads: UploadHub, encoded: Path) -> None:
    running: list[subprocess.Popen[bytes]] = []

    def kill_at_the_third_upload(line: str) -> None:
        sent = [one for one in uploads.requests if one.startswith("PUT")]
        if line in sent[2:]:
            running[0].kill()
            running[0].wait()

    uploads.on_request = kill_at_the_third_upload
    command = line_of("push", str(encoded / "latents"), NAME, "--license", "cc0-1.0")
    running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    assert running[0].wait(60) == -signal.SIGKILL
    assert uploads.commits == []
    uploads.on_request = lambda line: None
    push(encoded / "latents")
    assert len(uploads.uploads) == len(set(uploads.uploads))  # nothing twice
    local = open_folder(str(encoded / "latents"))
    assert set(uploads.uploads) >= {
        hash_of(local.local_copy(f"units/{n}")) for n in local.list("units")
    }
    assert len(lk.open(f"hf://datasets/{NAME}")) == 6


def test_a_stopped_push_says_how_to_go_on(
    uploads: UploadHub, encoded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["push", str(encoded / "latents"), NAME, "--license", "cc0-1.0"]
    kinds = (signal.SIGTERM, signal.SIGINT)
    handlers = [signal.getsignal(kind) for kind in kinds]

    def stop(line: str) -> None:
        if line.startswith("PUT /objects"):
            os.kill(os.getpid(), signal.SIGTERM)

    uploads.on_request = stop
    try:
        assert main(words) == 143
    finally:
        for kind, handler in zip(kinds, handlers, strict=True):
            signal.signal(kind, handler)
    assert "terminated; the same command goes on from here" in capsys.readouterr().err
    assert uploads.commits == []
    uploads.on_request = lambda line: None
    push(encoded / "latents")
    assert len(lk.open(f"hf://datasets/{NAME}")) == 6


def test_a_dry_run_says_what_would_be_published_and_writes_nothing(
    uploads: UploadHub, encoded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["push", str(encoded / "latents"), NAME, "--license", "cc0-1.0", "--dry-run"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"{NAME}: would upload 9 files" in said
    assert f"recipe.yaml have './photos' instead of '{encoded}/photos'" in said
    assert "preview.png shows samples of the source" in said
    assert "license: cc0-1.0" in said
    assert "the columns text" in said
    assert not [line for line in uploads.requests if not line.startswith("GET")]
    assert uploads.repositories == {}


def test_no_path_of_this_machine_is_published(uploads: UploadHub, encoded: Path) -> None:
    push(encoded / "latents")
    files = uploads.repositories[DATASET].revisions["main"]
    assert [name for name, content in files.items() if b"alice" in content.lower()] == ["README.md"]
    assert b"alice" not in files["README.md"].replace(NAME.encode(), b"")
    assert b"path: ./photos" in files["recipe.yaml"]
    push(encoded / "latents", PushOptions(keep_paths=True))
    files = uploads.repositories[DATASET].revisions["main"]
    for name in ("dataset.json", "recipe.yaml"):
        assert files[name] == (encoded / "latents" / name).read_bytes()


def test_the_card_is_computed_and_keeps_what_others_wrote(
    uploads: UploadHub, latents: Path
) -> None:
    push(latents)
    repository = uploads.repositories[DATASET]
    files = repository.revisions["main"]
    edited = files["README.md"].replace(b"license:", b"pretty_name: Photos\nlicense:", 1)
    edited = edited.replace(b"---\n\n<!--", b"---\n\nMy own words.\n\n<!--").replace(
        b"6 latents", b"7"
    )
    repository.revisions["main"] = {**files, "README.md": edited + b"\nThe end.\n"}
    (latents / "preview.png").unlink()
    push(latents, PushOptions())
    card = repository.revisions["main"]["README.md"].decode()
    _, header, text = card.split("---\n", 2)
    metadata = yaml.safe_load(header)
    assert (metadata["license"], metadata["pretty_name"]) == ("cc0-1.0", "Photos")
    assert metadata["size_categories"] == ["n<1K"]
    assert metadata["task_categories"] == ["text-to-image"]
    assert text.startswith("\nMy own words.\n\n<!-- latentkit begin")
    assert text.endswith("<!-- latentkit end -->\n\nThe end.\n")
    assert "6 latents of 6 samples" in text
    assert "preview.png" not in text
    data = lk.open(latents)
    means = np.stack([data.moments(row)["mean"].numpy() for row in range(6)])
    for channel in range(4):
        line = next(line for line in text.splitlines() if line.startswith(f"| {channel} |"))
        numbers = [float(cell) for cell in line.strip("| ").split(" | ")]
        assert numbers[1] == pytest.approx(means[:, channel].mean(), rel=1e-4)
    parts = json.loads((latents / "dataset.json").read_text())["parts"]
    assert parts["encoder.weights"] in text
    assert data.fingerprint in text


def test_the_snippet_of_the_card_runs(uploads: UploadHub, encoded: Path) -> None:
    push(encoded / "latents")
    card = uploads.repositories[DATASET].revisions["main"]["README.md"].decode()
    program = card.split("```python\n")[1].split("```")[0]
    found: dict[str, object] = {}
    exec(program, found)
    assert found["batch"]["latent"].shape == (6, 4, 4, 4)  # type: ignore[index]


def test_datasets_shows_the_index(uploads: UploadHub, encoded: Path, tmp_path: Path) -> None:
    push(encoded / "latents")
    pull_dataset(NAME, str(tmp_path / "out"))
    shown = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert shown["train"]["key"][:] == lk.open(encoded / "latents").keys


def test_a_branch_is_made_and_main_stays_empty(uploads: UploadHub, encoded: Path) -> None:
    push(encoded / "latents", name=f"{NAME}@v2")
    revisions = uploads.repositories[DATASET].revisions
    assert "dataset.json" not in revisions["main"]
    assert "dataset.json" in revisions["v2"]
    assert len(lk.open(f"hf://datasets/{NAME}@v2")) == 6


# ---------------------------------------------------------------- refusals


def refused(folder: Path, options: PushOptions = LICENSED, name: str = NAME) -> str:
    with pytest.raises(StoreError) as caught:
        push(folder, options, name)
    return str(caught.value)


def test_an_unfinished_or_damaged_dataset_is_refused(uploads: UploadHub, latents: Path) -> None:
    unit = latents / "units/000-000001.safetensors"
    content = bytearray(unit.read_bytes())
    content[-1] ^= 1
    unit.write_bytes(content)
    assert "is damaged, so nothing is uploaded: units/000-000001.safetensors" in refused(latents)
    unit.unlink()
    (latents / "dataset.json").unlink()
    assert "is unfinished. Run `latentkit run" in refused(latents)
    assert uploads.repositories == {}


def test_an_unfinished_update_is_refused(uploads: UploadHub, latents: Path) -> None:
    (latents / "plans/001.parquet").write_bytes((latents / "plans/000.parquet").read_bytes())
    assert "a run that changes this dataset is unfinished" in refused(latents)


@pytest.mark.parametrize("license_id", [None, "CC BY 4.0"])
def test_a_license_is_asked_for(uploads: UploadHub, encoded: Path, license_id: str | None) -> None:
    said = refused(encoded / "latents", PushOptions(license=license_id))
    assert "the card needs a license" in said
    assert uploads.repositories == {}


def test_other_contents_of_a_repository_are_not_touched(
    uploads: UploadHub, encoded: Path, golden: Path
) -> None:
    uploads.add(NAME, {"README.md": b"# Mine\n", "train.csv": b"a\n1\n"}, "datasets")
    assert f"{NAME} has other files, such as train.csv" in refused(encoded / "latents")
    push(golden, name="alice/other")
    with pytest.raises(FingerprintError, match="has another dataset, made with other weights"):
        push(encoded / "latents", name="alice/other")
    push(encoded / "latents", PushOptions(replace=True), name="alice/other")
    assert len(lk.open("hf://datasets/alice/other")) == 6


def test_a_dataset_of_other_samples_is_not_replaced(
    uploads: UploadHub, encoded: Path, make_photos: Callable[..., Path], tmp_path: Path
) -> None:
    push(encoded / "latents")
    other = tmp_path / "other"
    lk.encode(make_photos(6), other, size=32, overrides={"batch_size": 2, "preview": 0})
    assert lk.open(other).fingerprint == lk.open(encoded / "latents").fingerprint
    assert "has another dataset, of other samples" in refused(other)


def test_accounts_and_names(
    uploads: UploadHub,
    encoded: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = encoded / "latents"
    for name in ("photos", "hf://models/alice/photos", "alice/photos/below", "s3://bucket/x"):
        assert "is no dataset repository on the hub" in refused(folder, name=name)
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert (
        "your token may not write alice/photos; give a fine-grained token write access"
        in refused(folder)
    )
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(folder), NAME, "--license", "mit"]) == 2
    assert "uploading needs an account on the hub: log in with `hf auth" in capsys.readouterr().err


def test_a_commit_of_somebody_else_meanwhile_stops_the_push(
    uploads: UploadHub, latents: Path
) -> None:
    push(latents)
    repository = uploads.repositories[DATASET]
    before = repository.revisions["main"]
    (latents / "preview.png").write_bytes(b"another")

    def commit_first(line: str) -> None:
        if "/commit/" in line:
            repository.revisions["main"] = {**before, "notes.md": b"theirs"}

    uploads.on_request = commit_first
    assert "it was changed on the hub meanwhile; run again" in refused(latents)
    uploads.on_request = lambda line: None
    push(latents)
    assert repository.revisions["main"]["notes.md"] == b"theirs"
    assert repository.revisions["main"]["preview.png"] == b"another"


def test_absolute_keys_are_published_only_when_told(
    uploads: UploadHub, encoded: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    photo = encoded / "photos" / "000.png"
    table.write_text(f"name,image\n/home/bob/secret/a.png,{photo}\n")
    latents = tmp_path / "by-table"
    overrides = {"preview": 0, "source.with.key": "name", "source.with.media": "image"}
    lk.encode(table, latents, size=32, overrides=overrides)
    said = refused(latents)
    assert "absolute paths would be published" in said
    assert "key (such as '/home/bob/secret/a.png')" in said
    push(latents, PushOptions(license="mit", keep_paths=True))
    assert lk.open(f"hf://datasets/{NAME}").keys == ["/home/bob/secret/a.png"]


def test_superseded_rows_are_pointed_out(
    uploads: UploadHub, make_photos: Callable[..., Path], tmp_path: Path
) -> None:
    photos, latents = make_photos(3), tmp_path / "latents"
    overrides = {"batch_size": 1, "threads": 1, "preview": 0}
    lk.encode(photos, latents, size=32, overrides=overrides)
    (photos / "001.png").unlink()
    lk.encode(photos, latents, size=32, overrides=overrides)
    push(latents)
    notes = plan(latents, PushOptions()).notes
    assert any("1 row of removed or changed samples" in note for note in notes)
    assert verify_folder(open_folder(f"hf://datasets/{NAME}")).report().damage == ()
