"""Every internal link leads to a page or file that is there, and every anchor to a heading."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from documentation import PAGES, README, ROOT, name_of, prose_of
from markdown.extensions.toc import slugify, unique

GITHUB = re.compile(r"https://github\.com/latentkit/latentkit/(?:blob|tree|raw)/main/([^#]+)(?:#.+)?")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
READMES = sorted([*ROOT.glob("plugins/*/README.md"), *ROOT.glob("examples/*/README.md")])
FIRST_PLUGIN = ROOT / "docs" / "plugins" / "first.md"
"""Names files of the package that its readers make."""
NAMED_FILE = re.compile(r"`((?:latentkit|recipes|tests|examples|plugins)/[\w./-]+)`")


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the ids that the headings of a page get."""
    used: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose_of(page), flags=re.M):
        text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        unique(slugify(text, "-"), used)
    return frozenset(used)


def find_broken(page: Path, link: str) -> str | None:
    """Return what is wrong with a link; None: nothing, or it leads elsewhere."""
    if found := GITHUB.fullmatch(link):
        return None if (ROOT / found[1]).exists() else f"no file {found[1]}"
    if re.match(r"[a-z]+:", link):
        return None
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return "no such file"
    if page.is_relative_to(ROOT / "docs") and not target.is_relative_to(ROOT / "docs"):
        return "outside of docs/, so not on the site: link to it on GitHub"
    return f"no heading #{anchor}" if anchor and anchor not in anchors(target) else None


@pytest.mark.parametrize("page", [*PAGES, *READMES], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = {link: find_broken(page, link) for link in LINK.findall(prose_of(page))}
    assert {link: problem for link, problem in broken.items() if problem} == {}


def test_broken_links_are_found() -> None:
    page = ROOT / "docs" / "index.md"
    wrong = ["nothere.md", "start/read.md#nothing", "assets/none.png", "../README.md"]
    wrong += ["https://github.com/latentkit/latentkit/blob/main/nothere.md", "#nothing"]
    assert [link for link in wrong if not find_broken(page, link)] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page != FIRST_PLUGIN], ids=name_of)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = NAMED_FILE.findall(prose_of(page))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_package_stands_on_the_pages_of_concepts() -> None:
    packages = {path.parent.name for path in ROOT.glob("latentkit/*/__init__.py")}
    for page, form in (("words.md", "`latentkit/{}/"), ("index.md", "`{}`")):
        text = (ROOT / "docs" / "concepts" / page).read_text(encoding="utf-8")
        assert [name for name in sorted(packages) if form.format(name) not in text] == []


def test_links_of_the_readme_work_on_a_package_index() -> None:
    links = LINK.findall(prose_of(README))
    assert len(links) > 5
    assert [link for link in links if not link.startswith("https://")] == []


def test_every_page_is_in_the_navigation_once() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed: list[str] = []

    def collect(part: object) -> None:
        if isinstance(part, str):
            listed.append(part)
        elif isinstance(part, dict | list):
            for below in part.values() if isinstance(part, dict) else part:
                collect(below)

    collect(config["nav"])
    docs = ROOT / "docs"
    assert sorted(listed) == sorted(page.relative_to(docs).as_posix() for page in docs.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_line_promises_what_is_to_come(page: Path) -> None:
    assert not re.search(r"\b(TODO|coming soon|planned|will be)\b", prose_of(page))
