"""The Fréchet distance against scipy's matrix root, and the networks whose features it compares."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.linalg import sqrtm
from torch import Tensor

from latentkit.contracts import BuildContext, LatentLayout, MetricBatch, MetricSetting
from latentkit.errors import EncoderError, LatentkitError, PluginError, RecipeError, SourceError
from latentkit.metrics.feature_networks import FeatureNetwork, open_features
from latentkit.metrics.frechet import Gaussian, Rfid, frechet_distance
from latentkit.metrics.inception import Inception, build_inception
from latentkit.metrics.options import RfidConfig
from latentkit.plugins import discover

SETTING = MetricSetting((-1.0, 1.0), LatentLayout("latent", "deterministic", "CHW", 3, 8), "the latents")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(vectors: Tensor) -> Gaussian:
    found = Gaussian()
    for piece in vectors.split(7):
        found.add(piece)
    return found


def test_mean_and_covariance_are_numpys_whatever_the_batches() -> None:
    vectors = draw(40, 5) + 1000
    found = gaussian(vectors)
    np.testing.assert_allclose(found.mean, vectors.numpy().mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance(), np.cov(vectors.numpy().T), rtol=1e-9)


@pytest.mark.parametrize("count", [60, 8], ids=["full rank", "fewer samples than features"])
def test_distance_is_that_of_the_matrix_root(count: int) -> None:
    mixing = draw(10, 10, seed=2)
    a, b = gaussian(draw(count, 10) @ mixing), gaussian(
        1.3 * draw(count, 10, seed=1) @ mixing + 0.2
    )
    covariances = [part.covariance().numpy() for part in (a, b)]
    # the root of a singular product is only reached in the limit
    root = sqrtm(covariances[0] @ covariances[1] + (1e-12 * np.eye(10) if count < 10 else 0)).real
    expected = (
        ((a.mean - b.mean) ** 2).sum()
        + np.trace(covariances[0])
        + np.trace(covariances[1])
        - 2 * np.trace(root)
    )
    assert frechet_distance(a.mean, a.covariance(), b.mean, b.covariance()) == pytest.approx(
        float(expected), rel=1e-4
    )


def test_distance_of_gaussians_with_shared_axes_is_that_of_their_deviations() -> None:
    variances = (
        torch.tensor([1.0, 4.0], dtype=torch.float64),
        torch.tensor([9.0, 4.0], dtype=torch.float64),
    )
    means = (torch.zeros(2, dtype=torch.float64), torch.tensor([3.0, 4.0], dtype=torch.float64))
    assert frechet_distance(
        means[0], variances[0].diag(), means[1], variances[1].diag()
    ) == pytest.approx(25 + (3 - 1) ** 2)


def test_identical_reconstructions_are_at_distance_zero_and_few_samples_are_warned_of() -> None:
    metric = Rfid(FeatureNetwork("means", lambda pictures: pictures.mean(dim=(2, 3))))
    metric.start(SETTING)
    inputs = draw(6, 3, 8, 8).float().clamp(-1, 1)
    metric.add(MetricBatch(range(6), inputs, None, inputs, inputs))
    found = metric.finish()
    assert found.figures[""].value == pytest.approx(0, abs=1e-9)
    assert (
        "3 features of means; 6 inputs against their own reconstructions" in found.figures[
            ""
        ].protocol
    )
    assert found.warnings == [
        "rfid of 6 samples: the value is biased; compare only values of equally many samples;"
        " 50,000 is usual"
    ]


def test_one_sample_is_refused_before_the_work() -> None:
    metric = Rfid(FeatureNetwork("means", lambda pictures: pictures.mean(dim=(2, 3))))
    with pytest.raises(SourceError, match="needs at least 2 samples"):
        metric.start(MetricSetting((-1.0, 1.0), SETTING.layout, "the latents", num_samples=1))


# ---------------------------------------------------------------- networks


def open_from(tmp_path: Path, **options: Any) -> FeatureNetwork:
    config = discover().configure("metric", "rfid", options, "metric")
    assert isinstance(config, RfidConfig)
    return open_features(config, BuildContext(recipe_dir=tmp_path))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random Inception weights with the classes of the FID graph."""
    torch.manual_seed(0)
    return {
        **Inception(pools_as_fid_graph=True).state_dict(),
        "fc.weight": torch.zeros(1008, 2048),
        "fc.bias": torch.zeros(1008),
    }


def test_inception_has_the_published_number_of_weights(weights: dict[str, Tensor]) -> None:
    """23,834,568 without the auxiliary classifier, of which the last layer has 2,049,000."""
    network = build_inception(weights)
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_834_568 - 2_049_000
    assert len([name for name in weights if name.endswith("conv.weight")]) == 94
    blocks = Counter(
        name.split(".")[0]
        for name in weights
        if name.endswith("conv.weight") and name.startswith("Mixed")
    )
    assert list(blocks.values()) == [7, 7, 7, 4, 10, 10, 10, 10, 6, 9, 9]


def test_inception_weights_give_features_of_any_picture(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    save_file(weights, tmp_path / "inception.safetensors")
    torch.save(
        {name: tensor for name, tensor in weights.items() if "num_batches" not in name},
        tmp_path / "inception.pth",
    )
    network, same = (
        open_from(tmp_path, features=f"inception.{suffix}") for suffix in ("safetensors", "pth")
    )
    pictures = torch.rand(2, 1, 40, 30, generator=torch.Generator().manual_seed(0))
    found = network(pictures)
    assert found.shape == (2, 2048)
    assert torch.equal(found, same(pictures))
    assert "pools as TensorFlow's FID graph of 2015" in network.name


def test_a_file_of_something_else_is_named_with_what_is_wrong(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(
        EncoderError, match=r"Inception v3 .* missing: .* and \d+ more; unexpected: conv.weight"
    ):
        open_from(tmp_path, features="other.safetensors")


def save_program(path: Path) -> None:
    with warnings.catch_warnings():
        # of the format, in which such networks are still handed around
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)  # type: ignore[no-untyped-call]


BAD_FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "absent": (
        "fid.pth",
        lambda path: None,
        r"No such file or directory; Inception v3 for FID is at https://.*\.pth",
    ),
    "a web page": (
        "fid.pth",
        lambda path: path.write_text("<!doctype html>"),
        "is a web page, not weights: .* Download the file itself",
    ),
    "a page by another name": (
        "fid.safetensors",
        lambda path: path.write_text("\n<html>"),
        "is a web page, not weights",
    ),
    "cut off": (
        "fid.safetensors",
        lambda path: path.write_bytes(b"x" * 99),
        "expected weights, .* damaged, cut off or something else",
    ),
    "a pointer": (
        "fid.pth",
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"),
        "is a pointer of git-lfs, not",
    ),
    "a text": (
        "fid.pth",
        lambda path: path.write_text("weights"),
        "expected weights, .* damaged, cut off or",
    ),
    "a program": (
        "fid.pt",
        save_program,
        r"is a TorchScript program, which is not run; expected the network's state_dict\(\)",
    ),
    "nested": (
        "fid.pth",
        lambda path: torch.save({"model": {}, "step": 3}, path),
        r"also holds dict, int \(model, step \.\.\.\)",
    ),
    "a lone tensor": (
        "fid.pth",
        lambda path: torch.save(torch.zeros(2), path),
        r"expected tensors by name, .* got a Tensor",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_weights_gives_one_line_with_its_name(name: str, tmp_path: Path) -> None:
    file, write, message = BAD_FILES[name]
    write(tmp_path / file)
    with pytest.raises(EncoderError, match=message) as caught:
        open_from(tmp_path, features=file)
    assert str(caught.value).startswith(str(tmp_path / file))
    assert "\n" not in str(caught.value)


class Planted:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("planted"),)  # type: ignore[return-value]


def test_a_pickle_that_wants_to_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"conv.weight": Planted()}, tmp_path / "evil.pth")
    with pytest.raises(
        EncoderError,
        match=r"evil\.pth: expected tensors by name, .* got a mapping that also holds StandIn",
    ):
        open_from(tmp_path, features="evil.pth")
    assert not (tmp_path / "planted").exists()


def test_an_encoder_plugin_can_be_the_network(tmp_path: Path, taesd_folder: Path) -> None:
    network = open_from(
        tmp_path, encoder={"use": "diffusers", "with": {"model": str(taesd_folder)}}
    )
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {},
            RecipeError,
            (
                r"with: expected features \(a weights file or a folder\) or encoder \(a plugin\),"
                r" got neither"
            ),
        ),
        ({"features": "a", "encoder": {"use": "b"}}, RecipeError, "got both"),
        ({"featurs": "a"}, RecipeError, "with.featurs: unknown key, did you mean 'features'?"),
        ({"encoder": {"use": "nothing"}}, PluginError, "nothing"),
    ],
)
def test_no_network_is_one_clear_message(
    tmp_path: Path, options: dict[str, Any], error: type[LatentkitError], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_from(tmp_path, **options)
