"""Modality `text`: converts captions to the tokens of the encoder that they are prepared for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
        RecipeError: the encoder isn't a text encoder.
    """

    metrics: Sequence[str] = ()
    preview_suffix = ".txt"

    def __init__(self, config: TextConfig, context: BuildContext) -> None:
        given = context.input
        if not isinstance(given, TextInput) or given.tokenizer is None or given.range[0] != 0.0:
            raise RecipeError(
                "modality text: expected an encoder with a tokenizer, such as text-encoder"
            )
        self._config, self._tokenizer = config, given.tokenizer

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        """Yield the only view, "plain". Its geometry has the number of tokens of the text and how
        many are kept.

        Raises:
            SampleError: there is no text, or it is empty, far too long, or not UTF-8.
            OSError: its file can't be reached.
        """
        text = self._read(sample)
        if not text.strip() and self._config.on_empty == "skip":
            raise SampleError("the text is empty; set modality.with.on_empty: encode to keep it")
        if len(text) > self._config.max_characters:
            limit = self._config.max_characters
            raise SampleError(
                f"the text has {len(text)} characters, more than modality.with.max_characters"
                f" ({limit}); is it a caption?"
            )
        ids, num_tokens = self._tokenizer(text)
        if num_tokens > len(ids) and self._config.on_long == "skip":
            raise SampleError(
                f"the text has {num_tokens} tokens, more than the encoder's max_length ({len(ids)})"
            )
        if not ids:
            raise SampleError("the tokenizer returns no tokens for the text")
        length = self._tokenizer.padded_length(len(ids))
        tokens = torch.full((length,), self._tokenizer.pad_id)
        tokens[: len(ids)] = torch.tensor(ids)
        mask = torch.zeros(length)
        mask[: len(ids)] = 1
        geometry = {"tokens": num_tokens, "kept": len(ids)}
        cut = (
            f"cut to {len(ids)} tokens, the encoder's limit (modality.with.on_long: skip leaves"
            " them out)"
        )
        remarks = (cut,) if num_tokens > len(ids) else ()
        yield Prepared("plain", str(length), {"tokens": tokens, "mask": mask}, geometry, remarks)

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        """Write one line per row to `path`: for each text its number of tokens, then its text.

        Args:
            tensors: (L,) token ids, without their padding.
            path: file to write.
        """
        lines = [
            "\t".join(self._describe(tokens.long().tolist()) for tokens in row) for row in tensors
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _describe(self, ids: list[int]) -> str:
        # Tokens don't say whether a text of just as many was cut, or ended there.
        limit = " (the limit)" if len(ids) == self._tokenizer.max_length else ""
        # Line ends and control characters for terminals are escaped.
        text = "".join(
            char if char.isprintable() else repr(char)[1:-1] for char in self._tokenizer.text(ids)
        )
        return f"{len(ids)} tokens{limit}: {text}"

    def _read(self, sample: Sample) -> str:
        """Return a sample's text, from the attribute or the media."""
        column = self._config.column
        if column is not None and not isinstance(sample.attributes.get(column), str):
            advice = "name another in modality.with.column, or null to take the media"
            raise SampleError(f"{_what_is_there(sample.attributes, column)}; {advice}")
        try:
            return sample.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SampleError(f"not UTF-8 text: {error.reason} at byte {error.start}") from error


def _what_is_there(attributes: Mapping[str, object], column: str) -> str:
    """Return why an attribute contains no text."""
    if column not in attributes:
        return f"no attribute {column!r}; attributes: {', '.join(sorted(attributes)) or 'none'}"
    value = attributes[column]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    found = (
        "null" if value is None else "a number" if is_number else f"of type {type(value).__name__}"
    )
    return f"the attribute {column!r} is {found}, not a text"
