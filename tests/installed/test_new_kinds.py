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
