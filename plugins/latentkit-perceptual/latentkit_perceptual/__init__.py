"""The loss `perceptual` for latentkit."""

requires_contract = 2
