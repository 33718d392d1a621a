"""Reading: every way to ask for the same latents gives the same latents, in every process, at any
point of an epoch.
"""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import latentkit as lk
from latentkit.errors import StoreError
from latentkit.store.compact import compact
from latentkit.store.local_folder import LocalFolder

NUM_PHOTOS = 23


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, kl_folder: Path, write_photos: Callable[..., Path]
) -> Path:
    """23 pictures with two views each, in units of 5."""
    photos = write_photos(tmp_path_factory.mktemp("source") / "photos", NUM_PHOTOS)
    output = tmp_path_factory.mktemp("latents") / "out"
    overrides = {
        "batch_size": 4,
        "threads": 1,
        "output.unit_size": 5,
        "preview": 0,
        "modality.with.views": ["plain", "hflip"],
    }
    lk.encode(photos, output, encoder=kl_folder, size=32, overrides=overrides)
    return output


def test_item_is_the_stored_mean_normalized(folder: Path) -> None:
    data = lk.open(folder, posterior="mean")
    for index in (0, 7, len(data) - 1, -1):
        raw = data.moments(index)["mean"].float()
        assert torch.equal(data[index]["latent"], (raw - 0.25) * 0.5)
    with pytest.raises(IndexError):
        data[len(data)]


def test_draw_has_the_stored_mean_and_deviation(folder: Path) -> None:
    data = lk.open(folder, posterior="sample")
    moments = data.moments(3)
    draws = []
    for epoch in range(400):
        data.set_epoch(epoch)
        draws.append(data[3]["latent"] / 0.5 + 0.25)
    stacked = torch.stack(draws)
    deviation = (moments["logvar"].float() / 2).exp()
    assert ((stacked.mean(0) - moments["mean"].float()).abs() < 0.25 * deviation).all()
    assert abs((stacked.std(0) / deviation).mean() - 1) < 0.02


def test_draws_repeat_with_the_seed_and_differ_otherwise(folder: Path) -> None:
    first, again, other = lk.open(folder), lk.open(folder), lk.open(folder, seed=1)
    for data in (first, again, other):
        data.set_epoch(0)
    assert torch.equal(first[0]["latent"], again[0]["latent"])
    assert not torch.equal(first[0]["latent"], other[0]["latent"])
    again.set_epoch(1)
    assert not torch.equal(first[0]["latent"], again[0]["latent"])


def test_batches_give_the_rows_that_items_give(folder: Path) -> None:
    data = lk.open(folder, posterior="mean", columns=["text"])
    items = {
        (item["key"], item["view"]): item for item in (data[index] for index in range(len(data)))
    }
    seen = 0
    for batch in data.batches(7, shuffle=True):
        for row in range(len(batch["key"])):
            item = items[batch["key"][row], batch["view"][row]]
            assert torch.equal(batch["latent"][row], item["latent"])
            assert batch["text"][row] == item["text"]
            seen += 1
    assert seen == len(items) == 2 * NUM_PHOTOS


def test_moments_come_as_stored(folder: Path) -> None:
    data = lk.open(folder, posterior="moments")
    (batch,) = data.batches(100)
    assert batch["moments"].dtype == torch.float16
    assert torch.equal(
        batch["moments"][5], torch.cat([data.moments(5)["mean"], data.moments(5)["logvar"]])
    )


def test_list_of_views_and_random_views(folder: Path) -> None:
    flips = lk.open(folder, views=["hflip"])
    assert len(flips) == NUM_PHOTOS
    assert {flips[index]["view"] for index in range(len(flips))} == {"hflip"}
    drawn = lk.open(folder, views="random")
    assert len(drawn) == NUM_PHOTOS
    assert drawn.keys == flips.keys
    views = []
    for epoch in range(20):
        drawn.set_epoch(epoch)
        (batch,) = drawn.batches(100)
        assert batch["key"] == drawn.keys
        views.append(batch["view"])
    assert 0.4 < np.mean([view == "hflip" for epoch_views in views for view in epoch_views]) < 0.6
    assert len({tuple(epoch_views) for epoch_views in views}) == 20


def test_epochs_follow_each_other_and_can_be_set(folder: Path) -> None:
    data = lk.open(folder)
    loader = data.batches(8, shuffle=True)
    first, second = ([batch["key"] for batch in loader] for _ in range(2))
    assert first != second
    data.set_epoch(0)
    assert [batch["key"] for batch in loader] == first
    data.set_epoch(1)
    assert [batch["key"] for batch in loader] == second


@pytest.mark.parametrize("posterior", ["sample", "mean", "moments"])
def test_state_resumes_at_the_very_next_batch(folder: Path, posterior: Any) -> None:
    def open_loader() -> Any:
        return lk.open(folder, posterior=posterior, views="random", seed=5).batches(4, shuffle=True)

    loader = open_loader()
    for _ in loader:  # one whole epoch before
        pass
    iterator = iter(loader)
    for _ in range(2):
        next(iterator)
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    expected = list(iterator)
    other = open_loader()
    other.load_state_dict(state)
    got = list(other)
    name = "moments" if posterior == "moments" else "latent"
    assert [batch["key"] for batch in got] == [batch["key"] for batch in expected]
    assert all(torch.equal(a[name], b[name]) for a, b in zip(got, expected, strict=True))
    assert [batch["key"] for batch in other] == [batch["key"] for batch in loader]


def test_state_of_other_settings_is_refused(folder: Path) -> None:
    state = lk.open(folder).batches(4, shuffle=True).state_dict()
    with pytest.raises(ValueError, match="batch_size 4 \\(here 5\\)"):
        lk.open(folder).batches(5, shuffle=True).load_state_dict(state)


def test_ranks_share_an_epoch(folder: Path) -> None:
    data = lk.open(folder, posterior="mean")
    shares = [
        [batch["key"] for batch in data.batches(5, shuffle=True, rank=rank, world_size=3)]
        for rank in range(3)
    ]
    assert len({len(share) for share in shares}) == 1
    keys = sorted(key for share in shares for batch in share for key in batch)
    assert keys == sorted(data.keys)


def test_batch_that_is_kept_is_not_overwritten(folder: Path) -> None:
    data = lk.open(folder)
    kept = list(data.batches(4, shuffle=True))
    copies = [batch["latent"].clone() for batch in kept]
    for _ in range(3):
        for batch in data.batches(4, shuffle=True):
            del batch
    gc.collect()
    assert all(torch.equal(batch["latent"], copy) for batch, copy in zip(kept, copies, strict=True))
    view = kept[0]["latent"][1, 2]
    expected = view.clone()
    del kept
    list(data.batches(4, shuffle=True))
    assert torch.equal(view, expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_plain_dataloader_works(folder: Path, num_workers: int) -> None:
    data = lk.open(folder, posterior="mean")
    arguments: dict[str, Any] = {
        "num_workers": num_workers,
        "multiprocessing_context": "spawn" if num_workers else None,
    }
    by_default = list(DataLoader(data, batch_size=6, **arguments))  # type: ignore[arg-type]
    collated = list(DataLoader(data, batch_size=6, collate_fn=lk.collate, **arguments))  # type: ignore[arg-type]
    assert [batch["key"] for batch in by_default] == [batch["key"] for batch in collated]
    assert all(
        torch.equal(a["latent"], b["latent"]) for a, b in zip(by_default, collated, strict=True)
    )
    assert torch.equal(collated[1]["latent"][2], data[8]["latent"])


def test_rows_keep_the_order_they_are_asked_for(folder: Path) -> None:
    data = lk.open(folder, posterior="mean")
    asked = [40, 3, 17, 3, 0, 41]
    rows = lk.collate(data.__getitems__(asked))
    assert [
        torch.equal(rows["latent"][place], data[index]["latent"])
        for place, index in enumerate(asked)
    ] == [True] * 6
    assert rows["key"] == [data.keys[index] for index in asked]


def test_stored_half_precision_is_the_rounded_float32(
    make_photos: Callable[..., Path], kl_folder: Path, tmp_path: Path
) -> None:
    photos = make_photos(3)
    fixed = {"batch_size": 3, "threads": 1, "output.unit_size": 3, "preview": 0}
    for dtype in ("float32", "float16", "bfloat16"):
        lk.encode(
            photos,
            tmp_path / dtype,
            encoder=kl_folder,
            size=32,
            overrides={**fixed, "output.dtype": dtype},
        )
    exact = lk.open(tmp_path / "float32")
    for dtype in (torch.float16, torch.bfloat16):
        stored = lk.open(tmp_path / str(dtype).removeprefix("torch."))
        for index in range(3):
            assert torch.equal(
                stored.moments(index)["mean"], exact.moments(index)["mean"].to(dtype)
            )
            assert torch.equal(
                stored.moments(index)["logvar"], exact.moments(index)["logvar"].to(dtype)
            )


def test_statistics_are_those_of_all_stored_latents(folder: Path) -> None:
    data = lk.open(folder)
    moments = [data.moments(index) for index in range(len(data))]
    mean = torch.stack([one["mean"] for one in moments]).double().transpose(0, 1).flatten(1)
    variance = (
        torch.stack([one["logvar"] for one in moments]).double().exp().transpose(0, 1).flatten(1)
    )
    assert data.statistics is not None
    np.testing.assert_allclose(data.statistics["mean"], mean.mean(1))
    np.testing.assert_allclose(data.statistics["mean_std"], mean.std(1, correction=0))
    np.testing.assert_allclose(
        data.statistics["std"], (mean.var(1, correction=0) + variance.mean(1)).sqrt()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"posterior": "median"}, "posterior must be"),
        ({"views": ["upside-down"]}, "upside-down"),
        ({"views": "some"}, "views must be"),
        ({"columns": ["caption"]}, "available: \\['text'\\]"),
    ],
)
def test_misuse_is_a_value_error(folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lk.open(folder, **arguments)


def damaged_copy(folder: Path, tmp_path: Path, name: str, place: int) -> Path:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    content = bytearray((copy / name).read_bytes())
    content[place] ^= 1
    (copy / name).write_bytes(bytes(content))
    return copy


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("dataset.json", 40),
        ("index/000.parquet", 100),
        ("units/000-000001.safetensors", 200),
        ("units/000-000001.safetensors", 3),
    ],
)
def test_flipped_bit_is_a_store_error(folder: Path, tmp_path: Path, name: str, place: int) -> None:
    copy = damaged_copy(folder, tmp_path, name, place)
    with pytest.raises(StoreError):
        list(lk.open(copy).batches(8))


def test_missing_unit_is_a_store_error(folder: Path, tmp_path: Path) -> None:
    copy = damaged_copy(folder, tmp_path, "recipe.yaml", 0)
    (copy / "units" / "000-000002.safetensors").unlink()
    with pytest.raises(StoreError, match="000-000002"):
        list(lk.open(copy).batches(8))


def test_join_puts_two_datasets_side_by_side(
    folder: Path, make_photos: Callable[..., Path], taesd_folder: Path, tmp_path: Path
) -> None:
    import dataclasses

    fixed = {"batch_size": 4, "threads": 1, "output.unit_size": 5, "preview": 0}
    second = lk.encode(
        make_photos(30), tmp_path / "second", encoder=taesd_folder, size=48, overrides=fixed
    )
    first = lk.open(folder, posterior="mean", columns=["text"])
    for name in ("latent", "text", "view"):
        second.layout = dataclasses.replace(second.layout, name=name)
        with pytest.raises(
            ValueError, match=f"in a row of both, '{name}' would occur twice"
        ):
            lk.join(first, second)
    second.layout = dataclasses.replace(second.layout, name="small")
    joined = lk.join(first, second)
    assert joined.keys == first.keys
    keys = second.keys
    for batch in joined.batches(6, shuffle=True):
        for row, key in enumerate(batch["key"]):
            assert torch.equal(batch["small"][row], second[keys.index(key)]["latent"])
            assert batch["text"][row] == f"picture number {int(key[:3])}"
    item = joined[9]
    assert torch.equal(item["latent"], first[9]["latent"])


def test_a_dataset_compacted_under_its_reader_says_so(
    make_photos: Callable[..., Path], taesd_folder: Path, tmp_path: Path
) -> None:
    fixed = {"batch_size": 2, "threads": 1, "output.unit_size": 2, "preview": 0}
    data = lk.encode(
        make_photos(6), tmp_path / "out", encoder=taesd_folder, size=32, overrides=fixed
    )
    first = data[0]["latent"]
    compact(LocalFolder(tmp_path / "out"))
    assert torch.equal(data[0]["latent"], first)  # mapped already
    with pytest.raises(StoreError, match=r"was compacted since it was opened\. Open it again"):
        data[5]
    assert torch.equal(lk.open(tmp_path / "out")[0]["latent"], first)
