"""An exception inside a plugin costs one sample or the preview, and names the plugin; one in the
encoder names the samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import latentkit as lk
from latentkit.contracts import Prepared, Sample
from latentkit.errors import EncoderError, SourceError
from latentkit.upkeep.inspect_dataset import inspect_dataset


@pytest.fixture
def recipe(waves: Any, tmp_path: Path) -> dict[str, Any]:
    return {
        "task": "encode",
        "source": {"use": "waves", "with": {"count": 12}},
        "modality": {"use": "waves"},
        "encoder": {"use": "waves", "with": {"takes_mask": True}},
        "output": {"path": str(tmp_path / "out"), "dtype": "float32"},
        "batch_size": 4,
        "preview": 2,
    }


def break_prepare(waves: Any, monkeypatch: pytest.MonkeyPatch, *keys: str) -> None:
    """Make the modality raise what the contract doesn't know for samples of these keys; for all
    where there are none.
    """
    prepare = waves.Wave.prepare

    def broken(self: Any, sample: Sample) -> Iterator[Prepared]:
        if sample.key in keys or not keys:
            raise KeyError("boom")
        yield from prepare(self, sample)

    monkeypatch.setattr(waves.Wave, "prepare", broken)


def skipped(out: str) -> dict[str, str]:
    """Reasons by key."""
    ledger = inspect_dataset(out, with_ledger=True)["ledger"]
    return {row["key"]: row["reason"] for row in ledger if row["status"] == "skipped"}


def test_an_exception_in_prepare_costs_the_sample_and_names_the_plugin(
    recipe: dict[str, Any],
    waves: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    break_prepare(waves, monkeypatch, "000", "007", "008")
    data = lk.run(recipe)
    fault = "acme_waves.Wave raised KeyError: 'boom'"
    assert skipped(recipe["output"]["path"]) == {"005": "a wave without values"} | dict.fromkeys(
        ("000", "007", "008"), fault
    )
    assert len(data) == 12 - 4
    said = capfd.readouterr().err
    assert said.count("Traceback") == 1  # not one per sample
    assert "sample '000' is left out" in said or "sample '007' is left out" in said


def test_an_exception_of_the_source_costs_the_sample(
    recipe: dict[str, Any], waves: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = waves.Waves.__getitem__

    def broken(self: Any, index: int) -> Sample:
        if index == 3:
            raise IndexError("row group 7")
        sample: Sample = get(self, index)
        return sample

    monkeypatch.setattr(waves.Waves, "__getitem__", broken)
    lk.run(recipe)
    assert (
        skipped(recipe["output"]["path"])["003"]
        == "acme_waves.Waves raised IndexError: row group 7"
    )


def test_on_bad_sample_fail_ends_the_run_at_the_fault(
    recipe: dict[str, Any], waves: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_prepare(waves, monkeypatch, "002")
    with pytest.raises(
        SourceError, match=r"sample '002' can't be used: acme_waves\.Wave raised KeyError: 'boom'"
    ):
        lk.run({**recipe, "on_bad_sample": "fail"})


def test_a_plugin_that_fails_for_every_sample_ends_the_run(
    recipe: dict[str, Any], waves: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_prepare(waves, monkeypatch)
    with pytest.raises(
        SourceError,
        match=(
            r"none of the first 12 samples can be used: acme_waves\.Wave raised KeyError"
        ),
    ):
        lk.run(recipe)


def test_no_memory_is_no_fault_of_the_sample(
    recipe: dict[str, Any], waves: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, sample: Sample) -> Iterator[Prepared]:
        raise MemoryError

    monkeypatch.setattr(waves.Wave, "prepare", broken)
    with pytest.raises(MemoryError):
        lk.run(recipe)


def test_an_exception_of_the_encoder_names_it_and_the_samples(
    recipe: dict[str, Any], waves: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, calls = waves.WaveEncoder.encode, []

    def broken(self: Any, batch: Any) -> Any:
        calls.append(batch)
        if len(calls) > 1:
            raise ZeroDivisionError("boom")
        return encode(self, batch)

    monkeypatch.setattr(waves.WaveEncoder, "encode", broken)
    with pytest.raises(ZeroDivisionError) as caught:
        lk.run({**recipe, "output": {**recipe["output"], "unit_size": 4}, "compile": False})
    [note] = caught.value.__notes__
    assert note.startswith("acme_waves.WaveEncoder raised this while encoding ")
    assert "the first of sample '00" in note


def test_latents_that_are_no_mapping_are_an_error_of_the_encoder(
    recipe: dict[str, Any], waves: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = waves.WaveEncoder.encode
    monkeypatch.setattr(
        waves.WaveEncoder, "encode", lambda self, batch: encode(self, batch)["mean"]
    )
    with pytest.raises(
        EncoderError, match=r"acme_waves\.WaveEncoder\.encode: expected a mapping .*, got Tensor"
    ):
        lk.run(recipe)


@pytest.mark.parametrize("part", ["render", "decode"])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no pen"), "acme_waves.Wave"),
        (EncoderError("another number of channels"), "another number of channels"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "CUDA out of memory. Tried"),
        (MemoryError("no room"), "no room"),
    ],
)
def test_a_preview_that_fails_does_not_fail_the_run(
    recipe: dict[str, Any],
    waves: Any,
    part: str,
    error: Exception,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr(waves.Wave if part == "render" else waves.WaveEncoder, part, broken)
    assert len(lk.run(recipe)) == 11
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith(f"{recipe['output']['path']}: no preview: {said}")
    assert line.endswith("; the dataset is complete without it")
    assert not (Path(recipe["output"]["path"]) / "preview.npz").exists()
