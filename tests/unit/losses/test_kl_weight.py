"""What the weight of `kl` means: told when a run starts, and warned of when it is far from
everybody's.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latentkit.contracts import Loss
from latentkit.losses.kl import Kl
from latentkit.losses.kl_weight import describe_kl
from latentkit.losses.likelihood import GAUSSIAN, open_nll
from latentkit.losses.options import AnnealConfig, LikelihoodConfig
from latentkit.losses.reconstruction import l1, mse
from latentkit.recipe.schema import load_recipe, parse_recipe
from latentkit.tasks.check_recipe import warn_of_unusual_weights

RECIPES = Path(__file__).parents[3] / "recipes"

# ---------------------------------------------------------------- told


def describe(*losses: tuple[str, Loss, float]) -> list[str]:
    """For inputs of 1,000 values and posteriors of 64."""
    return describe_kl(losses, num_values=1000, num_latent_values=64)


def test_the_weight_is_said_as_other_conventions_write_it() -> None:
    first, _ = describe(("mse", mse, 1.0), ("kl", Kl(), 0.02))
    assert (
        "weight 0.02 per input value, the same number where reconstruction and KL are both summed"
        " (latent-diffusion)"
        in first
    )
    assert "2e-05 where the reconstruction is a mean over 1,000 values and the KL a sum" in first


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (
            ("mse", mse, 1.0),
            "kl: that is the ELBO (beta 1) of a Gaussian decoder with standard deviation 0.1",
        ),  # 1 / (2 * 0.1 ** 2) = 1 / 0.02
        (("l1", l1, 0.5), "kl: that is the ELBO (beta 1) of a Laplace decoder with scale 0.04"),
        (
            ("gaussian-nll", open_nll(GAUSSIAN, LikelihoodConfig()), 0.5),
            "kl: with gaussian-nll in nats that is beta 0.04; 1 is the ELBO",
        ),
        (
            ("some-nll", lambda batch: batch.inputs, 0.02),
            "kl: with some-nll in nats that is beta 1; 1 is the ELBO",
        ),
    ],
)
def test_the_weight_is_a_beta_beside_a_likelihood(
    loss: tuple[str, Loss, float], expected: str
) -> None:
    assert describe(("wavelet", lambda batch: batch.inputs, 1.0), loss, ("kl", Kl(), 0.02))[1:] == [
        expected
    ]


def test_options_are_said() -> None:
    assert describe(
        ("l1", l1, 1.0), ("kl", Kl(free_bits=0.25, anneal=AnnealConfig(steps=500)), 1e-6)
    )[2:] == [
        "kl: the first 0.25 nats of each latent value are free, at most 16 nats a sample",
        "kl: its weight rises from 0 and stays whole from step 500",
    ]


def test_a_target_has_no_beta() -> None:
    # 1000 ln 2 nats are one bit for each of 1,000 values
    assert describe(
        ("l1", l1, 1.0), ("kl", Kl(target=693.147, anneal=AnnealConfig(steps=500)), 0.5)
    ) == [
        "kl: held at 693.147 nats a sample (1 bits per dimension); a larger weight holds it more"
        " strictly",
        "kl: its target rises from 0 and stays whole from step 500",
    ]


def test_nothing_is_said_of_a_kl_that_isnt_there_or_weighs_nothing() -> None:
    assert describe(("l1", l1, 1.0)) == describe(("l1", l1, 1.0), ("kl", Kl(), 0.0)) == []


# ---------------------------------------------------------------- warned of

PER_VALUE = "(weights are per input value: KL in nats divided by the number of input values)"


def warnings_for(*losses: dict[str, Any]) -> list[str]:
    values = {
        "task": "train",
        "source": {"use": "folder", "with": {"path": "photos"}},
        "modality": {"use": "image"},
        "model": {"use": "tiny-kl"},
        "losses": list(losses),
        "steps": 10,
        "output": {"path": "run"},
    }
    return warn_of_unusual_weights(parse_recipe(values, "vae.yaml", Path()))


@pytest.mark.parametrize(
    ("beside", "weight", "usual"),
    [
        ({"use": "l1"}, 0.25, "kl has weight 0.25 and l1 1; latent diffusion uses 1e-06"),
        (
            {"use": "mse", "weight": 10.0},
            1e-9,
            "kl has weight 1e-09 and mse 10; latent diffusion uses 1e-06",
        ),
        ({"use": "gaussian-nll"}, 1e-6, "kl has weight 1e-06 and gaussian-nll 1; 1 is the ELBO"),
        (
            {"use": "laplace-nll", "weight": 1e-3},
            2.0,
            "kl has weight 2 and laplace-nll 0.001; 1 is the ELBO",
        ),
    ],
)
def test_a_weight_a_thousand_times_off_is_warned_of(
    beside: dict[str, Any], weight: float, usual: str
) -> None:
    assert warnings_for(beside, {"use": "kl", "weight": weight}) == [
        f"vae.yaml: losses[1].weight: {usual} {PER_VALUE}"
    ]


@pytest.mark.parametrize(
    "losses",
    [
        [{"use": "l1"}, {"use": "kl", "weight": 1e-6}],
        [{"use": "mse", "weight": 0.1}, {"use": "kl", "weight": 5e-5}],
        [{"use": "gaussian-nll"}, {"use": "kl"}],
        [
            {"use": "l1"},
            {"use": "gaussian-nll"},
            {"use": "kl", "weight": 0.5},
        ],  # the likelihood counts
        [{"use": "l1"}, {"use": "kl", "with": {"target": 100.0}}],
        [{"use": "l1"}, {"use": "kl", "adaptive": True}],
        [{"use": "l1"}, {"use": "kl", "weight": 0.0}],
        [{"use": "wavelet"}, {"use": "kl"}],
    ],
)
def test_a_usual_weight_or_one_that_isnt_a_beta_is_not(losses: list[dict[str, Any]]) -> None:
    assert warnings_for(*losses) == []


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_need_no_warning(path: Path) -> None:
    assert warn_of_unusual_weights(load_recipe(path)) == []


def test_a_run_warns_at_its_start(make_photos: Any, tmp_path: Path) -> None:
    recipe = f"""
task: train
source: {{use: folder, with: {{path: {make_photos(2)}}}}}
modality: {{use: image, with: {{size: 32}}}}
model: {{use: tiny-kl}}
losses: [{{use: l1}}, {{use: kl}}]
steps: 1
batch_size: 2
output: {{path: {tmp_path / "run"}}}
"""
    (tmp_path / "vae.yaml").write_text(recipe)
    done = subprocess.run(
        [sys.executable, "-m", "latentkit", "run", str(tmp_path / "vae.yaml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (
        f"warning: {tmp_path}/vae.yaml: losses[1].weight: kl has weight 1 and l1 1; latent"
        " diffusion uses 1e-06"
        in done.stderr
    )
