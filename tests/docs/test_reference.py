"""The generated pages say what the code says: an undocumented option, key or command fails."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

REFERENCE = runpy.run_path(str(Path(__file__).with_name("reference.py")))
MADE = REFERENCE["pages"]()


@pytest.mark.parametrize("name", MADE)
def test_page_is_what_the_code_says(name: str) -> None:
    written = (REFERENCE["FOLDER"] / name).read_text(encoding="utf-8")
    assert written == MADE[name], "run: python tests/docs/reference.py"


def test_every_hook_and_contract_is_there() -> None:
    from latentkit import contracts, testing
    from latentkit.plugins import HOOKS

    page = MADE["plugin-api.md"]
    assert [name for name in HOOKS if f"### {name}" not in page] == []
    assert [name for name in testing.__all__ if f"### {name}" not in page] == []
    values = {"LOGVAR_RANGE", "LossRole", "Worker"}  # neither classes nor functions
    assert {name for name in contracts.__all__ if f"### {name}\n" not in page} == values
