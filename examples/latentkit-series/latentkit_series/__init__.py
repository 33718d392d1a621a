"""The modality `series` and the encoder `series-kl` for latentkit."""

requires_contract = 2
"""The version of latentkit's plugin contract that this was made for; an older one refuses it."""
