"""Captions as latent datasets: text encoders that transformers loads."""

requires_contract = 3
