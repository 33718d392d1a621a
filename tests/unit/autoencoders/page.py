"""docs/autoencoders.md and the README's shorter table, made from the table of classes and from what is tested of each.

python tests/unit/autoencoders/page.py        rewrites both
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentkit.encoders.diffusers_table import TRAITS, Traits

PAGE = Path(__file__).parents[3] / "docs" / "autoencoders.md"
README = Path(__file__).parents[3] / "README.md"
START, END = "<!-- autoencoders: start -->", "<!-- autoencoders: end -->"
MODELS = json.loads(Path(__file__).with_name("models.json").read_text())

HEAD = """# The autoencoders of diffusers

The encoder `diffusers` drives every autoencoder class that diffusers 0.42.1 exports under that name, 31 of 32, and a few more; the last
can't be an encoder of samples, for the reason given. This page is made by `tests/unit/autoencoders/page.py` from
`latentkit/encoders/diffusers_table.py`, which holds what can't be measured; sizes are measured on each model when it is opened.

- **Takes**: modalities, the usual one first. A video class sees a picture as a clip of one frame; a picture class sees a clip frame by
  frame.
- **Input**: axes of one prepared input as the class has them, and its range. Other pixel scales (ImageNet's, px / 128 - 1) are made of it
  inside.
- **Sizes**: frame counts that come back whole; heights, widths and lengths are multiples of the measured down-scaling unless said. Any
  other size is refused, never cut or padded.
- **Latents**: gaussian (mean and log-variance are stored), deterministic, or indices.
- **Normalisation**: where shift and scale come from when latents are read. *config*: per channel, else shift and scale, else scale, by the
  fields that are set; *inside*: `encode` has done it already.
- **Held to**: every class has a tiny random model in `tests/unit/autoencoders`: what a run stores equals a direct call of diffusers on the
  same batch (float32, bit for bit; `Kandinsky6SRVAE`, whose pixels are rescaled before, within rounding), sizes are those worked out by
  hand, decode gives the shape back, rows don't depend on their batch, and normalised latents equal what this pipeline feeds its
  transformer ("called": by calling it; else by its formula; below `diffusers/`, lines of 0.42.1).

Tested on the classes' own code with random weights, not on released checkpoints.

| class | takes | input | sizes | latents | normalisation | held to |
|---|---|---|---|---|---|---|
"""

TAIL = """
More than the table:

- `AutoencoderKLAllegro`, `AutoencoderKLHunyuanVideo15` and `Cosmos3AVAEAudioTokenizer` are encoded row by row inside a batch: the first two
  can't be batched, the third scales by the loudest row of its batch.
- `AutoencoderKLAllegro` and `AutoencoderKLMiniMaxH3` always tile, it is a part of the model. For the others `tiling: true` is tried when
  the model is opened, refused where the class can't, and a part of the fingerprint.
- `AutoencoderKLKVAEVideo` looks gaussian and isn't: its variance is always one, so only its mean is stored.
- `AutoencoderKLCosmos`: its pipelines multiply by the `sigma_data` of their scheduler too, which isn't the autoencoder's to know.
- `VQModel`: latents before the codebook, or with `indices: true` the indices. `AutoencoderVidTok` with the regulariser fsq: indices, or
  with `indices: false` the quantised latents. Neither is trained here: a codebook needs losses of its own.
- `AutoencoderRAE` needs the package transformers.
- `ConsistencyDecoderVAE` draws noise when it decodes.
- Of a pipeline's folder, `vae` or `audio_vae` is opened, whichever takes the recipe's modality; `subfolder` names another.
- A single file of weights needs its `config.json` beside it, or named by `config`: .safetensors, or what `torch.save` wrote (.ckpt, .pt,
  .pth, .bin; tensors by name, or those under `state_dict`), of which no object but tensors is loaded. The names of original trainers are
  converted where diffusers can. The same weights have the same fingerprint in every kind of file.
- Where a config gives other numbers of shifts and scales than its latents have channels, the model is refused when it is opened.
- A class that isn't here is tried as one of pictures, of clips and of sound, and driven when its `encode` gives a `latent_dist`, `latent`,
  `latents` or a tuple, and its `decode` gives the input's sizes back; else what it lacks is said.
"""


def page() -> str:
    """The whole of docs/autoencoders.md."""
    return HEAD + "".join(f"| {' | '.join(_row(name, traits))} |\n" for name, traits in TRAITS.items()) + TAIL


def readme() -> str:
    """The whole of README.md, with the table between its markers as it should be."""
    before, _, rest = README.read_text().partition(START)
    return f"{before}{START}\n\n{_short_table()}\n{END}{rest.partition(END)[2]}"


def _short_table() -> str:
    rows = ["| class | takes | latents | what normalised latents are held to |", "|---|---|---|---|"]
    for name, traits in TRAITS.items():
        _, takes, _, _, latents, _, held_to = _row(name, traits)
        rows.append(f"| `{name}` | {takes} | {latents} | {held_to} |")
    return "".join(f"{row}\n" for row in rows)


def _row(name: str, traits: Traits) -> Iterator[str]:
    yield f"`{name}`"
    if traits.refused:
        yield from ("nothing", "", "", "", "", traits.refused)
        return
    yield ", ".join(traits.modalities)
    low, high = traits.range
    yield f"{traits.axes} in [{low:g}, {high:g}]"
    yield _sizes(traits)
    yield "; ".join([traits.kind, *(f"{key} {value}: {_difference(traits, changes)}" for (key, value), changes in traits.variants.items())])
    yield traits.statistics
    yield MODELS[name]["pipeline"]


def _difference(traits: Traits, changes: Mapping[str, Any]) -> str:
    if "channels" in changes:
        return f"{changes['channels']} channel"
    return "indices" if changes.get("gives_indices") else _sizes(replace(traits, **changes))


def _sizes(traits: Traits) -> str:
    multiple, offset = traits.frames
    parts = ["whole tiles"] if traits.tiles else ["one size"] if traits.side else []
    if "T" in traits.axes and multiple > 1:
        parts.insert(0, f"{multiple}k + {offset} frames")
    elif "T" in traits.axes:
        parts.insert(0, "any number of frames" if "video" in traits.modalities else "one frame")
    return ", ".join(parts) or "multiples"


if __name__ == "__main__":
    PAGE.write_text(page())
    README.write_text(readme())
