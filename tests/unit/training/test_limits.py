"""What a run does about sizes, memory, compilers and trackers, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest
import torch
from accelerate.tracking import GeneralTracker
from small_training import Normalized
from torch import Tensor, nn

from latentkit.contracts import LossBatch, Moments, Reconstruction
from latentkit.encoders.tiny_kl import TinyKLEncoder
from latentkit.encoders.tiny_kl_network import TinyKL
from latentkit.errors import TrainingError
from latentkit.losses.kl import Kl
from latentkit.losses.reconstruction import l1, mse
from latentkit.training.settings import (
    OptimizerSettings,
    TrainSettings,
    WeightedLoss,
    WeightSchedule,
)

MSE = WeightedLoss("mse", mse)
SETTINGS = TrainSettings(
    steps=4, batch_size=2, optimizer=OptimizerSettings(lr=1e-3), checkpoint_every=2, log_every=1
)


class Critic:
    """An adversarial loss whose discriminator is a mean."""

    def __init__(self, broken_from: int = 10**6) -> None:
        self.discriminator: nn.Module = nn.Linear(1, 1)
        self.broken_from = broken_from

    def __call__(self, batch: LossBatch) -> Tensor:
        return self._score(batch.reconstruction.output)

    def discriminator_loss(self, batch: LossBatch) -> Tensor:
        score = self._score(batch.inputs) - self._score(batch.reconstruction.output)
        return score * float("nan") if batch.step >= self.broken_from else score

    def _score(self, values: Tensor) -> Tensor:
        score: Tensor = self.discriminator(values.flatten(1).mean(1, keepdim=True))[:, 0]
        return score


# ---------------------------------------------------------------- data, memory, trackers


def test_each_batch_draws_one_of_several_sizes(small: Any, tmp_path: Path) -> None:
    sides: list[int] = []

    def watched(batch: LossBatch) -> Tensor:
        sides.append(batch.inputs.shape[-1])
        return mse(batch)

    losses = [WeightedLoss("mse", watched)]
    small.train(
        losses,
        replace(SETTINGS, steps=12),
        tmp_path,
        prepare=[small.pictures(8), small.pictures(16)],
    )
    assert set(sides) == {8, 16}


@pytest.mark.parametrize(
    "loss",
    [
        lambda batch: torch.empty(1 << 60),
        lambda batch: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("CUDA out of memory.")),
    ],
)
def test_running_out_of_memory_says_what_to_turn_down(
    small: Any, tmp_path: Path, loss: Any
) -> None:
    with pytest.raises(
        TrainingError,
        match=r"out of memory after step 0.*batch_size.*accumulate.*gradient_checkpointing.*size",
    ):
        small.train([WeightedLoss("huge", loss)], SETTINGS, tmp_path)


def test_another_runtime_error_keeps_its_name(small: Any, tmp_path: Path) -> None:
    def broken(batch: LossBatch) -> Tensor:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        small.train([WeightedLoss("broken", broken)], SETTINGS, tmp_path)


def test_gradient_checkpointing_gives_the_same_weights(small: Any, tmp_path: Path) -> None:
    import diffusers

    weights = []
    for wanted in (False, True):
        torch.manual_seed(0)
        blocks = {
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        }
        network = diffusers.AutoencoderKL(
            block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, **blocks
        )

        class Network(nn.Module):
            def __init__(self, network: Any) -> None:
                super().__init__()
                self.network = network

            def forward(self, values: Tensor) -> Reconstruction:
                found = self.network.encode(values).latent_dist
                return Reconstruction(
                    self.network.decode(found.mean).sample,
                    found.mean,
                    Moments(found.mean, found.logvar),
                )

        model = small.model(Network(network))
        model.last_layer = lambda network=network: network.decoder.conv_out.weight  # type: ignore[method-assign, misc]
        losses = [MSE, WeightedLoss("l1", l1, adaptive=True)]
        small.train(
            losses,
            replace(SETTINGS, steps=2, gradient_checkpointing=wanted),
            tmp_path / str(wanted),
            model=model,
        )
        assert network.decoder.gradient_checkpointing is wanted
        weights.append(network.encoder.conv_in.weight.detach())
    torch.testing.assert_close(*weights)


class FileTracker(GeneralTracker):
    """A tracker of Accelerate's that writes a file."""

    name = "file"
    requires_logging_directory = True

    def __init__(self, run_name: str, logging_dir: Path, **_: Any) -> None:
        super().__init__()
        logging_dir.mkdir(exist_ok=True, parents=True)
        self.file = logging_dir / f"{run_name}.jsonl"

    @property
    def tracker(self) -> Path:
        return self.file

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.file.write_text(json.dumps(values) + "\n")

    def log(self, values: dict[str, Any], step: int | None, **_: Any) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps([step, values]) + "\n")


def test_trackers_get_what_the_log_gets(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "file", FileTracker)
    monkeypatch.setattr("latentkit.training.start.get_available_trackers", lambda: ["file"])
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda names, *_: names)
    small.train([MSE], replace(SETTINGS, trackers=("file",)), tmp_path / "run")
    settings, *lines = [
        json.loads(line)
        for line in (tmp_path / "run" / "trackers" / "run.jsonl").read_text().splitlines()
    ]
    assert settings["steps"] == "4"
    assert [step for step, _ in lines] == [1, 2, 3, 4]
    assert (
        lines[-1][1]["losses.mse.value"]
        == small.log(tmp_path / "run")[-1]["losses"]["mse"]["value"]
    )


def test_a_discriminator_computes_in_float32_under_fp16_and_its_gradients_are_not_scaled(
    small: Any, tmp_path: Path
) -> None:
    norms = []
    for precision in ("float32", "fp16"):
        torch.manual_seed(5)
        critic = Critic()
        dtypes: set[torch.dtype] = set()
        critic.discriminator.register_forward_hook(
            lambda _module, _inputs, output, seen=dtypes: seen.add(output.dtype)
        )
        losses = [MSE, WeightedLoss("critic", critic, role="adversarial")]
        small.train(losses, replace(SETTINGS, steps=1, precision=precision), tmp_path / precision)
        assert dtypes == {torch.float32}
        norms.append(small.log(tmp_path / precision)[0]["discriminators"]["critic"]["grad_norm"])
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


# ---------------------------------------------------------------- what is refused


def test_a_discriminator_that_isnt_finite_ends_the_run_and_the_model_goes_on_till_then(
    small: Any, tmp_path: Path
) -> None:
    losses = [MSE, WeightedLoss("critic", Critic(broken_from=2), role="adversarial")]
    with pytest.raises(
        TrainingError,
        match=(
            r"of the discriminator of 'critic' were not finite 3 times .* step 5; .*step-0000004\."
        ),
    ):
        small.train(losses, replace(SETTINGS, steps=9, max_bad_steps=3), tmp_path)


def no_posterior(batch: LossBatch) -> Tensor:
    raise ValueError("the model has no posterior")


@pytest.mark.parametrize(
    ("losses", "changes", "message"),
    [
        (
            [WeightedLoss("l1", l1, optimizer=OptimizerSettings())],
            {},
            "'l1' has no discriminator, so its optimizer",
        ),
        (
            [WeightedLoss("l1", l1, role="adversarial")],
            {},
            "'l1' is adversarial, but it has no discriminator",
        ),
        (
            [WeightedLoss("kl", Kl(), adaptive=True, role="latent")],
            {"train": "decoder"},
            "'kl' can't be adaptive: the layer .* isn't",
        ),
        (
            [WeightedLoss("l1", l1, adaptive=True)],
            {"train": "encoder"},
            "'l1' can't be adaptive: the layer that it goes by isn't trained",
        ),
        (
            [WeightedLoss("l1", l1, schedule=WeightSchedule(4))],
            {},
            "'l1' would start after 4 steps, but the run has 4",
        ),
        (
            [WeightedLoss("late", no_posterior, schedule=WeightSchedule(3))],
            {},
            "'late' can't be computed here: the model has no posterior",
        ),
        ([], {"gradient_checkpointing": True}, "gradient_checkpointing: the model doesn't support it"),
        ([], {"trackers": ["tensorbord"]}, "no tracker 'tensorbord', did you mean 'tensorboard'"),
        (
            [],
            {"trackers": ["clearml"]},
            "'clearml' isn't installed; pip install clearml, or leave it out",
        ),
    ],
)
def test_a_run_that_cant_be_is_refused_before_its_first_step(
    small: Any, tmp_path: Path, losses: list[WeightedLoss], changes: dict[str, Any], message: str
) -> None:
    model = small.model()
    before = model.last_layer().detach().clone()
    with pytest.raises(TrainingError, match=message):
        small.train([MSE, *losses], replace(SETTINGS, **changes), tmp_path, model=model)
    assert torch.equal(model.last_layer(), before)


def test_a_model_that_cant_save_memory_is_named(small: Any, tmp_path: Path) -> None:
    model: Any = TinyKLEncoder(TinyKL((4, 8), (1, 1), (4, 8), (1, 1)), None, torch.float32, "cpu")
    with pytest.raises(
        TrainingError, match="gradient_checkpointing: the model doesn't support it: TinyKL"
    ):
        small.train([MSE], replace(SETTINGS, gradient_checkpointing=True), tmp_path, model=model)


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # torch's own, while it loads its compiler
def test_a_compiled_model_is_trained_to_the_same_weights(small: Any, tmp_path: Path) -> None:
    weights = []
    for wanted in (False, True):
        model = small.model()
        small.train(
            [MSE],
            replace(SETTINGS, steps=2, compile=wanted),
            tmp_path / str(wanted),
            model=model,
            prepare=small.pictures(8),
        )
        weights.append(model.last_layer().detach())
    torch.testing.assert_close(*weights)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_a_model_is_compiled_for_every_size_there_is(small: Any, tmp_path: Path) -> None:
    sizes = [small.pictures(side) for side in (4, 8, 12)]
    limits = torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True)
    with limits:  # beyond its limit torch goes on uncompiled, and says nothing unless told to
        small.train([MSE], replace(SETTINGS, steps=6, compile=True), tmp_path, prepare=sizes)
    torch.compiler.reset()


def test_a_skipped_step_leaves_no_trace_in_running_statistics(small: Any, tmp_path: Path) -> None:
    """One batch is nan, so its step is skipped: the statistics are those of the other batches, also
    the discriminator's.
    """
    pictures = small.pictures()

    class Once(type(pictures)):  # type: ignore[misc]
        """Noise; one sample of the first epoch is nan."""

        def prepare(self, sample: Any) -> Any:
            (view,) = super().prepare(sample)
            yield replace(view, tensor=view.tensor * float("nan")) if sample.key == "2#0" else view

    critic = Critic()
    critic.discriminator = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    model = small.model(Normalized())
    losses = [MSE, WeightedLoss("gan", critic, 0.1, "adversarial")]
    result = small.train(losses, SETTINGS, tmp_path, model=model, prepare=Once(16))
    assert (result.steps, result.num_skipped_steps) == (4, 1)
    for module in (model.module, critic.discriminator):
        buffers = dict(module.named_buffers())
        assert all(bool(buffer.isfinite().all()) for buffer in buffers.values())
        (count,) = (
            buffer for name, buffer in buffers.items() if name.endswith("num_batches_tracked")
        )
        assert count == (4 if module is model.module else 12)
