"""`modality.with.resize`, left open: a new dataset is resized by `lanczos`, one that was begun by
`pillow` goes on so, and all processes of a run agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from verified import verify_dataset

import latentkit as lk
from latentkit import cli
from latentkit.errors import FingerprintError
from latentkit.store.local_folder import LocalFolder
from latentkit.store.plan import newest_plan, plan_name, write_plan

FIXED = {"batch_size": 2, "threads": 1, "output.unit_size": 2, "preview": 0, "compile": False}
LANCZOS = '"lanczos" (version 2)'
MakePhotos = Callable[..., Path]


def recipe_of(photos: Path, output: Path, **options: Any) -> dict[str, Any]:
    return {
        "task": "encode",
        "source": {"use": "folder", "with": {"path": str(photos)}},
        "modality": {"use": "image", "with": {"size": 32, **options}},
        "encoder": {"use": "tiny-kl"},
        "output": {"path": str(output), "unit_size": 2, "dtype": "float32"},
        "batch_size": 2,
        "threads": 1,
        "compile": False,
        "preview": 0,
    }


def run(recipe: dict[str, Any], **options: Any) -> Any:
    return lk.run(recipe, **options)


def way_of(output: Path) -> str | None:
    """The part of the fingerprint; None is `pillow`."""
    plan = newest_plan(LocalFolder(output))
    assert plan is not None
    return plan.settings.parts.get("modality.with.resize")


def stored_options(output: Path) -> dict[str, Any]:
    options: dict[str, Any] = yaml.safe_load((output / "recipe.yaml").read_text())["modality"]["with"]
    return options


def means(output: Path) -> dict[str, torch.Tensor]:
    data = lk.open(output, posterior="mean")
    return {key: data.moments(key)["mean"] for key in data.keys}


@pytest.fixture
def begun_by_pillow(make_photos: MakePhotos, tmp_path: Path) -> tuple[Path, Path]:
    """Photographs, and a dataset of them as it was before there was another way."""
    photos, output = make_photos(5), tmp_path / "begun"
    run(recipe_of(photos, output, resize="pillow"))
    stored = yaml.safe_load((output / "recipe.yaml").read_text())
    del stored["modality"]["with"]["resize"]
    (output / "recipe.yaml").write_text(yaml.safe_dump(stored))
    return photos, output


def test_a_new_dataset_is_what_a_recipe_that_says_lanczos_makes(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    photos = make_photos(5)
    open_one = run(recipe_of(photos, tmp_path / "open"))
    said = run(recipe_of(photos, tmp_path / "said", resize="lanczos"))
    pillow = run(recipe_of(photos, tmp_path / "pillow", resize="pillow"))
    assert open_one.fingerprint == said.fingerprint != pillow.fingerprint
    assert way_of(tmp_path / "open") == LANCZOS
    assert way_of(tmp_path / "pillow") is None
    one, other, third = (means(tmp_path / name) for name in ("open", "said", "pillow"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not any(torch.equal(one[key], third[key]) for key in one)
    assert stored_options(tmp_path / "open")["resize"] == "lanczos"


def test_the_command_and_the_recipe_in_the_dataset_agree(
    make_photos: MakePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, output = make_photos(5), tmp_path / "out"
    sets = [f"--set={name}={value}" for name, value in FIXED.items()]
    assert cli.main(["encode", str(photos), str(output), "--size", "32", *sets]) == 0
    assert way_of(output) == LANCZOS
    before = (output / "dataset.json").read_bytes()
    assert cli.main(["run", str(output / "recipe.yaml")]) == 0
    assert cli.main(["encode", str(photos), str(output), "--size", "32", *sets]) == 0
    assert (output / "dataset.json").read_bytes() == before
    assert cli.main(["verify", str(output), "--deep"]) == 0
    assert cli.main(["preview", str(output), str(tmp_path / "p.png"), "--rows", "2"]) == 0


def test_a_dataset_begun_by_pillow_is_added_to_by_pillow(
    begun_by_pillow: tuple[Path, Path], write_photos: MakePhotos, tmp_path: Path
) -> None:
    photos, output = begun_by_pillow
    write_photos(photos / "more", 3)
    assert "3 to encode" in run(recipe_of(photos, output), dry_run=True)
    run(recipe_of(photos, output))
    assert way_of(output) is None
    assert "resize" not in stored_options(output)
    for way in ("pillow", "lanczos"):
        run(recipe_of(photos, tmp_path / way, resize=way))
        added, whole = means(output), means(tmp_path / way)
        assert added.keys() == whole.keys()
        # Other batches: other last bits. The two ways are a thousand times as far apart.
        close = {torch.allclose(added[key], whole[key], rtol=0, atol=1e-5) for key in whole}
        assert close == {way == "pillow"}
    assert verify_dataset(output).damage == ()


@pytest.mark.parametrize("way", ["lanczos", "pillow"])
def test_an_unfinished_dataset_goes_on_as_its_plan_says(
    way: str, make_photos: MakePhotos, tmp_path: Path
) -> None:
    photos, output = make_photos(5), tmp_path / "out"
    run(recipe_of(photos, output, resize=way))
    whole = means(output)
    (output / "dataset.json").unlink()
    for file in sorted((output / "units").iterdir())[1:]:
        file.unlink()
    run(recipe_of(photos, output))
    assert (way_of(output) or "pillow") == {"lanczos": LANCZOS, "pillow": "pillow"}[way]
    assert all(torch.equal(value, whole[key]) for key, value in means(output).items())


def test_a_recipe_that_says_another_way_is_refused(begun_by_pillow: tuple[Path, Path]) -> None:
    photos, output = begun_by_pillow
    with pytest.raises(FingerprintError) as refused:
        run(recipe_of(photos, output, resize="lanczos"))
    line = f'modality.with.resize: "pillow" (the default) there, {LANCZOS} now'
    assert line in str(refused.value)


@pytest.mark.parametrize("said", [{}, {"resize": "lanczos"}])
def test_latents_of_lanczos_as_it_was_before_are_refused(
    said: dict[str, str], make_photos: MakePhotos, tmp_path: Path
) -> None:
    photos, output = make_photos(3), tmp_path / "out"
    run(recipe_of(photos, output, resize="lanczos"))
    folder = LocalFolder(output)
    plan = newest_plan(folder)
    assert plan is not None
    parts = {**plan.settings.parts, "modality.with.resize": '"lanczos"'}
    (output / plan_name(0)).unlink()
    write_plan(folder, replace(plan, settings=replace(plan.settings, parts=parts)))
    with pytest.raises(FingerprintError) as refused:
        run(recipe_of(photos, output, **said))
    assert f'modality.with.resize: "lanczos" there, {LANCZOS} now' in str(refused.value)


def test_encoders_of_one_recipe_go_on_each_as_its_dataset_was_begun(
    begun_by_pillow: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, output = begun_by_pillow
    recipe = recipe_of(photos, tmp_path / "several")
    del recipe["encoder"]
    recipe["encoders"] = {name: {"use": "tiny-kl"} for name in ("old", "new", "newer")}
    (tmp_path / "several").mkdir()
    output.rename(tmp_path / "several" / "old")
    # Something is left to do in each, by one pass for those that are prepared alike.
    (tmp_path / "several" / "old" / "dataset.json").unlink()
    next((tmp_path / "several" / "old" / "units").iterdir()).unlink()
    run(recipe)
    assert "once for each of: old | new, newer" in capsys.readouterr().err
    assert way_of(tmp_path / "several" / "old") is None
    for way, name in (("pillow", "old"), ("lanczos", "new"), ("lanczos", "newer")):
        run(recipe_of(photos, tmp_path / way, resize=way))
        expected, made = means(tmp_path / way), means(tmp_path / "several" / name)
        assert all(torch.equal(made[key], expected[key]) for key in expected)
        assert stored_options(tmp_path / "several" / name).get("resize", "pillow") == way


def test_processes_of_one_run_take_the_same_way(make_photos: MakePhotos, tmp_path: Path) -> None:
    photos = make_photos(9)
    run(recipe_of(photos, tmp_path / "two"), devices=("cpu", "cpu:0"))
    run(recipe_of(photos, tmp_path / "one", resize="lanczos"))
    one, two = means(tmp_path / "one"), means(tmp_path / "two")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_an_encoder_by_hand_prepares_as_a_new_dataset_is(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    photos, output = make_photos(2), tmp_path / "out"
    data = run(recipe_of(photos, output))
    file = sorted(photos.glob("*.png"))[0]
    by_hand = lk.encoder("tiny-kl", device="cpu").encode([file], size=32)
    assert torch.allclose(by_hand.mean[0], data.moments(0)["mean"], atol=1e-5)
