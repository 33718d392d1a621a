"""The real command on a real S3 server: the dataset is the local one, byte for byte, whoever is
killed on the way.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import pytest

from latentkit.reading.dataset import LatentDataset
from latentkit.store.dataset_json import read_units
from latentkit.store.folder import Folder
from latentkit.store.open_folder import open_folder
from latentkit.store.plan import read_chain

URL = "s3://bucket/latents"
NUM_PHOTOS, UNIT_SIZE = 40, 1
NUM_UNITS = NUM_PHOTOS // UNIT_SIZE
OPTIONS = [
    "batch_size=2",
    "threads=1",
    f"output.unit_size={UNIT_SIZE}",
    "preview=0",
    "modality.with.size=128",
    "output.dtype=float32",
]
IMPATIENT = (
    "import sys; from latentkit.cli import main; from latentkit.store import outage\n"
    "outage.GIVE_UP_AFTER_SECONDS = 1.0\n"
    "sys.exit(main())"
)


class Command:
    """The command line at work in a process of its own."""

    def __init__(self, start: list[str], printed: Path) -> None:
        self._printed = printed
        self._output: IO[bytes] = printed.open("wb")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            start, stdout=self._output, stderr=subprocess.STDOUT, env=environment
        )

    def printed(self) -> str:
        return self._printed.read_text()

    def finish(self) -> int:
        code = self.process.wait()
        self._output.close()
        return code

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.finish()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until it holds; while it doesn't, the process has to be at work."""
        while not condition():
            assert self.process.poll() is None, self.printed()
            time.sleep(0.05)


Start = Callable[..., Command]


class S3Server(Protocol):
    """What the fixture of that name gives."""

    port: int

    def start(self) -> None: ...
    def kill(self) -> None: ...
    def slow_down(self, delay_seconds: float) -> int: ...


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the command with some arguments; it is killed at the latest when the test ends."""
    begun: list[Command] = []

    def begin(*arguments: str, program: tuple[str, ...] = ("-m", "latentkit")) -> Command:
        begun.append(
            Command([sys.executable, *program, *arguments], tmp_path / f"printed-{len(begun)}")
        )
        return begun[-1]

    yield begin
    for command in begun:
        command.kill()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]) -> Path:
    return write_photos(tmp_path_factory.mktemp("s3") / "photos", NUM_PHOTOS)


def encode(photos: Path, output: str) -> list[str]:
    return [
        "encode",
        str(photos),
        output,
        "--encoder",
        "tiny-kl",
        *(part for option in OPTIONS for part in ("--set", option)),
    ]


@pytest.fixture(scope="module")
def local(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one undisturbed local run makes."""
    output = tmp_path_factory.mktemp("local") / "latents"
    command = Command(
        [sys.executable, "-m", "latentkit", *encode(photos, str(output))],
        output.with_name("printed"),
    )
    assert command.finish() == 0, command.printed()
    return output


def contents(folder: Folder) -> dict[str, bytes]:
    """All files that have to be the same."""
    names = [
        "dataset.json",
        *(f"{part}/{name}" for part in ("plans", "units", "index") for name in folder.list(part)),
    ]
    return {name: folder.read(name) for name in names}


def num_units() -> int:
    return len(open_folder(URL).list("units"))


def test_two_processes_on_one_url_make_what_one_makes_locally_and_it_is_read_through_a_small_cache(
    photos: Path, local: Path, s3_server: S3Server, start: Start, tmp_path: Path
) -> None:
    both = [start(*encode(photos, URL)) for _ in range(2)]
    for command in both:
        assert command.finish() == 0, command.printed()
    assert f"{URL}: " in both[0].printed()
    assert f"latentkit inspect {URL}\n" in both[0].printed()
    folder = open_folder(URL)
    assert contents(folder) == contents(open_folder(str(local)))
    assert folder.list("claims") == []

    s3_server.slow_down(0.02)
    read = read_units(folder, read_chain(folder))
    assert s3_server.slow_down(0) > 4, "units are read many at a time"
    assert [*read] == [*read_units(open_folder(str(local)), read_chain(folder))]
    assert [unit.header.file_bytes for unit in read.values()] == [
        folder.size(f"units/{name}.safetensors") for name in read
    ]

    units = [folder.size(f"units/{name}") for name in folder.list("units")]
    cache, limit = tmp_path / "cache", 3 * max(units)
    remote = LatentDataset(open_folder(URL, cache=(cache, limit)), "moments", "all", (), 0)
    expected = LatentDataset(open_folder(str(local)), "moments", "all", (), 0)
    assert remote.keys == expected.keys
    for index in range(0, NUM_PHOTOS, UNIT_SIZE):
        assert np.array_equal(remote[index]["moments"], expected[index]["moments"])
        assert sum(path.stat().st_size for path in cache.iterdir()) <= limit
    again = LatentDataset(open_folder(URL, cache=(cache, limit)), "moments", "all", (), 0)
    assert np.array_equal(again[0]["moments"], expected[0]["moments"])


def test_the_server_knows_nothing_of_an_upload_whose_sender_was_killed(
    mortal_s3_server: S3Server,
) -> None:
    """Or what a kill leaves behind would be the test server's fault: moto stores the part, and a
    replay of it waits for the rest.
    """
    for sent in (b"", b"abc"):
        with socket.create_connection(("127.0.0.1", mortal_s3_server.port)) as connection:
            connection.sendall(
                b"PUT /bucket/half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
                + sent
            )
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
    mortal_s3_server.kill()
    mortal_s3_server.start()
    assert open_folder("s3://bucket").list("") == []


def test_server_and_processes_that_are_killed_on_the_way_end_bit_identical(
    photos: Path, local: Path, mortal_s3_server: S3Server, start: Start
) -> None:
    left = start(*encode(photos, URL), program=("-c", IMPATIENT))
    left.wait_until(lambda: num_units() >= 2)
    mortal_s3_server.kill()
    assert left.finish() == 2, left.printed()
    message = left.printed().splitlines()[-1]
    assert message.startswith(f"latentkit: {URL}/")
    assert message.endswith("Run again when it can; nothing is lost")
    assert "Traceback" not in left.printed()

    mortal_s3_server.start()
    done = num_units()
    assert 2 <= done < NUM_UNITS
    killed = start(*encode(photos, URL))
    killed.wait_until(lambda: num_units() >= done + 2)
    killed.kill()

    done = num_units()
    assert done < NUM_UNITS
    patient = start("run", f"{URL}/recipe.yaml")
    patient.wait_until(lambda: num_units() >= done + 2)
    mortal_s3_server.kill()
    patient.wait_until(lambda: f"{URL} can't be reached; waiting\n" in patient.printed())
    mortal_s3_server.start()
    assert patient.finish() == 0, patient.printed()
    assert f"{URL} can be reached again\n" in patient.printed()
    assert contents(open_folder(URL)) == contents(open_folder(str(local)))
    assert open_folder(URL).list("claims") == []
