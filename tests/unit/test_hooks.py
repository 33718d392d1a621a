"""Every hook's docstring is a complete plugin: it is installed, found, built and used here."""

from __future__ import annotations

import argparse
import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentkit import contracts, hooks
from latentkit.contracts import (
    BuildContext,
    Entry,
    LossBatch,
    Moments,
    Reconstruction,
    Sample,
    Unit,
    UnitResult,
)
from latentkit.plugins import HOOKS, Provided, Registry, discover


def read_example(hook: str) -> str:
    """The plugin inside a hook's docstring: all that is indented below its first line."""
    _, _, example = getattr(hooks, hook).__doc__.partition("\n")
    return textwrap.dedent(example)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Registry]]:
    """Puts a module and its .dist-info on the path, as an installation would, and gives the
    registry that finds it.
    """

    def install_module(text: str) -> Registry:
        (tmp_path / "docstring_plugin.py").write_text(text)
        folder = tmp_path / "docstring-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: docstring\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text("[latentkit]\ndocstring = docstring_plugin\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()
        discover.cache_clear()
        return discover()

    yield install_module
    sys.modules.pop("docstring_plugin", None)
    discover.cache_clear()


def use_source(source: Any, folder: Path) -> None:
    assert isinstance(source, contracts.Source)
    assert len(source) == 2
    assert source[1] == Sample(key="1", media="two", stamp="two")
    assert list(source.entries()) == [Entry("0", "one"), Entry("1", "two")]


def use_modality(modality: Any, folder: Path) -> None:
    assert isinstance(modality, contracts.Modality)
    (prepared,) = modality.prepare(Sample("a", bytes([0, 255])))
    assert (prepared.view, prepared.bucket) == ("plain", "2")
    assert isinstance(prepared.tensor, torch.Tensor)
    assert torch.equal(prepared.tensor, torch.tensor([[-1.0, 1.0]]))
    modality.render([[prepared.tensor]], folder / "look")
    assert (folder / "look").read_bytes() == bytes([0, 255])


def use_encoder(encoder: Any, folder: Path) -> None:
    assert isinstance(encoder, contracts.Encoder)
    batch = torch.zeros(1, 3, 8, 16)
    batch[:, :, :, 8:] = 1
    (latent,) = encoder.encode(batch).values()
    assert torch.equal(latent, torch.tensor([0.0, 1.0]).expand(1, 3, 1, 2))
    assert latent.shape[1] == encoder.layout.channels


def use_loss(loss: Any, folder: Path) -> None:
    assert isinstance(loss, contracts.Loss)
    inputs = torch.zeros(2, 3, 4, 4)
    reconstruction = Reconstruction(
        inputs + torch.tensor([1.0, -2.0]).view(2, 1, 1, 1), inputs, Moments(inputs, inputs)
    )
    batch = LossBatch(inputs, reconstruction, None, 0, lambda one: one, lambda one: one)
    assert torch.equal(loss(batch), torch.tensor([1.0, 8.0]))


def use_executor(executor: Any, folder: Path) -> None:
    assert isinstance(executor, contracts.Executor)

    def make_worker(device: str) -> contracts.Worker:
        assert device == "cpu"
        return lambda units: (UnitResult(unit, 1, 0, 0.0, 0.0) for unit in units)

    units = [Unit(0, number, number, number + 1) for number in range(3)]
    assert [result.unit.number for result in executor.run(units, make_worker)] == [2, 1, 0]


def use_exporter(exporter: Any, folder: Path) -> None:
    assert isinstance(exporter, contracts.Exporter)
    exporter.export([{"latent": torch.tensor([1.0, 2.0])}, {"latent": torch.tensor([3.0])}], folder)
    assert np.load(folder / "000000.npy").tolist() == [1.0, 2.0]
    assert np.load(folder / "000001.npy").tolist() == [3.0]


def use_metric(metric: Any, folder: Path) -> None:
    assert isinstance(metric, contracts.Metric)
    inputs = torch.zeros(2, 3, 4, 4)
    output = inputs + torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)
    layout = contracts.LatentLayout("latent", "deterministic", "CHW", 3, 1)
    for _ in range(2):  # the second time from the start
        metric.start(contracts.MetricSetting((-1.0, 1.0), layout, "the latents"))
        metric.add(contracts.MetricBatch([0, 1], inputs, None, inputs, output))
        found = metric.finish()
    assert found.figures[""].value == -0.5
    assert found.per_sample[""].tolist() == [1.0, -2.0]


def use_command(spec: contracts.CommandSpec, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    spec.add_arguments(parser)

    class Dataset:
        keys = ("a", "b")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentkit.open", lambda path: Dataset() if path == "there" else None)
        assert spec.run(parser.parse_args(["there"])) == 0
    assert capsys.readouterr().out == "a\nb\n"


USES: Mapping[str, tuple[str, dict[str, Any], Callable[[Any, Path], None]]] = {
    "latentkit_sources": ("words", {"words": ["one", "two"]}, use_source),
    "latentkit_modalities": ("bytes", {}, use_modality),
    "latentkit_encoders": ("shrink", {}, use_encoder),
    "latentkit_losses": ("cube", {}, use_loss),
    "latentkit_executors": ("backwards", {}, use_executor),
    "latentkit_exporters": ("npy", {}, use_exporter),
    "latentkit_metrics": ("offset", {}, use_metric),
}


def test_every_hook_has_an_example_here() -> None:
    assert {*USES, "latentkit_tasks", "latentkit_commands"} == set(HOOKS)


@pytest.mark.parametrize("hook", USES)
def test_the_docstring_of_a_hook_is_a_plugin_that_works(
    hook: str, install: Callable[[str], Registry], tmp_path: Path
) -> None:
    name, options, use = USES[hook]
    kind = HOOKS[hook].kind
    registry = install(read_example(hook))
    assert [problem for problem in registry.problems if problem.distribution == "docstring"] == []
    found: Provided = registry.find(kind, name)
    assert (found.distribution, found.version) == ("docstring", "1.0")
    use(found.spec.build(registry.configure(kind, name, options, kind), BuildContext()), tmp_path)


def test_the_docstring_of_the_hook_of_commands_is_a_plugin_that_works(
    install: Callable[[str], Registry], capsys: pytest.CaptureFixture[str]
) -> None:
    found = install(read_example("latentkit_commands")).find("command", "keys")
    assert found.distribution == "docstring"
    use_command(found.spec, capsys)


def test_the_docstring_of_the_hook_of_tasks_is_a_plugin_that_works(
    install: Callable[[str], Registry], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = install(read_example("latentkit_tasks")).find("task", "count")
    assert found.distribution == "docstring"
    monkeypatch.setattr("latentkit.open", lambda path: "abc")
    recipe = found.spec.recipe.model_validate({"task": "count", "latents": "there"})
    given = found.spec.run(recipe, contracts.TaskContext())
    assert found.spec.report(given) == "there: 3 rows"
