"""`task: evaluate` from the recipe to the files it leaves."""

from __future__ import annotations

import html.parser
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

import latentkit
from latentkit import cli
from latentkit.builtin.metrics import METRICS
from latentkit.errors import LatentkitError, RecipeError, SourceError, StoreError
from latentkit.store.columns import read_parquet
from latentkit.tasks.evaluate_task import label_metrics

MakePhotos = Callable[..., Path]


def recipe_of(
    photos: Path, model: Path | str, output: Path, *metrics: Any, **more: Any
) -> dict[str, Any]:
    options = {"model": str(model)} if isinstance(model, Path) else {}
    return {
        "task": "evaluate",
        "source": {"use": "folder", "with": {"path": str(photos)}},
        "modality": {"use": "image", "with": {"size": 32}},
        "model": {"use": "diffusers" if options else model, "with": options},
        "metrics": [{"use": metric} if isinstance(metric, str) else metric for metric in metrics],
        "output": {"path": str(output)},
        **more,
    }


def evaluate(*arguments: Any, **more: Any) -> dict[str, Any]:
    """The contents of metrics.json."""
    recipe = recipe_of(*arguments, **more)
    latentkit.run(recipe)
    found: dict[str, Any] = json.loads(
        (Path(recipe["output"]["path"]) / "metrics.json").read_text()
    )
    return found


class Page(html.parser.HTMLParser):
    """Tags and addresses of a page, and whether every tag is closed."""

    VOID = ("meta", "img", "br", "path", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "srcset", "action", "data")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_an_evaluation_leaves_numbers_with_their_protocol_a_row_per_sample_and_a_report(
    make_photos: MakePhotos, kl_folder: Path, tmp_path: Path
) -> None:
    found = evaluate(
        make_photos(5),
        kl_folder,
        tmp_path / "out",
        "psnr",
        "ssim",
        "kl",
        "latent-statistics",
        batch_size=2,
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "metrics.json",
        "recipe.yaml",
        "report.html",
        "samples.parquet",
    ]
    assert found["num_samples"] == 5
    assert list(found["metrics"]) == [
        "psnr",
        "ssim",
        "kl",
        "kl_bits_per_dim",
        "latent-statistics_mean",
        "latent-statistics_std",
    ]
    psnr = found["metrics"]["psnr"]
    assert psnr["unit"] == "dB"
    assert psnr["count"] == 5
    assert "data range 255; decoded from the posterior's mean" in psnr["protocol"]
    table = pq.read_table(tmp_path / "out" / "samples.parquet")
    assert table.column_names == ["key", "view", "bucket", "reason", "psnr", "ssim", "kl"]
    assert table["key"].to_pylist() == [f"00{number}.png" for number in range(5)]
    values = table["psnr"].to_numpy()
    assert psnr["value"] == pytest.approx(values.mean())
    assert (psnr["std"], psnr["min"], psnr["max"]) == pytest.approx(
        (values.std(), values.min(), values.max())
    )


def test_psnr_is_that_of_the_models_own_round_trip(
    make_photos: MakePhotos, kl_folder: Path, tmp_path: Path
) -> None:
    import diffusers

    photos = make_photos(2)
    found = evaluate(photos, kl_folder, tmp_path / "out", "psnr")
    model: Any = diffusers.AutoencoderKL.from_pretrained(kl_folder)
    expected = []
    for file in sorted(photos.glob("*.png")):
        pixels = np.asarray(Image.open(file).resize((32, 32), Image.Resampling.LANCZOS))
        inputs = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        with torch.no_grad():
            output = (
                model.decode(model.encode(inputs).latent_dist.mode())
                .sample[0]
                .permute(1, 2, 0)
                .numpy()
            )
        rounded = np.round((output.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
        expected.append(peak_signal_noise_ratio(pixels, rounded, data_range=255))
    assert found["metrics"]["psnr"]["value"] == pytest.approx(np.mean(expected), abs=1e-3)


def test_a_draw_is_decoded_where_asked_for_and_the_protocol_says_so(tmp_path: Path) -> None:
    photos = {"use": "sample-photos"}
    mean, sample = (
        evaluate(tmp_path, "tiny-kl", tmp_path / word, "psnr", source=photos, posterior=word)[
            "metrics"
        ]["psnr"]
        for word in ("mean", "sample")
    )
    assert sample["value"] != mean["value"]
    assert sample["protocol"].endswith("decoded from a draw from the posterior")


def test_the_report_is_one_file_that_loads_nothing_and_escapes_what_is_foreign(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    photos = make_photos(3)
    (photos / "000.png").rename(photos / "<script>alert(1)<!--&.png")
    metrics = ("psnr", "latent-statistics", "latent-spectrum")
    evaluate(photos, "tiny-kl", tmp_path / "out", *metrics)
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert not page.open
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert len(page.addresses) == 2 * 3 * 3
    assert not re.search(r"url\(|@import|<link|<script|<b>", text)
    assert "prefers-color-scheme: dark" in text
    words = " ".join(page.words)
    assert "<script>alert(1)<!--&.png: " in words
    assert page.tags.count("svg") == 4 + 1  # channels, spectrum


def test_the_worst_samples_come_worst_first(make_photos: MakePhotos, tmp_path: Path) -> None:
    evaluate(make_photos(9), "tiny-kl", tmp_path / "out", "mse")
    table = pq.read_table(tmp_path / "out" / "samples.parquet")
    order = np.argsort(-table["mse"].to_numpy())[:6]
    text = (tmp_path / "out" / "report.html").read_text()
    worst = text[text.index("The worst samples") :]
    assert re.findall(r"<figcaption>(\d+\.png): ", worst) == [
        table["key"][int(number)].as_py() for number in order
    ]


def test_bad_samples_are_rows_with_a_reason(make_photos: MakePhotos, tmp_path: Path) -> None:
    photos = make_photos(3)
    (photos / "001.png").write_bytes(b"not an image")
    found = evaluate(photos, "tiny-kl", tmp_path / "out", "psnr")
    assert (found["num_samples"], found["num_skipped"]) == (2, 1)
    rows = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    assert [row["psnr"] is None for row in rows] == [False, True, False]
    assert [row["reason"] is None for row in rows] == [True, False, True]
    with pytest.raises(
        SourceError, match=r"'001.png' can't be used: .*; remove it, or set on_bad_sample: skip"
    ):
        evaluate(photos, "tiny-kl", tmp_path / "other", "psnr", on_bad_sample="fail")


def test_running_its_own_recipe_again_gives_the_same_numbers_in_its_place(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    metrics = ("psnr", {"use": "iwae", "with": {"scale": 0.1, "draws": 3}})
    first = evaluate(make_photos(3), "tiny-kl", tmp_path / "out", *metrics, posterior="sample")
    again = latentkit.run(tmp_path / "out" / "recipe.yaml")
    assert (
        json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"] == first["metrics"]
    )
    assert again.evaluation.values() == {
        name: metric["value"] for name, metric in first["metrics"].items()
    }


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    photos = make_photos(2)
    before = sorted(photos.iterdir())
    with pytest.raises(StoreError, match="contains something other than an evaluation"):
        evaluate(photos, "tiny-kl", photos, "psnr")
    assert sorted(photos.iterdir()) == before
    latents = latentkit.encode(photos, tmp_path / "latents", size=32)
    with pytest.raises(StoreError, match="contains something other than an evaluation"):
        evaluate(photos, "tiny-kl", tmp_path / "latents", "psnr")
    assert len(latents) == 2


# ---------------------------------------------------------------- latents


def test_a_latent_datasets_statistics_are_those_it_was_written_with(
    make_photos: MakePhotos, kl_folder: Path, tmp_path: Path
) -> None:
    photos = make_photos(5)
    dataset = latentkit.encode(
        photos,
        tmp_path / "latents",
        encoder=kl_folder,
        size=32,
        overrides={"output.dtype": "float32", "modality.with.resize": "pillow"},
    )
    output = tmp_path / "out"
    metrics = [
        {"use": name} for name in ("latent-statistics", "latent-spectrum", "active-units", "kl")
    ]
    recipe = {
        "task": "evaluate",
        "latents": str(tmp_path / "latents"),
        "metrics": metrics,
        "output": {"path": str(output)},
        "batch_size": 2,
    }
    found = latentkit.run(recipe).evaluation
    channels = found.tables["latent-statistics"]["channels"]
    assert dataset.statistics is not None
    for name in ("mean", "mean_std", "std"):
        assert channels[name] == pytest.approx(dataset.statistics[name], rel=1e-6)
    from_source = evaluate(photos, kl_folder, tmp_path / "model", "kl", "active-units")["metrics"]
    for name in ("kl", "active-units"):
        assert found.values()[name] == pytest.approx(from_source[name]["value"], rel=1e-5)
    assert latentkit.run(output / "recipe.yaml").evaluation.values() == found.values()
    table = read_parquet((output / "samples.parquet").read_bytes())
    assert table["key"].to_pylist() == dataset.keys


def test_latents_have_no_reconstructions(make_photos: MakePhotos, tmp_path: Path) -> None:
    latentkit.encode(make_photos(2), tmp_path / "latents", size=32)
    recipe = {
        "task": "evaluate",
        "latents": str(tmp_path / "latents"),
        "metrics": [{"use": "psnr"}],
        "output": {"path": str(tmp_path / "out")},
    }
    with pytest.raises(
        RecipeError,
        match=(
            "metric 'psnr' compares inputs with their reconstructions, but latents alone have"
            " none"
        ),
    ):
        latentkit.run(recipe)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- mistakes, before any work


def change(values: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**values, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"metrics": [{"use": "pnsr"}]},
            r"metrics\[0\]\.use: no metric is named 'pnsr', did you mean 'psnr'?",
        ),
        (
            {"metrics": [{"use": "psnr", "with": {"round": 1}}]},
            r"metrics\[0\]\.with.round: unknown key",
        ),
        ({"metrics": [{"use": "rfid"}]}, r"metrics\[0\]\.with: expected features"),
        (
            {"metrics": [{"use": "iwae"}]},
            r"metrics\[0\]\.with: a gaussian likelihood needs a scale",
        ),
        ({"metrics": [{"use": "loss", "with": {"use": "l3"}}]}, r"metrics\[0\]\.with\.use: .*l3"),
        (
            {"metrics": [{"use": "loss", "with": {"use": "wavelet", "with": {"level": 2}}}]},
            r"metrics\[0\]\.with\.with\.level: unknown key",
        ),
        (
            {"metrics": [{"use": "rfid", "with": {"encoder": {"use": "vgg"}}}]},
            r"metrics\[0\]\.with\.encoder\.use: .*vgg",
        ),
        ({"metrics": []}, "metrics: expected a length of at least 1"),
        ({"model": None}, "expected either source, modality and model, or latents"),
        ({"latents": "somewhere"}, "expected either source, modality and model, or latents"),
    ],
)
def test_a_mistake_is_one_clear_message(
    make_photos: MakePhotos, tmp_path: Path, changes: Mapping[str, Any], message: str
) -> None:
    recipe = recipe_of(make_photos(2), "tiny-kl", tmp_path / "out", "psnr")
    with pytest.raises(LatentkitError, match=message):
        latentkit.run(change(recipe, **changes))
    assert not (tmp_path / "out").exists()


def test_a_deterministic_model_has_no_rate(
    make_photos: MakePhotos, taesd_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        RecipeError, match="metric 'kl' needs a posterior, but these latents are deterministic"
    ):
        evaluate(make_photos(2), taesd_folder, tmp_path / "out", "kl")
    assert not (tmp_path / "out").exists()
    found = evaluate(
        make_photos(2, "more"), taesd_folder, tmp_path / "out", "psnr", "latent-statistics"
    )
    assert math.isfinite(found["metrics"]["psnr"]["value"])


def test_best_means_the_same_before_and_after_the_work(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    uses = [
        {"use": name}
        for name, spec in METRICS.items()
        if name not in ("iwae", "rfid", "loss", "ms-ssim")
    ]
    uses += [
        {"use": "iwae", "with": {"scale": 1.0, "draws": 2}},
        {"use": "loss", "with": {"use": "l1"}},
    ]
    uses += [{"use": "rfid", "with": {"encoder": {"use": "tiny-kl"}}}]
    found = evaluate(make_photos(3), "tiny-kl", tmp_path / "out", *uses)
    named = dict(
        zip(label_metrics([(use["use"], use.get("with", {})) for use in uses]), uses, strict=True)
    )
    assert "l1-2" in named
    for name, use in named.items():
        if name in found["metrics"]:
            assert found["metrics"][name]["better"] == METRICS[use["use"]].better, name


def test_the_command_prints_every_number_and_where_to_look(
    make_photos: MakePhotos,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_photos(2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evaluate.yaml").write_text(
        "task: evaluate\n"
        "source: {use: folder, with: {path: photos}}\n"
        "modality: {use: image, with: {size: 32}}\n"
        "model: {use: tiny-kl}\n"
        "metrics: [{use: psnr}, {use: kl}]\n"
        "output: {path: out}\n"
    )
    assert cli.main(["check", "evaluate.yaml"]) == 0
    assert cli.main(["run", "evaluate.yaml"]) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"^out: 2 samples evaluated\n  psnr +\d+\.\d+ dB\n  kl +\d+\.\d+ nats per sample\n "
        r" kl_bits_per_dim",
        printed,
        re.M,
    )
    assert "look at out/report.html" in printed
