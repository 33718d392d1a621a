"""Videos through a whole run: recipe, encoder, latent dataset, preview."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from latentkit_video.decoding import ShownFrame, Video
from latentkit_video.plugin import VideoConfig
from videos import encode, numbered

import latentkit as lk
from latentkit.contracts import InputSpec, SizeRule
from latentkit.store.local_folder import LocalFolder
from latentkit.upkeep.compare_values import compare_values
from latentkit.upkeep.repair import repair_dataset
from latentkit.upkeep.verify import verify_folder


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Wan autoencoder of random weights: 4 * k + 1 frames, sides by 8."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    model = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, 0.2, 0.3, 0.4],
        latents_std=[1.0, 2.0, 3.0, 4.0],
    )
    folder = tmp_path_factory.mktemp("models") / "wan"
    model.save_pretrained(folder)
    return folder


RECIPE = """\
task: encode
source: {{use: video-clips, with: {{path: videos, frames: 9, fps: 10}}}}
modality: {{use: video, with: {{frames: {frames}, fps: 10, size: 32, views: [plain, hflip]}}}}
encoder: {{use: diffusers, with: {{model: {model}}}}}
output: {{path: latents}}
batch_size: 2
preview: 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two videos of 2 s, and one that is no video."""
    encode(tmp_path / "videos" / "a.mp4", numbered(20, 36, 48))
    encode(tmp_path / "videos" / "dogs" / "b.mkv", numbered(40, 48, 36), rate=20)
    (tmp_path / "videos" / "damaged.mp4").write_bytes(b"no video")
    return tmp_path


def test_videos_become_a_latent_dataset_with_a_preview(folder: Path, wan: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE.format(frames=9, model=wan))
    lk.run(folder / "recipe.yaml")
    data = lk.open(folder / "latents", posterior="mean", views="all")
    assert sorted(set(data.keys)) == [
        "a.mp4#t=0,0.9",
        "a.mp4#t=0.9,1.8",
        "dogs/b.mkv#t=0,0.9",
        "dogs/b.mkv#t=0.9,1.8",
    ]
    assert len(data) == 8
    assert data[0]["latent"].shape == (4, 3, 4, 4)
    assert data[0]["latent"].isfinite().all()
    with av.open(folder / "latents" / "preview.mp4") as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 9
    assert frames[0].shape == (4 + 2 * (32 + 4), 4 + 2 * (32 + 4), 3)
    again = (folder / "latents" / "index" / "000.parquet").read_bytes()
    lk.run(folder / "recipe.yaml")
    assert (folder / "latents" / "index" / "000.parquet").read_bytes() == again


def test_the_short_command_takes_as_many_frames_as_the_model_takes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffusers import AutoencoderKLMochi

    torch.manual_seed(0)
    model = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        latent_channels=4,
        layers_per_block=(1, 1, 1, 1, 1),
        latents_mean=[0.1, -0.2, 0.3, 0.4],
        latents_std=[2.0, 0.5, 1.5, 1.0],
    )
    model.save_pretrained(tmp_path / "mochi")
    data = lk.encode(
        folder / "videos",
        tmp_path / "out",
        encoder=tmp_path / "mochi",
        size=16,
        overrides={"preview": 0},
    )
    assert (
        "modality.with.frames: 19, because the encoder doesn't accept the default 17"
        in capsys.readouterr().err
    )
    assert data[0]["latent"].shape == (4, 4, 2, 2)  # 6 * 3 + 1 frames
    assert "frames: 19" in (tmp_path / "out" / "recipe.yaml").read_text()
    with pytest.raises(
        lk.errors.RecipeError, match="17 is not a number of frames that the encoder accepts"
    ):
        lk.encode(
            folder / "videos",
            tmp_path / "other",
            encoder=tmp_path / "mochi",
            size=16,
            overrides={"modality.with.frames": 17},
        )


@pytest.mark.parametrize(
    ("rule", "frames"), [(SizeRule(16, 24, 24), 24), (SizeRule(17, 5), 22), (SizeRule(4, 1), None)]
)
def test_only_frames_that_are_left_open_are_fitted(rule: SizeRule, frames: int | None) -> None:
    taken = InputSpec(
        channels=3,
        axes="CTHW",
        sizes={"T": rule, "H": SizeRule(200, 320, 320), "W": SizeRule(240, 320, 320)},
    )
    wanted = {"size": 320} | ({} if frames is None else {"frames": frames})
    assert VideoConfig().fitted(taken) == wanted
    assert VideoConfig(frames=17, size=256).fitted(taken) == {}


def test_evaluations_of_a_training_run_are_clips_beside_their_reconstructions(
    folder: Path, wan: Path
) -> None:
    source = {
        "use": "video-clips",
        "with": {"path": str(folder / "videos"), "frames": 9, "fps": 10},
    }
    lk.run(
        {
            "task": "train",
            "source": source,
            "losses": [{"use": "mse"}],
            "steps": 1,
            "batch_size": 2,
            "modality": {"use": "video", "with": {"frames": 9, "fps": 10, "size": 32}},
            "model": {"use": "diffusers", "with": {"model": str(wan)}},
            "evaluate": {"source": source, "metrics": [{"use": "psnr"}]},
            "output": {"path": str(folder / "run")},
        }
    )
    for step in (0, 1):
        with av.open(folder / "run" / "evaluations" / f"{step:08d}.mp4") as video:
            frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert len(frames) == 9
        assert frames[0].shape == (4 + 4 * (32 + 4), 4 + 2 * (32 + 4), 3)
        clip, reconstruction = frames[0][4:36, 4:36].astype(int), frames[0][4:36, 40:72].astype(int)
        assert abs(clip - reconstruction).mean() > 5


def test_a_count_that_the_model_cannot_take_ends_the_run_at_once(folder: Path, wan: Path) -> None:
    from latentkit.errors import RecipeError

    (folder / "recipe.yaml").write_text(RECIPE.format(frames=8, model=wan))
    with pytest.raises(
        RecipeError, match=r"8 is not a number of frames that the encoder accepts.*nearest: 5 and 9"
    ):
        lk.run(folder / "recipe.yaml")


def test_the_command_knows_videos_by_their_endings(folder: Path, wan: Path) -> None:
    options = ["--encoder", str(wan), "--size", "32", "--set", "modality.with.frames=9"]
    command = [sys.executable, "-m", "latentkit", "encode", "videos", "out", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "detected as video" in done.stderr
    assert lk.open(folder / "out").keys == ["a.mp4", "dogs/b.mkv"]


def test_verify_deep_finds_a_row_that_a_wrong_seek_made_and_repair_puts_in_the_right_one(
    tmp_path: Path, wan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 256, (36, 48, 3), np.uint8) for _ in range(20)]
    encode(tmp_path / "videos" / "a.mp4", noise)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(frames=9, model=wan))
    right = Video.frames_from

    def seek_too_far(self: Video, start: float) -> Iterator[ShownFrame]:
        return (ShownFrame(one.start - 0.1, one.end - 0.1, one.frame) for one in right(self, start))

    with monkeypatch.context() as patch:
        patch.setattr(Video, "frames_from", seek_too_far)
        lk.run(tmp_path / "recipe.yaml", overrides={"preview": 0})
        latents = LocalFolder(tmp_path / "latents")
        assert not verify_folder(latents).report().damage
        (finding,) = compare_values(verify_folder(latents), seed=0)
        assert finding.part == "unit"
        assert "the values differ" in finding.what
        repair_dataset(str(tmp_path / "latents"), [finding])
        (finding,) = compare_values(verify_folder(latents), seed=0)
    assert "equal bit for bit" in finding.what
