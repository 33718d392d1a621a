"""A small latent dataset, and a hub to upload it to."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import FakeHub
from hub_uploads import WRITER, UploadHub
from huggingface_hub import constants

import latentkit as lk

OVERRIDES = {"batch_size": 2, "output.unit_size": 2, "threads": 1, "preview": 2}


@pytest.fixture(scope="module")
def encoded(
    tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[[Path, int], Path]
) -> Path:
    """A folder with photos, six pictures, and latents, three units of them."""
    home = tmp_path_factory.mktemp("alice") / "private"
    home.mkdir()
    write_photos(home / "photos", 6)
    lk.encode(home / "photos", home / "latents", size=32, overrides=OVERRIDES)
    return home


@pytest.fixture
def latents(encoded: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, to change."""
    return shutil.copytree(encoded / "latents", tmp_path / "latents")


@pytest.fixture
def uploads(
    hub: FakeHub, put_hub_at: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[UploadHub]:
    """A hub in the place of the real one, with a token that may write."""
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with UploadHub() as server:
        put_hub_at(server.endpoint)
        yield server


@pytest.fixture
def golden() -> Path:
    """Another latent dataset, without a recipe."""
    return Path(__file__).parents[2] / "golden" / "v1"
