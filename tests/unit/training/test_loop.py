"""The training loop: what it learns, writes and refuses."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_training import small_model
from torch import Tensor, nn

from latentkit.contracts import (
    BuildContext,
    Entry,
    Loss,
    LossBatch,
    Prepared,
    Reconstruction,
    Sample,
    Shard,
)
from latentkit.encoders.options import TinyKLConfig
from latentkit.encoders.tiny_kl import WEIGHTS_NAME, open_tiny_kl
from latentkit.errors import EncoderError, PluginError, SourceError, TrainingError
from latentkit.losses.kl import Kl
from latentkit.losses.reconstruction import l1, mse
from latentkit.training.checkpoint import list_checkpoints
from latentkit.training.loop import train
from latentkit.training.settings import (
    OptimizerSettings,
    TrainEvaluation,
    TrainSettings,
    WeightedLoss,
    learning_rate,
)

QUICK = OptimizerSettings(lr=3e-3, betas=(0.9, 0.99))
MSE_KL = (WeightedLoss("mse", mse), WeightedLoss("kl", Kl(), 1e-6, "latent"))


class Names:
    """Samples whose media is their name."""

    def __init__(self, count: int = 8) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return Sample(key=str(index), media=str(index))

    def entries(self) -> Iterator[Entry]:
        return (Entry(str(index)) for index in range(self.count))


class Gradients:
    """Smooth pictures that follow from the name, 16 x 16."""

    metrics: Sequence[str] = ()

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        draw = np.random.default_rng(
            int.from_bytes(hashlib.sha256(sample.read()).digest()[:8], "big")
        ).uniform(-1, 1, (3, 3, 1))
        ramp = np.linspace(-1, 1, 16)
        picture = 0.5 * (
            draw[0, :, :, None] + draw[1, :, :, None] * ramp + draw[2, :, :, None] * ramp[:, None]
        )
        yield Prepared("plain", "16x16", torch.from_numpy(picture.astype(np.float32)))

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        path.touch()


def settings(steps: int, **options: Any) -> TrainSettings:
    return replace(TrainSettings(steps, batch_size=4, optimizer=QUICK, log_every=1), **options)


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- what comes out


def test_training_lowers_the_loss_on_data_it_fits(tmp_path: Path) -> None:
    train(small_model(), Names(), Gradients(), MSE_KL, settings(60), tmp_path)
    losses = [line["loss"] for line in log_of(tmp_path)]
    assert len(losses) == 60
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_the_result_opens_as_an_encoder_with_the_trained_weights_and_measured_statistics(
    tmp_path: Path,
) -> None:
    model = small_model()
    result = train(model, Names(), Gradients(), MSE_KL, settings(4), tmp_path)
    assert (result.model, result.steps, result.finished_before) == (tmp_path / "model", 4, False)
    opened = open_tiny_kl(TinyKLConfig(model=str(result.model)), BuildContext())
    pictures = torch.stack([next(Gradients().prepare(Names()[index])).tensor for index in range(8)])  # type: ignore[misc]
    expected, found = (
        {name: part.cpu() for name, part in each.encode(pictures).items()}
        for each in (model, opened)
    )
    torch.testing.assert_close(
        found["mean"], expected["mean"], rtol=0, atol=5e-3
    )  # stored as float16
    config = json.loads((result.model / "config.json").read_text())
    per_channel = expected["mean"].transpose(0, 1).flatten(1)
    variance = per_channel.var(1, correction=0) + expected["logvar"].exp().transpose(0, 1).flatten(
        1
    ).mean(1)
    torch.testing.assert_close(
        torch.tensor(config["latents_mean"]), per_channel.mean(1), rtol=0, atol=0.02
    )
    torch.testing.assert_close(
        torch.tensor(config["latents_std"]), variance.sqrt(), rtol=0.05, atol=0
    )


def test_the_result_has_the_averaged_weights_where_there_is_an_average(tmp_path: Path) -> None:
    for name, decay in (("plain", None), ("averaged", 0.5)):
        train(
            small_model(),
            Names(),
            Gradients(),
            MSE_KL,
            settings(3, ema_decay=decay),
            tmp_path / name,
        )
    plain, averaged = (
        (tmp_path / name / "model" / WEIGHTS_NAME).read_bytes() for name in ("plain", "averaged")
    )
    assert plain != averaged


def test_running_a_finished_run_again_does_nothing(tmp_path: Path) -> None:
    train(small_model(), Names(), Gradients(), MSE_KL, settings(2), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    result = train(small_model(), Names(), Gradients(), MSE_KL, settings(2), tmp_path)
    assert result.finished_before
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_model_of_somebody_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(
        TrainingError, match=r"model exists, but not the checkpoint .* Choose another output\.path"
    ):
        train(small_model(), Names(), Gradients(), MSE_KL, settings(2), tmp_path)
    assert list((tmp_path / "model").iterdir()) == []


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_training_one_half_leaves_the_other_as_it_was(tmp_path: Path, half: str) -> None:
    model = small_model()
    for parameter in model.module.parameters():
        parameter.data[(0,) * parameter.ndim] = -0.0  # equal to 0, but not bit for bit
    before = model.fingerprint()
    train(model, Names(), Gradients(), MSE_KL, settings(2, train=half, ema_decay=0.5), tmp_path)
    after = model.fingerprint()
    changed = {"weights": "encoder", "decoder": "decoder"}
    assert {changed[name] for name in before if before[name] != after[name]} == {half}


# ---------------------------------------------------------------- arithmetic


def test_gradients_accumulate_to_those_of_the_larger_batch(tmp_path: Path) -> None:
    weights = []
    for batch_size, accumulate in ((8, 1), (2, 4)):
        model = Line()
        options = settings(3, batch_size=batch_size, accumulate=accumulate)
        train(
            model,
            Names(),
            Gradients(),
            [WeightedLoss("mse", mse)],
            options,
            tmp_path / str(batch_size),
        )
        weights.append(model.last_layer().detach().cpu())
    torch.testing.assert_close(weights[0], weights[1])
    assert not torch.equal(weights[0], Line().last_layer())


class Line:
    """A model without random draws: one convolution."""

    def __init__(self) -> None:
        self.module: nn.Module = LineModule()

    def last_layer(self) -> nn.Parameter:
        return self.module.get_parameter("weight")

    def save(self, folder: Path) -> None:
        (folder / "line.txt").write_text("")


class LineModule(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(3, 3, 1)
        nn.init.constant_(self.weight, 0.1)
        nn.init.zeros_(self.get_parameter("bias"))

    def forward(self, values: Tensor) -> Reconstruction:  # type: ignore[override]
        output = super().forward(values)
        return Reconstruction(output=output, latents=output)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_computes_in_it_and_keeps_float32_weights(
    tmp_path: Path, precision: str
) -> None:
    seen: set[torch.dtype] = set()
    model = small_model()
    module = model.module
    module.get_submodule("decoder.pixels").register_forward_hook(
        lambda _module, _inputs, output: seen.add(output.dtype)
    )
    train(model, Names(), Gradients(), MSE_KL, settings(3, precision=precision), tmp_path)
    assert {"bf16": torch.bfloat16, "fp16": torch.float16}[precision] in seen
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert all(math.isfinite(line["loss"]) for line in log_of(tmp_path))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]),
        (
            "cosine",
            [0.25, 0.5, 0.75, 1.0, 1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)],
        ),
    ],
)
def test_the_learning_rate_rises_then_follows_its_schedule(
    schedule: Any, expected: list[float]
) -> None:
    chosen = OptimizerSettings(lr=2.0, schedule=schedule, warmup=4)
    assert [learning_rate(chosen, step, 8) / 2 for step in range(8)] == pytest.approx(expected)


def test_the_log_has_every_part_with_its_unit(tmp_path: Path) -> None:
    train(small_model(), Names(), Gradients(), MSE_KL, settings(2), tmp_path)
    line = log_of(tmp_path)[-1]
    parts = line["losses"]
    assert line["loss"] == pytest.approx(parts["mse"]["weighted"] + parts["kl"]["weighted"])
    assert parts["kl"]["weighted"] == pytest.approx(1e-6 * parts["kl"]["value"])
    assert parts["kl"]["value"] == pytest.approx(line["kl_nats"] / 768)
    assert line["kl_bits_per_dim"] == pytest.approx(line["kl_nats"] / math.log(2) / 768)
    assert (line["step"], line["lr"]) == (2, pytest.approx(3e-3))
    assert line["samples_per_second"] > 0


# ---------------------------------------------------------------- what goes wrong


def nan_from(first: int, last: int) -> Loss:
    """A loss that isn't finite in its calls from `first` to `last`, counted from 0."""
    calls = iter(range(10**6))

    def loss(batch: LossBatch) -> Tensor:
        return mse(batch) * (float("nan") if first <= next(calls) <= last else 1.0)

    return loss


def test_steps_that_arent_finite_are_skipped_and_counted(tmp_path: Path) -> None:
    model = small_model()
    result = train(
        model, Names(), Gradients(), [WeightedLoss("mse", nan_from(2, 4))], settings(5), tmp_path
    )
    assert (result.steps, result.num_skipped_steps) == (5, 3)
    assert all(bool(parameter.isfinite().all()) for parameter in model.module.parameters())
    assert [line["num_skipped_steps"] for line in log_of(tmp_path)] == [0, 0, 3, 3, 3]


def test_ten_such_steps_running_end_the_run_at_its_last_checkpoint(tmp_path: Path) -> None:
    losses = [WeightedLoss("mse", nan_from(3, 100))]
    with pytest.raises(
        TrainingError,
        match=r"10 times in a row after step 3; the last good checkpoint is .*step-0000002\.",
    ):
        train(
            small_model(), Names(), Gradients(), losses, settings(9, checkpoint_every=2), tmp_path
        )
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_that_no_finite_step_followed_is_not_called_good(tmp_path: Path) -> None:
    losses = [WeightedLoss("mse", nan_from(4, 100))]
    with pytest.raises(
        TrainingError,
        match=(
            r"nothing was finite since .*step-0000004; the last good one may be .*step-0000002:"
            r" move the"
        ),
    ):
        train(
            small_model(), Names(), Gradients(), losses, settings(9, checkpoint_every=2), tmp_path
        )


def test_an_evaluation_that_fails_loses_no_step(tmp_path: Path) -> None:
    def failing(module: nn.Module, step: int) -> dict[str, float]:
        if step:
            raise SourceError("the hold-out set is gone")
        return {}

    with pytest.raises(SourceError, match="the hold-out set is gone"):
        train(
            small_model(),
            Names(),
            Gradients(),
            MSE_KL,
            settings(5),
            tmp_path,
            TrainEvaluation(3, failing),
        )
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step-0000003"]
    assert train(small_model(), Names(), Gradients(), MSE_KL, settings(5), tmp_path).steps == 5


class Stream:
    def shards(self) -> list[Shard]:
        return []

    def read(self, shard: Shard) -> Iterator[Sample]:
        return iter(())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"source": Stream()}, TrainingError, "this source is a stream"),
        (
            {"losses": MSE_KL[1:]},
            TrainingError,
            "no reconstruction loss is active in steps 1 to 1; training needs a reconstruction"
            " loss",
        ),
        ({"losses": [WeightedLoss("mse", mse, 0.0)]}, TrainingError, "no reconstruction loss is active in steps 1 to 1"),
        ({"losses": [MSE_KL[0], MSE_KL[0]]}, TrainingError, "different names, got mse, mse"),
        (
            {"losses": [WeightedLoss("flat", lambda batch: l1(batch).mean())]},
            PluginError,
            r"'flat': expected one value per sample",
        ),
        (
            {"model": small_model(torch.bfloat16)},
            TrainingError,
            "needs float32 weights, the model has bfloat16",
        ),
        ({"source": Names(3)}, TrainingError, "3 samples, fewer than one batch"),
        (
            {"model": Line(), "settings": settings(1, train="decoder")},
            TrainingError,
            "train: decoder: the model has no part",
        ),
    ],
)
def test_what_cant_be_trained_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    parts: dict[str, Any] = {
        "model": small_model(),
        "source": Names(),
        "prepare": Gradients(),
        "losses": MSE_KL,
        "settings": settings(1),
    }
    with pytest.raises(error, match=message):
        train(**(parts | changes), folder=tmp_path)


def test_a_model_that_changes_the_shape_is_refused(tmp_path: Path) -> None:
    model = Line()
    model.module.register_forward_hook(
        lambda _m, _i, found: Reconstruction(found.output[..., :8], found.latents)
    )
    with pytest.raises(
        EncoderError, match=r"shape \(4, 3, 16, 8\), but its input has \(4, 3, 16, 16\)"
    ):
        train(model, Names(), Gradients(), [WeightedLoss("mse", mse)], settings(1), tmp_path)
