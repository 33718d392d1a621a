"""Modality `audio`: audio files to rows of one length, as waveforms or log-mel spectrograms."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soxr
import torch

from latentkit.contracts import BuildContext, InputSpec, Prepared, RowMemory, Sample, SizeRule
from latentkit.errors import RecipeError, SampleError
from latentkit.kit import BufferPool
from latentkit_audio.files import AudioFile, FileProperties, open_audio
from latentkit_audio.forward import Frames
from latentkit_audio.lengths import Cut, LengthRule, draw_fraction, find_cut, resampled_count
from latentkit_audio.levels import Levels, mix_down
from latentkit_audio.mel import LogMel
from latentkit_audio.rendering import write_audio, write_spectrograms

if TYPE_CHECKING:
    from torch import Tensor

    from latentkit_audio.plugin import AudioConfig

QUALITY = "VHQ"
"""soxr's setting: passband to 91 % of the lower rate's limit, errors below 28 bits."""

TOLERANCE_SECONDS = 1e-3
"""How far a span may end after its file: a frame of the lowest rate."""

PADDED_REMARK = "shorter than the row: padded with silence, which the mask marks"
KEPT_REMARK = "shorter than the row: kept at its own length"

DEFAULT_INPUT = InputSpec(channels=2, sample_rate_hz=44_100, axes="CL")


class AudioModality:
    """Prepares audio as (C, L) float32 in the encoder's range, or as (C, T, M) log-mel spectrograms
    if the encoder takes those.

    With `on_short: pad` or `keep` each row has a "mask", (L,) or (T,) bool, false in the padding;
    with `skip` it has none.

    Args:
        config: length, views and levels.
        context: seed of the random crops, and what the encoder takes.

    Raises:
        RecipeError: the encoder takes no audio or not this length; the message names the nearest
            lengths.
    """

    metrics: Sequence[str] = ()
    # libsndfile reads what Python holds through Python, and waits for its lock some hundred times a
    # file
    takes_paths = True

    def __init__(self, config: AudioConfig, context: BuildContext) -> None:
        self._config, self._seed = config, context.seed
        self._input = context.input or DEFAULT_INPUT
        self._rate_hz = _check_input(self._input)
        mel = self._input.mel if self._input.axes == "CTM" else None
        self._log_mel = None if mel is None else LogMel(mel, self._rate_hz)
        self._lengths = (
            LengthRule(self._input.sizes.get("L", SizeRule()))
            if mel is None
            else LengthRule.for_mel(self._input.sizes.get("T", SizeRule()), mel)
        )
        self._num_samples = _row_length(config, self._lengths, self._rate_hz)
        self._levels = Levels(self._rate_hz, config.peak_dbfs, config.loudness_lufs, config.on_loud)
        self._buffers = BufferPool(pinned=False)
        self._seeks = True
        self.preview_suffix = ".wav" if mel is None else ".png"

    def prepare(self, sample: Sample, memory: RowMemory | None = None) -> Iterator[Prepared]:
        """Yield every view of an audio file, in the recipe's order.

        Raises:
            SampleError: not an audio file, damaged, shorter than its span, or left out by one of
                the options `on_...`.
            OSError: the media can't be reached.
        """
        memory = memory or self._buffers
        with open_audio(sample, self._seeks) as audio:
            first, length = _find_part(audio.properties, sample.span, self._rate_hz)
            count = min(length, self._num_samples)
            if not count or (count < self._num_samples and self._config.on_short == "skip"):
                seconds, wanted = length / self._rate_hz, self._num_samples / self._rate_hz
                raise SampleError(f"{seconds:.6g} s of audio, shorter than {wanted:.6g} s")
            for view in self._config.views:
                start = first + self._offset(sample.key, view, length - count)
                yield self._prepare(audio, start, count, view, memory)

    def without_seeking(self) -> AudioModality:
        """Return a modality that prepares the same rows with each file decoded from its start."""
        other = copy.copy(self)
        other._seeks = False
        return other

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        """Write a 16-bit wav file with all tensors and rows one after the other, separated by
        silence; for spectrograms, a PNG.

        Args:
            tensors: as `prepare` returns them, any float dtype and device; other values are
                clipped.
            path: file to write; parent folders are created.

        Raises:
            ValueError: there is no tensor, or one has another shape.
        """
        rows = [
            [_check_tensor(tensor, self._input) for tensor in row] for row in tensors if len(row)
        ]
        if not rows:
            raise ValueError("render needs at least one tensor, got none")
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._log_mel is not None:
            write_spectrograms(rows, path)
        else:
            low, high = self._input.range
            write_audio(
                [[(tensor - low) * (2 / (high - low)) - 1 for tensor in row] for row in rows],
                path,
                self._rate_hz,
            )

    # ------------------------------------------------------------ one view

    def _offset(self, key: str, view: str, free: int) -> int:
        """Return the number of samples before a view, of the `free` samples that it doesn't use."""
        if view == "plain" and self._config.crop != "random":
            return free // 2 if self._config.crop == "center" else 0
        return int(draw_fraction(self._seed, key, view) * (free + 1))

    def _prepare(
        self, audio: AudioFile, first: int, count: int, view: str, memory: RowMemory
    ) -> Prepared:
        """Return a row of `count` samples, starting at `first`, of the audio at the encoder's
        rate.
        """
        properties = audio.properties
        cut = find_cut(first, count, properties.num_frames, properties.rate_hz, self._rate_hz)
        own = audio.read(cut.start, cut.stop, self._buffers)
        leveled = self._levels.apply(self._convert(own, properties.rate_hz, cut), own)
        geometry = {
            "start": round(first / self._rate_hz, 6),
            "end": round((first + count) / self._rate_hz, 6),
            "sample_rate_hz": properties.rate_hz,
            "channels": properties.num_channels,
            "gain_db": leveled.gain_db,
            "num_clipped": leveled.num_clipped,
        }
        length = self._num_samples
        if self._config.on_short == "keep":
            length = self._lengths.at_least(count) or length
        waveform = _to_waveform(leveled.frames, memory, length)
        bucket, row = self._to_row(waveform, count)
        return Prepared(
            view, bucket, row, geometry, [*self._remarks(properties, count), *leveled.remarks]
        )

    def _remarks(self, properties: FileProperties, count: int) -> Iterator[str]:
        """Yield what a user should know about a row."""
        yield from properties.remarks
        if properties.num_channels not in (1, self._input.channels):
            yield f"{properties.num_channels} channels mixed to their mean"
        if count < self._num_samples:
            yield PADDED_REMARK if self._config.on_short == "pad" else KEPT_REMARK

    def _convert(self, frames: Frames, rate_hz: int, cut: Cut) -> Frames:
        """Return what was read for a cut, at the encoder's rate, with its channels, without
        context.
        """
        frames = mix_down(frames, self._input.channels, self._config.on_many_channels)
        if rate_hz != self._rate_hz:
            whole = soxr.resample(frames, rate_hz, self._rate_hz, quality=QUALITY)
            if (
                len(whole) < cut.skip + cut.count
            ):  # half a frame at the file's end, which soxr rounded differently
                silence = np.zeros((-(-rate_hz // self._rate_hz), frames.shape[1]), np.float32)
                whole = soxr.resample(
                    np.concatenate([frames, silence]), rate_hz, self._rate_hz, quality=QUALITY
                )
            frames = whole
        frames = frames[cut.skip : cut.skip + cut.count]
        return (
            frames
            if frames.shape[1] == self._input.channels
            else np.repeat(frames, self._input.channels, axis=1)
        )

    def _to_row(self, waveform: Tensor, count: int) -> tuple[str, Tensor | Mapping[str, Tensor]]:
        """Return bucket and tensors of a padded waveform, (C, L) from -1 to 1, whose first `count`
        samples are audio.
        """
        if self._log_mel is not None:
            row = self._log_mel(waveform)
            name, count = f"{row.shape[1]}x{row.shape[2]}", count // self._lengths.hop + 1
        else:
            low, high = self._input.range
            row = (
                waveform
                if (low, high) == (-1.0, 1.0)
                else (waveform + 1) * ((high - low) / 2) + low
            )
            name = str(row.shape[1])
        if self._config.on_short == "skip":
            return name, row
        if count >= row.shape[1]:
            return name, {"audio": row, "mask": _all_counts(row.shape[1])}
        mask = np.zeros(
            row.shape[1], np.bool_
        )  # not torch's, which would start several threads for each of ours
        mask[:count] = True
        return name, {"audio": row, "mask": torch.from_numpy(mask)}


def _to_waveform(frames: Frames, memory: RowMemory, length: int) -> Tensor:
    """Return (L, C) frames as (C, `length`), silent after the last."""
    values = memory.get((frames.shape[1], length), np.float32)
    values[:, : len(frames)] = frames.T
    values[:, len(frames) :] = 0
    return torch.from_numpy(values)


# ---------------------------------------------------------------- what the encoder takes


def _check_input(spec: InputSpec) -> int:
    """Return the encoder's sample rate in Hz, after checking its input."""
    if spec.axes not in ("CL", "CTM") or (spec.axes == "CTM" and spec.mel is None):
        raise RecipeError(
            "modality audio makes waveforms (CL) and mel spectrograms (CTM), but the encoder takes"
            f" {spec.axes}"
        )
    if spec.channels not in (1, 2):
        raise RecipeError(
            f"modality audio makes 1 or 2 channels, but the encoder takes {spec.channels}"
        )
    if spec.sample_rate_hz is None:
        raise RecipeError(
            "modality audio: the encoder doesn't declare its sample rate (InputSpec.sample_rate_hz)"
        )
    return spec.sample_rate_hz


def _row_length(config: AudioConfig, lengths: LengthRule, rate_hz: int) -> int:
    """Return the samples of a full row."""
    wanted = config.num_samples or max(round(config.length * rate_hz), 1)
    found = lengths.at_most(wanted)
    if found == wanted or (found is not None and config.num_samples is None):
        return found
    near = " and ".join(
        f"{size} ({size / rate_hz:.6g} s)"
        for size in (found, lengths.at_least(wanted))
        if size is not None
    )
    key = "length" if config.num_samples is None else "num_samples"
    raise RecipeError(
        f"modality.with.{key}: {wanted} samples at {rate_hz} Hz is not a length that the encoder"
        f" accepts; nearest: {near}"
    )


def _find_part(
    properties: FileProperties, span: tuple[float, float] | None, rate_hz: int
) -> tuple[int, int]:
    """Return the first sample of a span and its number of samples, at the rate `rate_hz`.

    Raises:
        SampleError: the span is empty or exceeds the file.
    """
    total = resampled_count(properties.num_frames, properties.rate_hz, rate_hz)
    if span is None:
        return 0, total
    duration = properties.num_frames / properties.rate_hz
    if not 0 <= span[0] < span[1] <= duration + TOLERANCE_SECONDS:
        raise SampleError(
            f"a span from {span[0]:g} s to {span[1]:g} s, in audio of {duration:.6g} s"
        )
    first = min(round(span[0] * rate_hz), max(total - 1, 0))
    # Counted from the start and rounded up, so spans of equal length have equally many samples.
    return first, min(math.ceil((span[1] - span[0]) * rate_hz - 1e-3), total - first)


# ---------------------------------------------------------------- tensors


@functools.lru_cache(8)
def _all_counts(length: int) -> Tensor:
    """Return the mask of rows without padding: one shared tensor, which a batch stores once."""
    return torch.ones(length, dtype=torch.bool)


def _check_tensor(tensor: Tensor, spec: InputSpec) -> Tensor:
    """Return the tensor as float32 on the CPU, with nan replaced by the middle of the range."""
    if tensor.ndim != len(spec.axes) or tensor.shape[0] != spec.channels:
        raise ValueError(
            f"render takes {spec.axes} tensors with {spec.channels} channels, got shape"
            f" {tuple(tensor.shape)}"
        )
    return tensor.detach().to("cpu", torch.float32).nan_to_num(sum(spec.range) / 2)
