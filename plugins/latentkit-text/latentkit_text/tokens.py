"""Converts texts to tokens, and describes the input of a text encoder to the modality."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from typing import Any

from latentkit.contracts import InputSpec, SizeRule

PAD_TO = 16
"""Texts of different lengths are padded to a multiple of this, so that they fill batches."""


class Tokenizer:
    """Converts texts to token ids, including special tokens, with a tokenizer of transformers.

    Picklable, and safe to use from several threads.

    Args:
        tokenizer: tokenizer of transformers.
        max_length: most tokens of a text, including special ones.
        pad_to_max: whether all texts are padded to `max_length`.
    """

    def __init__(self, tokenizer: Any, max_length: int, pad_to_max: bool) -> None:
        self.max_length, self._pad_to_max = max_length, pad_to_max
        self._tokenizer = tokenizer
        self._lock = threading.Lock()

    @property
    def pad_id(self) -> int:
        """Return the padding token; 0 if the tokenizer has none, which the mask then hides."""
        pad = self._tokenizer.pad_token_id
        return 0 if pad is None else int(pad)

    def __call__(self, text: str) -> tuple[list[int], int]:
        """Return the ids of a text, at most `max_length`, and their number before it was cut."""
        with self._lock:  # fast tokenizers don't allow two users at a time
            ids: list[int] = self._tokenizer(text, truncation=False, verbose=False)["input_ids"]
            if len(ids) <= self.max_length:
                return ids, len(ids)
            cut: list[int] = self._tokenizer(text, truncation=True, max_length=self.max_length)[
                "input_ids"
            ]
            return cut, len(ids)

    def padded_length(self, length: int) -> int:
        """Return the number of tokens that a text of `length` is padded to."""
        return (
            self.max_length
            if self._pad_to_max
            else min(-(-length // PAD_TO) * PAD_TO, self.max_length)
        )

    def text(self, ids: list[int]) -> str:
        """Return the text of token ids as the network sees it, with special and unknown tokens by
        name.
        """
        with self._lock:
            return str(self._tokenizer.decode(ids))

    def fingerprint(self) -> str:
        """Return a hash of everything that affects the ids of a text."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        content = (
            repr(sorted(self._tokenizer.get_vocab().items()))
            if backend is None
            else backend.to_str()
        )
        return hashlib.sha256(f"{content}\0{self.max_length}\0{self.pad_id}".encode()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock()}


@dataclass(frozen=True)
class TextInput(InputSpec):
    """Input of a text encoder: token ids, (L,) whole numbers, and the tokenizer that makes them."""

    tokenizer: Tokenizer | None = None


def text_input(tokenizer: Tokenizer, num_tokens: int) -> TextInput:
    """Return the input of an encoder whose vocabulary has `num_tokens` tokens."""
    sizes = {"L": SizeRule(maximum=tokenizer.max_length)}
    return TextInput(
        channels=1,
        range=(0.0, num_tokens - 1.0),
        sizes=sizes,
        axes="L",
        takes_mask=True,
        tokenizer=tokenizer,
    )
