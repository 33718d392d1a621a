"""The command line as users meet it: real processes, exit codes, messages, and what is loaded."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from latentkit import cli

MakePhotos = Callable[..., Path]
FAST = [
    "--size",
    "32",
    "--set",
    "batch_size=2",
    "--set",
    "output.unit_size=2",
    "--set",
    "threads=1",
]
RECIPE = (
    "task: encode\n"
    "source: {use: sample-photos}\n"
    "modality: {use: image}\n"
    "encoder: {use: tiny-kl}\n"
    "output: {path: out}\n"
)
HEAVY = ("torch", "diffusers", "accelerate", "datasets", "numpy", "pyarrow", "PIL")


def latentkit(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "latentkit", *map(str, arguments)]
    return subprocess.run(line, text=True, capture_output=True, cwd=cwd, timeout=120)


def width(picture: Path) -> int:
    with Image.open(picture) as image:
        return image.width


def loaded_after(*arguments: str) -> set[str]:
    """Which heavy modules one command loads, in a process of its own."""
    code = (
        "import sys, contextlib, io\n"
        "from latentkit.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):"
        f" main({list(arguments)!r})\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    return set(done.stdout.split())


def test_commands_and_options_are_these(capsys: pytest.CaptureFixture[str]) -> None:
    frozen = {
        "encode": ["SOURCE", "OUT", "--encoder", "--size", "--set", "--device", "--devices"],
        "run": [
            "RECIPE",
            "--set",
            "--device",
            "--devices",
            "--dry-run",
            "--prune",
            "--retry-skipped",
        ],
        "check": ["RECIPE", "--set"],
        "import": [
            "PATH",
            "OUT",
            "--from",
            "--encoder",
            "--normalized",
            "--scale",
            "--shift",
            "--downscale",
            "--set",
        ],
        "inspect": ["PATH", "--json", "--skipped"],
        "preview": ["PATH", "OUT", "--rows", "--device"],
        "verify": ["PATH", "--deep", "--repair", "--device"],
        "compact": ["PATH"],
        "sample": [
            *("DATASET", "OUT", "--count", "--sampler", "--by", "--seed", "--set", "--device"),
        ],
        "export": ["PATH", "OUT", "--to", "--set"],
        "checkpoint": ["RUN", "OUT", "--step", "--weights"],
        "push": [
            *("PATH", "OWNER/NAME", "--license", "--public", "--dry-run", "--no-preview"),
            *("--keep-paths", "--replace"),
        ],
        "pull": ["OWNER/NAME", "OUT"],
        "plugins": ["--json"],
        "plugins new": ["NAME", "--kind", "--path"],
        "recipes": [],
        "recipes copy": ["NAME", "FOLDER"],
    }
    for command, arguments in frozen.items():
        with pytest.raises(SystemExit) as stopped:
            cli.main([*command.split(), "--help"])
        assert stopped.value.code == 0
        usage = capsys.readouterr().out.split("\n\n")[0]
        assert all(argument in usage for argument in arguments), command
        assert usage.count("--") == sum(
            argument.startswith("--") for argument in arguments
        ), command


def test_light_commands_load_nothing_heavy(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    new = ["plugins", "new", "x", "--kind", "loss", "--path", str(tmp_path)]
    for arguments in (["--help"], ["plugins"], ["recipes"], new):
        assert loaded_after(*arguments) == set(), arguments


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        f"import sys, latentkit; print(*[name for name in {HEAVY!r} + ('pydantic', 'pluggy') if"
        " name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.split() == []


def test_encode_inspect_preview(make_photos: MakePhotos, kl_folder: Path, tmp_path: Path) -> None:
    photos = make_photos(5)
    (photos / "bad.png").write_bytes(b"")
    done = latentkit("encode", photos, tmp_path / "out", "--encoder", kl_folder, *FAST)
    assert done.returncode == 0, done.stderr
    assert "5 latents, 1 skipped" in done.stdout
    assert re.search(r"skipped +1: \w+", done.stdout)
    assert "the encoder waited" in done.stdout
    # Five pictures, each beside what it decodes to.
    assert width(tmp_path / "out" / "preview.png") >= 64
    found = json.loads(latentkit("inspect", tmp_path / "out", "--json").stdout)
    assert found["rows"] == {"ok": 5, "skipped": 1}
    assert sum(found["skipped"].values()) == 1
    assert "5 rows of latents, 1 skipped" in latentkit("inspect", tmp_path / "out").stdout
    done = latentkit("preview", tmp_path / "out", tmp_path / "look.png", "--rows", "2")
    assert done.returncode == 0, done.stderr
    with_sources = width(tmp_path / "look.png")
    photos.rename(tmp_path / "gone")
    assert (
        latentkit("preview", tmp_path / "out", tmp_path / "look.png", "--rows", "2").returncode == 0
    )
    assert width(tmp_path / "look.png") < with_sources


def spoil(photos: Path, num_reasons: int) -> None:
    """Add pictures that can't be used, each for a reason of its own, and one more for the first
    reason.
    """
    whole = (photos / "000.png").read_bytes()
    Image.new("RGB", (4, 4)).save(photos / "x-small.png")
    Image.new("RGB", (300, 300)).save(photos / "x-large.png")
    spoilt = {
        "x-empty": b"",
        "x-empty-too": b"",
        "x-text": b"no picture",
        "x-cut": whole[: len(whole) // 2],
    }
    for name, content in spoilt.items():
        (photos / f"{name}.png").write_bytes(content)
    for name in ["x-large", "x-small"][: 5 - num_reasons]:
        (photos / f"{name}.png").unlink()


@pytest.mark.parametrize("num_reasons", [4, 5])
def test_reasons_are_folded_only_where_a_line_stands_for_several(
    make_photos: MakePhotos, tmp_path: Path, num_reasons: int
) -> None:
    spoil(make_photos(4), num_reasons)
    done = latentkit(
        "encode", "photos", "out", *FAST, "--set", "modality.with.max_pixels=80000", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"skipped +(\d+): (.*)", done.stdout)
    found = json.loads(latentkit("inspect", tmp_path / "out", "--json").stdout)["skipped"]
    assert len(found) == num_reasons
    shown = {reason: int(count) for count, reason in lines if reason in found}
    assert shown == {reason: found[reason] for reason in shown}
    if num_reasons == 4:
        assert len(shown) == len(lines) == 4
    else:
        assert len(shown) == 3
        assert lines[3:] == [("2", "for 2 other reasons; `latentkit inspect out` lists them")]


def test_too_many_bad_samples_come_with_the_most_frequent_reasons(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    photos = make_photos(20)
    for number in range(2, 15):
        (photos / f"{number:03d}.png").unlink()
        Image.new("RGB", (4 if number < 10 else 300, 4 if number < 10 else 300)).save(
            photos / f"{number:03d}.png"
        )
    views = [
        "--set",
        "modality.with.views=[plain,hflip]",
        "--set",
        "modality.with.max_pixels=80000",
    ]
    done = latentkit("encode", "photos", "out", *FAST, *views, cwd=tmp_path)
    assert done.returncode == 2
    (said,) = re.findall(
        r"(\d+) of 20 samples can't be used so far: (.*), more than max_bad", done.stderr
    )
    counts = [int(count) for count in re.findall(r"\((\d+) times\)", said[1])]
    # Of units of two, that with the eleventh bad one is the last; another may have been committed
    # meanwhile.
    assert counts[0] == 8
    assert counts[1] in (3, 4, 5)
    assert len(counts) == 2
    assert int(said[0]) == sum(counts)
    assert "pixels" in said[1]


def test_recipe_written_by_encode_is_the_same_run(
    make_photos: MakePhotos, kl_folder: Path, tmp_path: Path
) -> None:
    photos = make_photos(3)
    latentkit("encode", photos, tmp_path / "out", "--encoder", kl_folder, *FAST)
    again = latentkit("run", tmp_path / "out" / "recipe.yaml", cwd=tmp_path)
    assert again.returncode == 0
    assert "all were encoded already" in again.stdout
    assert "path: .," in (tmp_path / "out" / "recipe.yaml").read_text()


def test_name_of_a_plugin_wins_over_a_path_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "sample-photos").mkdir()
    done = latentkit("encode", "sample-photos", "out", "--set", "batch_size=none", cwd=tmp_path)
    assert done.returncode == 2
    assert "write ./sample-photos for the path" in done.stderr
    done = latentkit("encode", "./sample-photos", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "no file below" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "nowhere", "out"], "no such path"),
        (["encode", "empty", "out"], "no file below"),
        (
            ["encode", "unreadable", "out", "--size", "32"],
            "none of the first 2 samples can be used",
        ),
        (["encode", "photos", "out", "--encoder", "./nowhere"], "no such path"),
        (["encode", "photos", "out", "--encoder", "no-weights"], "no weights"),
        (["encode", "photos", "photos/000.png"], "is a file"),
        (["encode", "photos", "taken"], "contains other files"),
        (["encode", "photos", "out", "--size", "33"], "33"),
        (["encode", "photos", "out", "--set", "encodr.use=x"], "did you mean 'encoder'"),
        (["encode", "photos", "out", "--set", "output.dtype=float12"], "output.dtype"),
        (["run", "nowhere.yaml"], "no such file"),
        (["run", "list.yaml"], "expected a mapping"),
        (["run", "tab.yaml"], "a tab"),
        (["run", "wrong.yaml"], "batch_size"),
        (["inspect", "empty"], "not a latent dataset"),
        (["preview", "empty", "x.png"], "not a latent dataset"),
        (["export", "empty", "out", "--to", "safetensors"], "not a latent dataset"),
        (["export", "empty", "out", "--to", "safetensor"], "did you mean 'safetensors'"),
        (["plugins", "new", "Bad_Name", "--kind", "loss"], "such as 'bad-name'"),
    ],
)
def test_bad_input_is_one_clear_message_and_exit_code_2(
    make_photos: MakePhotos, kl_folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    make_photos(2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "unreadable").mkdir()
    (tmp_path / "unreadable" / "a.jpg").write_text("no picture")
    (tmp_path / "unreadable" / "b.png").write_bytes(b"")
    (tmp_path / "no-weights").mkdir()
    (tmp_path / "no-weights" / "config.json").write_text((kl_folder / "config.json").read_text())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("precious")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "tab.yaml").write_text("task: encode\n\tsource: 1\n")
    (tmp_path / "wrong.yaml").write_text(RECIPE + "batch_size: many\n")
    before = sorted(path for path in tmp_path.rglob("*"))
    done = latentkit(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_hub_id_without_network_is_explained(make_photos: MakePhotos, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "hub"),
    }
    line = [
        sys.executable,
        "-m",
        "latentkit",
        "encode",
        str(make_photos(1)),
        str(tmp_path / "out"),
        "--encoder",
        "nobody/nothing",
    ]
    done = subprocess.run(line, text=True, capture_output=True, env=environment, timeout=120)
    assert done.returncode == 2
    assert "no such file or folder here" in done.stderr
    assert "check the network" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_our_own_fault_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(path: str, with_ledger: bool) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("latentkit.upkeep.inspect_dataset.inspect_dataset", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["inspect", str(tmp_path)])


def test_name_that_a_pipe_has_no_characters_for_is_printed_escaped(tmp_path: Path) -> None:
    recipe = tmp_path / "写真.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    line = [sys.executable, "-m", "latentkit", "check", str(recipe)]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(line, env=environment, capture_output=True, check=True)
    assert b"\\u5199\\u771f.yaml: a valid encode recipe" in done.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["source.use=folder", "source.with.path=nowhere"], "nowhere does not exist"),
        (
            ["modality.with.size=250"],
            "250 is not a size the encoder takes: a multiple of 8; nearest: 248 and 256",
        ),
        (["encoder.use=diffusers", "encoder.with.model=./nowhere"], "nowhere"),
        (["encoder.with.model=./nowhere"], "nowhere"),
    ],
)
def test_check_finds_what_a_run_would_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], message: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    assert cli.main(["check", str(recipe)]) == 0
    assert (
        cli.main(
            [
                "check",
                str(recipe),
                *itertools.chain.from_iterable(("--set", change) for change in changes),
            ]
        )
        == 2
    )
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [recipe]


def test_check_of_a_training_recipe_finds_a_tracker_that_is_not_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "vae.yaml"
    recipe.write_text(
        "task: train\n"
        "source: {use: sample-photos}\n"
        "modality: {use: image}\n"
        "model: {use: tiny-kl}\n"
        "losses: [{use: mse}]\n"
        "steps: 1\n"
        "output: {path: run}\n"
    )
    assert cli.main(["check", str(recipe)]) == 0
    assert cli.main(["check", str(recipe), "--set", "log=[nowhere-to-be-had]"]) == 2
    assert "unknown tracker 'nowhere-to-be-had'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("encoder", "owner/name"),
        ("encoder", "owner/name@v1"),
        ("encoder", "owner/name/vae"),
        ("encoder", "owner/name/vae/model.safetensors"),
        ("encoder", "hf.co/owner/name"),
        ("encoder", "hf://owner/name"),
        ("encoder", "https://huggingface.co/owner/name/tree/main/vae"),
        ("source", "owner/name@v1"),
        ("source", "owner/name/data"),
        ("source", "mnist"),
    ],
)
def test_check_downloads_nothing(
    where: str,
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody answers
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    values = {
        "encoder": ["encoder.use=diffusers", f"encoder.with.model={name}"],
        "source": [f"source={{use: datasets, with: {{path: {name}}}}}"],
    }
    sets = [part for value in values[where] for part in ("--set", value)]
    assert cli.main(["check", str(recipe), *sets]) == 0
    said = f"not checked, because it may have to be downloaded: {where} ({name})"
    assert said in capsys.readouterr().out
