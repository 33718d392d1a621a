"""Source `datasets`, hub ids: unknown names and a hub out of reach, without one ever being asked."""

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


@pytest.fixture
def hub_without_data_sets() -> Iterator[str]:
    """Address of a real server on this machine that answers as the hub does for names it does not know."""

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
        "import sys; from latentkit.builtin import DatasetsConfig; from latentkit.contracts import BuildContext\n"
        "from latentkit.errors import SourceError; from latentkit.sources.datasets import open_datasets\n"
        "try: print(len(open_datasets(DatasetsConfig(path=sys.argv[1]), BuildContext())), 'rows')\n"
        "except SourceError as err: print(err)"
    )
    variables = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    variables |= {"HF_HOME": str(tmp_path / "home"), **environment}
    command = [sys.executable, "-c", program, path]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=variables, cwd=tmp_path, timeout=60).stdout


def test_name_that_the_hub_does_not_know_is_told_so(tmp_path: Path, hub_without_data_sets: str) -> None:
    message = open_elsewhere("owner/photos", tmp_path, HF_ENDPOINT=hub_without_data_sets)
    assert "the hub shows no data set of that name" in message
    assert f"({tmp_path / 'owner/photos'} does not exist)" in message


def test_hub_out_of_reach_is_told_so_without_half_a_minute_of_retries(tmp_path: Path) -> None:
    message = open_elsewhere("owner/photos", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "can't be reached" in message
    assert "check the network" in message


def test_hub_data_set_in_the_cache_opens_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "home" / "datasets")
    (tmp_path / "photos").mkdir()
    datasets.Dataset.from_dict({"photo": [b"x", b"y", b"z"]}).to_parquet(tmp_path / "photos" / "train.parquet")
    datasets.load_dataset(str(tmp_path / "photos"))
    (tmp_path / "home" / "datasets" / "photos").rename(tmp_path / "home" / "datasets" / "owner___photos")
    assert open_elsewhere("owner/photos", tmp_path, HF_HUB_OFFLINE="1").split() == ["3", "rows"]
