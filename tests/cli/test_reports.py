"""What commands say: of a folder with more in it than is taken, in words that a newcomer can act
on.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import latentkit as lk
from latentkit.cli.closing_words import SLOW_SECONDS, count_latents, explain_slowness
from latentkit.cli.main import main
from latentkit.encoding.encode_source import EncodeSummary

SAID = (
    "1: left out because of their ending .svg: a drawing or document without pixels; render it to"
    " PNG, such as x.svg"
)
FIXED = {"batch_size": 2, "threads": 1, "compile": False, "preview": 0, "output.unit_size": 4}
Words = pytest.CaptureFixture[str]


@pytest.fixture
def photos(make_photos: Callable[..., Path]) -> Path:
    folder = make_photos(4)
    (folder / "x.svg").write_text("<svg/>")
    return folder


@pytest.mark.parametrize("task", ["train", "evaluate"])
def test_training_and_evaluating_say_what_their_source_leaves_out(
    photos: Path, tmp_path: Path, capsys: Words, task: str
) -> None:
    options: dict[str, Any] = {
        "train": {
            "model": {"use": "tiny-kl", "with": {"init": "random"}},
            "losses": [{"use": "mse"}],
            "steps": 1,
        },
        "evaluate": {"model": {"use": "tiny-kl"}, "metrics": [{"use": "psnr"}]},
    }
    lk.run(
        {
            "task": task,
            "source": {"use": "folder", "with": {"path": str(photos)}},
            "modality": {"use": "image", "with": {"size": 32}},
            "batch_size": 2,
            "output": {"path": str(tmp_path / "run")},
            **options[task],
        }
    )
    assert f"note: {SAID}\n" in capsys.readouterr().err


def test_commands_to_go_on_with_hold_for_a_folder_with_a_space(
    photos: Path, tmp_path: Path, capsys: Words
) -> None:
    out = tmp_path / "o ut"
    words = [f"--set={key}={json.dumps(value)}" for key, value in FIXED.items()]
    assert main(["encode", str(photos), str(out), "--size", "32", *words]) == 0
    said = capsys.readouterr().out
    assert SAID in said
    line = next(line for line in said.splitlines() if "what is in it" in line)
    assert shlex.split(line.split("what is in it")[1]) == ["latentkit", "inspect", str(out)]
    assert eval(said.split("read it")[1].strip().split(".batches")[0], {"latentkit": lk}).keys == [
        f"{n:03d}.png" for n in range(4)
    ]
    assert main(["inspect", str(out)]) == 0
    assert "4 samples, 4 rows of latents, 0 skipped" in (found := capsys.readouterr().out)
    assert "1 unit, " in found
    (out / "dataset.json").unlink()
    assert main(["inspect", str(out)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "go on with" in line)
    assert shlex.split(line)[-3:] == ["latentkit", "run", str(out / "recipe.yaml")]


def test_options_that_differ_are_named_with_their_defaults(
    photos: Path, tmp_path: Path, capsys: Words
) -> None:
    lk.encode(photos, tmp_path / "out", overrides={**FIXED, "modality.with.size": 32})
    capsys.readouterr()
    assert (
        main(["encode", str(photos), str(tmp_path / "out"), "--set", "modality.with.crop=none"])
        == 2
    )
    said = capsys.readouterr().err
    assert '  modality.with.crop: "center" (the default) there, "none" now\n' in said
    assert "  modality.with.size: 32 there, 256 (the default) now\n" in said


def test_latentkit_alone_prints_its_help_and_tasks_without_a_command_point_at_run(
    capsys: Words,
) -> None:
    assert main([]) == 0
    assert "usage: latentkit" in capsys.readouterr().out
    for task in ("train", "evaluate"):
        assert main([task, "recipe.yaml"]) == 2
        assert (
            f"write `task: {task}` in a recipe"
            in capsys.readouterr().err
        )


def test_columns_may_be_a_single_name_and_are_none_where_a_row_lacks_them(
    photos: Path, tmp_path: Path
) -> None:
    (photos / "002.txt").unlink()
    lk.encode(photos, tmp_path / "out", size=32, overrides=FIXED)
    data = lk.open(tmp_path / "out", columns="text")
    assert data.columns == ("text",)
    (batch,) = data.batches(4)
    assert batch["text"] == ["picture number 0", "picture number 1", None, "picture number 3"]
    assert lk.collate([data[0], data[2]])["text"] == ["picture number 0", None]


def test_what_slows_a_run_is_said_with_what_to_do_where_it_cost_time() -> None:
    slow = EncodeSummary(100, 0, 2 * SLOW_SECONDS, SLOW_SECONDS, 200)
    waited, full = explain_slowness(slow)
    assert waited.startswith("the encoder waited for samples, 50% of the time; more CPU cores")
    assert full.startswith("batches were 50% full; fewer buckets")
    assert explain_slowness(EncodeSummary(100, 0, SLOW_SECONDS / 2, SLOW_SECONDS / 4, 200)) == []
    assert explain_slowness(EncodeSummary(100, 0, 2 * SLOW_SECONDS, 0.0, 100)) == []
    assert (
        count_latents({"ok": 1}, EncodeSummary(1, 0, 2.0))
        == "1 latent in 2.0 s (0.5/s); the encoder waited 0% of the time"
    )


def test_samples_that_end_a_run_are_named(
    make_photos: Callable[..., Path], tmp_path: Path, capsys: Words
) -> None:
    photos = make_photos(15)
    for number in range(2, 14):
        (photos / f"{number:03d}.png").write_bytes(b"")
    words = [f"--set={key}={json.dumps(value)}" for key, value in FIXED.items()]
    assert main(["encode", str(photos), str(tmp_path / "out"), "--size", "32", *words]) == 2
    said = capsys.readouterr().err
    assert re.search(
        r"1[12] of 15 samples can't be used so far: empty file: 0 bytes \(1[12] times\), ", said
    )
    assert "more than max_bad: 0.05 allows, such as 002.png, 003.png, 004.png. " in said
    assert main(["inspect", str(tmp_path / "out")]) == 0  # which is unfinished
    said = capsys.readouterr().out
    assert re.search(
        r"  skipped    1[12]: empty file: 0 bytes\n +such as 002.png, 003.png, 004.png\n", said
    )
    assert main(["inspect", str(tmp_path / "out"), "--skipped"]) == 0
    keys = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert keys == [f"{number:03d}.png" for number in range(2, 2 + len(keys))]
    assert len(keys) in (11, 12)


def test_an_evaluation_names_what_it_skipped(photos: Path, tmp_path: Path, capsys: Words) -> None:
    for name in ("b.png", "c.png"):
        (photos / name).write_bytes(b"")
    recipe = {
        "task": "evaluate",
        "source": {"use": "folder", "with": {"path": str(photos)}},
        "modality": {"use": "image", "with": {"size": 32}},
        "batch_size": 2,
        "output": {"path": str(tmp_path / "run")},
        "model": {"use": "tiny-kl"},
        "metrics": [{"use": "psnr"}],
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    assert main(["run", str(tmp_path / "r.yaml")]) == 0
    said = capsys.readouterr().out
    assert "4 samples evaluated, 2 skipped" in said
    assert "  skipped 2: empty file: 0 bytes, such as b.png, c.png\n" in said
