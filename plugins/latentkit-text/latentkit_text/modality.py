"""Modality `text`: a caption to the tokens of the encoder that it is prepared for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentkit.contracts import BuildContext, Prepared, Sample
from latentkit.errors import RecipeError, SampleError
from latentkit_text.tokens import TextInput

if TYPE_CHECKING:
    from latentkit_text.plugin import TextConfig


class TextModality:
    """Prepares {"tokens": (L,) int64 ids, "mask": (L,) 1 where a token counts}.

    Raises:
        RecipeError: the encoder is no text encoder.
    """

    metrics: Sequence[str] = ()
    preview_suffix = ".txt"

    def __init__(self, config: TextConfig, context: BuildContext) -> None:
        given = context.input
        if not isinstance(given, TextInput) or given.tokenizer is None or given.range[0] != 0.0:
            raise RecipeError("modality text: expected an encoder with a tokenizer, such as text-encoder")
        self._config, self._tokenizer = config, given.tokenizer

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        """The one view, "plain"; geometry says how many tokens the text had and how many are kept.

        Raises:
            SampleError: there is no text, it is empty or far too long, or not UTF-8.
            OSError: its file can't be reached.
        """
        text = self._read(sample)
        if not text.strip() and self._config.on_empty == "skip":
            raise SampleError("the text is empty; set modality.with.on_empty: encode to keep it")
        if len(text) > self._config.max_characters:
            limit = self._config.max_characters
            raise SampleError(f"the text has {len(text)} characters, more than modality.with.max_characters ({limit}); is it a caption?")
        ids, num_tokens = self._tokenizer(text)
        if num_tokens > len(ids) and self._config.on_long == "skip":
            raise SampleError(f"the text has {num_tokens} tokens, more than the encoder's max_length ({len(ids)})")
        if not ids:
            raise SampleError("the tokenizer makes no token of the text")
        length = self._tokenizer.padded_length(len(ids))
        tokens = torch.full((length,), self._tokenizer.pad_id)
        tokens[: len(ids)] = torch.tensor(ids)
        mask = torch.zeros(length)
        mask[: len(ids)] = 1
        yield Prepared("plain", str(length), {"tokens": tokens, "mask": mask}, {"tokens": num_tokens, "kept": len(ids)})

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        """Write the texts of token ids at `path`, a line per row."""
        lines = ["\t".join(self._tokenizer.text(row.long().tolist()).replace("\n", " ") for row in rows) for rows in tensors]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _read(self, sample: Sample) -> str:
        column = self._config.column
        if column is not None and not isinstance(sample.attributes.get(column), str):
            there = ", ".join(sorted(sample.attributes)) or "none"
            advice = "name another in modality.with.column, or null to take the media"
            raise SampleError(f"there is no text under the attribute {column!r}; attributes: {there}; {advice}")
        try:
            return sample.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SampleError(f"not UTF-8 text: {error.reason} at byte {error.start}") from error
