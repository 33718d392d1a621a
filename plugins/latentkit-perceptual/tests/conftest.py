"""Files of random weights in the layouts of real ones."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

MADE = runpy.run_path(str(Path(__file__).with_name("made_weights.py")))


@pytest.fixture(scope="session")
def pictures() -> tuple[Tensor, Tensor]:
    """Two batches of pictures, (2, 3, 64, 48) in [-1, 1]."""
    drawn: tuple[Tensor, Tensor] = MADE["draw_pictures"]()
    return drawn


@pytest.fixture(scope="session")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """File of a whole network, as LPIPS saves it, by the name of the net."""
    folder = tmp_path_factory.mktemp("weights")

    def write(net: str) -> Path:
        path = folder / f"{net}.pth"
        if not path.exists():
            torch.save(MADE["draw_weights"](net), path)
        return path

    return write


@pytest.fixture(scope="session")
def two_files(
    whole_file: Callable[[str], Path],
) -> Callable[[str, Callable[[Any, Path], None], str], tuple[Path, Path]]:
    """Files of the same network as torchvision and the package lpips have it: one with all of the
    classifier, one with the heads.
    """

    def write(net: str, save: Callable[[Any, Path], None], suffix: str) -> tuple[Path, Path]:
        whole: dict[str, Tensor] = torch.load(whole_file(net), weights_only=True)
        backbone = {
            f"features.{name.split('.', 2)[2]}": value
            for name, value in whole.items()
            if name.startswith("net.")
        }
        heads = {name: value for name, value in whole.items() if name.startswith("lin")}
        classifier = {
            "classifier.6.weight": torch.zeros(10, 4),
            "classifier.6.bias": torch.zeros(10),
        }
        folder = whole_file(net).parent
        paths = folder / f"{net}-backbone{suffix}", folder / f"{net}-heads{suffix}"
        save({**backbone, **classifier}, paths[0])
        save(heads, paths[1])
        return paths

    return write
