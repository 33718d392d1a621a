"""Do all that `lacking.LACKING` lists as our modules would; say what fails. Run by lacking.py."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from lacking import LACKING

for lack in LACKING:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("file", "other", "third"):
            (Path(folder) / name).write_text(name, encoding="utf-8")
        names = {name: f"{folder}/{name}" for name in ("file", "other", "third")}
        with open(f"{folder}/file", "rb") as unread:
            try:
                exec(
                    lack.use,
                    {"__name__": "lacking_double", "folder": folder, "unread": unread, **names},
                )
                print(f"{lack.name}: works")
            except (AttributeError, ImportError, OSError, EncodingWarning):
                print(f"{lack.name}: fails")
