"""The modality `audio` and the source `audio-clips` for latentkit."""

requires_contract = 3
