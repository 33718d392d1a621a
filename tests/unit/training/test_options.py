"""What a run can be told: when and how much losses count, when it is measured, which checkpoints
are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentkit.contracts import LossBatch
from latentkit.errors import TrainingError
from latentkit.losses.reconstruction import l1, mse
from latentkit.training.checkpoint import list_checkpoints
from latentkit.training.settings import (
    OptimizerSettings,
    TrainEvaluation,
    TrainSettings,
    WeightedLoss,
    WeightSchedule,
)

MSE = WeightedLoss("mse", mse)
SETTINGS = TrainSettings(
    steps=4, batch_size=2, optimizer=OptimizerSettings(lr=1e-3), checkpoint_every=2, log_every=1
)


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (WeightSchedule(), [1, 1, 1, 1, 1, 1]),
        (WeightSchedule(start=2), [0, 0, 1, 1, 1, 1]),
        (WeightSchedule(start=1, warmup=4), [0, 0.25, 0.5, 0.75, 1, 1]),
        (WeightSchedule(start=1, warmup=2, until=4), [0, 0.5, 1, 1, 0, 0]),
    ],
)
def test_a_weight_rises_from_its_start_and_ends(
    schedule: WeightSchedule, expected: list[float]
) -> None:
    assert [schedule.factor(step) for step in range(6)] == expected


def test_a_loss_is_computed_only_while_it_counts_and_with_its_weight(
    small: Any, tmp_path: Path
) -> None:
    steps: list[int] = []

    def watched(batch: LossBatch) -> Tensor:
        steps.extend([batch.step] if torch.is_grad_enabled() else [])
        return l1(batch)

    losses = [MSE, WeightedLoss("l1", watched, 0.5, schedule=WeightSchedule(1, warmup=2, until=3))]
    small.train(losses, SETTINGS, tmp_path)
    assert steps == [1, 2]
    parts = [line["losses"].get("l1") for line in small.log(tmp_path)]
    assert parts[0] is parts[3] is None
    assert [part["weighted"] / part["value"] for part in parts[1:3]] == pytest.approx([0.25, 0.5])
    for line in small.log(tmp_path):
        assert line["loss"] == pytest.approx(
            sum(part["weighted"] for part in line["losses"].values())
        )


@pytest.mark.parametrize(
    ("role", "layer"), [("reconstruction", "decoder.weight"), ("latent", "encoder.weight")]
)
def test_an_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer(
    small: Any, tmp_path: Path, role: Any, layer: str
) -> None:
    def other(batch: LossBatch) -> Tensor:
        return 3 * batch.reconstruction.latents.square().flatten(1).mean(
            1
        ) + batch.reconstruction.output.flatten(1).mean(1)

    losses = [MSE, WeightedLoss("other", other, 0.5, role, adaptive=True)]
    small.train(losses, replace(SETTINGS, steps=1, batch_size=6), tmp_path)
    module = small.model().module
    inputs = torch.stack(
        [next(small.pictures().prepare(small.source[index])).tensor for index in range(6)]
    )
    found = module(inputs)
    weight = module.get_parameter(layer)
    scalars = (
        (found.output - inputs).square().mean(),
        3 * found.latents.square().mean() + found.output.mean(),
    )
    norms = [
        torch.autograd.grad(scalar, weight, retain_graph=True)[0].norm().item()
        for scalar in scalars
    ]
    expected = norms[0] / (norms[1] + 1e-4)
    part = small.log(tmp_path)[0]["losses"]["other"]
    assert part["adaptive"] == pytest.approx(expected, rel=1e-4)
    assert part["weighted"] == pytest.approx(0.5 * expected * part["value"], rel=1e-4)


def test_an_adaptive_loss_may_leave_out_a_step(small: Any, tmp_path: Path) -> None:
    losses = [
        MSE,
        WeightedLoss(
            "none", lambda batch: batch.inputs.new_zeros(len(batch.inputs)), adaptive=True
        ),
    ]
    small.train(losses, SETTINGS, tmp_path)
    assert [line["losses"]["none"]["adaptive"] for line in small.log(tmp_path)] == [0.0] * 4


# ---------------------------------------------------------------- evaluation and what is kept


def test_an_evaluation_sees_averaged_weights_and_changes_nothing(
    small: Any, tmp_path: Path
) -> None:
    seen: list[tuple[int, bool, bool, Tensor]] = []

    def measure(module: nn.Module, step: int) -> Mapping[str, float]:
        torch.rand(3)
        weight = module.get_parameter("decoder.weight")
        seen.append((step, module.training, torch.is_grad_enabled(), weight.detach().clone()))
        return {"psnr": float(step), "rfid": float("inf")}

    models = {name: small.model(nn.Sequential()) for name in ("with", "without")}
    for name, model in models.items():
        model.module = small.model().module
        evaluation = TrainEvaluation(2, measure) if name == "with" else None
        small.train(
            [MSE], replace(SETTINGS, ema_decay=0.5), tmp_path / name, evaluation, model=model
        )
    assert [(step, training, grad) for step, training, grad, _ in seen] == [
        (0, False, False),
        (2, False, False),
        (4, False, False),
    ]
    assert torch.equal(
        seen[-1][3], models["with"].last_layer()
    )  # the result has the averaged weights
    last = [list_checkpoints(tmp_path / name / "checkpoints")[-1] for name in models]
    for file in ("model", "average", "optimizer", "random"):
        first, second = ((path / f"{file}.safetensors").read_bytes() for path in last)
        assert first == second, file
    assert [line for line in small.log(tmp_path / "with") if "metrics" in line] == [
        {"step": 0, "metrics": {"psnr": 0.0, "rfid": None}},
        {"step": 2, "metrics": {"psnr": 2.0, "rfid": None}},
        {"step": 4, "metrics": {"psnr": 4.0, "rfid": None}},
    ]


@pytest.mark.parametrize(("higher_is_better", "best"), [(True, 3), (False, 2)])
def test_the_best_checkpoint_is_kept_beside_the_newest_also_after_a_resume(
    small: Any, tmp_path: Path, higher_is_better: bool, best: int
) -> None:
    values = {0: 6.5, 1: 5.0, 2: 1.0, 3: 9.0, 4: 4.0, 5: 6.0, 6: 2.0, 7: float("nan"), 8: 7.0}
    evaluation = TrainEvaluation(
        1, lambda module, step: {"score": values[step]}, "score", higher_is_better
    )
    for steps in (5, 8):
        small.train(
            [MSE], replace(SETTINGS, steps=steps, checkpoint_every=1, keep=1), tmp_path, evaluation
        )
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == [
        f"step-{step:07d}" for step in (best, 8)
    ]


def test_a_metric_that_isnt_measured_is_named(small: Any, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"evaluate\.best: 'psrn' isn't measured, which are psnr"
    ):
        small.train(
            [MSE],
            SETTINGS,
            tmp_path,
            TrainEvaluation(1, lambda module, step: {"psnr": 1.0}, "psrn"),
        )


def test_a_damaged_checkpoint_is_skipped_and_the_one_before_used(
    small: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("straight", "damaged"):
        small.train([MSE], SETTINGS, tmp_path / name)
    model = list_checkpoints(tmp_path / "damaged" / "checkpoints")[-1] / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-5] ^= 1  # one bit of a weight
    model.write_bytes(content)
    (tmp_path / "damaged" / "model" / "model.txt").unlink()
    small.train([MSE], SETTINGS, tmp_path / "damaged")
    text = capfd.readouterr().err
    assert (
        "step-0000004: the checkpoint is damaged (model.safetensors is not what was written); going"
        " back to the one before"
        in text
    )
    assert "continuing from step 2" in text
    first, second = (
        list_checkpoints(tmp_path / name / "checkpoints")[-1] for name in ("straight", "damaged")
    )
    assert first.name == second.name == "step-0000004"
    assert model.read_bytes() == (first / "model.safetensors").read_bytes()
