"""Encodes one batch: compiled if it is full, again in float32 if it overflowed, with a clear error
if memory runs out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from latentkit.contracts import Encoder, LatentLayout
from latentkit.encoding.batch_tensors import (
    check_and_mask,
    check_layout,
    check_readable,
    encode_batch,
    input_of,
    num_rows_of,
    select_rows,
)
from latentkit.errors import EncoderError
from latentkit.runtime.device import is_out_of_memory, is_unsupported
from latentkit.runtime.masks import MASK
from latentkit.runtime.sample_faults import add_context_to_faults


class BatchEncoder:
    """An encoder as a run uses it. It is opened with the first batch.

    Args:
        open_encoder: opens the encoder; called once.
        batch_size: rows of a full batch.
        compiled: whether full batches run compiled. Others never do, because the rest of a unit or
            a small bucket isn't worth a compilation.
        open_float32: opens the same encoder in float32, for rows whose latents aren't finite; None
            leaves those rows unchanged.
    """

    def __init__(
        self,
        open_encoder: Callable[[], Encoder],
        batch_size: int,
        compiled: bool,
        open_float32: Callable[[], Encoder] | None,
    ) -> None:
        self._open_encoder, self._open_float32 = open_encoder, open_float32
        self._batch_size, self._compiled = batch_size, compiled
        self._encoder: Encoder | None = None
        self.layout: LatentLayout
        """Layout of the latents; set with the first batch."""
        self._float32: Encoder | None = None
        self._readable: set[tuple[int, ...]] = set()

    def encode(self, batch: Any, bucket: str, first_key: str = "") -> dict[str, Tensor]:
        """Return latents of a batch on the encoder's device, checked against its layout, with
        "mask" if rows have one.

        Args:
            batch: rows of one bucket.
            bucket: name of the bucket, for messages.
            first_key: key of the first row's sample, for messages.

        Raises:
            EncoderError: the latents contradict the layout or couldn't be read back, or memory ran
                out.
        """
        encoder = self._open() if self._encoder is None else self._encoder
        doing = f"encoding {num_rows_of(batch)} rows of {bucket}, the first of sample {first_key!r}"
        with add_context_to_faults(encoder, doing), self._run_compiled_if_full(batch, bucket):
            given = encoder.encode(input_of(encoder.input, batch))
            latents = check_and_mask(encoder, given, batch)
        shape = tuple(next(iter(latents.values())).shape[1:])
        if shape not in self._readable:
            check_readable(encoder, latents)
            self._readable.add(shape)
        return (
            latents
            if self._open_float32 is None
            else self._retry_overflowed(latents, batch, bucket)
        )

    def _open(self) -> Encoder:
        """Open the encoder and check its layout."""
        self._encoder = encoder = self._open_encoder()
        check_layout(encoder)
        self.layout = encoder.layout
        if self._compiled and hasattr(encoder, "compile"):
            encoder.compile()
        return encoder

    def _retry_overflowed(
        self, latents: dict[str, Tensor], batch: Any, bucket: str
    ) -> dict[str, Tensor]:
        """Return the latents, with rows that weren't finite encoded again in float32. If there are
        such rows, all are returned in float32.
        """
        floating = [tensor for tensor in latents.values() if tensor.is_floating_point()]
        if not floating:
            return latents
        finite = torch.stack([tensor.isfinite().flatten(1).all(1) for tensor in floating]).all(0)
        if bool(finite.all()):
            return latents
        if self._float32 is None:
            assert self._open_float32 is not None
            self._float32 = self._open_float32()
        chosen = select_rows(batch, ~finite)
        with self._run_compiled_if_full(chosen, bucket):
            again = encode_batch(self._float32, chosen)
        places = torch.nonzero(~finite).flatten()
        repaired = {
            name: tensor.float().index_copy(0, places, again[name].float())
            for name, tensor in latents.items()
            if name != MASK
        }
        return latents | repaired

    @contextmanager
    def _run_compiled_if_full(self, batch: Any, bucket: str) -> Iterator[None]:
        """Run full batches compiled if requested, and explain what to do when memory runs out."""
        num_rows = num_rows_of(batch)
        is_compiled = self._compiled and num_rows == self._batch_size
        try:
            with (
                nullcontext()
                if is_compiled or not self._compiled
                else torch.compiler.set_stance("force_eager")
            ):
                yield
        except (RuntimeError, MemoryError) as error:
            if is_unsupported(error):
                raise EncoderError(
                    f"{str(error).splitlines()[0]} Encode on another device, such as --device cpu"
                ) from error
            if not is_out_of_memory(error):
                raise
            raise EncoderError(
                f"out of memory while {num_rows} rows of {bucket} were encoded:"
                f" {str(error).splitlines()[0]}. Set batch_size below {self._batch_size} and run"
                " again; committed units are kept"
            ) from error
