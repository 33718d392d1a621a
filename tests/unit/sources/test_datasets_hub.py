"""Source `datasets`, hub ids: unknown names and a hub out of reach, without one ever being asked.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import datasets
import pytest
from hub_server import Failure, FakeHub

from latentkit.contracts import BuildContext
from latentkit.errors import SourceError
from latentkit.sources.datasets import open_datasets
from latentkit.sources.options import DatasetsConfig
from latentkit.tasks.recipe_from_arguments import encode_recipe


@pytest.fixture
def hub_without_data_sets() -> Iterator[str]:
    """Address of a real server on this machine that answers as the hub does for names it does not
    know.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def open_elsewhere(path: str, tmp_path: Path, **environment: str) -> str:
    """What a process of its own prints, whose hub is where the environment says."""
    program = (
        "import sys; from latentkit.sources.options import DatasetsConfig; from"
        " latentkit.contracts import BuildContext\n"
        "from latentkit.errors import SourceError; from latentkit.sources.datasets import"
        " open_datasets\n"
        "try: print(len(open_datasets(DatasetsConfig(path=sys.argv[1]), BuildContext())),"
        " 'rows')\n"
        "except SourceError as err: print(err)"
    )
    variables = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    variables |= {"HF_HOME": str(tmp_path / "home"), **environment}
    command = [sys.executable, "-c", program, path]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=variables, cwd=tmp_path, timeout=60
    ).stdout


def test_name_that_the_hub_does_not_know_is_told_so(
    tmp_path: Path, hub_without_data_sets: str
) -> None:
    message = open_elsewhere("owner/photos", tmp_path, HF_ENDPOINT=hub_without_data_sets)
    assert "the hub has no dataset of that name" in message
    assert f"({tmp_path / 'owner/photos'} does not exist)" in message


def test_hub_out_of_reach_is_told_so_without_half_a_minute_of_retries(tmp_path: Path) -> None:
    message = open_elsewhere("owner/photos", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "can't be reached" in message
    assert "check the network" in message


def test_hub_data_set_in_the_cache_opens_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "home" / "datasets")
    (tmp_path / "photos").mkdir()
    datasets.Dataset.from_dict({"photo": [b"x", b"y", b"z"]}).to_parquet(
        tmp_path / "photos" / "train.parquet"
    )
    datasets.load_dataset(str(tmp_path / "photos"))
    (tmp_path / "home" / "datasets" / "photos").rename(
        tmp_path / "home" / "datasets" / "owner___photos"
    )
    assert open_elsewhere("owner/photos", tmp_path, HF_HUB_OFFLINE="1").split() == ["3", "rows"]


# ---------------------------------------------------------------- with the data sets of a small hub


@pytest.fixture
def data_hub(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A hub with a data set of two files, and one that is gated."""
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf" / "datasets")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "hf" / "modules"))
    files = {}
    for number, name in enumerate(("data/train.parquet", "more/extra.parquet")):
        rows = {"photo": [b"x"] * (number + 1), "text": ["y"] * (number + 1)}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "rows.parquet")
        files[name] = (tmp_path / "rows.parquet").read_bytes()
    hub.add("o/photos", files, "datasets").revisions["v1"] = {
        "old/train.parquet": files["data/train.parquet"]
    }
    hub.add("o/gated", files, "datasets", token="hf_good", is_gated=True)
    return hub


def count(path: str, **options: object) -> int:
    source = open_datasets(DatasetsConfig(path=path, **options), BuildContext())  # type: ignore[arg-type]
    assert not hasattr(source, "shards")
    return len(source)


def test_address_of_a_data_set_opens_it_at_its_revision_folder_or_file(data_hub: FakeHub) -> None:
    page = f"{data_hub.endpoint}/datasets/o/photos"
    assert count(f"{page}/tree/main/more") == 2
    assert count(f"{page}/blob/main/more/extra.parquet") == 2
    assert count("hf://datasets/o/photos@v1") == 1
    assert count("o/photos", revision="v1") == 1
    values, _ = encode_recipe(f"{page}/tree/main/more", "out", None)
    assert values["source"] == {"use": "datasets", "with": {"path": f"{page}/tree/main/more"}}


def error_of(path: str, **options: object) -> str:
    with pytest.raises(SourceError) as caught:
        count(path, **options)
    return str(caught.value)


def test_what_keeps_a_data_set_away_is_told(data_hub: FakeHub) -> None:
    gate = (
        f"o/gated is gated: accept its terms at {data_hub.endpoint}/datasets/o/gated, then log in"
        " with `hf auth login`"
    )
    assert gate in error_of("o/gated")
    assert "o/photos has no revision 'nope'" in error_of("o/photos", revision="nope")
    assert "the hub has no dataset of that name (o/nothing)" in error_of("o/nothing")
    assert "is a model on the hub; expected a dataset" in error_of(
        f"{data_hub.endpoint}/o/photos"
    )
    assert "and not a hub id such as owner/name either" in error_of("a b")
    data_hub.failure = Failure(429, {"Retry-After": "9"})
    assert "limit of requests is reached (429): run again in 9 seconds" in error_of("o/photos")
    data_hub.failure = Failure(503)
    assert "the hub has an internal error (503" in error_of("o/photos")
