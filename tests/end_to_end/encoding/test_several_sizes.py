"""Encoders of other size rules in one recipe: one pass where those decide nothing, else as many as
it takes, and never another latent.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import latentkit as lk
from latentkit.contracts import SizeRule
from latentkit.encoding.shared_pass import group_by_input
from latentkit.modalities.image import ImageModality
from latentkit.recipe.schema import EncodeRecipe, parse_recipe
from latentkit.tasks.build_parts import configured_encodes
from latentkit.tasks.encode_task import build_encode

COUNT = 14


@pytest.fixture(scope="module")
def encoders(
    tmp_path_factory: pytest.TempPathFactory, kl_folder: Path
) -> dict[str, dict[str, Any]]:
    """Autoencoders of colors, of which one is for videos, and of grays; each takes multiples of its
    own factor.
    """
    import diffusers

    def kl(levels: int, channels: int) -> Any:
        return diffusers.AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            block_out_channels=(8,) * levels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            latent_channels=4,
            norm_num_groups=4,
        )

    torch.manual_seed(0)
    video = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, 0.2, 0.3, 0.4],
        latents_std=[1.0, 2.0, 3.0, 4.0],
    )
    models = {"f2": kl(2, 3), "video": video, "gray-f2": kl(2, 1), "gray-f4": kl(3, 1)}
    folder = tmp_path_factory.mktemp("encoders")
    for name, model in models.items():
        model.save_pretrained(folder / name)
    paths = {"f4": kl_folder} | {name: folder / name for name in models}
    return {
        name: {"use": "diffusers", "with": {"model": str(path)}} for name, path in paths.items()
    } | {"f8": {"use": "tiny-kl"}}


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each picture was prepared."""
    counts: Counter[str] = Counter()
    prepare = ImageModality.prepare

    def counted(self: Any, sample: Any) -> Any:
        counts[sample.key] += 1
        return prepare(self, sample)

    monkeypatch.setattr(ImageModality, "prepare", counted)
    return counts


@pytest.fixture
def photos(tmp_path: Path, make_photos: Callable[..., Path]) -> Path:
    """Pictures of three shapes, that of the last one its own, and one broken file."""
    folder = make_photos(COUNT)
    for number in range(0, COUNT, 2):
        with Image.open(folder / f"{number:03d}.png") as picture:
            picture.resize((96, 40) if number < 10 else (40, 96)).save(folder / f"{number:03d}.png")
    (folder / "005.png").write_bytes(b"not an image")
    return folder


def recipe(photos: Path, output: Path, encoders: dict[str, Any], **modality: Any) -> dict[str, Any]:
    return {
        "task": "encode",
        "source": {"use": "folder", "with": {"path": str(photos)}},
        "modality": {"use": "image", "with": modality},
        "encoders": encoders,
        "output": {"path": str(output), "unit_size": 4, "dtype": "float32"},
        "batch_size": 3,
        "threads": 1,
        "compile": False,
        "preview": 0,
        "max_bad": 0.2,
    }


def contents(folder: Path) -> dict[str, bytes]:
    files = [folder / "dataset.json", *folder.glob("units/*"), *folder.glob("index/*")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def assert_as_if_alone(
    make: Callable[[Path, dict[str, Any]], dict[str, Any]], encoders: dict[str, Any], tmp_path: Path
) -> None:
    """Each dataset in "one" equals that of a run of its own, byte for byte."""
    for name, encoder in encoders.items():
        lk.run(make(tmp_path / "each", {name: encoder}))
        assert contents(tmp_path / "one" / name) == contents(tmp_path / "each" / name), name


FRAMES = {
    "size": {"size": 32, "views": ["plain", "hflip"]},
    "buckets": {"buckets": {"area": 1024, "step": 16, "min": 16, "max": 64}, "crop": "random"},
}


@pytest.mark.parametrize("frame", FRAMES)
def test_pictures_are_prepared_once_for_f2_f4_f8_and_a_film_encoder(
    frame: str,
    encoders: Any,
    photos: Path,
    prepared: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def make(output: Path, chosen: dict[str, Any]) -> dict[str, Any]:
        return recipe(photos, output, chosen, **FRAMES[frame])

    chosen = {name: encoders[name] for name in ("f2", "f4", "f8", "video")}
    lk.run(make(tmp_path / "one", chosen))
    assert prepared.total() == COUNT + len(chosen)
    assert "different inputs" not in capsys.readouterr().err
    assert_as_if_alone(make, chosen, tmp_path)


def test_each_kind_of_input_has_a_pass_of_its_own(
    encoders: Any, photos: Path, prepared: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(output: Path, chosen: dict[str, Any]) -> dict[str, Any]:
        return recipe(photos, output, chosen, size=32)

    chosen = {name: encoders[name] for name in ("f4", "gray-f2", "f8", "gray-f4")}
    lk.run(make(tmp_path / "one", chosen))
    assert prepared.total() == 2 * COUNT + len(chosen)
    assert "prepared once for each of: f4, f8 | gray-f2, gray-f4" in capsys.readouterr().err
    assert_as_if_alone(make, chosen, tmp_path)


def test_what_prepares_for_several_goes_to_other_processes(
    encoders: Any, photos: Path, tmp_path: Path
) -> None:
    chosen = {name: encoders[name] for name in ("f2", "f8")}
    parsed = parse_recipe(recipe(photos, tmp_path / "one", chosen, size=32), "recipe", tmp_path)
    assert isinstance(parsed, EncodeRecipe)
    inputs = {
        line.name: build_encode(line, parsed).inputs for line in configured_encodes(parsed)
    }
    (group,) = group_by_input(inputs, "cpu")
    (view,) = pickle.loads(pickle.dumps(group.modality)).prepare(inputs["f2"].source[0])
    (expected,) = inputs["f2"].modality.prepare(inputs["f2"].source[0])
    assert torch.equal(view.tensor, expected.tensor)


# ---------------------------------------------------------------- a modality that sizes matter to

@pytest.fixture
def padded_waves(waves: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `waves` padded to what an encoder takes; that named "fN" takes multiples of N."""

    class Sized(waves.WaveEncoder):  # type: ignore[misc]
        def __init__(self, config: Any, context: Any) -> None:
            super().__init__(config, context)
            self.input = replace(self.input, sizes={"L": SizeRule(int(config.name[1:]))})

    class Padded(waves.Wave):  # type: ignore[misc]
        def __init__(self, config: Any, context: Any) -> None:
            super().__init__(config, context)
            self.step = context.input.sizes["L"].multiple

        def prepare(self, sample: Any) -> Any:
            for view in super().prepare(sample):
                length = view.tensor["wave"].shape[1]
                more = -length % self.step
                row = {
                    name: torch.nn.functional.pad(tensor, (0, more))
                    for name, tensor in view.tensor.items()
                }
                yield replace(view, bucket=f"1x{length + more}", tensor=row)

    monkeypatch.setattr(waves, "Wave", Padded)
    monkeypatch.setattr(waves, "WaveEncoder", Sized)


def sized_waves(output: Path, chosen: dict[str, Any]) -> dict[str, Any]:
    return {
        **recipe(Path(), output, chosen),
        "source": {"use": "waves", "with": {"count": COUNT}},
        "modality": {"use": "waves"},
    }


SIZED = {f"f{multiple}": {"use": "waves", "with": {"name": f"f{multiple}"}} for multiple in (4, 24)}


@pytest.mark.usefixtures("padded_waves")
def test_where_sizes_decide_what_is_prepared_encoders_run_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lk.run(sized_waves(tmp_path / "one", SIZED))
    assert "prepared once for each of: f4 | f24" in capsys.readouterr().err
    assert_as_if_alone(sized_waves, SIZED, tmp_path)
