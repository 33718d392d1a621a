"""Modality `volume` and encoder `volume-kl` for latentkit."""

requires_contract = 3
