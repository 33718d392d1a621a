"""The loss `perceptual` for latentkit."""
