"""Files that are no weights, or those of another network: one message each, which names the file.
"""

from __future__ import annotations

import importlib
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from latentkit_perceptual.loss import open_lpips
from latentkit_perceptual.plugin import PerceptualConfig
from latentkit_perceptual.weights import find_packaged, split_tensors
from safetensors.torch import save_file

from latentkit.encoders.weight_files import read_tensors
from latentkit.errors import EncoderError
from latentkit.recipe.schema import TrainRecipe, load_recipe

WholeFile = Callable[[str], Path]


class Thing:
    """What a pickle may hold besides tensors."""


def save_object(path: Path) -> None:
    torch.save({"weights": torch.zeros(2), "thing": Thing()}, path)


BAD_FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": (
        "vgg.pth",
        lambda path: None,
        r"No such file .*models/vgg16-397923af\.pth, and pip install --no-deps lpips",
    ),
    "a folder": (
        "vgg.pth",
        lambda path: path.mkdir(),
        r"vgg\.pth: expected a file of weights: Is a directory",
    ),
    "a web page": (
        "vgg.pth",
        lambda path: path.write_text("\n<!DOCTYPE html><html>"),
        r"vgg\.pth is a web page, not weights",
    ),
    "a page by another name": (
        "vgg.safetensors",
        lambda path: path.write_text("<html>"),
        r"vgg\.safetensors is a web page, not weights",
    ),
    "objects": (
        "vgg.pth",
        save_object,
        "26 of 26 tensors for",
    ),  # the tensor beside the object is read
    "objects, the old way": (
        "vgg.pth",
        lambda path: path.write_bytes(pickle.dumps(Thing(), protocol=2)),
        "contains other Python objects",
    ),
    "a pointer": (
        "vgg.pth",
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"),
        "is a pointer of git-lfs",
    ),
    "a text": (
        "vgg.pth",
        lambda path: path.write_text("weights"),
        r"expected weights, .* it is damaged, cut off",
    ),
    "nothing at all": (
        "vgg.pth",
        lambda path: path.write_bytes(b""),
        r"expected weights, .* the file is empty",
    ),
    "no safetensors": (
        "vgg.safetensors",
        lambda path: path.write_bytes(b"x" * 99),
        r"expected weights, .* it is damaged, cut off",
    ),
    "a lone tensor": (
        "vgg.pth",
        lambda path: torch.save(torch.zeros(2), path),
        r"expected tensors by name, .* got a Tensor",
    ),
    "nested": (
        "vgg.pth",
        lambda path: torch.save({"model": {"a": torch.zeros(1)}}, path),
        "26 of 26 tensors for",
    ),
    "other keys": (
        "vgg.pth",
        lambda path: torch.save({"encoder.weight": torch.zeros(2)}, path),
        "26 of 26 tensors for",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_weights_gives_one_message_with_its_name(
    name: str, tmp_path: Path
) -> None:
    file, write, message = BAD_FILES[name]
    write(tmp_path / file)
    with pytest.raises(EncoderError, match=message) as caught:
        open_lpips(PerceptualConfig(net="lpips-vgg", model=file), tmp_path)
    assert str(tmp_path / file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_cut_off_is_refused(whole_file: WholeFile, tmp_path: Path) -> None:
    (tmp_path / "cut.pth").write_bytes(whole_file("lpips-alex").read_bytes()[:9000])
    with pytest.raises(
        EncoderError, match=r"cut\.pth: expected weights, .* it is damaged, cut off"
    ):
        read_tensors(tmp_path / "cut.pth")


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Program:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "run",)

    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"a": Program()}, protocol=2))
    with pytest.raises(EncoderError, match="a pickle can run any program"):
        read_tensors(tmp_path / "bad.pth")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file_of", "net", "message"),
    [
        (
            "lpips-alex",
            "lpips-vgg",
            "22 of 26 tensors for lpips-vgg are not there, such as that of layer 2.weight",
        ),
        ("lpips-vgg", "lpips-alex", "such as that of layer 3.weight"),
        ("lpips-alex", "st-lpips-alex", "such as that of layer 1.filt"),
    ],
)
def test_another_networks_weights_are_refused(
    file_of: str, net: str, message: str, whole_file: WholeFile
) -> None:
    with pytest.raises(EncoderError, match=message):
        open_lpips(PerceptualConfig(net=net, model=str(whole_file(file_of))), Path())


def test_weights_of_another_shape_are_refused(whole_file: WholeFile, tmp_path: Path) -> None:
    tensors = torch.load(whole_file("lpips-alex"), weights_only=True)
    tensors["net.slice1.0.weight"] = torch.zeros(64, 3, 7, 7)
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(
        EncoderError,
        match=r"layer 0\.weight is \(64, 3, 7, 7\), and in lpips-alex it is \(64, 3, 11, 11\)",
    ):
        open_lpips(PerceptualConfig(net="lpips-alex", model="other.safetensors"), tmp_path)


def test_heads_of_another_network_are_refused(whole_file: WholeFile) -> None:
    config = PerceptualConfig(
        net="lpips-alex", model=str(whole_file("lpips-alex")), heads=str(whole_file("lpips-vgg"))
    )
    with pytest.raises(
        EncoderError,
        match=(
            r"lpips-vgg\.pth: .* of 64, 192, 384, 256, 256 channels .* got 64, 128, 256, 512, 512"
        ),
    ):
        open_lpips(config, Path())


def test_prefixes_and_what_is_not_needed_are_passed_over(whole_file: WholeFile) -> None:
    tensors = torch.load(whole_file("lpips-alex"), weights_only=True)
    renamed = {f"loss.perceptual_loss.{name}": value for name, value in tensors.items()}
    layers, heads = split_tensors(
        {**renamed, "encoder.conv_in.weight": torch.zeros(1), "classifier.1.weight": torch.zeros(1)}
    )
    assert sorted(heads) == [0, 1, 2, 3, 4]
    assert sorted(layers) == sorted(
        f"{number}.{kind}" for number in (0, 3, 6, 8, 10) for kind in ("bias", "weight")
    )


# ---------------------------------------------------------------- files inside installed packages


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, Path], None]:
    """An installed package, under its real name, that can't be imported and holds one file."""

    def install(name: str, file: str, content: Path) -> None:
        path = tmp_path / "site" / name / file
        path.parent.mkdir(parents=True)
        path.write_bytes(content.read_bytes())
        (tmp_path / "site" / name / "__init__.py").write_text("raise ImportError('torchvision')")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        importlib.invalidate_caches()

    return install


def test_weights_inside_stlpips_are_found_without_importing_it(
    whole_file: WholeFile, package: Any
) -> None:
    package(
        "stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth", whole_file("st-lpips-alex")
    )
    model = open_lpips(PerceptualConfig(net="st-lpips-alex"), Path())
    assert model.num_maps == 5
    assert "stlpips_pytorch" not in sys.modules


def test_heads_inside_lpips_are_found_without_importing_it(two_files: Any, package: Any) -> None:
    backbone, heads = two_files("lpips-alex", torch.save, ".pth")
    package("lpips", "weights/v0.1/alex.pth", heads)
    assert open_lpips(PerceptualConfig(net="lpips-alex", model=str(backbone)), Path()).num_maps == 5
    assert "lpips" not in sys.modules


def test_what_is_not_installed_is_named(two_files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    importlib.invalidate_caches()
    backbone, _ = two_files("lpips-alex", torch.save, ".pth")
    with pytest.raises(
        EncoderError,
        match=r"net st-lpips-vgg needs its weights: pip install --no-deps stlpips-pytorch==0\.0\.2",
    ):
        open_lpips(PerceptualConfig(net="st-lpips-vgg"), Path())
    with pytest.raises(
        EncoderError,
        match=r"net lpips-alex needs its linear heads: pip install --no-deps lpips, or heads",
    ):
        open_lpips(PerceptualConfig(net="lpips-alex", model=str(backbone)), Path())
    with pytest.raises(
        EncoderError,
        match=(
            r"net lpips-vgg needs model: a file with torchvision's weights .*/vgg16-397923af\.pth"
        ),
    ):
        open_lpips(PerceptualConfig(), Path())
    assert find_packaged("no_such_package", "x") is None


# ---------------------------------------------------------------- the recipes of the repository

RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.mark.parametrize("name", ["finetune-decoder", "train-kl-f8-gan", "train-kl-f16-eq"])
def test_a_shipped_recipe_and_its_message_name_what_to_fetch(
    name: str, two_files: Any, tmp_path: Path
) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert isinstance(recipe, TrainRecipe)
    (options,) = (
        PerceptualConfig.model_validate(loss.with_)
        for loss in recipe.losses
        if loss.use == "perceptual"
    )
    with pytest.raises(EncoderError) as caught:
        open_lpips(options, tmp_path / "recipes")
    header = (RECIPES / f"{name}.yaml").read_text()
    for needed in (
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "pip install --no-deps lpips",
    ):
        assert needed in header
        assert needed in str(caught.value)
    backbone, heads = two_files("lpips-vgg", torch.save, ".pth")
    shutil.copy(backbone, tmp_path / "vgg16-397923af.pth")
    assert (
        open_lpips(options.model_copy(update={"heads": str(heads)}), tmp_path / "recipes").num_maps
        == 5
    )
