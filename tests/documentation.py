"""The pages of the documentation, and the code blocks in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
"""What users read. Packages in plugins/ and examples/ have a README of their own."""

FENCE = re.compile(r"^(?:<!-- (.+?) -->\n)?```([^\n`]*)\n(.*?)^```$", flags=re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A code block.

    Args:
        page: that holds it.
        line: of its first line of code, from 1.
        language: behind the opening fence.
        marker: text of the comment directly above; empty: none.
        code: with its line ends.
    """

    page: Path
    line: int
    language: str
    marker: str
    code: str

    @property
    def name(self) -> str:
        """Name the block for people, such as "docs/index.md:12"."""
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def find_blocks(*languages: str) -> list[Block]:
    """Return the code blocks of all pages, in some languages or in any."""
    found = [block for page in PAGES for block in blocks_of(page)]
    return [block for block in found if not languages or block.language in languages]


def blocks_of(page: Path) -> Iterator[Block]:
    """Return the code blocks of one page."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start(3)) + 1
        yield Block(page, line, match[2], match[1] or "", match[3])


def prose_of(page: Path) -> str:
    """Return the text of a page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def name_of(part: object) -> str:
    """Name a page or a block, as the id of a test."""
    return part.name if isinstance(part, Block) else Path(str(part)).relative_to(ROOT).as_posix()
