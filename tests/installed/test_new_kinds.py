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
    *arguments: str, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, with the plugin installed."""
    paths = [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
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
        ("nowhere", 1, "metric 'nowhere' makes no sense for this modality"),
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
        expected = f"latentkit: no command is named {word!r}, did you mean {near!r}? Known: check,"
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
        if row.provider == "latentkit":
            text = plugin_as_text(registry, [row.kind, row.name])
            assert text.startswith(f"{row.kind} {row.name}: {row.summary}\n")
            spec = registry.find(row.kind, row.name).spec
            fields = getattr(spec, "config", None)
            for info in fields.model_fields.values() if fields else ():
                assert info.description in text
            json.loads(plugin_as_json(registry, [row.kind, row.name]))
