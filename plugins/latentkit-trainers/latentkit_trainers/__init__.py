"""Exporters for trainers' own latent caches."""

requires_contract = 3
