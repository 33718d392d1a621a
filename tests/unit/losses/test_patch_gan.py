"""The discriminator, its objectives and LeCam against formulas worked out in numpy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import environment_of_cpus
from loss_batches import make_batch
from torch import Tensor, nn

from latentkit.builtin.losses import latentkit_losses
from latentkit.contracts import BuildContext, InputSpec, Prepared, Sample
from latentkit.errors import TrainingError
from latentkit.losses.options import PatchGanConfig
from latentkit.losses.patch_gan import LogitAverages, PatchDiscriminator, PatchGan
from latentkit.losses.reconstruction import mse
from latentkit.training.checkpoint import list_checkpoints, read_checkpoint
from latentkit.training.settings import TrainSettings, WeightedLoss

(SPEC,) = (spec for spec in latentkit_losses() if spec.name == "patch-gan")


def build(seed: int = 0, channels: int = 3, **options: Any) -> PatchGan:
    loss = SPEC.build(PatchGanConfig(**options), BuildContext(seed=seed, input=InputSpec(channels)))
    assert isinstance(loss, PatchGan)
    return loss


class Pixels(nn.Module):
    """A discriminator whose logits are the picture's values."""

    def __init__(self) -> None:
        super().__init__()
        self.averages = LogitAverages()

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures


def pixel_gan(**options: Any) -> PatchGan:
    return PatchGan(Pixels(), **options)  # type: ignore[arg-type]


REAL, FAKE = np.array([[0.5, 2.0], [-1.0, 0.0]]), np.array([[-2.0, 0.5], [1.0, 3.0]])


def logits(values: np.ndarray) -> Tensor:
    """Two samples of two patches as (2, 1, 1, 2)."""
    return torch.tensor(values).float()[:, None, None]


def softplus(values: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(values))


# ---------------------------------------------------------------- objectives


def test_hinge_is_half_of_what_lies_within_the_margins() -> None:
    expected = 0.5 * (np.maximum(1 - REAL, 0).mean(1) + np.maximum(1 + FAKE, 0).mean(1))
    loss, batch = pixel_gan(), make_batch(logits(REAL), logits(FAKE))
    np.testing.assert_allclose(loss.discriminator_loss(batch).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(loss(batch).numpy(), -FAKE.mean(1), rtol=1e-6)


def test_vanilla_is_cross_entropy_and_the_generators_term_does_not_saturate() -> None:
    expected = 0.5 * (softplus(-REAL).mean(1) + softplus(FAKE).mean(1))
    loss, batch = pixel_gan(objective="vanilla"), make_batch(logits(REAL), logits(FAKE))
    np.testing.assert_allclose(loss.discriminator_loss(batch).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(loss(batch).numpy(), softplus(-FAKE).mean(1), rtol=1e-6)


# ---------------------------------------------------------------- LeCam


def test_lecam_pulls_logits_towards_the_averages_of_the_other_side() -> None:
    """The first pass sets the averages, 0.375 and 0.625; the second, of other logits, moves them by
    1 / 2, 1 / 3 ..., and in the end by 1 - decay.
    """
    loss = pixel_gan(lecam=0.1)
    loss.discriminator_loss(make_batch(logits(REAL), logits(FAKE)))
    real_average, fake_average = REAL.mean(), FAKE.mean()
    for share in [max(1 / number, 0.01) for number in range(2, 121)]:
        real_average += share * ((REAL + 1).mean() - real_average)
        fake_average += share * ((2 * FAKE).mean() - fake_average)
        got = loss.discriminator_loss(make_batch(logits(REAL + 1), logits(2 * FAKE)))
    hinge = 0.5 * (np.maximum(-REAL, 0).mean(1) + np.maximum(1 + 2 * FAKE, 0).mean(1))
    lecam = (np.maximum(REAL + 1 - fake_average, 0) ** 2).mean(1) + (
        np.maximum(real_average - 2 * FAKE, 0) ** 2
    ).mean(1)
    np.testing.assert_allclose(got.numpy(), hinge + 0.1 * lecam, rtol=1e-5)


def test_lecam_averages_are_saved_with_the_discriminator() -> None:
    used, fresh = build(lecam=0.1, width=8, num_layers=1), build(
        seed=1, lecam=0.1, width=8, num_layers=1
    )
    batch = make_batch(torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8))
    for _ in range(2):
        used.discriminator_loss(batch)
    assert {"averages.real", "averages.generated", "averages.num_updates"} <= set(
        used.discriminator.state_dict()
    )
    fresh.discriminator.load_state_dict(used.discriminator.state_dict())
    torch.testing.assert_close(
        fresh.discriminator_loss(batch), used.discriminator_loss(batch), rtol=0, atol=0
    )


def test_evaluating_leaves_the_averages_as_they_are() -> None:
    loss, batch = pixel_gan(lecam=0.1), make_batch(logits(REAL), logits(FAKE))
    loss.discriminator_loss(batch)
    loss.discriminator.eval()
    loss.discriminator_loss(make_batch(logits(REAL + 5), logits(FAKE + 5)))
    assert loss.discriminator.averages.real.item() == pytest.approx(REAL.mean())


def test_no_gradient_goes_through_the_averages() -> None:
    real = logits(REAL).requires_grad_()
    loss = pixel_gan(lecam=1.0)
    (slope,) = torch.autograd.grad(
        loss.discriminator_loss(make_batch(real, logits(FAKE))).sum(), real
    )
    expected = -0.5 * (REAL < 1) / 2 + 2 * np.maximum(REAL - FAKE.mean(), 0) / 2
    np.testing.assert_allclose(slope[:, 0, 0].numpy(), expected, rtol=1e-5)


# ---------------------------------------------------------------- LeCam, with samples that aren't
# finite


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["real", "generated"])
def test_logits_that_are_not_finite_show_in_the_loss_and_not_in_the_averages(
    side: str, bad: float
) -> None:
    """One patch of the second sample is bad; the passes before and after count as if there had been
    no other.
    """
    loss = pixel_gan(lecam=0.1)
    spoiled = {"real": REAL.copy(), "generated": FAKE.copy()}
    spoiled[side][1, 0] = bad
    loss.discriminator_loss(make_batch(logits(REAL), logits(FAKE)))
    value = loss.discriminator_loss(
        make_batch(logits(spoiled["real"]), logits(spoiled["generated"]))
    )
    assert value.isfinite().tolist() == [True, False]
    averages = loss.discriminator.averages
    assert (averages.real.item(), averages.generated.item(), averages.num_updates.item()) == (
        REAL.mean(),
        FAKE.mean(),
        1,
    )
    loss.discriminator_loss(make_batch(logits(REAL + 1), logits(FAKE - 3)))
    assert (averages.real.item(), averages.generated.item(), averages.num_updates.item()) == (
        REAL.mean() + 0.5,
        FAKE.mean() - 1.5,
        2,
    )


class OneBadPicture:
    """Pictures of which one isn't finite in the first epoch."""

    def __init__(self, pictures: Any) -> None:
        self.pictures, self.metrics, self.render = pictures, pictures.metrics, pictures.render

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        for found in self.pictures.prepare(sample):
            if sample.key == "3#0":
                found.tensor[0, 0, 0] = torch.nan
            yield found


def test_a_run_goes_on_after_a_picture_that_is_not_finite(small: Any, tmp_path: Path) -> None:
    losses = [
        WeightedLoss("mse", mse),
        WeightedLoss("gan", build(lecam=0.1, width=8, num_layers=1), 0.5, "adversarial"),
    ]
    settings = TrainSettings(steps=8, batch_size=1, checkpoint_every=1, keep=8, log_every=1)
    result = small.train(losses, settings, tmp_path, prepare=OneBadPicture(small.pictures()))
    assert (result.steps, result.num_skipped_steps) == (8, 1)
    assert small.log(tmp_path)[-1]["num_skipped_steps"] == 1
    for path in list_checkpoints(tmp_path / "checkpoints"):
        found = read_checkpoint(path)
        tensors = found.tensors["discriminator.gan"]
        assert all(tensor.isfinite().all() for tensor in tensors.values()), path.name
        assert tensors["averages.num_updates"] == found.step
    assert found.step == 8


def test_averages_are_those_of_all_processes_and_one_bad_sample_stops_all(tmp_path: Path) -> None:
    """Two processes, means of 1 and 3 in the first pass, 3 in the third; in the second, one of them
    has a sample that isn't finite.
    """
    command = [sys.executable, __file__, str(tmp_path)]
    options: Any = {"env": environment_of_cpus(), "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([*command, rank], **options) for rank in "01"]
    for process in started:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found == [[[2.0, -2.0, 1.0], [2.0, -2.0, 1.0], [2.5, -2.5, 2.0]]] * 2


def main(folder: Path, rank: int) -> None:
    """One of two processes: the averages after each of three passes."""
    meeting, patience = f"file://{folder}/meeting", timedelta(
        minutes=1
    )  # for the other, which may have failed
    torch.distributed.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=2, timeout=patience
    )
    loss, seen = pixel_gan(lecam=0.1), []
    for mean in (1.0 + 2 * rank, np.nan if rank else 7.0, 3.0):
        loss.discriminator_loss(
            make_batch(torch.full((1, 1, 1, 2), mean), torch.full((1, 1, 1, 2), -mean))
        )
        averages = loss.discriminator.averages
        seen.append([averages.real.item(), averages.generated.item(), averages.num_updates.item()])
    (folder / f"{rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


# ---------------------------------------------------------------- the network


def test_network_is_pix2pixs_in_the_size_of_latent_diffusion() -> None:
    """4 x 4 kernels, 64 to 512 channels; with 6 input channels pix2pix's own code prints 2.769 M
    parameters, 2,768,705 in full.
    """
    network = build(channels=6, norm="batch").discriminator
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == [
        (6, 64),
        (64, 128),
        (128, 256),
        (256, 512),
        (512, 1),
    ]
    assert [layer.stride[0] for layer in convolutions] == [2, 2, 2, 1, 1]
    assert {layer.kernel_size for layer in convolutions} == {(4, 4)}
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_768_705
    assert network(torch.zeros(1, 6, 64, 64)).shape == (1, 1, 6, 6)


def test_a_patch_is_seventy_pixels_wide() -> None:
    pictures = torch.zeros(1, 3, 160, 160, requires_grad=True)
    scores = build(norm="none", width=4).discriminator.eval()(pictures + torch.rand(1, 3, 160, 160))
    (slope,) = torch.autograd.grad(scores[0, 0, 9, 9], pictures)
    rows = slope[0].abs().sum((0, 2)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == 70


def test_weights_are_drawn_as_in_pix2pix_and_from_the_seed_alone() -> None:
    state = torch.get_rng_state()
    network = build(seed=3).discriminator
    assert torch.equal(
        torch.get_rng_state(), state
    ), "building draws nothing from the run's own random numbers"
    weights = torch.cat(
        [layer.weight.flatten() for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    )
    assert weights.mean().item() == pytest.approx(0, abs=1e-4)
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    again, other = (
        build(seed=3).discriminator.state_dict(),
        build(seed=4).discriminator.state_dict(),
    )
    assert all(torch.equal(tensor, again[name]) for name, tensor in network.state_dict().items())
    assert not torch.equal(weights[:10], other["layers.0.weight"].flatten()[:10])


def test_default_norm_keeps_samples_apart_and_batch_norm_does_not() -> None:
    pictures = torch.randn(3, 3, 32, 32)
    apart, mixed = build(width=8).discriminator, build(width=8, norm="batch").discriminator
    torch.testing.assert_close(apart(pictures)[:1], apart(pictures[:1]))
    assert not torch.allclose(mixed(pictures)[:1], mixed(pictures[:1]))


def test_discriminator_learns_to_tell_two_kinds_apart_and_then_guides() -> None:
    torch.manual_seed(0)
    loss = build(width=8, num_layers=2, lecam=0.01)
    optimizer = torch.optim.Adam(loss.discriminator.parameters(), lr=2e-3)
    for _ in range(30):
        noise = 0.1 * torch.randn(4, 3, 16, 16)
        values = loss.discriminator_loss(make_batch(noise + 0.5, noise.flip(0) - 0.5))
        optimizer.zero_grad()
        values.mean().backward()
        optimizer.step()
    assert values.mean().item() < 0.2
    output = torch.full((1, 3, 16, 16), -0.5, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(make_batch(output, output)).sum(), output)
    assert slope.mean().item() < 0, "brighter is more real"


def test_loss_goes_through_a_wrapper_put_in_the_discriminators_place() -> None:
    loss = build(width=8, num_layers=1)
    seen: list[Tensor] = []

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, pictures: Tensor) -> Tensor:
            seen.append(pictures)
            return self.module(pictures)  # type: ignore[no-any-return]

    loss.discriminator = Wrapper(loss.discriminator)
    batch = make_batch(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8))
    loss(batch)
    loss.discriminator_loss(batch)
    assert [float(pictures.mean()) for pictures in seen] == [1.0, 0.0, 1.0]


def test_channels_are_those_of_the_encoders_input() -> None:
    assert build(channels=1, width=8).discriminator(torch.zeros(1, 1, 24, 24)).shape == (1, 1, 1, 1)


@pytest.mark.parametrize("shape", [(1, 3, 23, 64), (1, 4, 64, 64), (1, 3, 64)])
def test_pictures_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        TrainingError,
        match=r"expected images \(N, 3, H, W\) with sides of at least 24 .* lower num_layers",
    ):
        build(width=8)(make_batch(torch.zeros(shape), torch.zeros(shape)))


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
def test_smallest_picture_gives_one_logit_and_none_below(num_layers: int) -> None:
    network = PatchDiscriminator(1, 2, num_layers, "none")
    side = network.smallest_side
    assert network(torch.zeros(1, 1, side, side)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        network.layers(torch.zeros(1, 1, side - 1, side - 1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
