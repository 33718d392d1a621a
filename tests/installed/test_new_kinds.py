"""Metrics, tasks and commands of an installed plugin: named in recipes and on the command line like
core's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "new_kinds"
EVALUATION = """
task: evaluate
source: {use: sample-photos}
modality: {use: image, with: {size: 32}}
model: {use: tiny-kl}
metrics: [{use: mse}, {use: METRIC, with: {factor: FACTOR}}]
output: {path: out}
"""


def latentkit(
    *arguments: str, cwd: Path, folder: Path = FOLDER, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, with the plugin installed."""
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-m", "latentkit", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )


def evaluate(folder: Path, command: str, metric: str, factor: object = 1) -> (
    subprocess.CompletedProcess[str]
):
    text = EVALUATION.replace("METRIC", metric).replace("FACTOR", str(factor))
    (folder / "r.yaml").write_text(text)
    return latentkit(command, "r.yaml", cwd=folder)


# ---------------------------------------------------------------- metrics


def test_a_metric_of_a_plugin_is_checked_and_measured(tmp_path: Path) -> None:
    checked = evaluate(tmp_path, "check", "offset", 1000)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "metrics[1]: metric offset (acme-kinds 1.5)" in checked.stdout
    values = []
    for factor in (1, 1000):
        done = evaluate(tmp_path, "run", "offset", factor)
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
        values.append(found["offset"]["value"])
    assert values[1] == pytest.approx(1000 * values[0])
    assert abs(values[0]) < found["mse"]["value"] ** 0.5


@pytest.mark.parametrize(
    ("metric", "factor", "message"),
    [
        ("offst", 1, "metrics[1].use: no metric is named 'offst', did you mean 'offset'?"),
        ("offset", "x", "metrics[1].with.factor: expected a number, got 'x'"),
        ("offset", 0, "metrics[1].with.factor: expected a number above 0.0, got 0"),
        ("nowhere", 1, "metric 'nowhere' doesn't apply to this modality"),
    ],
)
def test_a_wrong_metric_is_one_message_before_any_work(
    metric: str, factor: object, message: str, tmp_path: Path
) -> None:
    for command in ("check", "run"):
        done = evaluate(tmp_path, command, metric, factor)
        assert done.returncode == 2
        assert f"r.yaml: {message}" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- tasks

TALLY = "task: tally\nsource: {use: sample-photos}\nfactor: 2\n"


def tally(
    folder: Path, *words: str, text: str = TALLY, plugin: Path = FOLDER
) -> subprocess.CompletedProcess[str]:
    (folder / "r.yaml").write_text(text)
    return latentkit(*words, cwd=folder, folder=plugin)


def test_a_task_of_a_plugin_is_checked_and_run(tmp_path: Path) -> None:
    checked = tally(tmp_path, "check", "r.yaml")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.startswith("source: source sample-photos (latentkit-diffusion")
    assert checked.stdout.endswith("r.yaml: a valid tally recipe\n")
    counts = []
    for factor in (1, 3):
        done = tally(tmp_path, "run", "r.yaml", "--set", f"factor={factor}", "--prune")
        assert (done.returncode, done.stderr) == (0, "counting\n")
        counts.append(int(done.stdout.removesuffix(" samples\n")))
    assert counts[1] == 3 * counts[0] > 0
    dry = tally(tmp_path, "run", "r.yaml", "--dry-run")
    assert (dry.returncode, dry.stdout) == (0, "would count sample-photos\n")


def test_python_gets_what_a_task_gives(tmp_path: Path) -> None:
    code = "import latentkit as lk; print(lk.run({'task': 'tally', 'source': {'use': 'folder',"
    code += " 'with': {'path': '.'}}}))"
    (tmp_path / "a.png").write_bytes(b"one")
    env = {**os.environ, "PYTHONPATH": f"{FOLDER}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            TALLY.replace("tally", "taly"),
            "task: expected encode, train, evaluate, sample, interpolate, augment, augment-study, score or tally, got 'taly', did you mean 'tally'?",
        ),
        (TALLY + "factr: 2\n", "factr: unknown key, did you mean 'factor'?"),
        (
            TALLY.replace("sample-photos", "sampl-photos"),
            "source.use: no source is named 'sampl-photos', did you mean 'sample-photos'?",
        ),
    ],
)
def test_a_wrong_recipe_of_a_plugin_s_task_is_one_message(
    text: str, message: str, tmp_path: Path
) -> None:
    for command in ("check", "run"):
        done = tally(tmp_path, command, "r.yaml", text=text)
        assert done.returncode == 2
        assert f"r.yaml: {message}" in done.stderr
        assert "Traceback" not in done.stderr


def test_options_that_a_task_has_no_use_for_are_refused(tmp_path: Path) -> None:
    done = tally(tmp_path, "run", "r.yaml", "--retry-skipped", "--devices", "cpu")
    expected = "the task tally has no use for --retry-skipped, --devices; leave them out\n"
    assert (done.returncode, done.stderr) == (2, f"latentkit: r.yaml: {expected}")


def test_a_task_as_a_command_is_told_how_it_is_run(tmp_path: Path) -> None:
    for name in ("tally", "train"):
        done = latentkit(name, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith(f"latentkit: {name} is a task, not a command; write")


def test_two_of_one_task_s_name_fail_its_recipes_alone(tmp_path: Path) -> None:
    taken = FOLDER.parent / "taken_task"
    text = "task: evaluate\nlatents: there\nmetrics: [{use: mse}]\noutput: {path: out}\n"
    done = tally(tmp_path, "check", "r.yaml", text=text, plugin=taken)
    assert done.returncode == 2
    who = "task 'evaluate' is provided by latentkit-diffusion"
    assert f"r.yaml: task: {who}" in done.stderr
    assert "and acme-taken 1.6; uninstall one" in done.stderr
    assert who in latentkit("plugins", cwd=tmp_path, folder=taken).stdout
    encode = "task: encode\nsource: {use: sample-photos}\nmodality: {use: image}\n"
    encode += "encoder: {use: tiny-kl}\noutput: {path: out}\n"
    assert tally(tmp_path, "check", "r.yaml", text=encode, plugin=taken).returncode == 0


# ---------------------------------------------------------------- commands


def test_a_command_of_a_plugin_runs_with_its_arguments_and_help(tmp_path: Path) -> None:
    done = latentkit("greet", "world", "--times", "2", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello world\nhello world\n", "")
    told = latentkit("greet", "--help", cwd=tmp_path)
    assert told.stdout.startswith("usage: latentkit greet [-h] [--times N] NAME\n\nSay hello.")
    wrong = latentkit("greet", "world", "--times", "0", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr) == (2, "latentkit: --times 0: expected at least 1\n")


def test_an_unknown_command_brings_a_near_one_of_core_s_and_of_plugins(tmp_path: Path) -> None:
    for word, near in (("geet", "greet"), ("inspct", "inspect")):
        done = latentkit(word, cwd=tmp_path)
        assert done.returncode == 2
        expected = f"latentkit: no command is named {word!r}, did you mean {near!r}? Known: augment,"
        assert done.stderr.startswith(expected)


def test_a_command_of_core_goes_before_and_the_clash_is_listed(tmp_path: Path) -> None:
    assert "encode a source" in latentkit("encode", "--help", cwd=tmp_path).stdout.lower()
    listed = latentkit("plugins", cwd=tmp_path).stdout
    assert "command 'encode' is provided by latentkit" in listed
    assert "greet" in listed


def test_help_and_commands_of_core_load_no_plugin(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom latentkit.cli import main\ntry: main(sys.argv[1:])\n"
        "except SystemExit: pass\nprint('acme_kinds' in sys.modules, 'pydantic' in sys.modules)"
    )
    paths = [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    for words, loaded in ((["--help"], "False False"), (["encode", "--help"], "False False"),
                          (["greet", "you"], "True True")):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], env=env, capture_output=True, text=True
        )
        assert done.stdout.splitlines()[-1] == loaded, words


# ---------------------------------------------------------------- one plugin, said whole


def test_plugins_name_says_all_about_one(tmp_path: Path) -> None:
    assert latentkit("plugins", "offset", cwd=tmp_path).stdout.splitlines() == [
        "metric offset: mean error",
        "  from acme-kinds 1.5",
        "  factor: number = 1.0",
        "      what the mean error is multiplied by",
    ]
    assert latentkit("plugins", "task", "tally", cwd=tmp_path).stdout.splitlines() == [
        "task tally: count samples",
        "  from acme-kinds 1.5",
        "  task: tally (required)",
        "      what the recipe does",
        "  seed: whole number = 0",
        "      seed of every random draw",
        "  source: mapping (required)",
        "      where samples come from",
        "  source.use: text (required)",
        "      name of the plugin",
        "  source.with: mapping of anything = {}",
        "      options of the plugin",
        "  factor: whole number = 1",
        "      what the number of samples is multiplied by",
    ]
    told = latentkit("plugins", "command", "greet", cwd=tmp_path).stdout
    assert "usage: latentkit greet [--times N] NAME" in told
    (listed,) = json.loads(latentkit("plugins", "--json", "offset", cwd=tmp_path).stdout)
    assert listed["options"]["properties"]["factor"]["default"] == 1.0
    assert {name: listed[name] for name in ("kind", "name", "provider", "version", "summary")} == {
        "kind": "metric",
        "name": "offset",
        "provider": "acme-kinds",
        "version": "1.5",
        "summary": "mean error",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["offst"], "no plugin is named 'offst', did you mean 'offset'?"),
        (["metric", "l1s"], "no metric is named 'l1s', did you mean 'l1'?"),
        (["metrc", "l1"], "plugins metrc l1: expected [KIND] NAME, did you mean 'metric'?"),
        (["command", "encode"], "command 'encode' is provided by latentkit"),
    ],
)
def test_a_wrong_name_is_one_message(words: list[str], message: str, tmp_path: Path) -> None:
    done = latentkit("plugins", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"latentkit: {message}")


def test_every_plugin_of_core_can_be_said() -> None:
    from latentkit.cli.plugin_listing import plugin_as_json, plugin_as_text
    from latentkit.plugins import discover

    registry = discover()
    for row in registry.rows():
        if row.provider == "latentkit-diffusion":
            text = plugin_as_text(registry, [row.kind, row.name])
            assert text.startswith(f"{row.kind} {row.name}: {row.summary}\n")
            spec = registry.find(row.kind, row.name).spec
            fields = getattr(spec, "config", None) or getattr(spec, "recipe", None)
            for info in fields.model_fields.values() if fields else ():
                assert info.description in text
            json.loads(plugin_as_json(registry, [row.kind, row.name]))
