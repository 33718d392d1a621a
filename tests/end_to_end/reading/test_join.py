"""Several latent datasets side by side: pictures with the embeddings of their captions, by encoders
of different kinds.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import latentkit as lk

Write = Callable[..., Path]
Array = np.ndarray[Any, Any]

KEYS = [f"{number:05d}" for number in range(6)]
LENGTHS = [3, 9, 5, 12, 2, 7]
"""Of the captions, in tokens; buckets of four make three of them, of two captions each."""


def bucket_of(length: int) -> str:
    return str(-(-length // 4) * 4)


def rows_of(seed: int, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Random latents, channels first."""
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape).astype(np.float32) for shape in shapes]


def write(
    path: Path,
    write_dataset: Write,
    rows: Mapping[str, Array],
    buckets: Sequence[str],
    name: str,
    axes: str,
    ragged: str | None,
) -> Any:
    """A dataset of latents as they are, opened; two rows go into each unit."""
    units: dict[str, dict[str, list[Array]]] = {}
    entries = []
    for number, (key, row, bucket) in enumerate(zip(rows, rows.values(), buckets, strict=True)):
        unit = units.setdefault(f"000-{number // 2:06d}", {}).setdefault(bucket, [])
        entries.append((key, "plain", f"000-{number // 2:06d}", bucket, len(unit)))
        unit.append(row)
    tensors: dict[str, dict[str, Array]] = {}
    for unit_name, there in units.items():
        tensors[unit_name] = {}
        for bucket, found in there.items():
            if ragged:
                moved = [np.moveaxis(row, axes.index(ragged), 0) for row in found]
                offsets = np.cumsum([0, *map(len, moved)]).astype(np.int64)
                tensors[unit_name] |= {
                    f"{bucket}/latent": np.concatenate(moved),
                    f"{bucket}/latent.offsets": offsets,
                }
            else:
                tensors[unit_name][f"{bucket}/latent"] = np.stack(found)
    channels = next(iter(rows.values())).shape[0]
    layout = {
        "name": name,
        "kind": "deterministic",
        "axes": axes,
        "channels": channels,
        "downscale": 1,
        "ragged_axis": ragged,
    }
    plain = {"shift": 0.0, "scale": 1.0, "fold": {}}
    return lk.open(
        write_dataset(path, tensors, entries, "float32", layout=layout, normalization=plain)
    )


@pytest.fixture
def texts(tmp_path: Path, write_dataset: Write) -> Callable[..., tuple[Any, dict[str, Array]]]:
    """Embeddings (channels, tokens) of captions, and the same by key."""

    def make(
        folder: str, channels: int, keys: Sequence[str] = KEYS
    ) -> tuple[Any, dict[str, Array]]:
        rows = dict(
            zip(
                keys,
                rows_of(channels, [(channels, LENGTHS[int(key)]) for key in keys]),
                strict=True,
            )
        )
        buckets = [bucket_of(LENGTHS[int(key)]) for key in keys]
        return (
            write(tmp_path / folder, write_dataset, rows, buckets, "text-embedding", "CL", "L"),
            rows,
        )

    return make


@pytest.fixture
def images(tmp_path: Path, random_dataset: Write) -> Any:
    return lk.open(random_dataset(tmp_path / "images", [2, 3, 1], {"only": (4, 4)}))


def check_texts(batch: Mapping[str, Any], name: str, rows: Mapping[str, Array]) -> None:
    """That a batch holds the embedding of each key, then zeros up to the longest."""
    longest = max(rows[key].shape[1] for key in batch["key"])
    for values, mask, key in zip(batch[name], batch[f"{name}_mask"], batch["key"], strict=True):
        length = rows[key].shape[1]
        assert mask.tolist() == [True] * length + [False] * (longest - length)
        np.testing.assert_array_equal(values, np.pad(rows[key], ((0, 0), (0, longest - length))))


def test_captions_of_any_length_fill_the_pictures_batches(images: Any, texts: Any) -> None:
    captions, rows = texts("clip", 3)
    assert sorted(len(batch["key"]) for batch in captions.batches(6)) == [
        2,
        2,
        2,
    ], "alone, like lengths stay together"
    joined = lk.join(images, captions)
    (batch,) = joined.batches(6)
    assert batch["key"] == KEYS
    check_texts(batch, "text-embedding", rows)
    for shuffle in (True, "units"):
        batches = list(joined.batches(3, shuffle=shuffle))
        assert sorted(key for batch in batches for key in batch["key"]) == KEYS
        assert [len(batch["key"]) for batch in batches] == [3, 3]
        for batch in batches:
            check_texts(batch, "text-embedding", rows)
    (loaded,) = DataLoader(joined, batch_size=6, collate_fn=lk.collate)  # type: ignore[arg-type]
    check_texts(loaded, "text-embedding", rows)
    joined.will_need(np.arange(6), 0)
    np.testing.assert_array_equal(joined[4]["text-embedding"], rows["00004"])


def test_shuffled_batches_do_not_follow_the_captions_lengths(images: Any, texts: Any) -> None:
    loader = lk.join(images, texts("clip", 3)[0]).batches(2, shuffle=True)
    pairs = {frozenset(batch["key"]) for _ in range(60) for batch in loader}
    assert (
        len(pairs) == 15
    ), "each of the 15 pairs of six pictures, where buckets of captions would allow three"


def test_pictures_of_several_buckets_stay_apart(
    tmp_path: Path, random_dataset: Write, texts: Any
) -> None:
    two = lk.open(random_dataset(tmp_path / "images", [6], {"tall": (8, 4), "wide": (4, 8)}))
    captions, rows = texts("clip", 3)
    batches = list(lk.join(two, captions).batches(6))
    assert [batch["key"] for batch in batches] == [KEYS[::2], KEYS[1::2]]
    assert [batch["latent"].shape for batch in batches] == [(3, 2, 8, 4), (3, 2, 4, 8)]
    for batch in batches:
        check_texts(batch, "text-embedding", rows)
    captions_first = sorted(batch["key"] for batch in lk.join(captions, two).batches(6))
    assert captions_first == [
        ["00000", "00004"],
        ["00001", "00003"],
        ["00002"],
        ["00005"],
    ], "buckets of both"


def test_pictures_with_two_text_encoders_and_a_pooled_embedding(
    tmp_path: Path, write_dataset: Write, images: Any, texts: Any
) -> None:
    clip, clip_rows = texts("clip", 3)
    t5, t5_rows = texts("t5", 5, KEYS[:0:-1])
    vectors = dict(zip(KEYS[:5], rows_of(7, [(4,)] * 5), strict=True))
    pooled = write(
        tmp_path / "pooled",
        write_dataset,
        vectors,
        [bucket_of(LENGTHS[int(key)]) for key in vectors],
        "pooled",
        "C",
        None,
    )
    joined = lk.join(images, clip, t5, pooled, names=[None, "clip", "t5", None])
    assert joined.keys == KEYS[1:5], "the keys that all have, in the order of the first"
    (batch,) = joined.batches(6)
    assert set(batch) == {"latent", "clip", "clip_mask", "t5", "t5_mask", "pooled", "key", "view"}
    check_texts(batch, "clip", clip_rows)
    check_texts(batch, "t5", t5_rows)
    np.testing.assert_array_equal(batch["pooled"], np.stack([vectors[key] for key in KEYS[1:5]]))
    again = pickle.loads(pickle.dumps(joined))[2]
    assert (again["key"], again["clip"].shape, again["t5"].shape) == ("00003", (3, 12), (5, 12))


@pytest.mark.parametrize("ragged", ["T", None])
def test_rows_that_differ_along_another_axis_stay_apart(
    tmp_path: Path, write_dataset: Write, images: Any, ragged: str | None
) -> None:
    # Keys 0 and 3, 1 and 4, 2 and 5 are of a bucket; those of 0 and 1 differ only in T, that of 2
    # in M too.
    shapes = [(2, 3, 4), (2, 5, 4), (2, 3, 6)] * 2
    rows = dict(zip(KEYS, rows_of(1, shapes), strict=True))
    sounds = write(
        tmp_path / "sounds", write_dataset, rows, ["a", "b", "c"] * 2, "mel", "CTM", ragged
    )
    batches = list(lk.join(images, sounds).batches(6))
    expected = [[0, 1, 3, 4], [2, 5]] if ragged else [[0, 3], [1, 4], [2, 5]]
    assert [batch["key"] for batch in batches] == [
        [KEYS[place] for place in places] for places in expected
    ]
    for batch in batches:
        longest = max(rows[key].shape[1] for key in batch["key"])
        padded = [
            np.pad(rows[key], ((0, 0), (0, longest - rows[key].shape[1]), (0, 0)))
            for key in batch["key"]
        ]
        np.testing.assert_array_equal(batch["mel"], np.stack(padded))
    with pytest.raises(ValueError, match="several buckets"):
        lk.join(images, sounds).__getitems__([0, 2])


@pytest.mark.parametrize("shuffle", [True, False, "units"])
def test_joined_batches_resume_where_they_were_left(
    waves: Any, tmp_path: Path, shuffle: Any
) -> None:
    for folder, pad, ragged in (("first", "all", False), ("clip", "16", True), ("t5", "16", True)):
        run_waves(tmp_path / folder, pad, ragged=ragged)

    def batches() -> Any:
        parts = [
            lk.open(tmp_path / folder, posterior="sample", seed=4)
            for folder in ("first", "clip", "t5")
        ]
        return lk.join(*parts, names=["first", "clip", "t5"]).batches(
            3, shuffle=shuffle, rank=1, world_size=2
        )

    loader = batches()
    states, whole = [loader.state_dict()], []
    for _ in range(2):
        for batch in loader:
            whole.append(batch)
            states.append(pickle.loads(pickle.dumps(loader.state_dict())))
    assert len(whole) == 4
    assert len({len(mask[0]) for batch in whole for mask in [batch["clip_mask"]]}) > 1
    for start, state in enumerate(states):
        resumed = batches()
        resumed.load_state_dict(state)
        left = [*resumed, *resumed][: len(whole) - start]
        assert [batch["key"] for batch in left] == [batch["key"] for batch in whole[start:]]
        for one, other in zip(left, whole[start:], strict=True):
            assert all(
                torch.equal(one[name], other[name])
                for name in ("first", "clip", "clip_mask", "t5", "t5_mask")
            )
    other = lk.join(
        *(lk.open(tmp_path / name, seed=4) for name in ("first", "clip")), names=["first", "clip"]
    )
    with pytest.raises(ValueError, match="index"):
        other.batches(3, shuffle=shuffle, rank=1, world_size=2).load_state_dict(states[1])


def run_waves(path: Path, pad: str, dtype: str = "float32", **encoder: Any) -> Any:
    """Waves 000 to 011 without 005, encoded by the plugin of the tests."""
    return lk.run(
        {
            "task": "encode",
            "source": {"use": "waves", "with": {"count": 12}},
            "modality": {"use": "waves", "with": {"pad": pad}},
            "encoder": {"use": "waves", "with": {"takes_mask": True} | encoder},
            "output": {"path": str(path), "dtype": dtype, "unit_size": 4},
            "batch_size": 3,
            "threads": 1,
            "compile": False,
            "preview": 0,
        }
    )


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("posterior", ["mean", "moments"])
def test_encoded_rows_of_several_buckets_are_read_in_one_batch(
    waves: Any, tmp_path: Path, dtype: str, posterior: Any
) -> None:
    run_waves(tmp_path / "first", "all", ragged=False)
    run_waves(tmp_path / "second", "16", dtype=dtype)
    first, second = lk.open(tmp_path / "first", posterior="mean"), lk.open(
        tmp_path / "second", posterior=posterior
    )
    (batch,) = lk.join(first, second, names=("sound", "text")).batches(100)
    assert set(batch) == {"sound", "sound_mask", "text", "text_mask", "key", "view"}
    assert batch["key"] == [f"{number:03d}" for number in range(12) if number != waves.BAD]
    shift, scale = np.array([[0.5], [0.25], [0.125]]), np.array([[2.0], [4.0], [8.0]])
    for values, mask, key in zip(batch["text"], batch["text_mask"], batch["key"], strict=True):
        wave = waves.wave_of(int(key)).astype(np.float64)
        means = np.array([[1.0], [2.0], [3.0]]) * np.pad(wave, (0, -len(wave) % 4)).reshape(
            -1, 4
        ).mean(1)
        expected = (
            (means - shift) * scale if posterior == "mean" else np.concatenate([means, -means])
        )
        step = (
            np.abs(means).max() / 127 * (8 if posterior == "mean" else 1) if dtype == "int8" else 0
        )
        assert mask.sum() == means.shape[1]
        np.testing.assert_allclose(values[:, mask], expected, atol=1e-5 + step)
        assert not values[:, ~mask].any()


def test_no_two_of_three_datasets_share_their_noise(tmp_path: Path, random_dataset: Write) -> None:
    parts = [lk.open(random_dataset(tmp_path / name, [8], {"only": (8, 8)})) for name in "abc"]
    joined = lk.join(*parts, names=["a", "b", "c"])
    for rows in (next(iter(joined.batches(8))), joined[3]):
        for one, other in (("a", "b"), ("b", "c"), ("a", "c")):
            assert not torch.isclose(rows[one], rows[other]).flatten(-2).all(-1).any()
    alone = next(iter(parts[0].batches(8, epoch=0)))
    assert torch.equal(
        next(iter(joined.batches(8, epoch=0)))["a"], alone["latent"]
    ), "the first is drawn as it is alone"


def test_what_cannot_be_joined_is_said(images: Any, texts: Any) -> None:
    clip, t5 = texts("clip", 3)[0], texts("t5", 5)[0]
    path, join = images.folder.path, cast("Any", lk.join)
    few, others = texts("few", 2, KEYS[:1])[0], texts("others", 4, KEYS[1:])[0]
    captioned = [lk.open(path, columns=["text"]), lk.open(clip.folder.path, columns=["text"])]
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: join(), "two or more latent datasets, got 0"),
        (lambda: join(images), "two or more latent datasets, got 1"),
        (lambda: join(images, str(clip.folder)), r"as latentkit\.open gives them, got '"),
        (lambda: join(join(images, clip), t5), r"at once: join\(a, b, c\)"),
        (lambda: join(images, join(clip, t5, names=["a", "b"])), r"at once: join\(a, b, c\)"),
        (
            lambda: join(clip, t5),
            (
                r"clip has \['text-embedding'\] and .*t5 has .* of both, 'text-embedding' would .*"
                r" names="
            ),
        ),
        (
            lambda: join(images, clip, t5),
            "in a row of all, 'text-embedding' would occur twice; .* names=",
        ),
        (
            lambda: join(images, clip, names=["text_mask", "text"]),
            "'text_mask' would occur twice; .* names=",
        ),
        (
            lambda: join(images, clip, names=["key", None]),
            "'key' would occur twice; .* names=",
        ),
        (
            lambda: join(*captioned),
            "'text' would occur twice;",
        ),
        (lambda: join(images, clip, names=["a"]), r"for each of the 2 datasets, got \['a'\]"),
        (lambda: join(images, clip, names="ab"), "for each of the 2 datasets, got 'ab'"),
        (lambda: join(images, clip, names=["", "b"]), "for each of the 2 datasets"),
        (lambda: join(images, clip, names=[1, "b"]), "for each of the 2 datasets"),
        (lambda: join(images, clip, few, others, names=list("abcd")), "no key in common"),
    ]
    for attempt, message in wrong:
        with pytest.raises(ValueError, match=message):
            attempt()


VIEWS = ("plain", "hflip")


@pytest.fixture
def pictures(tmp_path: Path, write_dataset: Write) -> Callable[..., Any]:
    """A dataset of two views of each key, whose means say which view it is: 0 or 1; `lacking` has
    not the second view.
    """

    def make(folder: str, keys: Sequence[str], lacking: str = "", **options: Any) -> Any:
        there = [(key, view) for key in keys for view in VIEWS if (key, view) != (lacking, "hflip")]
        moments = np.zeros((len(there), 4, 2, 3), np.float16)
        moments[:, :2] = np.array([VIEWS.index(view) for _, view in there])[:, None, None, None]
        moments[:, 2:] = -30
        rows = [(key, view, "000-000000", "only", row) for row, (key, view) in enumerate(there)]
        plain = {"shift": 0.0, "scale": 1.0, "fold": {}}
        units = {"000-000000": {"only/moments": moments}}
        return lk.open(
            write_dataset(tmp_path / folder, units, rows, normalization=plain), **options
        )

    return make


@pytest.mark.parametrize("views", ["random", "all", ["hflip"]])
def test_views_drawn_of_joined_datasets_are_the_same(
    pictures: Callable[..., Any], views: Any
) -> None:
    keys = [f"{number:02d}" for number in range(20)]
    image = pictures("image", keys, views=views)
    depth = pictures("depth", keys[:0:-1], lacking="07", views="random", seed=1)
    joined = lk.join(image, depth, names=["image", "depth"])
    left = 18 if views != "all" else 37  # 07 is there without its second view
    assert len(joined) == left
    found = set()
    ways = [lambda: joined.batches(5, shuffle=True), lambda: DataLoader(joined, 5, collate_fn=lk.collate)]  # type: ignore[arg-type]
    for read in 4 * ways:
        batches = list(read())
        assert sum(len(batch["key"]) for batch in batches) == left
        for batch in batches:
            found.update(batch["view"])
            expected = [VIEWS.index(view) for view in batch["view"]]
            for part in ("image", "depth"):
                assert batch[part].flatten(1).mean(1).round().tolist() == expected
    assert found == ({*VIEWS} if isinstance(views, str) else {*views})


def test_views_of_other_names_are_drawn_by_themselves(
    pictures: Callable[..., Any], tmp_path: Path, write_dataset: Write
) -> None:
    rows = [
        (key, view, "000-000000", "only", 2 * row + place)
        for row, key in enumerate(KEYS)
        for place, view in enumerate("ab")
    ]
    moments = np.tile(
        np.array([[[[0.0]], [[-30.0]]], [[[1.0]], [[-30.0]]]], np.float16).repeat(2, 1),
        (6, 1, 1, 1),
    )
    path = write_dataset(tmp_path / "captions", {"000-000000": {"only/moments": moments}}, rows)
    joined = lk.join(
        pictures("image", KEYS, views="random"),
        lk.open(path, views="random"),
        names=["image", "caption"],
    )
    drawn = {
        (view, caption.mean().item() > 0)
        for _ in range(8)
        for batch in joined.batches(6)
        for view, caption in zip(batch["view"], batch["caption"], strict=True)
    }
    assert len(drawn) == 4, "each of two views with each of two captions"
