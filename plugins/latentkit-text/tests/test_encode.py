"""From captions beside pictures to batches that hold both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import latentkit as lk

CAPTIONS = {
    "a": "a cat",
    "b": "two dogs on a beach at dusk",
    "c": "x",
    "d": "rain over the old harbour",
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for name, caption in CAPTIONS.items():
        Image.fromarray(noise.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption)
    return folder


def recipe(photos: Path, output: Path, model: Path) -> Path:
    path = output.with_suffix(".yaml")
    path.write_text(
        "task: encode\n"
        f"source: {{use: folder, with: {{path: {photos}}}}}\n"
        f"modality: {{use: text}}\n"
        f"encoder: {{use: text-encoder, with: {{model: {model}}}}}\n"
        f"output: {{path: {output}, dtype: float32}}\n"
        "batch_size: 2\n"
        "threads: 1\n"
    )
    return path


def expected(model: Path, text: str) -> torch.Tensor:
    network = transformers.CLIPTextModel.from_pretrained(model / "text_encoder").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model / "tokenizer")
    with torch.inference_mode():
        found: torch.Tensor = network(
            **tokenizer([text], return_tensors="pt", return_token_type_ids=False)
        ).last_hidden_state[0]
    return found


def rows_by_key(batches: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {
        key: (values, mask)
        for batch in batches
        for key, values, mask in zip(
            batch["key"], batch["text-embedding"], batch["text-embedding_mask"], strict=True
        )
    }


def test_pictures_and_captions_come_in_one_batch(
    photos: Path, tmp_path: Path, clip_folder: Path
) -> None:
    captions = lk.run(recipe(photos, tmp_path / "captions", clip_folder))
    images = lk.encode(photos, tmp_path / "images", size=32, overrides={"threads": 1, "preview": 0})
    both = lk.join(images, lk.open(captions.folder.path, columns=["text"]))
    rows = rows_by_key(both.batches(4))
    assert set(rows) == {f"{name}.png" for name in CAPTIONS}
    for name, caption in CAPTIONS.items():
        values, mask = rows[f"{name}.png"]
        assert int(mask.sum()) == len(caption) + 2
        torch.testing.assert_close(
            values[:, mask].T, expected(clip_folder, caption), atol=1e-5, rtol=1e-5
        )
        assert not values[:, ~mask].any()


def test_one_vector_a_text_is_stored_without_a_mask(
    photos: Path, tmp_path: Path, clip_folder: Path
) -> None:
    data = lk.run(
        recipe(photos, tmp_path / "pooled", clip_folder),
        overrides={"encoder.with.output": "pooled"},
    )
    network = transformers.CLIPTextModel.from_pretrained(clip_folder / "text_encoder").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip_folder / "tokenizer")
    rows = {row["key"]: row for row in (data[index] for index in range(len(data)))}
    assert set(rows) == {f"{name}.png" for name in CAPTIONS}
    for name, caption in CAPTIONS.items():
        with torch.inference_mode():
            vector = network(
                **tokenizer([caption], return_tensors="pt", return_token_type_ids=False)
            ).pooler_output[0]
        torch.testing.assert_close(rows[f"{name}.png"]["latent"], vector, atol=1e-5, rtol=1e-5)
        assert "latent_mask" not in rows[f"{name}.png"]


def test_texts_are_stored_at_their_own_length(
    photos: Path, tmp_path: Path, clip_folder: Path
) -> None:
    captions = lk.run(recipe(photos, tmp_path / "captions", clip_folder))
    lengths = {
        captions[number]["key"]: captions[number]["latent"].shape for number in range(len(captions))
    }
    assert lengths == {f"{name}.png": (16, len(caption) + 2) for name, caption in CAPTIONS.items()}


def test_an_edited_caption_is_encoded_again_and_its_picture_never_opened(
    photos: Path, tmp_path: Path, clip_folder: Path
) -> None:
    place = recipe(photos, tmp_path / "captions", clip_folder)
    lk.run(place)
    (photos / "c.txt").write_text("another")
    (photos / "a.png").write_bytes(b"no picture any more")
    captions = lk.run(place)
    rows = {captions[number]["key"]: captions[number]["latent"] for number in range(len(captions))}
    assert len(rows) == len(CAPTIONS)
    torch.testing.assert_close(
        rows["c.png"].T, expected(clip_folder, "another"), atol=1e-5, rtol=1e-5
    )


def test_a_picture_without_a_caption_has_its_row_in_the_ledger(
    photos: Path, tmp_path: Path, clip_folder: Path
) -> None:
    (photos / "d.txt").unlink()
    captions = lk.run(recipe(photos, tmp_path / "captions", clip_folder))
    assert sorted(captions.keys) == ["a.png", "b.png", "c.png"]


def test_the_preview_is_what_the_encoder_saw(
    photos: Path, tmp_path: Path, clip_folder: Path
) -> None:
    captions = lk.run(recipe(photos, tmp_path / "captions", clip_folder))
    lines = (tmp_path / "captions" / "preview.txt").read_text().splitlines()
    expected_lines = {
        key: f"{len(text) + 2} tokens: <s>{text}</s>" for key, text in CAPTIONS.items()
    }
    assert lines == [expected_lines[key.removesuffix(".png")] for key in captions.keys]
