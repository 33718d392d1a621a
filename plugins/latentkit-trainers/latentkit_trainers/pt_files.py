"""Files of `torch.save`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch


def write_pt(file: Path, value: Any) -> None:
    """Write a .pt file; one that doesn't fit on the disk isn't left open, as `torch.save` does.

    Raises:
        OSError: it can't be written.
    """
    content = io.BytesIO()
    torch.save(value, content)
    file.write_bytes(content.getbuffer())
