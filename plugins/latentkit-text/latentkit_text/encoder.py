"""Encoder `text-encoder`: encodes tokens to the hidden states of a text encoder."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentkit.contracts import InputSpec, LatentLayout, Normalization
from latentkit.encoders.hashing import hash_tensors
from latentkit.errors import EncoderError
from latentkit_text.tokens import Tokenizer, text_input

if TYPE_CHECKING:
    from latentkit_text.plugin import TextEncoderConfig

UNUSED_CONFIG_KEYS = (
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
)
"""Config keys that don't affect values; the dtype is the recipe's."""
POOLED_NAMES = ("text_embeds", "pooler_output")


class TextEncoder:
    """An `Encoder` around a text encoder of transformers.

    Args:
        network: network in eval mode, on its device.
        tokenizer: tokenizer that prepares texts.
        config: padding, layer and output.

    Raises:
        EncoderError: the network lacks the layer, or has fewer positions than `max_length`.
    """

    modality = "text"
    normalization = Normalization()

    def __init__(self, network: Any, tokenizer: Tokenizer, config: TextEncoderConfig) -> None:
        self.network, self._tokenizer, self._config = network, tokenizer, config
        described = (
            network.config.get_text_config()
            if hasattr(network.config, "get_text_config")
            else network.config
        )
        layers = int(getattr(described, "num_hidden_layers", 0) or 0)
        if layers and -config.layer > layers + 1:
            raise EncoderError(
                f"encoder.with.layer: the network has {layers} layers and its embeddings, got"
                f" {config.layer}"
            )
        positions = getattr(described, "max_position_embeddings", None)
        if config.max_length and positions and config.max_length > positions:
            raise EncoderError(
                f"encoder.with.max_length: the network has positions for {positions} tokens, got"
                f" {config.max_length}"
            )
        embeddings = network.get_input_embeddings()
        self.input: InputSpec = text_input(tokenizer, embeddings.num_embeddings)
        is_pooled = config.output == "pooled"
        channels = self._try()
        if is_pooled:
            self.layout = LatentLayout("pooled-text-embedding", "deterministic", "C", channels, 1)
        else:
            ragged = "L" if config.padding == "none" else None
            self.layout = LatentLayout(
                "text-embedding", "deterministic", "CL", channels, 1, ragged_axis=ragged
            )

    def encode(self, batch: Any) -> dict[str, Tensor]:
        """Return hidden states of a batch of texts.

        Args:
            batch: "tokens", (N, L) ids, and "mask", (N, L), 1 where a token counts.

        Returns:
            "latent", (N, C, L), or (N, C) with output pooled, in the network's dtype. Values in the
            padding are meaningless, unless tokens attend to it.

        Raises:
            ValueError: there are more tokens than `max_length`.
        """
        tokens, mask = batch["tokens"], batch["mask"]
        if not self.input.sizes["L"].allows(tokens.shape[1]):
            raise ValueError(
                f"L of the batch is {tokens.shape[1]}; the encoder accepts {self.input.sizes['L']}"
            )
        device = self.network.device
        seen = (
            None
            if self._config.attend_padding and self._config.padding == "max_length"
            else mask.to(device).long()
        )
        with torch.inference_mode():
            found = self.network(
                tokens.to(device).long(),
                attention_mask=seen,
                output_hidden_states=self._config.layer != -1,
            )
        return {"latent": self._select(found)}

    def fingerprint(self) -> dict[str, str]:
        """Return the class, config and weights of the network, and the tokenizer."""
        values = {
            name: value
            for name, value in self.network.config.to_dict().items()
            if name not in UNUSED_CONFIG_KEYS
        }
        text = json.dumps(values, sort_keys=True, default=str)
        return {
            "class": type(self.network).__name__,
            "config": hashlib.sha256(text.encode()).hexdigest(),
            "weights": hash_tensors(self.network.state_dict()),
            "tokenizer": self._tokenizer.fingerprint(),
        }

    def _select(self, found: Any) -> Tensor:
        """Return the layer or vector that the config asks for."""
        if self._config.output == "tokens":
            states: Tensor = (
                found.last_hidden_state
                if self._config.layer == -1
                else found.hidden_states[self._config.layer]
            )
            return states.transpose(1, 2)
        for name in POOLED_NAMES:
            pooled: Tensor | None = getattr(found, name, None)
            if pooled is not None:
                return pooled
        raise EncoderError(
            f"{type(self.network).__name__} gives no vector for a whole text; set"
            " encoder.with.output: tokens"
        )

    def _try(self) -> int:
        """Return the number of channels, by encoding one token."""
        tokens = torch.full((1, 1), self._tokenizer.pad_id, device=self.network.device)
        with torch.inference_mode():
            found = self.network(
                tokens, attention_mask=torch.ones_like(tokens), output_hidden_states=True
            )
        return int(self._select(found).shape[1])
