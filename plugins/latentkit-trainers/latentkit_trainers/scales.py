"""The constants by which trainers normalize raw latents, written into their code."""

from __future__ import annotations

from latentkit.contracts import Normalization

SD = Normalization(0.0, 0.18215)
SDXL = Normalization(0.0, 0.13025)
SD3 = Normalization(0.0609, 1.5305)
FLUX = Normalization(0.1159, 0.3611)
HUNYUAN_IMAGE = Normalization(0.0, 0.75289)
MAR = Normalization(0.0, 0.2325)
