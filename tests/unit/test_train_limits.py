"""What a run does about sizes, memory, compilers and trackers, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest
import torch
from accelerate.tracking import GeneralTracker
from torch import Tensor, nn

from latentkit.contracts import Entry, LossBatch, Moments, Prepared, Reconstruction, Sample
from latentkit.encoders.tiny_kl import TinyKLEncoder
from latentkit.encoders.tiny_kl_network import TinyKL
from latentkit.errors import TrainingError
from latentkit.losses.kl import kl
from latentkit.losses.reconstruction import l1, mse
from latentkit.train import OptimizerSettings, TrainSettings, WeightedLoss, WeightSchedule, train

MSE = WeightedLoss("mse", mse)
SETTINGS = TrainSettings(steps=4, batch_size=2, optimizer=OptimizerSettings(lr=1e-3), checkpoint_every=2, log_every=1)


class Six:
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Sample:
        return Sample(key=str(index), media=str(index))

    def entries(self) -> Iterator[Entry]:
        return (Entry(str(index)) for index in range(len(self)))


class Pictures:
    metrics: Sequence[str] = ()

    def __init__(self, side: int = 16) -> None:
        self.side = side

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        draw = torch.Generator().manual_seed(int(sample.read()))
        yield Prepared("plain", "", torch.rand(3, self.side, self.side, generator=draw) * 2 - 1)

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        path.touch()


class Halves(nn.Module):
    """An autoencoder without random draws."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 2, stride=2)
        self.decoder = nn.ConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, values: Tensor) -> Reconstruction:
        mean = torch.tanh(self.encoder(values))
        return Reconstruction(self.decoder(mean), mean, Moments(mean, torch.zeros_like(mean)))


class Model:
    def __init__(self, module: nn.Module | None = None) -> None:
        torch.manual_seed(1)
        self.module: nn.Module = module or Halves()

    def last_layer(self) -> nn.Parameter:
        return self.module.get_parameter("decoder.weight")

    def save(self, folder: Path) -> None:
        (folder / "model.txt").write_text("")


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


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- data, memory, trackers


def test_each_batch_draws_one_of_several_sizes(tmp_path: Path) -> None:
    sides: list[int] = []

    def watched(batch: LossBatch) -> Tensor:
        sides.append(batch.inputs.shape[-1])
        return mse(batch)

    losses = [WeightedLoss("mse", watched)]
    train(Model(), Six(), [Pictures(8), Pictures(16)], losses, replace(SETTINGS, steps=12), tmp_path)
    assert set(sides) == {8, 16}


@pytest.mark.parametrize(
    "loss", [lambda batch: torch.empty(1 << 60), lambda batch: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("CUDA out of memory."))]
)
def test_running_out_of_memory_says_what_to_turn_down(tmp_path: Path, loss: Any) -> None:
    with pytest.raises(TrainingError, match=r"out of memory after step 0.*batch_size.*accumulate.*gradient_checkpointing.*size"):
        train(Model(), Six(), Pictures(), [WeightedLoss("huge", loss)], SETTINGS, tmp_path)


def test_another_runtime_error_keeps_its_name(tmp_path: Path) -> None:
    def broken(batch: LossBatch) -> Tensor:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        train(Model(), Six(), Pictures(), [WeightedLoss("broken", broken)], SETTINGS, tmp_path)


def test_gradient_checkpointing_gives_the_same_weights(tmp_path: Path) -> None:
    import diffusers

    weights = []
    for wanted in (False, True):
        torch.manual_seed(0)
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        network = diffusers.AutoencoderKL(block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, **blocks)

        class Network(nn.Module):
            def __init__(self, network: Any) -> None:
                super().__init__()
                self.network = network

            def forward(self, values: Tensor) -> Reconstruction:
                found = self.network.encode(values).latent_dist
                return Reconstruction(self.network.decode(found.mean).sample, found.mean, Moments(found.mean, found.logvar))

        model = Model(Network(network))
        model.last_layer = lambda network=network: network.decoder.conv_out.weight  # type: ignore[method-assign, misc]
        losses = [MSE, WeightedLoss("l1", l1, adaptive=True)]
        train(model, Six(), Pictures(), losses, replace(SETTINGS, steps=2, gradient_checkpointing=wanted), tmp_path / str(wanted))
        assert network.decoder.gradient_checkpointing is wanted
        weights.append(network.encoder.conv_in.weight.detach())
    torch.testing.assert_close(*weights)


class FileTracker(GeneralTracker):  # type: ignore[misc]
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


def test_trackers_get_what_the_log_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "file", FileTracker)
    monkeypatch.setattr("latentkit.training_start.get_available_trackers", lambda: ["file"])
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda names, *_: names)
    train(Model(), Six(), Pictures(), [MSE], replace(SETTINGS, trackers=("file",)), tmp_path / "run")
    settings, *lines = [json.loads(line) for line in (tmp_path / "run" / "trackers" / "run.jsonl").read_text().splitlines()]
    assert settings["steps"] == "4"
    assert [step for step, _ in lines] == [1, 2, 3, 4]
    assert lines[-1][1]["losses.mse.value"] == log_of(tmp_path / "run")[-1]["losses"]["mse"]["value"]


# ---------------------------------------------------------------- what is refused


def test_a_discriminator_that_isnt_finite_ends_the_run_and_the_model_goes_on_till_then(tmp_path: Path) -> None:
    losses = [MSE, WeightedLoss("critic", Critic(broken_from=2), role="adversarial")]
    with pytest.raises(TrainingError, match=r"of the discriminator of 'critic' were not finite 3 times .* step 5; .*step-0000004\."):
        train(Model(), Six(), Pictures(), losses, replace(SETTINGS, steps=9, max_bad_steps=3), tmp_path)


def no_posterior(batch: LossBatch) -> Tensor:
    raise ValueError("the model has no posterior")


@pytest.mark.parametrize(
    ("losses", "changes", "message"),
    [
        ([WeightedLoss("l1", l1, optimizer=OptimizerSettings())], {}, "'l1' has no discriminator, so its optimizer"),
        ([WeightedLoss("l1", l1, role="adversarial")], {}, "'l1' is adversarial, but it has no discriminator"),
        ([WeightedLoss("kl", kl, adaptive=True, role="latent")], {"train": "decoder"}, "'kl' can't be adaptive: the layer .* isn't"),
        ([WeightedLoss("l1", l1, adaptive=True)], {"train": "encoder"}, "'l1' can't be adaptive: the layer that it goes by isn't trained"),
        ([WeightedLoss("l1", l1, schedule=WeightSchedule(4))], {}, "'l1' would start after 4 steps, but the run has 4"),
        ([WeightedLoss("late", no_posterior, schedule=WeightSchedule(3))], {}, "'late' can't be computed here: the model has no posterior"),
        ([], {"gradient_checkpointing": True}, "gradient_checkpointing: the model can't do that"),
        ([], {"trackers": ["tensorbord"]}, "no tracker 'tensorbord', did you mean 'tensorboard'"),
        ([], {"trackers": ["clearml"]}, "'clearml' isn't installed; install it, or leave it out"),
    ],
)
def test_a_run_that_cant_be_is_refused_before_its_first_step(
    tmp_path: Path, losses: list[WeightedLoss], changes: dict[str, Any], message: str
) -> None:
    model = Model()
    before = model.last_layer().detach().clone()
    with pytest.raises(TrainingError, match=message):
        train(model, Six(), Pictures(), [MSE, *losses], replace(SETTINGS, **changes), tmp_path)
    assert torch.equal(model.last_layer(), before)


def test_a_model_that_cant_save_memory_is_named(tmp_path: Path) -> None:
    model: Any = TinyKLEncoder(TinyKL((4, 8), (1, 1), (4, 8), (1, 1)), None, torch.float32, "cpu")
    with pytest.raises(TrainingError, match="gradient_checkpointing: the model can't do that: TinyKL"):
        train(model, Six(), Pictures(), [MSE], replace(SETTINGS, gradient_checkpointing=True), tmp_path)


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # torch's own, while it loads its compiler
def test_a_compiled_model_is_trained_to_the_same_weights(tmp_path: Path) -> None:
    weights = []
    for wanted in (False, True):
        model = Model()
        train(model, Six(), Pictures(8), [MSE], replace(SETTINGS, steps=2, compile=wanted), tmp_path / str(wanted))
        weights.append(model.last_layer().detach())
    torch.testing.assert_close(*weights)
    torch.compiler.reset()
