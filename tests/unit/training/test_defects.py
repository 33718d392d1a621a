"""Twelve defects that trainers of autoencoders were found to have, each shown to be absent here.

Two of them need several processes, which are those of test_processes.py, launched as a
script.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from launching import launch
from safetensors.torch import load_file
from small_training import Critic, LearnedScale, Noise, Numbers, small_model
from torch import Tensor, nn

from latentkit.cli.main import main
from latentkit.contracts import LossBatch
from latentkit.losses.kl import Kl
from latentkit.losses.reconstruction import mse
from latentkit.training.batches import Batch, Position
from latentkit.training.checkpoint import list_checkpoints, read_checkpoint
from latentkit.training.log import TrainingLog
from latentkit.training.loop import train
from latentkit.training.settings import (
    OptimizerSettings,
    TrainSettings,
    WeightedLoss,
    WeightSchedule,
)
from latentkit.training.shared_state import Run
from latentkit.training.start import start
from latentkit.training.step import discriminator_pass, model_pass, take_step

SETTINGS = TrainSettings(
    steps=6,
    batch_size=2,
    accumulate=2,
    optimizer=OptimizerSettings(lr=3e-3, warmup=2),
    ema_decay=0.9,
    checkpoint_every=3,
    log_every=1,
)


SEVEN = Numbers(7)
"""So that epochs end inside steps."""


class CountedCritic(Critic):
    """A critic that counts the passes through its discriminator."""

    def __init__(self) -> None:
        torch.manual_seed(2)
        super().__init__(
            nn.Sequential(
                nn.Conv2d(3, 4, 4, 2), nn.BatchNorm2d(4), nn.LeakyReLU(), nn.Conv2d(4, 1, 3)
            )
        )
        self.num_passes = 0
        self.discriminator.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.num_passes += 1


class Features:
    """A perceptual loss: distance between the features of a frozen network."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.network = nn.Conv2d(3, 6, 3).requires_grad_(False)

    def __call__(self, batch: LossBatch) -> Tensor:
        return (
            (self.network(batch.reconstruction.output) - self.network(batch.inputs))
            .square()
            .flatten(1)
            .mean(1)
        )


def all_losses(critic: CountedCritic, first_step: int = 0) -> list[WeightedLoss]:
    return [
        WeightedLoss("own", LearnedScale()),
        WeightedLoss("kl", Kl(), 1e-4, "latent"),
        WeightedLoss(
            "critic", critic, 0.5, "adversarial", adaptive=True, schedule=WeightSchedule(first_step)
        ),
    ]


def started(
    folder: Path, model: Any, losses: Sequence[WeightedLoss], settings: TrainSettings = SETTINGS
) -> Run:
    """A run before its first step."""
    accelerator = Accelerator(mixed_precision="no")
    return start(
        model,
        losses,
        settings,
        accelerator,
        TrainingLog(folder / "log.jsonl", settings.steps, accelerator, []),
    )


def batch(number: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(number)
    return Batch(torch.rand(2, 3, 16, 16, generator=draw) * 2 - 1, Position(number + 1))


def gradients(module: nn.Module) -> list[Tensor]:
    return [
        parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None
    ]


# ---------------------------------------------------------------- 1 to 3


def test_1_a_perceptual_loss_has_a_gradient(tmp_path: Path) -> None:
    plain, with_features = small_model(), small_model()
    features = WeightedLoss("features", Features(), 0.5)
    for model, losses in ((plain, []), (with_features, [features])):
        run = started(tmp_path, model, [WeightedLoss("mse", mse), *losses])
        torch.manual_seed(0)
        model_pass(run, batch(), run.losses)
    torch.manual_seed(0)
    inputs = batch().inputs
    reference = small_model().module
    torch.manual_seed(0)
    output = reference(inputs).output
    distance = (features.loss.network(output) - features.loss.network(inputs)).square().mean()  # type: ignore[attr-defined]
    (((output - inputs).square().mean() + 0.5 * distance) / SETTINGS.accumulate).backward()
    assert not all(map(torch.equal, gradients(plain.module), gradients(with_features.module)))
    for found, expected in zip(gradients(with_features.module), gradients(reference), strict=True):
        torch.testing.assert_close(found, expected)


def test_2_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    for name, parts in (("straight", [6]), ("parts", [3, 6])):
        for steps in parts:
            train(
                small_model(),
                SEVEN,
                Noise(),
                all_losses(CountedCritic(), 2),
                replace(SETTINGS, steps=steps),
                tmp_path / name,
            )
    whole, resumed = (
        list_checkpoints(tmp_path / name / "checkpoints")[-1] for name in ("straight", "parts")
    )
    stems = {
        "model",
        "average",
        "optimizer",
        "random",
        "loss.own",
        "discriminator.critic",
        "discriminator-optimizer.critic",
    }
    assert {path.name for path in whole.iterdir()} == {f"{stem}.safetensors" for stem in stems} | {
        "state.json"
    }
    for path in whole.iterdir():
        assert path.read_bytes() == (resumed / path.name).read_bytes(), path.name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_3_master_weights_stay_float32(tmp_path: Path, precision: Any) -> None:
    critic = CountedCritic()
    train(
        small_model(),
        SEVEN,
        Noise(),
        all_losses(critic),
        replace(SETTINGS, precision=precision),
        tmp_path,
    )
    tensors = read_checkpoint(list_checkpoints(tmp_path / "checkpoints")[-1]).tensors
    for stem in tensors.keys() - {"random"}:
        dtypes = {
            tensor.dtype for name, tensor in tensors[stem].items() if "num_batches" not in name
        }
        assert dtypes == {torch.float32}, stem


# ---------------------------------------------------------------- 4 and 9, in two processes

# seconds for what takes a few: processes that wait for each other would do so for half an hour
PATIENCE = 180


@pytest.fixture(scope="module")
def launched(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Two processes, which have ended, and the folder with a run of each case, CASE, and each
    process's weights, CASE-RANK.safetensors.
    """
    folder = tmp_path_factory.mktemp("launched")
    script = Path(__file__).with_name("test_processes.py")
    return launch(script, folder, seconds=PATIENCE), folder


def test_4_processes_keep_the_same_weights_also_when_a_loss_runs_the_model_again(
    launched: tuple[Any, Path],
) -> None:
    """Each process sees samples of its own, so only averaged gradients keep their weights alike."""
    first, second, without = (
        load_file(launched[1] / f"{name}.safetensors") for name in ("again-0", "again-1", "plain-0")
    )
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        assert name == "unused" or not torch.equal(tensor, without[name]), "the loss counts"


def test_9_saving_does_not_wait_for_a_process_that_never_comes(launched: tuple[Any, Path]) -> None:
    launch, folder = launched
    assert launch.returncode == 0, "the processes failed, or waited for each other"
    for case in ("plain", "again", "critic"):
        kept = [read_checkpoint(path) for path in list_checkpoints(folder / case / "checkpoints")]
        assert [checkpoint.step for checkpoint in kept] == [4, 5]
        for checkpoint in kept:  # both processes have their part in it
            assert (
                len(checkpoint.tensors["random"]["cpu"]) == len(checkpoint.state["positions"]) == 2
            )
        assert (folder / case / "model" / "model.txt").exists()


# ---------------------------------------------------------------- 5 to 8


def test_5_the_discriminators_pass_leaves_no_gradient_in_the_model(tmp_path: Path) -> None:
    model, critic = small_model(), CountedCritic()
    run = started(tmp_path, model, all_losses(critic))
    with torch.no_grad():
        for parameter in model.module.parameters():  # what starts at zero would hide a gradient
            parameter.add_(0.01)
    detached, _ = model_pass(run, batch(), run.losses)
    before = gradients(model.module)
    discriminator_pass(run, run.losses[2], run.state.discriminators["critic"], detached)
    assert all(map(torch.equal, gradients(model.module), before))
    assert any(gradient.abs().sum() > 0 for gradient in gradients(critic.discriminator))


def test_6_the_models_pass_leaves_no_gradient_in_the_discriminator(tmp_path: Path) -> None:
    model, critic = small_model(), CountedCritic()
    run = started(tmp_path, model, all_losses(critic))
    model_pass(run, batch(), run.losses)
    assert gradients(critic.discriminator) == []
    take_step(run, iter([batch(0), batch(1)]))
    assert gradients(critic.discriminator) == gradients(model.module) == []


def test_7_nothing_of_an_adversarial_loss_runs_before_it_starts(tmp_path: Path) -> None:
    critic = CountedCritic()
    run = started(tmp_path, small_model(), all_losses(critic, first_step=2))
    before = {name: tensor.clone() for name, tensor in critic.discriminator.state_dict().items()}
    values = [take_step(run, iter([batch(number), batch(number + 1)]))[0] for number in range(2)]
    assert critic.num_passes == 0
    assert all(
        torch.equal(tensor, before[name])
        for name, tensor in critic.discriminator.state_dict().items()
    )
    assert not any("critic" in name for found in values for name in found or {})
    values.append(take_step(run, iter([batch(5), batch(6)]))[0])
    assert critic.num_passes == 2 * 3  # two batches: the reconstruction, then both kinds
    assert {"adaptive.critic", "discriminators.critic.loss"} <= (values[-1] or {}).keys()


def test_8_each_network_counts_its_own_optimizer_steps(tmp_path: Path) -> None:
    critic = CountedCritic()
    rate = OptimizerSettings(lr=1e-3, warmup=4)
    losses = [*all_losses(critic)[:2], replace(all_losses(critic, first_step=2)[2], optimizer=rate)]
    train(small_model(), SEVEN, Noise(), losses, SETTINGS, tmp_path)
    last = list_checkpoints(tmp_path / "checkpoints")[-1]
    state = read_checkpoint(last)
    assert (state.step, state.state["discriminators"]["critic"]["step"]) == (6, 4)
    assert {
        tensor.item()
        for name, tensor in state.tensors["optimizer"].items()
        if name.endswith(".step")
    } == {6.0}
    assert {
        tensor.item()
        for name, tensor in state.tensors["discriminator-optimizer.critic"].items()
        if name.endswith(".step")
    } == {4.0}
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines] == pytest.approx([1.5e-3, 3e-3, 3e-3, 3e-3, 3e-3, 3e-3])
    assert [line["discriminators"]["critic"]["lr"] for line in lines[2:]] == pytest.approx(
        [2.5e-4, 5e-4, 7.5e-4, 1e-3]
    )


# ---------------------------------------------------------------- 10 to 12


def test_10_a_resumed_run_goes_on_with_the_data_it_has_not_seen(tmp_path: Path) -> None:
    def watched(seen: list[float]) -> WeightedLoss:
        def loss(batch: LossBatch) -> Tensor:
            seen.extend(batch.inputs.flatten(1).double().sum(1).tolist())
            return mse(batch)

        return WeightedLoss("mse", loss)

    straight: list[float] = []
    train(small_model(), SEVEN, Noise(), [watched(straight)], SETTINGS, tmp_path / "straight")
    first: list[float] = []
    second: list[float] = []
    for seen, steps in ((first, 3), (second, 6)):
        train(
            small_model(),
            SEVEN,
            Noise(),
            [watched(seen)],
            replace(SETTINGS, steps=steps),
            tmp_path / "parts",
        )
    assert len(straight) == 6 * 2 * 2
    assert first + second == straight


RECIPE = """
task: train
source: {{use: folder, with: {{path: {photos}}}}}
modality: {{use: image, with: {{size: 32, crop: random, views: [plain, hflip]}}}}
model: {{use: diffusers, with: {{model: {model}}}}}
losses: [{{use: l1}}, {{use: kl, weight: 1e-6, schedule: {{warmup: 2}}}}]
steps: 2
batch_size: 2
ema: {{decay: 0.9}}
output: {{path: run}}
"""


def run_command(make_photos: Callable[..., Path], model: Path, folder: Path) -> Path:
    """The result of a run made by the command, from a model whose scaling factor is 0.5."""
    (folder / "recipe.yaml").write_text(RECIPE.format(photos=make_photos(5), model=model))
    assert main(["run", str(folder / "recipe.yaml")]) == 0
    return folder / "run" / "model"


def test_11_a_run_reaches_its_last_line(
    make_photos: Callable[..., Path],
    kl_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import diffusers

    result = run_command(make_photos, kl_folder, tmp_path)
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"--encoder {result}")
    model = diffusers.AutoencoderKL.from_pretrained(result)
    assert model.encode(torch.zeros(1, 3, 32, 32)).latent_dist.mean.isfinite().all()


def test_12_the_saved_config_has_measured_statistics(
    make_photos: Callable[..., Path], kl_folder: Path, tmp_path: Path
) -> None:
    import diffusers

    model = diffusers.AutoencoderKL.from_pretrained(run_command(make_photos, kl_folder, tmp_path))
    factor = model.config.scaling_factor
    assert factor not in (0.5, 0.18215)
    pictures = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        spread = (
            model.encode(pictures).latent_dist.sample(torch.Generator().manual_seed(1)).std().item()
        )
    assert 1 / factor == pytest.approx(spread, rel=0.3)
