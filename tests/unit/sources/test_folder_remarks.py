"""What a folder holds and the source `folder` doesn't take is remarked, kind by kind, with what to
do.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from latentkit.contracts import BuildContext, Remark
from latentkit.errors import SourceError
from latentkit.runtime.source_remarks import read_remarks
from latentkit.sources.endings import ADVICE_BY_ENDING, MODALITY_ENDINGS, ending_of
from latentkit.sources.folder import FolderSource
from latentkit.sources.options import FolderConfig

ROOT = Path(__file__).parents[3]


def found(
    folder: Path, names: list[str], suffixes: tuple[str, ...] = (".jpg", ".png")
) -> list[str]:
    """Remarks of a folder with files of these names and a picture."""
    for name in ["a.jpg", *names]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    config = FolderConfig(path=str(folder), suffixes=list(suffixes))
    return [str(remark) for remark in read_remarks(FolderSource(config, BuildContext()))]


def test_a_folder_all_of_which_is_taken_is_not_remarked_on(tmp_path: Path) -> None:
    names = [
        "b.JPG",
        "c/d.png",
        "a.txt",
        "b.json",
        ".DS_Store",
        "._a.jpg",
        "Thumbs.db",
        ".git/objects/1.png",
    ]
    assert found(tmp_path, names) == []


def test_files_are_left_out_by_their_endings_with_what_to_do(tmp_path: Path) -> None:
    names = [
        "x.SVG",
        "deep/b.svg",
        "c.mov",
        "d.nii.gz",
        "e.xyz",
        "README",
        "f.cr2",
        "g.webp",
        "h.zip",
    ]
    assert found(tmp_path, names) == [
        (
            "2: left out because of their ending .svg: a drawing or document without pixels; render it to"
            " PNG, such as deep/b.svg"
        ),
        "1: left out because of their ending .cr2: camera raw; develop it to TIFF or JPEG, such as f.cr2",
        (
            "1: left out because of their ending .mov: the modality video reads it if it is"
            " in source.with.suffixes, such as c.mov"
        ),
        (
            "1: left out because of their ending .nii.gz: the modality volume reads it if it is"
            " in source.with.suffixes, such as d.nii.gz"
        ),
        (
            "1: left out because of their ending .webp: the modality image reads it if it is"
            " in source.with.suffixes, such as g.webp"
        ),
        "1: left out because of their ending .xyz, such as e.xyz",
        "1: left out because of their ending .zip: packed files; unpack them, such as h.zip",
        "1: left out because they have no ending, such as README",
    ]


def test_a_picture_whose_ending_nobody_takes_names_its_package(tmp_path: Path) -> None:
    (said,) = found(tmp_path, ["IMG_1.HEIC", "IMG_2.heic"], (".jpg",))
    assert said.startswith("2: left out because of their ending .heic: ")
    assert said.endswith(", such as IMG_1.HEIC")


def test_what_is_not_looked_into_is_remarked(tmp_path: Path) -> None:
    names = [
        ".hidden/b.jpg",
        "c/.secret.png",
        "old/plans/000.parquet",
        "old/units/0.safetensors",
        "old/preview.png",
    ]
    assert found(tmp_path, names) == [
        "2: hidden (name starts with a dot), so not read, such as .hidden",
        "1: folders with a latent dataset, not searched, such as old/",
    ]


def test_names_that_no_file_can_store_are_examples_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    try:
        (Path(tmp_path) / "\udcff\n.svg").write_bytes(b"")
    except OSError:
        pytest.skip("this file system has no such names")
    (remark,) = read_remarks(
        FolderSource(FolderConfig(path=str(tmp_path), suffixes=[".jpg"]), BuildContext())
    )
    assert remark == Remark(remark.text, 1, "\\xff\n.svg")
    assert "\n" not in str(remark)


def test_a_folder_of_another_modality_says_what_reads_it(tmp_path: Path) -> None:
    for name in ("a.mkv", "b.MKV", "c.jpg.part"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(SourceError) as caught:
        FolderSource(FolderConfig(path=str(tmp_path)), BuildContext())
    assert "others there: .mkv (2), .part (1); .mkv: " in str(caught.value)
    installed = "take them with --set modality.use=video"
    assert installed in str(caught.value) or "pip install latentkit-video" in str(
        caught.value
    )


def test_every_ending_is_written_as_it_is_looked_up() -> None:
    known = [
        ending for group in (*MODALITY_ENDINGS.values(), *ADVICE_BY_ENDING.values()) for ending in group
    ]
    assert [ending for ending in known if ending_of(f"a{ending}") != ending] == []


@pytest.mark.parametrize("modality", ["audio", "video", "volume"])
def test_endings_that_a_package_beside_this_one_reads_are_known_without_it(modality: str) -> None:
    package = ROOT / "plugins" / f"latentkit-{modality}" / f"latentkit_{modality}" / "plugin.py"
    suffixes = {
        constant.value
        for node in ast.parse(package.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith("SUFFIXES")
        for constant in ast.walk(node.value)
        if isinstance(constant, ast.Constant)
    }
    assert len(suffixes) > 4
    assert suffixes <= set(MODALITY_ENDINGS[modality])


@pytest.mark.parametrize("ending", ["a\nb", "a\rb", "a\u2028b"])
def test_line_break_in_an_ending_is_one_line_in_a_remark(ending: str, tmp_path: Path) -> None:
    for name in ("a.png", f"x.{ending}"):
        (tmp_path / name).write_bytes(b"x")
    [remark] = read_remarks(FolderSource(FolderConfig(path=str(tmp_path)), BuildContext()))
    assert (remark.count, str(remark).splitlines()) == (1, [str(remark)])
