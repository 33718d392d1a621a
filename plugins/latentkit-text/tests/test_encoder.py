"""Embeddings are those of transformers, whatever a text was padded to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from latentkit_text.encoder import TextEncoder
from latentkit_text.loading import open_text_encoder
from latentkit_text.modality import TextModality
from latentkit_text.plugin import TextConfig, TextEncoderConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentkit.contracts import BuildContext, Sample
from latentkit.errors import EncoderError

TEXTS = ("a cat", "two dogs on a beach at dusk", "x")


def open_encoder(model: Path, **options: Any) -> TextEncoder:
    return open_text_encoder(TextEncoderConfig(model=str(model), **options), BuildContext())


def batch_of(encoder: TextEncoder, texts: tuple[str, ...]) -> dict[str, Tensor]:
    """The texts as one batch, padded alike."""
    modality = TextModality(TextConfig(column=None), BuildContext(input=encoder.input))
    rows: list[Any] = [next(iter(modality.prepare(Sample("key", text)))).tensor for text in texts]
    length = max(row["tokens"].shape[0] for row in rows)
    return {
        name: torch.stack([pad(row[name], length) for row in rows]) for name in ("tokens", "mask")
    }


def pad(row: Tensor, length: int) -> Tensor:
    return torch.cat([row, row.new_zeros(length - len(row))])


def direct(network: Any, folder: Path, text: str) -> Tensor:
    """What transformers gives of one text alone, (L, C)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        found: Tensor = network(
            **tokenizer([text], return_tensors="pt", return_token_type_ids=False)
        ).last_hidden_state[0]
    return found


def test_clip_of_a_pipelines_folder_gives_its_own_hidden_states(clip_folder: Path) -> None:
    encoder = open_encoder(clip_folder)
    batch = batch_of(encoder, TEXTS)
    latents = encoder.encode(batch)["latent"]
    network = transformers.CLIPTextModel.from_pretrained(clip_folder / "text_encoder").eval()
    for row, mask, text in zip(latents, batch["mask"], TEXTS, strict=True):
        expected = direct(network, clip_folder / "tokenizer", text)
        assert int(mask.sum()) == len(text) + 2
        torch.testing.assert_close(row[:, : len(expected)].T, expected, atol=1e-5, rtol=1e-5)


def test_t5_gives_its_own_hidden_states(t5_folder: Path) -> None:
    encoder = open_encoder(t5_folder, max_length=64)
    latents = encoder.encode(batch_of(encoder, TEXTS))["latent"]
    network = transformers.T5EncoderModel.from_pretrained(t5_folder).eval()
    for row, text in zip(latents, TEXTS, strict=True):
        expected = direct(network, t5_folder, text)
        torch.testing.assert_close(row[:, : len(expected)].T, expected, atol=1e-5, rtol=1e-5)


def test_max_length_and_attended_padding_are_what_stable_diffusion_feeds_its_network(
    clip_folder: Path,
) -> None:
    """`StableDiffusionPipeline.encode_prompt`: padding="max_length", truncation, no attention mask.
    """
    encoder = open_encoder(clip_folder, padding="max_length", attend_padding=True)
    assert encoder.layout.ragged_axis is None
    found = encoder.encode(batch_of(encoder, TEXTS))["latent"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip_folder / "tokenizer")
    ids = tokenizer(
        list(TEXTS), padding="max_length", max_length=40, truncation=True, return_tensors="pt"
    ).input_ids
    network = transformers.CLIPTextModel.from_pretrained(clip_folder / "text_encoder").eval()
    with torch.inference_mode():
        expected = network(ids, attention_mask=None)[0]
    assert torch.equal(found.transpose(1, 2), expected)


def test_the_penultimate_layer_and_the_projected_vector_are_those_of_stable_diffusion_xl(
    clip_folder: Path,
) -> None:
    """`StableDiffusionXLPipeline.encode_prompt`: hidden_states[-2] of both, and element 0 of the
    second's output.
    """
    options: dict[str, Any] = {
        "subfolder": "text_encoder_2",
        "padding": "max_length",
        "attend_padding": True,
    }
    tokens = open_encoder(clip_folder, layer=-2, **options)
    pooled = open_encoder(clip_folder, output="pooled", **options)
    batch = batch_of(tokens, TEXTS)
    network = transformers.CLIPTextModelWithProjection.from_pretrained(
        clip_folder / "text_encoder_2"
    ).eval()
    with torch.inference_mode():
        expected = network(batch["tokens"], output_hidden_states=True)
    assert torch.equal(tokens.encode(batch)["latent"].transpose(1, 2), expected.hidden_states[-2])
    assert torch.equal(pooled.encode(batch)["latent"], expected[0])
    assert (pooled.layout.axes, pooled.layout.channels) == ("C", 8)


def test_any_text_network_of_automodel_is_taken(tmp_path: Path, t5_folder: Path) -> None:
    torch.manual_seed(2)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    network = transformers.LlamaModel(transformers.LlamaConfig(vocab_size=110, **sizes)).eval()
    network.save_pretrained(tmp_path)
    for file in t5_folder.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    encoder = open_encoder(tmp_path, max_length=32)
    row = encoder.encode(batch_of(encoder, TEXTS))["latent"][0]
    expected = direct(network, tmp_path, TEXTS[0])
    torch.testing.assert_close(row[:, : len(expected)].T, expected, atol=1e-5, rtol=1e-5)


def test_too_many_tokens_raise_value_error(clip_folder: Path) -> None:
    encoder = open_encoder(clip_folder)
    with pytest.raises(ValueError, match="41"):
        encoder.encode({"tokens": torch.zeros(1, 41, dtype=torch.int64), "mask": torch.ones(1, 41)})


# ---------------------------------------------------------------- what can't be opened


def test_another_tokenizer_is_another_fingerprint(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer" / "tokenizer.json"
    values = json.loads(path.read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(values))
    one, other = (
        open_encoder(clip_folder).fingerprint(),
        open_encoder(tmp_path / "other").fingerprint(),
    )
    assert [name for name in one if one[name] != other[name]] == ["tokenizer"]


def test_weights_that_are_missing_are_named(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "cut")
    path = tmp_path / "cut" / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if "q_proj.weight" in name)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=r"q_proj\.weight"):
        open_encoder(tmp_path / "cut")


def test_a_tokenizer_without_a_limit_needs_max_length(t5_folder: Path) -> None:
    with pytest.raises(EncoderError, match="max_length"):
        open_encoder(t5_folder)


def test_a_folder_without_a_network_or_a_tokenizer_is_refused(
    tmp_path: Path, clip_folder: Path
) -> None:
    with pytest.raises(EncoderError, match=r"config\.json"):
        open_encoder(tmp_path)
    shutil.copytree(clip_folder / "text_encoder", tmp_path / "text_encoder")
    with pytest.raises(EncoderError, match="tokenizer"):
        open_encoder(tmp_path)
    with pytest.raises(EncoderError, match="no such file or folder"):
        open_encoder(tmp_path / "gone")


def test_a_layer_that_is_not_there_is_refused(clip_folder: Path) -> None:
    with pytest.raises(EncoderError, match="3 layers"):
        open_encoder(clip_folder, layer=-5)


def test_more_tokens_than_positions_are_refused(clip_folder: Path) -> None:
    positions = transformers.AutoConfig.from_pretrained(
        clip_folder / "text_encoder"
    ).max_position_embeddings
    with pytest.raises(
        EncoderError,
        match=rf"max_length: the network has positions for {positions} tokens, got {positions + 1}",
    ):
        open_encoder(clip_folder, max_length=positions + 1)


def test_a_network_without_a_pooled_vector_is_refused(t5_folder: Path) -> None:
    with pytest.raises(EncoderError, match="output: tokens"):
        open_encoder(t5_folder, max_length=32, output="pooled")
