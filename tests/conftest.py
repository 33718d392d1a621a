"""Small real inputs that many tests share: photographs drawn here, and autoencoders with random
weights saved as diffusers folders.
"""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from hub_server import FakeHub
from pictures import draw_picture

# See tests/devices/README.md: the tests run on the simulated device, here and in the processes that
# they start.
ON_SIM = os.environ.get("LATENTKIT_TEST_DEVICE") == "sim"
if ON_SIM:
    sys.path.insert(0, str(Path(__file__).with_name("devices") / "sim"))
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [sys.path[0], os.environ.get("PYTHONPATH")])
    )
    os.environ.setdefault("LATENTKIT_SIM", "1")
    importlib.import_module("latentkit_sim").autoload()


@pytest.fixture(autouse=ON_SIM)
def no_device_mistakes() -> Iterator[None]:
    """Fail a test that leaves a mistake on the simulated device behind."""
    yield
    assert not (ON_SIM and torch.sim.violations())  # type: ignore[attr-defined]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests, so that none is left to one of several processes at the end."""
    items.sort(key=lambda item: "faults" not in item.path.parts)


WritePhotos = Callable[..., Path]


@pytest.fixture(scope="session")
def write_photos() -> WritePhotos:
    """Fill a folder with `count` pictures and a caption each; names sort in the order of their
    numbers.
    """

    def write(folder: Path, count: int) -> Path:
        folder.mkdir()
        for number in range(count):
            draw_picture(number).save(folder / f"{number:03d}.png")
            (folder / f"{number:03d}.txt").write_text(f"picture number {number}")
        return folder

    return write


@pytest.fixture
def make_photos(tmp_path: Path, write_photos: WritePhotos) -> Callable[..., Path]:
    """A folder of `count` pictures in the test's own folder."""
    return lambda count, name="photos": write_photos(tmp_path / name, count)


@pytest.fixture(scope="session")
def kl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny AutoencoderKL, f4, 4 channels, with a shift and a scale."""
    import diffusers

    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    )
    folder = tmp_path_factory.mktemp("autoencoder-kl")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def taesd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny AutoencoderTiny, f4, deterministic."""
    import diffusers

    torch.manual_seed(0)
    model = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=4,
    )
    folder = tmp_path_factory.mktemp("autoencoder-tiny")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with nothing in it, in the place of the real one, with an empty cache and no token,
    here and in new processes.
    """
    from huggingface_hub import constants

    with FakeHub() as server:
        for name in (
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "HF_HUB_OFFLINE",
            "HF_HUB_CACHE",
            "HF_DATASETS_CACHE",
        ):
            monkeypatch.delenv(name, raising=False)
        point_to(server.endpoint, tmp_path, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server


def point_to(endpoint: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub's library, which has read the environment already, find the hub there, and its
    own files below `home`.
    """
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "hf" / "token"))


@pytest.fixture
def put_hub_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the hub's library look for the hub at another address from now on."""
    return lambda endpoint: point_to(endpoint, tmp_path, monkeypatch)


class S3Server:
    """An S3 server on this machine, in a process of its own.

    Args:
        recording: file of requests, by which a killed server that is started again has the objects
            it had; None: it loses them.
    """

    def __init__(self, recording: Path | None) -> None:
        self._recording = recording
        self._process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port: int = listener.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serve; returns when requests are answered."""
        line = [sys.executable, str(Path(__file__).with_name("s3_server.py")), str(self.port)]
        line += [] if self._recording is None else [str(self._recording)]
        self._process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            assert self._process.poll() is None, "the server didn't start"
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except ConnectionRefusedError:
                time.sleep(0.05)

    def kill(self) -> None:
        """End it by SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def slow_down(self, delay_seconds: float) -> int:
        """Let each request take so long from now on; how many were under way at one time since the
        last call.
        """
        with urllib.request.urlopen(f"{self.endpoint}/requests?delay={delay_seconds}") as answer:
            return int(answer.read())

    def log(self) -> list[str]:
        """Method, path and query of each request since the last call."""
        with urllib.request.urlopen(f"{self.endpoint}/log") as answer:
            return str(answer.read().decode()).splitlines()

    def lend(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let s3:// lead here in this process and those that it starts; there is one empty bucket,
        named "bucket".
        """
        login = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for name, value in {
            **login,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_MAX_ATTEMPTS": "1",
        }.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        fsspec.filesystem("s3").mkdir("bucket")


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[S3Server]:
    server = S3Server(None)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def s3_server(_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server with an empty bucket."""
    request = urllib.request.Request(f"{_s3_server.endpoint}/moto-api/reset", method="POST")
    urllib.request.urlopen(request).close()
    _s3_server.lend(monkeypatch)
    yield _s3_server
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def mortal_s3_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server with an empty bucket, to be killed and started again."""
    server = S3Server(tmp_path / "requests.jsonl")
    server.start()
    server.lend(monkeypatch)
    yield server
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.kill()
