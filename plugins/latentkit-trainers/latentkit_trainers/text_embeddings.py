"""Text embeddings in the shapes that trainers take."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from latentkit.contracts import ExportItem
from latentkit.errors import StoreError


def text_of(item: ExportItem, length: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the tokens that count, (1, L, C) float32, and which of them are no padding, (1, L)
    bool.

    Args:
        length: to which zeros are added; None: none are.

    Raises:
        StoreError: there are more tokens.
    """
    text: Mapping[str, Tensor] | None = item.text
    assert text is not None
    tokens = text["latent"].T
    if "latent_mask" in text:
        tokens = tokens[text["latent_mask"]]
    count = len(tokens)
    length = count if length is None else length
    if count > length:
        raise StoreError(
            f"{item.key!r}: the text embedding has {count} tokens, and the trainer takes {length};"
            f" encode the captions again with encoder.with.max_length: {length}"
        )
    padded = torch.zeros(1, length, tokens.shape[1])
    padded[0, :count] = tokens
    return padded, torch.arange(length)[None] < count
