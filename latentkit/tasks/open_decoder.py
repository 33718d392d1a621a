"""Opens the decoder of a latent dataset, from its recipe.yaml."""

from __future__ import annotations

from collections.abc import Mapping

from latentkit.contracts import Decodes
from latentkit.errors import EncoderError, FingerprintError
from latentkit.store.fingerprint import different_parts
from latentkit.store.folder import Folder
from latentkit.tasks.build_parts import configured_encode_of


def open_decoder(folder: Folder, made_with: Mapping[str, str], device: str) -> Decodes:
    """Open the encoder of the dataset's recipe.yaml for decoding, in float32 if it has a choice.

    Args:
        made_with: the dataset's fingerprint parts.
        device: device such as "cpu" or "cuda:0".

    Raises:
        EncoderError: the encoder can't decode.
        FingerprintError: the recipe's encoder isn't the one that made the dataset.
    """
    line = configured_encode_of(folder)
    opener = line.encoder_opener()
    encoder = opener(device)
    decoder = (opener.in_float32() or opener)(device)  # because half precision may overflow
    if not isinstance(decoder, Decodes):
        name = line.encoder.provided.spec.name
        raise EncoderError(f"the encoder {name!r} of {folder} can't decode")
    different = different_parts(made_with, line.fingerprint_parts(encoder), "encoder.")
    if different:
        problem = f"{folder} was made with another encoder than its recipe now opens"
        raise FingerprintError(f"{problem}: {', '.join(different)} differ")
    return decoder
