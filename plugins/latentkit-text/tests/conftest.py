"""Text encoders with random weights, as folders like those on the hub."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

START, END, PAD = "<s>", "</s>", "<pad>"
CHARACTERS = (PAD, START, END, *string.printable)


def save_tokenizer(folder: Path, max_length: int | None) -> None:
    """A token a character, between one for the start and one for the end."""
    backend = Tokenizer(
        models.WordLevel(
            {token: number for number, token in enumerate(dict.fromkeys(CHARACTERS))}, unk_token=PAD
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, 1), (END, 2)]
    )
    limit: dict[str, Any] = {} if max_length is None else {"model_max_length": max_length}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        unk_token=PAD,
        **limit,
    ).save_pretrained(folder)


def save_network(folder: Path, network: Any) -> None:
    network.save_pretrained(folder)


def small_clip(projected: bool = False) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
    }
    sizes |= {"projection_dim": 8, "vocab_size": len(CHARACTERS), "max_position_embeddings": 40}
    tokens: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(transformers.CLIPTextConfig(**sizes, **tokens)).eval()


def small_t5() -> Any:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"d_model": 12, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 3}
    return transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=len(CHARACTERS), decoder_start_token_id=0, **sizes)
    ).eval()


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder, with text_encoder/ and tokenizer/."""
    folder = tmp_path_factory.mktemp("clip")
    save_network(folder / "text_encoder", small_clip())
    save_tokenizer(folder / "tokenizer", 40)
    save_network(folder / "text_encoder_2", small_clip(projected=True))
    save_tokenizer(folder / "tokenizer_2", 40)
    return folder


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network and its tokenizer in one folder; the tokenizer has no limit."""
    folder = tmp_path_factory.mktemp("t5")
    save_network(folder, small_t5())
    save_tokenizer(folder, None)
    return folder
