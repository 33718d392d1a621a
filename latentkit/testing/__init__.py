"""The contract kit: subclass a contract in your plugin's tests, and pytest runs its checks on your
plugin.

    from pathlib import Path
    from latentkit.builtin import FolderConfig, latentkit_sources
    from latentkit.testing import SourceContract

    class TestFolder(SourceContract):
        spec = next(spec for spec in latentkit_sources() if spec.name == "folder")

        def make_config(self, tmp_path: Path) -> FolderConfig:
            (tmp_path / "a.jpg").write_bytes(b"one")
            (tmp_path / "b.jpg").write_bytes(b"two")
            return FolderConfig(path=str(tmp_path))

Each check is a method `test_...`. Its docstring states the property, and its message says what to
do. Methods and attributes to override, in addition to `spec`, are at the top of each contract. If a
check can't hold for a good reason, override it and give the reason. `find_failures` runs a contract
without pytest.
"""

from __future__ import annotations

from latentkit.testing.command import CommandContract
from latentkit.testing.encoder_contract import EncoderContract
from latentkit.testing.executor import ExecutorContract
from latentkit.testing.exported_dataset import copy_dataset
from latentkit.testing.exporter import ExporterContract
from latentkit.testing.loss import LossContract
from latentkit.testing.metric import MetricContract, make_pictures
from latentkit.testing.modality import ModalityContract
from latentkit.testing.plugin import PluginContract, check_names, find_failures
from latentkit.testing.source import SourceContract, StreamSourceContract
from latentkit.testing.task import TaskContract

__all__ = [
    "CommandContract",
    "EncoderContract",
    "ExecutorContract",
    "ExporterContract",
    "LossContract",
    "MetricContract",
    "ModalityContract",
    "PluginContract",
    "SourceContract",
    "StreamSourceContract",
    "TaskContract",
    "check_names",
    "copy_dataset",
    "find_failures",
    "make_pictures",
]
