"""docs/autoencoders.md says what the code does."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def test_the_page_is_that_of_the_table() -> None:
    spec = importlib.util.spec_from_file_location(
        "autoencoders_page", Path(__file__).with_name("autoencoders.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run python tests/docs/autoencoders.py"
