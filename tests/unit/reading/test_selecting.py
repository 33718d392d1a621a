"""Rows by key, slice or mask, and datasets of some of the rows, which are datasets like the whole."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import draw_picture
from torch.utils.data import DataLoader, DistributedSampler

import latentkit as lk
from latentkit.errors import StoreError

NUM = 24
LABELS = ("cat", "dog", None)
VIEWS = ["plain", "hflip"]


def label_of(key: str) -> str | None:
    return LABELS[int(key.split(".")[0]) % 3]


def write_table(photos: Path) -> None:
    rows = [
        {"file_name": f"{number:03d}.png", "label": LABELS[number % 3], "scene": number // 4}
        for number in range(NUM)
    ]
    text = "\n".join(
        json.dumps({name: value for name, value in row.items() if value is not None})
        for row in rows
    )
    (photos / "metadata.jsonl").write_text(text)


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, write_photos: Callable[..., Path]
) -> Path:
    """24 pictures with a label and a scene, two views each, one broken, in units of 5."""
    base = tmp_path_factory.mktemp("selecting")
    photos = write_photos(base / "photos", NUM)
    write_table(photos)
    (photos / "007.png").write_bytes(b"broken")
    overrides = {"output.unit_size": 5, "preview": 0, "modality.with.views": VIEWS}
    overrides |= {"batch_size": 4, "threads": 1, "compile": False}
    lk.encode(photos, base / "out", size=32, overrides=overrides)
    return base / "out"


@pytest.fixture
def data(folder: Path) -> lk.LatentDataset:
    return lk.open(folder, posterior="mean", columns=["text"])


def epoch(data: Any, **options: Any) -> list[tuple[list[str], torch.Tensor]]:
    return [(batch["key"], batch["latent"]) for batch in data.batches(6, **options)]


def same(first: Any, second: Any) -> bool:
    pairs = zip(first, second, strict=True)
    return all(one[0] == two[0] and torch.equal(one[1], two[1]) for one, two in pairs)


# ---------------------------------------------------------------- rows between brackets


def test_a_key_gives_its_row_and_a_pair_the_view(data: lk.LatentDataset) -> None:
    assert data["003.png"]["view"] == "plain"
    flipped = data["003.png", "hflip"]
    place = 2 * 3 + 1
    assert (data.keys[place], flipped["view"]) == ("003.png", "hflip")
    assert torch.equal(flipped["latent"], data[place]["latent"])
    assert torch.equal(data.moments("003.png")["mean"], data.moments(2 * 3)["mean"])
    for wrong, words in (
        ("003.jpg", r"no row here has the key '003\.jpg', did you mean '003\.png'"),
        ("007.png", r"no row here has the key '007\.png'"),
        (("003.png", "crop-1"), r"no row here has the view 'crop-1' of the key '003\.png'"),
    ):
        with pytest.raises(KeyError, match=words):
            data[wrong]  # type: ignore[index]


def test_slices_lists_and_masks_give_a_batch_as_collate_of_the_items(
    data: lk.LatentDataset,
) -> None:
    mask = [False, True] * 5 + [False] * (len(data) - 10)
    for index, items in (
        (slice(3, 9), range(3, 9)),
        (slice(-1, None, -20), range(len(data) - 1, -1, -20)),
        ([5, -1, 5], [5, len(data) - 1, 5]),
        (np.array([2, 0]), [2, 0]),
        (torch.tensor([4]), [4]),
        (mask, range(1, 10, 2)),
        (torch.tensor(mask), range(1, 10, 2)),
    ):
        expected = lk.collate([data[item] for item in items])
        found = data[index]  # type: ignore[index]
        assert found.keys() == expected.keys() == {"latent", "key", "view", "text"}
        assert torch.equal(found["latent"], expected["latent"])
        assert [found[name] for name in ("key", "view", "text")] == [
            expected[name] for name in ("key", "view", "text")
        ]
    assert data[np.int64(3)]["key"] == data[3]["key"]
    assert isinstance(data[torch.tensor(3)]["key"], str)  # type: ignore[index]


def test_wrong_rows_are_refused(data: lk.LatentDataset) -> None:
    with pytest.raises(IndexError, match="row 46 of a latent dataset of 46"):
        data[[0, 46]]
    with pytest.raises(IndexError, match="2 booleans for a latent dataset of 46"):
        data[[True, False]]
    with pytest.raises(ValueError, match="none of the 46 rows"):
        data[10:10]
    for wrong in (1.5, {1}, None, ["003.png"], [[1]], object()):
        with pytest.raises(TypeError, match="rows are an integer, a key"):
            data[wrong]  # type: ignore[index]
    with pytest.raises(TypeError, match="one row"):
        data.moments([1, 2])  # type: ignore[arg-type]


def test_after_set_epoch_a_batch_of_rows_has_the_draws_of_its_items(folder: Path) -> None:
    data = lk.open(folder, views="random")
    data.set_epoch(3)
    batch = data[4:8]
    for row, item in enumerate(range(4, 8)):
        assert torch.equal(batch["latent"][row], data[item]["latent"])
        assert batch["view"][row] == data[item]["view"]
    with pytest.raises(KeyError, match="the view is drawn"):
        data["003.png", "hflip"]


# ---------------------------------------------------------------- some of the rows


def test_select_keeps_order_labels_and_latents(data: lk.LatentDataset) -> None:
    rows = [40, 3, 3, 17]
    part = data.select(rows)
    assert isinstance(part, lk.LatentDataset)
    assert part.keys == [data.keys[row] for row in rows]
    for place, row in enumerate(rows):
        assert torch.equal(part[place]["latent"], data[row]["latent"])
        assert part[place]["text"] == data[row]["text"]
        assert part[place]["view"] == data[row]["view"]
    again = part.select([3, 0]).select([-1])
    assert (again.keys, len(again)) == ([data.keys[40]], 1)
    assert data.select(slice(4, 8)).keys == data.keys[4:8]
    assert data.statistics == part.statistics
    assert data.normalization == part.normalization


@pytest.mark.parametrize("shuffle", [True, False, "units"])
@pytest.mark.parametrize("views", ["all", "random", ["hflip"]])
def test_a_selection_resumes_in_the_middle_of_an_epoch(
    folder: Path, shuffle: Any, views: Any
) -> None:
    def opened() -> lk.LatentDataset:
        whole = lk.open(folder, views=views, seed=5)
        return whole.select(range(1, len(whole), 2))

    loader = opened().batches(3, shuffle=shuffle)
    iterator = iter(loader)
    next(iterator)
    state = json.loads(json.dumps(loader.state_dict()))
    rest = [(batch["key"], batch["latent"]) for batch in iterator]
    other = opened().batches(3, shuffle=shuffle)
    other.load_state_dict(state)
    assert same(rest, [(batch["key"], batch["latent"]) for batch in other])
    every = opened()
    seen = sorted(key for keys, _ in epoch(every, shuffle=shuffle) for key in keys)
    assert seen == sorted(every.keys)


def test_a_state_is_refused_by_other_rows(folder: Path) -> None:
    def state_of(data: Any) -> dict[str, Any]:
        state: dict[str, Any] = data.batches(3, shuffle=True).state_dict()
        return state

    def opened(views: Any = "all") -> lk.LatentDataset:
        return lk.open(folder, views=views)

    data = opened()
    parts = [
        data.select([1, 2, 3]),
        data.select([1, 3, 2]),
        data.select([1, 2, 4]),
        opened(["plain"]).select([1, 2, 3]),
        opened(["hflip"]).select([1, 2, 3]),
        opened("random").select([1, 2, 3]),
        *opened("random").split(0.5),
    ]
    assert len({part.index_hash for part in [data, *parts]}) == len(parts) + 1
    for part in parts:
        for other in [data, *parts]:
            loader = other.batches(3, shuffle=True)
            if other is part:
                loader.load_state_dict(state_of(part))
                continue
            with pytest.raises(ValueError, match="with other rows: select, filter or split"):
                loader.load_state_dict(state_of(part))
    same_rows = data.select([0, 1, 2, 3]).select([1, 2, 3])
    same_rows.batches(3, shuffle=True).load_state_dict(state_of(parts[0]))


def test_the_whole_reads_as_if_nothing_had_been_selected(folder: Path) -> None:
    data, untouched = lk.open(folder, seed=3), lk.open(folder, seed=3)
    part = data.select(range(10))
    epoch(part, shuffle=True)
    part.set_epoch(7)
    assert data.epoch is None
    assert data.index_hash == untouched.index_hash
    assert data.batches(6).state_dict() == untouched.batches(6).state_dict()
    assert same(epoch(data, shuffle=True), epoch(untouched, shuffle=True))


def test_ranks_and_samplers_share_out_a_selection(data: lk.LatentDataset) -> None:
    part = data.filter(label="cat")
    ranks = [list(part.batches(3, shuffle=True, rank=rank, world_size=2)) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    keys = [key for batches in ranks for batch in batches for key in batch["key"]]
    assert sorted(keys) == sorted(part.keys)
    sampled = []
    for rank in range(2):
        sampler: Any = DistributedSampler(part, num_replicas=2, rank=rank)  # type: ignore[arg-type]
        loader: Any = DataLoader(part, 4, sampler=sampler, collate_fn=lk.collate)  # type: ignore[arg-type]
        sampled += [key for batch in loader for key in batch["key"]]
    assert set(sampled) == set(part.keys)


@pytest.mark.parametrize("views", ["all", "random"])
def test_a_selection_is_pickled_and_read_by_workers(folder: Path, views: Any) -> None:
    whole = lk.open(folder, posterior="mean", views=views)
    part = whole.select([7, 2, 9])
    part.set_epoch(1)
    part["002.png" if views == "random" else part.keys[0]]
    copy = pickle.loads(pickle.dumps(part))
    assert copy.keys == part.keys
    assert len(pickle.dumps(part)) < len(pickle.dumps(whole))
    for item in range(3):
        assert torch.equal(copy[item]["latent"], part[item]["latent"])
    loader: Any = DataLoader(part, 2, num_workers=1, collate_fn=lk.collate)  # type: ignore[arg-type]
    found = torch.cat([batch["latent"] for batch in loader])
    assert torch.equal(found, torch.stack([part[item]["latent"] for item in range(3)]))


def test_random_views_are_drawn_of_a_selected_sample(folder: Path) -> None:
    part = lk.open(folder, posterior="mean", views="random").select([5, 1])
    every = lk.open(folder, posterior="mean")
    drawn = set()
    for number in range(12):
        part.set_epoch(number)
        (batch,) = part.batches(2)
        assert batch["key"] == part.keys == ["005.png", "001.png"]
        for row in range(2):
            expected = every[batch["key"][row], batch["view"][row]]
            assert torch.equal(batch["latent"][row], expected["latent"])
            drawn.add((batch["key"][row], batch["view"][row]))
    assert len(drawn) == 4


def test_buckets_stay_apart(tmp_path: Path, write_photos: Callable[..., Path]) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    for number in range(3, 8):
        draw_picture(number, 32, 64).save(photos / f"{number:03d}.png")
    buckets = {"area": 32**2, "step": 8, "min": 8, "max": 128}
    fixed = {"modality.with.buckets": buckets, "preview": 0, "batch_size": 4, "threads": 1}
    data = lk.encode(photos, tmp_path / "out", overrides=fixed)
    square, wide = data[0]["latent"].shape, data[7]["latent"].shape
    assert square != wide
    assert f"latent     {tuple(wide)}, {tuple(square)}\n" in repr(data)  # by the names of buckets
    part = data.select([7, 0, 6, 1])
    found = {batch["latent"].shape: batch["key"] for batch in part.batches(4)}
    assert found == {
        (2, *square): ["000.png", "001.png"],
        (2, *wide): ["007.png", "006.png"],
    }
    with pytest.raises(ValueError, match="several buckets"):
        part[:]


# ---------------------------------------------------------------- filter


def test_filter_takes_columns_that_were_not_opened(data: lk.LatentDataset) -> None:
    keys = [key for key in data.keys if label_of(key) == "dog"]
    assert data.filter(label="dog").keys == keys
    assert data.filter(lambda row: row["label"] == "dog").keys == keys
    both = data.filter(lambda row: row["scene"] > 2, label="dog", view="hflip")
    assert both.keys == [key for key in keys[::2] if int(key[:3]) // 4 > 2]
    assert {row["view"] for row in both} == {"hflip"}
    assert data.filter(label=None).keys == [key for key in data.keys if label_of(key) is None]
    assert data.filter(label="dog").filter(scene=0).keys == ["001.png"] * 2
    rows = list(data.select([3]).row_columns())
    expected = {"key": "001.png", "view": "hflip", "label": "dog", "scene": 0}
    assert rows == [{**expected, "text": "picture number 1"}]


def test_filter_refuses_what_is_not_there(folder: Path, data: lk.LatentDataset) -> None:
    with pytest.raises(ValueError, match=r"no column 'lable'; available: .*'label'"):
        data.filter(lable="dog")
    with pytest.raises(ValueError, match="no column 'lable'"):
        data.filter(label="horse", lable="dog")
    with pytest.raises(ValueError, match="none of the 46 rows"):
        data.filter(label="horse")
    with pytest.raises(ValueError, match="a function of a row's columns, or column=value"):
        data.filter()
    with pytest.raises(ValueError, match="with views='random' the view is drawn"):
        lk.open(folder, views="random").filter(view="plain")


def test_filter_refuses_an_index_that_was_written_since(
    make_photos: Callable[..., Path], tmp_path: Path
) -> None:
    photos = make_photos(3)
    data = lk.encode(photos, tmp_path / "out", size=32, overrides={"preview": 0})
    (photos / "001.txt").write_text("another caption")
    lk.encode(photos, tmp_path / "out", size=32, overrides={"preview": 0})
    with pytest.raises(StoreError, match=r"has changed since it was opened\. Open it again"):
        data.filter(text="another caption")


# ---------------------------------------------------------------- split


def side_of(value: str, fraction: float, seed: int) -> bool:
    digest = hashlib.sha256(f"{seed}\0{value}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


@pytest.mark.parametrize(("fraction", "seed"), [(0.5, 0), (0.75, 0), (0.5, 1)])
def test_split_keeps_views_together_by_a_hash_that_nothing_else_decides(
    data: lk.LatentDataset, fraction: float, seed: int
) -> None:
    train, holdout = data.split(fraction, seed=seed)
    assert train.keys == [key for key in data.keys if side_of(key, fraction, seed)]
    assert holdout.keys == [key for key in data.keys if not side_of(key, fraction, seed)]
    assert set(train.keys).isdisjoint(holdout.keys)


def test_a_sample_stays_on_its_side_when_the_source_grows(
    make_photos: Callable[..., Path], write_photos: Callable[..., Path], tmp_path: Path
) -> None:
    few = lk.encode(make_photos(8, "few"), tmp_path / "a", size=32, overrides={"preview": 0})
    many = lk.encode(make_photos(16, "many"), tmp_path / "b", size=32, overrides={"preview": 0})
    for before, after in zip(few.split(0.6), many.split(0.6), strict=True):
        assert set(before.keys) == set(after.keys) & set(few.keys)


def test_split_by_a_column_never_parts_equal_values(data: lk.LatentDataset) -> None:
    sides = data.split(0.5, by="scene", seed=1)
    scenes = [{row["scene"] for row in side.row_columns()} for side in sides]
    assert scenes[0].isdisjoint(scenes[1])
    assert scenes[0] == {scene for scene in range(6) if side_of(str(scene), 0.5, 1)}


def test_a_split_that_can_not_be_is_refused(data: lk.LatentDataset) -> None:
    for fraction in (0, 1, 90):
        with pytest.raises(ValueError, match="a fraction between 0 and 1"):
            data.split(fraction)
    with pytest.raises(ValueError, match="leaves one side empty"):
        data.select([0, 1]).split(0.5)
    with pytest.raises(ValueError, match="no column 'scenes'"):
        data.split(0.5, by="scenes")


# ---------------------------------------------------------------- keys=


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_keys_of_a_file_or_a_list_are_opened_alone(
    folder: Path, tmp_path: Path, newline: str
) -> None:
    wanted = ["011.png", "007.png", "002.png"]  # 007 was skipped
    file = tmp_path / "train.txt"
    file.write_bytes((newline.join(wanted) + newline * 2).encode())
    for keys in (file, str(file), wanted, iter(wanted)):
        data = lk.open(folder, keys=keys)  # type: ignore[arg-type]
        assert data.keys == ["002.png"] * 2 + ["011.png"] * 2
    assert lk.open(folder, keys=wanted, views="random").keys == ["002.png", "011.png"]


def test_unknown_keys_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the key '99\.png'.* \(2 of 3 keys are not there\)"):
        lk.open(folder, keys=["99.png", "999.png", "002.png"])
    with pytest.raises(ValueError, match=r"gone\.txt.*expected a text file with one key"):
        lk.open(folder, keys=tmp_path / "gone.txt")
    with pytest.raises(ValueError, match="none of the 46 rows"):
        lk.open(folder, keys=["007.png"])
    with pytest.raises(TypeError, match="keys are texts, got 7"):
        lk.open(folder, keys=[7])  # type: ignore[list-item]


# ---------------------------------------------------------------- joined


def test_joined_datasets_and_selections_go_together(folder: Path) -> None:
    first = lk.open(folder, posterior="mean", columns=["text"], seed=2)
    second = lk.open(folder, posterior="mean", views="random", columns=["label"])
    names = ["a", "b"]
    of_parts = lk.join(first.select(range(20)), second.select([9, 3, 0, 15]), names=names)
    assert of_parts.keys == [f"{number:03d}.png" for number in (0, 0, 3, 3, 10, 10)]
    joined = lk.join(first, second, names=names)
    for rows in (of_parts, joined.select([6, 7, 0]), joined.filter(label="dog")):
        (batch,) = rows.batches(100)
        assert batch["key"] == rows.keys
        assert torch.equal(batch["a"], batch["b"])
    part = joined.select([6, 7, 0])
    assert part.keys == ["003.png", "003.png", "000.png"]
    assert part["003.png", "hflip"]["view"] == "hflip"
    assert part[:2]["label"] == [label_of("003.png")] * 2
    state = part.batches(2, shuffle=True).state_dict()
    for other in (joined, joined.select([6, 0, 7]), of_parts):
        with pytest.raises(ValueError, match="with other rows"):
            other.batches(2, shuffle=True).load_state_dict(state)
    joined.select([6, 7, 0]).batches(2, shuffle=True).load_state_dict(state)
    train, holdout = joined.split(0.5)
    assert set(train.keys).isdisjoint(holdout.keys)
    assert len(train) + len(holdout) == len(joined)
    assert repr(part).startswith("JoinedDataset of 3 rows, on key")


def test_a_selected_partner_gives_no_view_of_other_samples(folder: Path) -> None:
    first = lk.open(folder, posterior="mean")
    drawn = lk.open(folder, posterior="mean", views="random").select([20, 4])
    joined = lk.join(first, drawn, names=["a", "b"])
    assert set(joined.keys) == set(drawn.keys)
    (batch,) = joined.batches(10)
    assert torch.equal(batch["a"], batch["b"])


# ---------------------------------------------------------------- repr and decode


def test_it_says_what_it_holds(folder: Path, data: lk.LatentDataset) -> None:
    assert repr(data).splitlines() == [
        f"LatentDataset of 46 rows: {folder}",
        "  posterior  mean (gaussian, stored as moments in float16)",
        "  views      hflip, plain",
        "  latent     (4, 4, 4)",
        "  columns    text (not opened: label, scene)",
    ]
    part = lk.open(folder, views="random", posterior="moments").select([0])
    assert repr(part).splitlines() == [
        f"LatentDataset of 1 row (of 23): {folder}",
        "  posterior  moments (gaussian, stored as moments in float16)",
        "  views      one drawn of hflip, plain",
        "  moments    (8, 4, 4)",
        "  columns    none (not opened: label, scene, text)",
    ]


def test_decode_takes_what_the_reader_gives(folder: Path, data: lk.LatentDataset) -> None:
    raw = lk.open(folder, posterior="moments")
    batch = data[2:5]
    expected = data.decode(batch["latent"], "cpu")
    assert expected.shape == (3, 3, 32, 32)
    single = data.decode(data[2]["latent"][None], "cpu")[0]
    close = {"rtol": 1e-4, "atol": 1e-4}
    for given in (batch, raw[2:5], raw[2:5]["moments"], lk.collate([raw[i] for i in (2, 3, 4)])):
        torch.testing.assert_close(raw.decode(given, "cpu"), expected, **close)
        torch.testing.assert_close(data.decode(given, "cpu"), expected, **close)
    for given in (data[2], data[2]["latent"], raw[2], raw[2]["moments"], raw.moments(2)):
        torch.testing.assert_close(data.decode(given, "cpu"), single, **close)
    torch.testing.assert_close(data.select([2]).decode(data[2], "cpu"), single, **close)
    for wrong, words in (
        (torch.zeros(1, 5, 4, 4), "4 channels, got 5"),
        (torch.zeros(4, 4), "axes CHW"),
        ({"key": "a"}, "a mapping with latent"),
        ([1], "got list"),
    ):
        with pytest.raises(ValueError, match=words):
            data.decode(wrong)  # type: ignore[arg-type]
