"""`latentkit plugins new`: what it says and refuses.

That the packages work is proved in tests/installed/test_scaffolds.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from latentkit import cli
from latentkit.hooks import CONTRACT
from latentkit.plugins import KINDS


def new(*arguments: str) -> int:
    return cli.main(["plugins", "new", *arguments])


def names_below(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


@pytest.fixture(autouse=True)
def _work_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_package_is_made_here_and_the_next_steps_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new("soft-edges", "--kind", "loss") == 0
    assert names_below(tmp_path / "latentkit-soft-edges") == [
        "README.md",
        "latentkit_soft_edges/__init__.py",
        "latentkit_soft_edges/loss.py",
        "latentkit_soft_edges/plugin.py",
        "latentkit_soft_edges/py.typed",
        "pyproject.toml",
        "tests/test_loss.py",
    ]
    said = capsys.readouterr().out
    assert said.startswith("latentkit-soft-edges: 7 files")
    assert "pip install -e latentkit-soft-edges" in said


def test_it_says_which_contract_it_was_made_for(tmp_path: Path) -> None:
    new("soft-edges", "--kind", "loss")
    assert (
        f"\nrequires_contract = {CONTRACT}\n" in (
            tmp_path / "latentkit-soft-edges/latentkit_soft_edges/__init__.py"
        ).read_text()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_no_placeholder_is_left_in_any_file(kind: str, tmp_path: Path) -> None:
    new("soft-edges", "--kind", kind, "--path", "deep/er")
    folder = tmp_path / "deep" / "er" / "latentkit-soft-edges"
    texts = {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert [
        name
        for name, text in texts.items()
        if "$" in text or "package/" in text.replace("latentkit_soft_edges", "")
    ] == []
    assert "soft-edges" in texts["README.md"]
    assert "soft-edges" in texts["plugin.py"]
    assert kind == "command" or "class SoftEdges" in texts["plugin.py"]
    assert [line for text in texts.values() for line in text.splitlines() if len(line) > 100] == []


def test_the_prefix_of_distributions_is_not_doubled_and_the_kind_not_said_twice(
    tmp_path: Path,
) -> None:
    new("latentkit-soft-loss", "--kind", "loss")
    plugin = (tmp_path / "latentkit-soft-loss/latentkit_soft_loss/plugin.py").read_text()
    assert 'LossSpec("soft-loss",' in plugin
    assert "SoftLoss" in plugin
    assert "SoftLossLoss" not in plugin


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["SoftEdges", "--kind", "loss"],
            (
                "'SoftEdges' can't be a plugin's name: expected lower-case letters, digits and"
                " single dashes"
            ),
        ),
        (["soft_edges", "--kind", "loss"], "such as 'soft-edges'"),
        (["3d", "--kind", "encoder"], "such as 'my-encoder'"),
        (["zoë", "--kind", "encoder"], "can't be a plugin's name"),
        (["../up", "--kind", "encoder"], "such as 'up'"),
        (["latentkit-", "--kind", "encoder"], "'' can't be a plugin's name"),
        (["a" * 41, "--kind", "encoder"], "has 41 characters; expected a name of at most 40"),
        (
            ["soft-edges", "--kind", "los"],
            "--kind los: unknown kind of plugin, did you mean 'loss'?",
        ),
        (
            ["soft-edges", "--kind", "kernel"],
            "known: source, modality, encoder, loss, executor, exporter, metric, task, command",
        ),
        (["l1", "--kind", "loss"], "provides the loss 'l1' already; choose another name"),
        (["latentkit-folder", "--kind", "source"], "provides the source 'folder' already"),
        (["taken", "--kind", "source"], "latentkit-taken is there already"),
        (
            ["soft-edges", "--kind", "source", "--path", "file"],
            "file/latentkit-soft-edges can't be written: Not a directory",
        ),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_written(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latentkit-taken").mkdir()
    (tmp_path / "file").touch()
    assert new(*arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["file", "latentkit-taken"]


def test_a_name_of_another_kind_is_free(tmp_path: Path) -> None:
    assert new("l1", "--kind", "source") == 0
