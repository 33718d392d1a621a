"""Captions beside media and tables of paths, in the forms in which people have them; what is not
used is remarked.
"""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentkit.contracts import BuildContext, Remark
from latentkit.errors import SampleError, SourceError
from latentkit.sources import tables
from latentkit.sources.captions import normalize_accents
from latentkit.sources.encodings import UnknownEncodingError, decode_text
from latentkit.sources.folder import FolderSource
from latentkit.sources.options import FolderConfig
from latentkit.sources.tables import FileNames


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def open_folder(path: Path, **options: Any) -> FolderSource:
    return FolderSource(FolderConfig(path=str(path), **options), BuildContext())


def texts(source: FolderSource) -> dict[str, Any]:
    return {entry.key: entry.attributes.get("text") for entry in source.entries()}


def remarks(source: FolderSource) -> dict[str, int]:
    return {remark.text: remark.count for remark in source.remarks()}


# ---------------------------------------------------------------- beside media


@pytest.mark.parametrize(
    ("sidecar", "content"),
    [
        *(
            (name, " a cat\n")
            for name in (
                "a.txt",
                "a.TXT",
                "a.caption",
                "a.Caption",
                "a.jpg.txt",
                "a.jpg.caption",
                "a.JPG.txt",
                "A.txt",
            )
        ),
        *(
            ("a.json", json.dumps({key: "a cat", "n": 1}))
            for key in ("caption", "text", "prompt", "Caption", "description")
        ),
        ("a.jpg.json", json.dumps({"tags": ["a cat"]})),
        ("a.json", json.dumps({"tags": "a cat", "caption": None})),
        ("a.json", json.dumps({"captions": ["a cat", "another"]})),
        ("a.json", '"a cat"'),
        ("a.json", '["a cat", "another"]'),
    ],
)
def test_caption_beside_a_file_is_its_text(sidecar: str, content: str, tmp_path: Path) -> None:
    source = open_folder(write(tmp_path, {"a.jpg": "x", "b.jpg": "y", sidecar: content}))
    assert texts(source) == {"a.jpg": "a cat", "b.jpg": None}
    assert source[0].attributes == next(iter(source.entries())).attributes
    assert list(source.remarks()) == []


def test_of_several_captions_the_same_one_wins_always_and_the_others_are_remarked(
    tmp_path: Path,
) -> None:
    order = ["a.txt", "a.TXT", "a.caption", "a.jpg.txt", "a.jpg.caption"]
    write(
        tmp_path,
        {
            "a.jpg": "x",
            "a.json": '{"caption": "of the record", "score": 3}',
            **{name: name for name in order},
        },
    )
    for position, name in enumerate(order):
        source = open_folder(tmp_path)
        assert source[0].attributes == {"text": name, "score": 3}
        left = len(order) - position - 1
        assert remarks(source) == (
            {"captions not used, because the file has another one": left} if left else {}
        )
        (tmp_path / name).unlink()
    write(
        tmp_path, {"a.txt": "beside", "list.csv": "image,caption,mood\na.jpg,of the table,calm\n"}
    )
    assert open_folder(tmp_path)[0].attributes == {
        "text": "of the table",
        "score": 3,
        "mood": "calm",
    }


def test_json_without_a_caption_is_no_caption(tmp_path: Path) -> None:
    source = open_folder(
        write(
            tmp_path,
            {"a.jpg": "x", "a.json": '{"shapes": [], "imageData": "abc"}', "a.csv": "x,y\n1,2\n"},
        )
    )
    assert source[0].attributes == {}
    text = "JSON files beside media without a caption (text, caption, prompt, description ...)"
    assert remarks(source)[text] == 1


def test_caption_whose_name_is_written_in_another_form_is_found(tmp_path: Path) -> None:
    name = "Käfer"
    write(
        tmp_path,
        {
            unicodedata.normalize("NFD", name) + ".jpg": "x",
            unicodedata.normalize("NFC", name) + ".txt": "a beetle",
        },
    )
    assert list(texts(open_folder(tmp_path)).values()) == ["a beetle"]


def test_text_beside_nothing_is_remarked(tmp_path: Path) -> None:
    source = open_folder(
        write(tmp_path, {"a.jpg": "x", "notes.txt": "n", "b.caption": "c", "b.json": "{}"})
    )
    assert Remark("captions that belong to no media file", 2, "b.caption") in list(source.remarks())


# ---------------------------------------------------------------- encodings

ENCODED = [
    *(
        ("cp1252", text)
        for text in (
            "café",
            "un café noir",
            "Größe",
            "a photo – “nice” one",
            "it’s here",
            "El niño",
            "25°C",
        )
    ),
    *(
        ("cp1252", text)
        for text in (
            "à la plage",
            "où est",
            "le chat noir à côté",
            "São Paulo",
            "España",
            "på vej",
            "£5 a café",
        )
    ),
    *(("cp1251", text) for text in ("привет", "любовь", "где авто", "суббота")),
    *(("cp1251", text) for text in ("Привет", "кошка сидит на окне", "Красный автомобиль, photo")),
    *(("shift_jis", text) for text in ("猫の写真", "赤い車", "公園で遊ぶ子供たち、夏の日")),
    *(
        ("gb18030", text)
        for text in ("一辆红色的汽车停在路边", "在公园里玩耍的孩子们", "海边的日落，照片")
    ),
    *((encoding, "日落 and a cat") for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32")),
    ("utf-16-le", "a cat"),
    ("utf-16-le", "un café à côté"),
    ("utf-16-be", "un café à côté"),
    ("utf-16-be", "a cat"),
]


@pytest.mark.parametrize(("encoding", "text"), ENCODED)
def test_text_of_another_encoding_is_read_where_it_is_certain(encoding: str, text: str) -> None:
    assert decode_text(text.encode(encoding))[0] == text


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        *(("mac_roman", text) for text in ("café noir", "Käfer")),
        *(("cp437", text) for text in ("café noir", "schön")),
        *(("koi8-r", text) for text in ("кошка сидит", "Привет")),
        *(("iso8859-2", text) for text in ("łódź", "Żółw w wodzie", "są")),
        *(
            ("cp1250", text)
            for text in (
                "erdő",
                "egy kutya az erdőben",
                "casă",
                "kuća na moru",
                "pes u řeky",
                "vŕba",
                "kůň",
                "stół",
            )
        ),
        *(("cp1254", text) for text in ("güneşli bir gün", "kırmızı araba", "İstanbul")),
        *(
            (encoding, text)
            for encoding in ("koi8-r", "cp866", "iso8859-5")
            for text in ("привет", "бега", "где авто", "Кошка на окне")
        ),
        *(("cp1255", text) for text in ("כלב", "שלום", "חתול על החלון")),
        *(("cp1253", text) for text in ("σκύλος", "όχι", "γάτα στο παράθυρο")),
        *(("gb18030", "狗"), ("cp949", "고양이"), ("cp866", "кошка")),
    ],
)
def test_text_whose_encoding_is_not_certain_is_refused_never_guessed(
    encoding: str, text: str
) -> None:
    with pytest.raises(UnknownEncodingError, match="Save it as UTF-8"):
        decode_text(text.encode(encoding))


def test_captions_in_another_encoding_are_read_and_counted(tmp_path: Path) -> None:
    files = {
        f"{name}.txt": text.encode("cp1252")
        for name, text in {"a": "café", "b": "Größe", "c": "plain"}.items()
    }
    source = open_folder(write(tmp_path, {"a.jpg": "x", "b.jpg": "x", "c.jpg": "x", **files}))
    assert texts(source) == {"a.jpg": "café", "b.jpg": "Größe", "c.jpg": "plain"}
    assert (
        list(open_folder(tmp_path).remarks())
        == list(source.remarks())
        == [Remark("read as cp1252, not UTF-8", 2, "a.txt")]
    )


def test_caption_that_cannot_be_read_makes_a_bad_sample_with_a_stamp_of_its_own(
    tmp_path: Path,
) -> None:
    source = open_folder(
        write(tmp_path, {"a.jpg": "x", "a.txt": b"\xff\x81\xfe", "b.jpg": "y", "b.txt": "fine"})
    )
    bad, good = source.entries()
    assert (good.attributes, source[1].attributes) == ({"text": "fine"}, {"text": "fine"})
    with pytest.raises(
        SampleError, match=r"^its caption a\.txt can't be read: not UTF-8"
    ) as caught:
        source[0]
    assert str(tmp_path) not in str(caught.value)
    write(tmp_path, {"a.txt": "repaired"})
    now = next(iter(open_folder(tmp_path).entries()))
    assert (now.attributes, now.stamp != bad.stamp) == ({"text": "repaired"}, True)


def test_table_in_another_encoding_is_read_and_remarked(tmp_path: Path) -> None:
    source = open_folder(
        write(
            tmp_path,
            {"a.jpg": "x", "list.csv": "path;caption\na.jpg;Käfer im Gras\n".encode("utf-16")},
        )
    )
    assert (texts(source), remarks(source)) == (
        {"a.jpg": "Käfer im Gras"},
        {"read as UTF-16, not UTF-8": 1},
    )


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("gb18030", "一只猫在花园里玩耍"),
        ("big5", "一隻貓在花園裡玩耍"),
        ("cp1251", "Кошка играет в саду"),
        ("shift_jis", "猫の写真"),
    ],
)
@pytest.mark.parametrize("table", ["list.csv", "list.tsv", "list.jsonl"])
def test_table_is_read_by_the_words_in_it_not_by_its_paths_and_names(
    table: str, encoding: str, text: str, tmp_path: Path
) -> None:
    names = [f"holiday-by-the-sea-{number}.jpg" for number in range(9)]
    if table.endswith(".jsonl"):
        lines = [json.dumps({"path": one, "caption": text}, ensure_ascii=False) for one in names]
    else:
        sign = "," if table.endswith(".csv") else "\t"
        lines = [sign.join(row) for row in [("path", "caption"), *((one, text) for one in names)]]
    files = {table: "\n".join(lines).encode(encoding), **dict.fromkeys(names, "x")}
    assert set(texts(open_folder(write(tmp_path, files))).values()) == {text}


BAD_LINES = {
    "a comma too many": 'path,caption\na.jpg,one, two\nb.jpg,"one, two"\nc.jpg,three\n',
    "a quote too many": 'path,caption\na.jpg,"a "b" c"\nb.jpg,"one, two"\nc.jpg,three\n',
    "cut off": '{"path": "b.jpg", "text": "one, two"}\n{"path": "c.jpg", "text": "three"}\n{"path":',
}


@pytest.mark.parametrize("kind", BAD_LINES)
@pytest.mark.parametrize("table", ["metadata", "list"])
def test_line_that_cannot_be_read_is_counted_and_the_others_are_read(
    table: str, kind: str, tmp_path: Path
) -> None:
    name = f"{table}.{'jsonl' if kind == 'cut off' else 'csv'}"
    source = open_folder(
        write(tmp_path, {"a.jpg": "x", "b.jpg": "x", "c.jpg": "x", name: BAD_LINES[kind]})
    )
    assert texts(source) == {"a.jpg": None, "b.jpg": "one, two", "c.jpg": "three"}
    assert remarks(source) == {"lines of tables that can't be read, not used": 1}


def test_quote_that_nothing_closes_counts_all_lines_that_it_swallows(tmp_path: Path) -> None:
    rows = 'path,caption\na.jpg,one\nb.jpg,two\nc.jpg,"three\nd.jpg,four\n'
    files = {f"{letter}.jpg": "x" for letter in "abcd"}
    assert remarks(open_folder(write(tmp_path, {**files, "list.csv": rows}))) == {
        "lines of tables that can't be read, not used": 2
    }


def test_quote_behind_a_comma_and_a_space_begins_a_cell(tmp_path: Path) -> None:
    rows = 'path, caption\na.jpg, "one, two"\nb.jpg, three\n'
    source = open_folder(write(tmp_path, {"a.jpg": "x", "b.jpg": "x", "list.csv": rows}))
    assert texts(source) == {"a.jpg": "one, two", "b.jpg": "three"}


# ---------------------------------------------------------------- tables

ROWS = [
    {"image_path": "images/0.png", "caption": "first"},
    {"image_path": "images/1.png", "caption": "second; with, signs"},
]


def csv_of(rows: Iterable[dict[str, str]], sign: str) -> str:
    lines = [sign.join(f'"{value}"' for value in row.values()) for row in rows]
    return "\n".join([sign.join(ROWS[0]), *lines, ""])


def parquet_of(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


FORMS = {
    **{
        f"{kind}.csv": csv_of(ROWS, sign)
        for kind, sign in {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}.items()
    },
    "table.tsv": csv_of(ROWS, "\t"),
    "table.jsonl": "\n".join(map(json.dumps, ROWS)),
    "table.ndjson": "\n".join(map(json.dumps, ROWS)),
    "lines.json": "\n".join(map(json.dumps, ROWS)),
    "list.json": json.dumps(ROWS),
    "wrapped.json": json.dumps({"version": 1, "data": ROWS}),
    "pandas.json": json.dumps(
        {name: {str(n): row[name] for n, row in enumerate(ROWS)} for name in ROWS[0]}
    ),
    "meta.json": json.dumps(
        {row["image_path"]: {"caption": row["caption"], "image_size": [64, 64]} for row in ROWS}
    ),
    "stems.json": json.dumps({row["image_path"][:-4]: {"caption": row["caption"]} for row in ROWS}),
    "texts.json": json.dumps({row["image_path"]: row["caption"] for row in ROWS}),
    "coco.json": json.dumps(
        {
            "images": [{"id": n, "file_name": row["image_path"]} for n, row in enumerate(ROWS)],
            "annotations": [
                {"image_id": n, "caption": row["caption"]} for n, row in enumerate(ROWS)
            ],
        }
    ),
    "llava.json": json.dumps(
        [
            {
                "image": row["image_path"],
                "conversations": [
                    {"from": "human", "value": "<image>\nDescribe it."},
                    {"from": "gpt", "value": row["caption"]},
                    {"from": "gpt", "value": "a later answer"},
                ],
            }
            for row in ROWS
        ]
    ),
    "table.parquet": parquet_of([{**row, "thumbnail": b"\xff"} for row in ROWS]),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("explicit", [False, True])
def test_tables_of_every_form_give_captions(name: str, explicit: bool, tmp_path: Path) -> None:
    write(tmp_path, {"images/0.png": "x", "images/1.png": "y", name: FORMS[name]})
    source = open_folder(tmp_path, metadata=name if explicit else None)
    assert texts(source) == {"images/0.png": "first", "images/1.png": "second; with, signs"}
    assert list(source.remarks()) == []


def test_all_captions_of_an_image_in_coco_are_kept_and_the_first_is_its_text(
    tmp_path: Path,
) -> None:
    captions = [(0, "one"), (1, "two"), (0, "three")]
    notes: list[dict[str, Any]] = [{"image_id": n, "caption": text} for n, text in captions]
    notes += [{"image_id": 1, "bbox": [0, 0, 1, 1]}] * 2
    images = [{"id": 0, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]
    table = json.dumps({"images": images, "annotations": notes})
    source = open_folder(write(tmp_path, {"a.jpg": "x", "b.jpg": "y", "coco.json": table}))
    assert [sample.attributes for sample in (source[0], source[1])] == [
        {"text": "one", "id": 0, "captions": ["one", "three"]},
        {"text": "two", "id": 1},
    ]


def test_captions_txt_of_flickr_is_a_table_and_further_captions_are_counted(tmp_path: Path) -> None:
    table = 'image,caption\na.jpg,one\na.jpg,two\nb.jpg,"three, four"\n'
    source = open_folder(write(tmp_path, {"a.jpg": "x", "b.jpg": "y", "captions.txt": table}))
    assert texts(source) == {"a.jpg": "one", "b.jpg": "three, four"}
    text = "rows of tables that name the same file as an earlier row, not used"
    assert remarks(source) == {text: 1}
    (tmp_path / "captions.jpg").write_text("z")
    assert texts(open_folder(tmp_path))["captions.jpg"] == table.strip()


def test_captions_txt_that_is_no_table_is_remarked(tmp_path: Path) -> None:
    source = open_folder(write(tmp_path, {"a.jpg": "x", "captions.txt": "a dog\na cat\n"}))
    assert texts(source) == {"a.jpg": None}
    assert remarks(source) == {"table not used: it can't be read, or names no file here": 1}


@pytest.mark.parametrize(
    "caption",
    [
        *("text", "caption", "Prompt", "description", "transcription", "TEXT", "blip_caption"),
        *("long_caption", "short_caption"),
    ],
)
@pytest.mark.parametrize(
    "column",
    [
        "file_name",
        "filename",
        "file",
        "path",
        "filepath",
        "image",
        "Image Path",
        "video",
        "audio",
        "x",
    ],
)
def test_columns_are_known_by_their_usual_names_or_by_the_files_they_name(
    column: str, caption: str, tmp_path: Path
) -> None:
    source = open_folder(
        write(tmp_path, {"a.jpg": "x", "list.csv": f"n,{caption},{column}\n7,a cat,a.jpg\n"})
    )
    assert source[0].attributes == {"n": "7", "text": "a cat"}


@pytest.mark.parametrize(
    "name",
    [
        "images/a.png",
        "./images/a.png",
        "images\\a.png",
        ".\\images\\a.png",
        "ROOT/images/a.png",
        "file://ROOT/images/%61.png",
        "images/a",
        "Images/A.PNG",
    ],
)
def test_file_is_found_however_its_path_is_written(name: str, tmp_path: Path) -> None:
    write(tmp_path, {"images/a.png": "x", "images/b.png": "y"})
    write(
        tmp_path,
        {"list.jsonl": json.dumps({"image": name.replace("ROOT", str(tmp_path)), "text": "it"})},
    )
    assert texts(open_folder(tmp_path)) == {"images/a.png": "it", "images/b.png": None}


@pytest.mark.parametrize("name", ["a.png", "images/a.png"])
def test_path_starts_at_the_table_or_at_the_folder(name: str, tmp_path: Path) -> None:
    write(tmp_path, {"images/a.png": "x", "images/list.csv": f"image,text\n{name},it\n"})
    assert texts(open_folder(tmp_path)) == {"images/a.png": "it"}


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_name_in_the_other_form_of_accents_is_found(forms: tuple[str, str], tmp_path: Path) -> None:
    there, named = (unicodedata.normalize(form, "Käfer.png") for form in forms)
    source = open_folder(
        write(tmp_path, {there: "x", "list.csv": f"image,text\n{named},a beetle\n"})
    )
    assert list(texts(source).values()) == ["a beetle"]


@pytest.mark.parametrize("name", ["a.png", "a", "/home/other/data/x/a.png", "D:\\data\\x\\a.png"])
def test_files_in_other_folders_are_found_where_no_row_fits_as_it_stands_and_it_is_remarked(
    name: str, tmp_path: Path
) -> None:
    rows = [{"image": name, "caption": "it"}, {"image": name.replace("a", "gone"), "caption": "no"}]
    write(
        tmp_path,
        {
            "train/x/a.png": "x",
            "train/y/b.png": "y",
            "list.jsonl": "\n".join(map(json.dumps, rows)),
        },
    )
    source = open_folder(tmp_path)
    assert texts(source) == {"train/x/a.png": "it", "train/y/b.png": None}
    assert (
        remarks(source)[
            "rows of tables whose file was found in another folder than the row names"
        ]
        == 1
    )
    write(tmp_path, {"train/y/a.png": "z"})
    is_unsure = "x" not in name
    assert texts(open_folder(tmp_path))["train/x/a.png"] == (None if is_unsure else "it")


def test_files_of_one_name_are_found_by_their_folders_without_looking_at_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = [f"scenes/{number:04d}/rgb.png" for number in range(3000)]
    names = FileNames({path: path[:-4] for path in paths}, (), "/data")
    forms = 0

    def count(path: str) -> str:
        nonlocal forms
        forms += 1
        return normalize_accents(path)

    monkeypatch.setattr(tables, "normalize_accents", count)
    assert [
        names.find_elsewhere(f"/other/{path.removeprefix('scenes/')}", "") for path in paths
    ] == [[path] for path in paths]
    assert names.find_elsewhere("C:\\x\\0007\\rgb", "scenes") == ["scenes/0007/rgb.png"]
    assert len(names.find_elsewhere("/other/gone/rgb.png", "")) == 3000
    assert names.find_elsewhere("/other/0007/rgb.png", "scenes/0008") == ["scenes/0008/rgb.png"]
    assert names.find_elsewhere("gone.png", "") == []
    assert forms < 10 * len(paths)


def test_row_that_fits_very_many_files_is_named_shortly(tmp_path: Path) -> None:
    files = {f"{number}/rgb.png": "x" for number in range(9)}
    rows = "file_name,text\nx/0/rgb.png,zero\n" + "gone/rgb.png,no\n"
    source = open_folder(write(tmp_path, {**files, "m.csv": rows}))
    assert texts(source)["0/rgb.png"] == "zero"
    [remark] = [one for one in source.remarks() if "matches several" in one.text]
    assert remark.example.endswith("and 3 others)")


def test_table_in_a_folder_of_its_own_names_files_of_other_folders(tmp_path: Path) -> None:
    coco = {
        "images": [{"id": 7, "file_name": "000007.jpg"}, {"id": 9, "file_name": "000009.jpg"}],
        "annotations": [{"image_id": 9, "caption": "nine"}, {"image_id": 7, "caption": "seven"}],
    }
    images = {"train/000007.jpg": "x", "val/000009.jpg": "y"}
    write(tmp_path, {**images, "annotations/captions.json": json.dumps(coco)})
    source = open_folder(tmp_path)
    assert texts(source) == {"train/000007.jpg": "seven", "val/000009.jpg": "nine"}
    assert list(remarks(source).values()) == [2]
    write(tmp_path, {"test/000001.jpg": "z", "test/list.csv": "file,text\n000007.jpg,other\n"})
    assert texts(open_folder(tmp_path))["train/000007.jpg"] == "seven"


def test_file_that_is_gone_is_not_taken_for_one_of_its_name_in_another_folder(
    tmp_path: Path,
) -> None:
    write(
        tmp_path,
        {"other/a.png": "x", "b.png": "y", "list.csv": "image,text\na.png,of a\nb.png,of b\n"},
    )
    assert texts(open_folder(tmp_path)) == {"other/a.png": None, "b.png": "of b"}


def test_signs_inside_captions_do_not_part_columns(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a.png": "x",
            "b.png": "y",
            "list.csv": "image\tcaption, long\na.png\tone, two; three\nb.png\tfour\n",
        },
    )
    assert open_folder(tmp_path)[0].attributes == {"caption, long": "one, two; three"}


def test_table_without_names_of_columns_is_read(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "wavs/LJ1.wav": "x",
            "wavs/LJ2.wav": "y",
            "metadata.csv": "LJ1|One.|one\nLJ2|Two, and.|two and\n",
        },
    )
    source = open_folder(tmp_path, suffixes=[".wav"])
    assert source[1].attributes == {"label": "wavs", "text": "Two, and.", "column_3": "two and"}
    assert source[0].attributes["text"] == "One."


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("m.csv", "caption,file_name,source\na dog,1.png,web\na cat,source.png,web\n"),
        (
            "m.jsonl",
            (
                '{"caption": "a dog", "file_name": "1.png", "source": 3}\n{"caption": "a cat",'
                ' "file_name": "source.png"}\n'
            ),
        ),
        (
            "m.json",
            (
                '[{"source": "1.png", "caption": "a dog"}, {"source": "source.png", "caption": "a'
                ' cat"}]'
            ),
        ),
        (
            "m.jsonl",
            '{"source": "1.png", "words": "a dog"}\n{"source": "source.png", "words": "a cat"}\n',
        ),
        ("m.csv", "source,words\n1.png,a dog\nsource.png,a cat\n"),
        ("m.tsv", "words\tsource\na dog\t1.png\na cat\tsource.png\n"),
    ],
)
def test_name_of_a_column_that_is_a_files_too_is_no_row(
    name: str, table: str, tmp_path: Path
) -> None:
    source = open_folder(write(tmp_path, {"1.png": "x", "source.png": "y", name: table}))
    caption = "text" if "caption" in table else "words"
    assert [entry.attributes.get(caption) for entry in source.entries()] == ["a dog", "a cat"]


@pytest.mark.parametrize(
    ("name", "table", "expected"),
    [
        (
            "m.tsv",
            'file_name\ttext\na.png\t"Hello" sign\nb.png\t5" disk\n',
            ('"Hello" sign', '5" disk'),
        ),
        ("m.tsv", 'file_name\ttext\na.png\t"Hello\nb.png\tbye"\n', ('"Hello', 'bye"')),
        ("m.tsv", 'file_name\ttext\na.png\t"Hello there\nb.png\tbye\n', ('"Hello there', "bye")),
        (
            "m.tsv",
            'file_name\ttext\na.png\t"two\nlines"\nb.png\t"a ""b"""\n',
            ("two\nlines", 'a "b"'),
        ),
        ("m.txt.csv", 'a.png|"Hello" sign\nb.png|bye\n', ('"Hello" sign', "bye")),
    ],
)
def test_quotes_where_tabs_part_the_columns_may_be_plain_signs(
    name: str, table: str, expected: tuple[str, str], tmp_path: Path
) -> None:
    source = open_folder(write(tmp_path, {"a.png": "x", "b.png": "y", name: table}))
    assert tuple(texts(source).values()) == expected
    assert list(source.remarks()) == []


@pytest.mark.parametrize("name", ["masks.csv", "metadata.csv", "m.tsv"])
def test_field_of_a_table_may_be_long(name: str, tmp_path: Path) -> None:
    sign = "\t" if name.endswith("tsv") else ","
    before = csv.field_size_limit()
    source = open_folder(
        write(
            tmp_path,
            {"a.png": "x", name: sign.join(["file_name", "mask\na.png", "1 " * 80000 + "\n"])},
        )
    )
    assert source[0].attributes == {"mask": "1 " * 80000}
    assert csv.field_size_limit() == before


def test_first_row_of_a_table_without_names_may_say_a_thing_twice_but_names_may_not(
    tmp_path: Path,
) -> None:
    write(
        tmp_path,
        {
            "wavs/LJ1.wav": "x",
            "wavs/LJ2.wav": "y",
            "metadata.csv": 'LJ1|One "and.|One "and.\nLJ2|"Two" and.|two and\n',
        },
    )
    source = open_folder(tmp_path, suffixes=[".wav"])
    assert [sample.attributes["text"] for sample in (source[0], source[1])] == [
        'One "and.',
        '"Two" and.',
    ]
    assert [sample.attributes["column_3"] for sample in (source[0], source[1])] == [
        'One "and.',
        "two and",
    ]
    write(tmp_path, {"metadata.csv": "file_name,text,text\nwavs/LJ1.wav,a,b\n"})
    with pytest.raises(
        SourceError,
        match="line 1: expected column names, each once, one of a file; got file_name, text, text",
    ):
        open_folder(tmp_path, suffixes=[".wav"])


def test_name_that_fits_several_files_is_named_and_not_used(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"a.png": "x", "a.jpg": "y", "b.png": "z", "list.csv": "image,text\na,which?\nb,one\n"},
    )
    source = open_folder(tmp_path)
    assert texts(source) == {"a.jpg": None, "a.png": None, "b.png": "one"}
    [remark] = source.remarks()
    assert (remark.text, remark.count) == (
        "rows of tables whose name matches several files, not used",
        1,
    )
    assert remark.example.endswith(
        "list.csv, line 2: 'a' (a.png, a.jpg)"
    ) or remark.example.endswith("line 2: 'a' (a.jpg, a.png)")


def test_table_whose_names_all_fit_several_files_says_so(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": "x", "a.jpg": "y", "metadata.csv": "file_name,text\na,which?\n"})
    assert remarks(open_folder(tmp_path)) == {
        "rows of tables whose name matches several files, not used": 1
    }


@pytest.mark.parametrize("table", ["metadata.jsonl", "list.jsonl"])
def test_rows_that_name_no_file_or_one_again_are_counted_and_never_end_a_run(
    table: str, tmp_path: Path
) -> None:
    names = ["a.png", "gone.png", "../outside.png", "./a.png", "lost.png"]
    lines = "\n".join(json.dumps({"file_name": name, "text": f"of {name}"}) for name in names)
    source = open_folder(write(tmp_path, {"a.png": "x", table: lines}))
    assert texts(source) == {"a.png": "of a.png"}
    where = os.path.join(tmp_path, table)
    assert list(source.remarks()) == [
        Remark(
            "rows of tables that name no file of the source, not used",
            3,
            f"{where}, line 2: 'gone.png'",
        ),
        Remark(
            "rows of tables that name the same file as an earlier row, not used",
            1,
            f"{where}, line 4: './a.png'",
        ),
    ]


def test_table_that_names_nothing_here_is_remarked_unless_the_recipe_names_it(
    tmp_path: Path,
) -> None:
    write(
        tmp_path,
        {"a.png": "x", "prices.csv": "item,price\nmilk,2\n", "broken.json": "{", "a.tsv": "x\n"},
    )
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nothing.csv")
    source = open_folder(tmp_path)
    assert remarks(source) == {"table not used: it can't be read, or names no file here": 3}
    with pytest.raises(SourceError, match="tried the columns item, price"):
        open_folder(tmp_path, metadata="prices.csv")


def test_of_tables_that_differ_the_later_wins_and_it_is_remarked(tmp_path: Path) -> None:
    tables = {
        name: f"image,text\nsub/a.png,{name}\nb.png,same\n"
        for name in ("1.csv", "2.csv", "metadata.csv")
    }
    source = open_folder(write(tmp_path, {"sub/a.png": "x", "b.png": "y", **tables}))
    assert texts(source) == {"b.png": "same", "sub/a.png": "metadata.csv"}
    assert remarks(source) == {
        "files of which two tables say different things; the one in the deeper folder or later by name is used": (
            2
        )
    }
    write(tmp_path, {"sub/0.csv": "image,text\na.png,below\n"})
    assert texts(open_folder(tmp_path))["sub/a.png"] == "below"


def test_empty_cell_of_a_table_leaves_the_caption_beside(tmp_path: Path) -> None:
    source = open_folder(
        write(
            tmp_path,
            {"a.png": "x", "a.txt": "beside", "metadata.csv": "file_name,text,mood\na.png,,\n"},
        )
    )
    assert source[0].attributes == {"text": "beside", "mood": ""}


def test_metadata_may_be_a_path_in_the_folder(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a.png": "x",
            "one/t.csv": "image,text\na.png,one\n",
            "two/t.csv": "image,text\na.png,two\n",
        },
    )
    assert texts(open_folder(tmp_path, metadata="one/t.csv")) == {"a.png": "one"}
    write(tmp_path, {"one/t.csv": "image,text\ngone.png,one\n"})
    with pytest.raises(SourceError, match=r"no file 'gone\.png'"):
        open_folder(tmp_path, metadata="one/t.csv")


def test_large_table_is_read_when_the_recipe_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentkit.sources.tables.MAX_TABLE_BYTES", 10)
    write(tmp_path, {"a.png": "x", "list.csv": "image,text\na.png,one\n"})
    source = open_folder(tmp_path)
    assert texts(source) == {"a.png": None}
    assert remarks(source) == {
        "large tables, not read unless source.with.metadata names one": 1
    }
    assert texts(open_folder(tmp_path, metadata="list.csv")) == {"a.png": "one"}


def test_column_whose_cells_name_files_wins_over_a_usual_name_that_does_not(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": "x", "b.png": "y", "list.csv": "name,shot\nAnn,a.png\nBob,b.png\n"})
    assert open_folder(tmp_path)[0].attributes == {"name": "Ann"}
