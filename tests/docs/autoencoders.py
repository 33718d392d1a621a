"""docs/autoencoders.md, made from the table of classes and from what is tested of each.

python tests/docs/autoencoders.py        rewrites it
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import latentkit.encoders
from latentkit.encoders.diffusers_table import TRAITS, ModelTraits

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "autoencoders.md"
TESTED = ROOT / "tests" / "unit" / "encoders"
MODELS = json.loads((TESTED / "models.json").read_text())
PUBLISHED = json.loads((TESTED / "published.json").read_text())
SHIPPED = Path(latentkit.encoders.__file__).parent / "published"
FILES = TESTED / "test_original_names.py"

HEAD = """---
hide: [navigation, toc]
---

# The autoencoders of diffusers

The encoder `diffusers` supports every autoencoder class that diffusers 0.42.1 exports under that name, 31 of 32, and a few more; the last
can't be an encoder of samples, for the reason given. This page is made by `tests/docs/autoencoders.py` from
`latentkit/encoders/diffusers_table.py`, which holds what can't be measured; sizes are measured on each model when it is opened.

- **Takes**: modalities, the usual one first. A video class sees an image as a clip of one frame; an image class sees a clip frame by
  frame.
- **Input**: axes of one prepared input as the class has them, and its range. Other pixel scales (ImageNet's, px / 128 - 1) are made of it
  inside.
- **Sizes**: frame counts that come back whole; heights, widths and lengths are multiples of the measured down-scaling unless said. Any
  other size is refused, never cut or padded.
- **Latents**: gaussian (mean and log-variance are stored), deterministic, or indices.
- **Normalization**: where shift and scale come from when latents are read. *config*: per channel, else shift and scale, else scale, by the
  fields that are set; *inside*: `encode` has done it already.
- **Held to**: every class has a tiny random model in `tests/unit/encoders`: what a run stores equals a direct call of diffusers on the
  same batch (float32, bit for bit; `Kandinsky6SRVAE`, whose pixels are rescaled before, within rounding), sizes are those worked out by
  hand, decode gives the shape back, rows don't depend on their batch, and normalized latents equal what this pipeline feeds its
  transformer ("called": by calling it; else by its formula; below `diffusers/`, lines of 0.42.1).

Tested on the classes' own code with random weights, not on released checkpoints.

| class | takes | input | sizes | latents | normalization | held to |
|---|---|---|---|---|---|---|
"""

TAIL = """
More than the table:

- `AutoencoderKLAllegro`, `AutoencoderKLHunyuanVideo15` and `Cosmos3AVAEAudioTokenizer` are encoded row by row inside a batch: the first two
  can't be batched, the third scales by the loudest row of its batch.
- `AutoencoderKLAllegro` and `AutoencoderKLMiniMaxH3` always tile, it is a part of the model. For the others `tiling: true` is tried when
  the model is opened, refused where the class can't, and a part of the fingerprint.
- `AutoencoderKLKVAEVideo` looks gaussian and isn't: its variance is always one, so only its mean is stored.
- `AutoencoderKLCosmos`: its pipelines multiply by the `sigma_data` of their scheduler too, which isn't the autoencoder's to know. Where a
  config has statistics per latent frame, clips take the first of them, and longer clips than they hold for are refused.
- `AutoencoderKLFlux2` folds 2 x 2 latents into channels when they are read, so sides are multiples of twice its down-scaling.
- Statistics among a model's tensors (batch-norm, buffers) are read as they stand in its file, whatever dtype the network computes in.
- With `dtype: float16` a config's `force_upcast: true` is said once, before the run: set `on_overflow: retry-fp32`, or another dtype.
  Previews, the PSNR of int8 latents and `data.decode` are decoded in float32.
- `VQModel`: latents before the codebook, or with `indices: true` the indices. `AutoencoderVidTok` with the regularizer fsq: indices, or
  with `indices: false` the quantized latents. Neither is trained here: a codebook needs losses of its own.
- `AutoencoderRAE` needs the package transformers.
- `ConsistencyDecoderVAE` draws noise when it decodes.
- Of a pipeline's folder, the autoencoder that takes the recipe's modality is opened, `vae` or `audio_vae` first; `subfolder` names another.
- A single file of weights, .safetensors or what `torch.save` wrote, is told by its names and shapes where that is certain; else its
  `config.json` lies beside it, or `config` names it: a path, or a name of the table below. No object but tensors is loaded. The names
  of original trainers are converted. The same weights have the same fingerprint in every kind of file.
- Where a config gives other numbers of shifts and scales than its latents have channels, the model is refused when it is opened.
- A class that isn't here is tried as one of images, of clips and of sound, and driven when its `encode` gives a `latent_dist`, `latent`,
  `latents` or a tuple, and its `decode` gives the input's sizes back; else what it lacks is said.
"""


PUBLISHED_HEAD = """
## Published autoencoders

Each true config is opened by its folder in the tests (random weights, at full size without memory): channels and sizes are those worked
out by hand, and a dataset that is read gives what this pipeline feeds its transformer, (z - shift) * scale written out in the test.
Substitutes for configs that were not seen verbatim are named in `latentkit/encoders/published/README.md`.

- **Config**: its name for the option `config`, for a file of weights without one.
- **Single file**: with its authors' own names, as tested. *exact*: converted bit for bit; *recognized*: no config is needed. Where several
  models have the same names and shapes, and other scales, latentkit asks for the config.
- Any of them loads from a folder, a pipeline's folder and the hub: `.safetensors` or `.bin`, sharded or not, or the only variant there.

| model | config | class | one input gives latents | sizes | scaled by | held to | single file |
|---|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The whole of docs/autoencoders.md."""
    classes = "".join(f"| {' | '.join(_row(name, traits))} |\n" for name, traits in TRAITS.items())
    published = "".join(f"| {' | '.join(_published_row(name))} |\n" for name in PUBLISHED)
    return HEAD + classes + TAIL + PUBLISHED_HEAD + published


def _row(name: str, traits: ModelTraits) -> Iterator[str]:
    yield f"`{name}`"
    if traits.refused:
        yield from ("nothing", "", "", "", "", traits.refused)
        return
    yield ", ".join(traits.modalities)
    low, high = traits.range
    yield f"{traits.axes} in [{low:g}, {high:g}]"
    yield _sizes(traits)
    yield "; ".join(
        [
            traits.kind,
            *(
                f"{key} {value}: {_difference(traits, changes)}"
                for (key, value), changes in traits.variants.items()
            ),
        ]
    )
    yield traits.statistics
    yield MODELS[name]["pipeline"]


def _published_row(name: str) -> Iterator[str]:
    known = PUBLISHED[name]
    config = known.get("config") or json.loads((SHIPPED / f"{name}.json").read_text())
    traits = TRAITS[config["_class_name"]]
    yield known["model"]
    yield "" if "config" in known else f"`{name}`"
    yield f"`{config['_class_name']}`"
    yield " to ".join(" x ".join(map(str, known[side])) for side in ("input", "latents"))
    sizes = (
        [_sizes(traits)]
        if "T" in traits.axes and len(known["input"]) == (3 if traits.mel else 4)
        else []
    )
    sizes += [] if traits.tiles or traits.mel else [f"multiples of {known['step'][-1]}"]
    yield ", ".join(sizes)
    yield _scaling(known["normalization"])
    yield known["pipeline"]
    exact, recognized = ({one[0] for one in forms} for forms in _tested_files())
    yield ", ".join(
        word for word, names in (("exact", exact), ("recognized", recognized)) if name in names
    )


def _scaling(how: Mapping[str, Any]) -> str:
    if "per" in how:
        return f"mean and std per {how['per']}" + (
            f", times {how['scale']:g}" if "scale" in how else ""
        )
    return f"{how['scale']:.9g}" + (f" after a shift of {how['shift']:g}" if "shift" in how else "")


@functools.cache
def _tested_files() -> tuple[Sequence[Any], Sequence[Any]]:
    """Names whose files are converted exactly, and whose files need no config, as their tests have
    them.
    """
    spec = importlib.util.spec_from_file_location("original_names", FILES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FORMS, module.CERTAIN


def _difference(traits: ModelTraits, changes: Mapping[str, Any]) -> str:
    if "channels" in changes:
        return f"{changes['channels']} channel"
    return "indices" if changes.get("gives_indices") else _sizes(replace(traits, **changes))


def _sizes(traits: ModelTraits) -> str:
    multiple, offset = traits.frames
    parts = ["whole tiles"] if traits.tiles else ["one size"] if traits.side else []
    if "T" in traits.axes and multiple > 1:
        parts.insert(0, f"{multiple}k + {offset} frames")
    elif "T" in traits.axes:
        parts.insert(0, "any number of frames" if "video" in traits.modalities else "one frame")
    return ", ".join(parts) or "multiples"


if __name__ == "__main__":
    PAGE.write_text(page())
