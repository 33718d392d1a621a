"""The modality `video` and the source `video-clips` for latentkit."""

requires_contract = 3
