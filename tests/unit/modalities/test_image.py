"""Modality `image`: sizes, crops, views, tensors and contact sheets.

Colors and bad files have tests of their own.
"""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from latentkit.contracts import BuildContext, InputSpec, Modality, Prepared, Sample, SizeRule
from latentkit.errors import RecipeError, SampleError
from latentkit.modalities.decode_image import MORE_FRAMES
from latentkit.modalities.framing import ENLARGED, ENLARGED_FAR
from latentkit.modalities.image import ImageModality
from latentkit.modalities.options import BucketsConfig, ImageConfig
from latentkit.plugins import fingerprint_fields
from latentkit.runtime.key_errors import validate

SIZES = {"H": SizeRule(multiple=8), "W": SizeRule(multiple=16, maximum=512)}


def make_modality(seed: int = 0, spec: InputSpec | None = None, **options: Any) -> ImageModality:
    return ImageModality(ImageConfig(**options), BuildContext(seed=seed, input=spec))


def make_photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth picture without any symmetry: coarse noise, enlarged."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def prepare(modality: ImageModality, picture: Image.Image, key: str = "key") -> list[Prepared]:
    return list(modality.prepare(Sample(key, encode_png(picture))))


def to_tensor(prepared: Prepared) -> torch.Tensor:
    assert isinstance(prepared.tensor, torch.Tensor)
    return prepared.tensor


def test_it_is_a_modality_with_its_metrics() -> None:
    modality = make_modality()
    assert isinstance(modality, Modality)
    assert modality.metrics == ("psnr", "ssim", "ms-ssim", "rfid")


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (-0.5, 2.5)])
def test_levels_fill_the_range_of_the_encoder_exactly(low: float, high: float) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.fromarray(np.stack([levels, levels[::-1], levels.T], axis=-1))
    [prepared] = prepare(make_modality(size=16, spec=InputSpec(3, (low, high))), picture)
    tensor = to_tensor(prepared)
    expected = low + np.asarray(picture).transpose(2, 0, 1) * (high - low) / 255
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert (tensor.min().item(), tensor.max().item()) == (low, high)
    np.testing.assert_allclose(tensor.numpy(), expected, rtol=0, atol=3e-7)


def test_values_are_those_of_diffusers_bit_for_bit() -> None:
    photo = make_photo(64, 64)
    [prepared] = prepare(make_modality(size=64), photo)
    assert torch.equal(to_tensor(prepared), VaeImageProcessor().preprocess(photo)[0])


def test_resizing_a_ramp_keeps_its_slope_and_its_place() -> None:
    # Pixel x of the original holds x; the middle 200 of 240 columns go to 100, so column i shows
    # the original at 20 + 2 * (i + 0.5) - 0.5.
    ramp = np.broadcast_to(np.arange(240, dtype=np.uint8), (200, 240))
    [prepared] = prepare(
        make_modality(size=100, spec=InputSpec(1, (0.0, 255.0))), Image.fromarray(ramp.copy())
    )
    assert prepared.geometry == {
        "height": 200,
        "width": 240,
        "crop": [0.0, 20.0, 200.0, 200.0],
        "flip": False,
    }
    np.testing.assert_allclose(
        to_tensor(prepared)[0, 50].numpy(), 20 + 2 * (np.arange(100) + 0.5) - 0.5, atol=1.0
    )


def test_fine_stripes_become_gray_rather_than_other_stripes() -> None:
    stripes = np.zeros((400, 400), np.uint8)
    stripes[:, ::2] = 255
    [prepared] = prepare(
        make_modality(size=100, spec=InputSpec(1, (0.0, 255.0))), Image.fromarray(stripes)
    )
    assert to_tensor(prepared)[0, 5:-5, 5:-5].sub(127.5).abs().max() < 3


def test_without_crop_all_of_the_picture_is_squeezed_to_the_size() -> None:
    photo = make_photo(60, 90)
    [prepared] = prepare(make_modality(size=(32, 48), crop="none"), photo)
    expected = (
        np.asarray(photo.resize((48, 32), Image.Resampling.LANCZOS)).transpose(2, 0, 1) / 127.5 - 1
    )
    assert prepared.bucket == "32x48"
    assert prepared.geometry["crop"] == [0.0, 0.0, 60.0, 90.0]
    np.testing.assert_allclose(to_tensor(prepared).numpy(), expected, atol=1e-6)


def test_flip_is_the_preparation_of_the_flipped_picture() -> None:
    photo = make_photo(60, 90)
    plain, flip = prepare(make_modality(size=32, views=["plain", "hflip"]), photo)
    [of_flipped] = prepare(make_modality(size=32), photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert torch.equal(to_tensor(flip), to_tensor(plain).flip(-1))
    assert (to_tensor(flip) - to_tensor(of_flipped)).abs().max() <= 1.01 / 127.5
    assert flip.geometry == {**plain.geometry, "flip": True}


def test_views_come_in_the_order_of_the_recipe_and_mirrored_crops_mirror_theirs() -> None:
    views = ["hflip-2", "plain", "crop-1", "crop-2", "hflip"]
    prepared = {
        view.view: view
        for view in prepare(make_modality(size=32, views=views), make_photo(60, 200))
    }
    assert list(prepared) == views
    assert torch.equal(to_tensor(prepared["hflip-2"]), to_tensor(prepared["crop-2"]).flip(-1))
    assert prepared["plain"].geometry["crop"] == [0.0, 70.0, 60.0, 60.0]
    assert prepared["crop-1"].geometry["crop"] != prepared["crop-2"].geometry["crop"]


def test_random_crop_is_drawn_from_seed_and_key_and_shown_mirrored_by_hflip() -> None:
    photo = make_photo(60, 300)
    crops = [
        prepare(
            make_modality(seed=seed, size=32, crop="random", views=["plain", "hflip"]), photo, key
        )
        for seed, key in [(0, "a"), (0, "a"), (1, "a"), (0, "b")]
    ]
    lefts = [plain.geometry["crop"][1] for plain, _ in crops]
    assert lefts[0] == lefts[1]
    assert len(set(lefts)) == 3
    assert all(plain.geometry["crop"] == flip.geometry["crop"] for plain, flip in crops)


def test_crop_scale_zooms_in_by_as_much_as_it_says() -> None:
    modality = make_modality(size=32, crop="random", crop_scale=(0.25, 0.5))
    sides = [
        prepare(modality, make_photo(100, 100), f"{number}")[0].geometry["crop"][2]
        for number in range(40)
    ]
    assert 25 <= min(sides) < 30
    assert 45 < max(sides) <= 50


def test_random_crop_is_the_same_in_another_process(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    make_photo(60, 300).save(file)
    modality = make_modality(seed=3, size=32, crop="random", views=["plain", "crop-1"])
    pickled = tmp_path / "modality.pickle"
    pickled.write_bytes(pickle.dumps(modality))
    program = (
        "import pickle, sys; from pathlib import Path; from latentkit.contracts import Sample\n"
        "modality = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "for view in modality.prepare(Sample('a', Path(sys.argv[2]))):"
        " print(view.geometry['crop'], view.tensor.double().sum().item())"
    )
    command = [sys.executable, "-c", program, str(pickled), str(file)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    here = [
        f"{view.geometry['crop']} {to_tensor(view).double().sum().item()}"
        for view in modality.prepare(Sample("a", file))
    ]
    assert lines == here


def test_threads_get_what_one_thread_gets() -> None:
    modality = make_modality(size=32, views=["plain", "hflip", "crop-1"])
    samples = [
        Sample(str(number), encode_png(make_photo(60 + number, 90, number))) for number in range(24)
    ]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda sample: list(modality.prepare(sample)), samples))
    for sample, views in zip(samples, together, strict=True):
        for alone, view in zip(modality.prepare(sample), views, strict=True):
            assert torch.equal(to_tensor(alone), to_tensor(view))


@pytest.mark.parametrize(
    ("shape", "bucket"),
    [
        ((300, 300), "256x256"),
        ((300, 480), "192x320"),
        ((480, 300), "320x192"),
        ((30, 3000), "192x320"),
    ],
)
def test_picture_is_prepared_to_the_bucket_of_its_aspect(
    shape: tuple[int, int], bucket: str
) -> None:
    [prepared] = prepare(make_modality(buckets=BucketsConfig(area=256 * 256)), make_photo(*shape))
    height, width = (int(side) for side in bucket.split("x"))
    assert prepared.bucket == bucket
    assert to_tensor(prepared).shape == (3, height, width)


@pytest.mark.parametrize(
    ("shape", "bucket"),
    [((300, 300), "64x64"), ((300, 480), "48x80"), ((480, 300), "96x64"), ((30, 3000), "48x80")],
)
def test_picture_is_prepared_to_the_nearest_of_the_buckets_listed_by_hand(
    shape: tuple[int, int], bucket: str
) -> None:
    buckets = {"shapes": [[64, 64], [96, 64], [48, 80]]}
    [prepared] = prepare(
        make_modality(buckets=buckets, spec=InputSpec(3, sizes=SIZES)), make_photo(*shape)
    )
    assert prepared.bucket == bucket
    assert "x".join(map(str, to_tensor(prepared).shape[1:])) == bucket


def test_buckets_listed_in_any_order_are_the_same_setting() -> None:
    one, other = ({"shapes": shapes} for shapes in ([[64, 64], [96, 48]], [[96, 48], [64, 64]]))
    assert fingerprint_fields(ImageConfig(buckets=one)) == fingerprint_fields(
        ImageConfig(buckets=other)
    )
    assert fingerprint_fields(ImageConfig(buckets={"area": 4096})) == {
        "buckets": '{"area":4096}'
    }  # as ever
    assert ImageConfig(buckets="sdxl") == ImageConfig(buckets={"shapes": "sdxl"})
    assert (832, 1216) in ImageConfig(buckets="sdxl").buckets.shapes


@pytest.mark.parametrize("shapes", [[[64, 64], [96, 48]], [[64, 64]]])
def test_recipe_may_list_buckets_by_hand(shapes: list[list[int]]) -> None:
    config = validate(ImageConfig, {"buckets": {"shapes": shapes}})
    assert config == ImageConfig(buckets={"shapes": shapes})
    with pytest.raises(RecipeError, match=r"buckets\.shapes\[0\]\[1\]: expected a whole number"):
        validate(ImageConfig, {"buckets": {"shapes": [[64, "64"]]}})


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((64, 64), []),
        ((63, 64), [ENLARGED]),
        ((32, 90), [ENLARGED]),
        ((31, 90), [ENLARGED_FAR]),
        ((90, 90), []),
    ],
)
@pytest.mark.parametrize("crop", ["center", "random", "none"])
def test_row_that_was_enlarged_says_so(size: tuple[int, int], said: list[str], crop: str) -> None:
    views = prepare(make_modality(size=64, crop=crop, views=["plain", "hflip"]), make_photo(*size))
    assert [list(view.remarks) for view in views] == [said, said]
    assert all("on_small" in text and "min_size" in text for text in (ENLARGED, ENLARGED_FAR))


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("num_frames", [1, 3])
def test_frames_behind_the_first_are_remarked(file_format: str, num_frames: int) -> None:
    frames = [Image.new("RGB", (64, 64), (80 * number, 0, 0)) for number in range(num_frames)]
    file = io.BytesIO()
    options = {"lossless": True} if file_format == "WEBP" else {}
    frames[0].save(file, file_format, save_all=True, append_images=frames[1:], **options)
    [prepared] = make_modality(size=64).prepare(Sample("key", file.getvalue()))
    assert prepared.remarks == [MORE_FRAMES] * (num_frames > 1)
    assert set(to_tensor(prepared).unique().tolist()) == {-1.0}



def test_crop_that_zooms_in_beyond_the_pixels_says_so() -> None:
    plain, zoomed = prepare(
        make_modality(size=64, views=["plain", "crop-1"], crop_scale=(0.5, 0.5)), make_photo(64, 64)
    )
    assert (plain.remarks, zoomed.remarks) == ([], [ENLARGED])


@pytest.mark.parametrize(
    "options", [{"size": 64}, {"size": 64, "crop": "none"}, {"buckets": {"area": 4096, "step": 16}}]
)
def test_min_size_target_skips_what_would_be_enlarged_and_nothing_else(
    options: dict[str, Any],
) -> None:
    modality = make_modality(min_size="target", **options)
    with pytest.raises(
        SampleError,
        match=r"63 x 64 pixels \(width x height\), too small for 64 x 64: min_size is target",
    ):
        prepare(modality, make_photo(64, 63))
    assert [view.remarks for view in prepare(modality, make_photo(64, 64))] == [[]]


@pytest.mark.parametrize(
    ("channels", "value"), [(1, [76]), (3, [255, 0, 0]), (4, [255, 0, 0, 255])]
)
def test_channels_are_those_of_the_encoder(channels: int, value: list[int]) -> None:
    red = Image.new("RGB", (20, 20), (255, 0, 0))  # luma of ITU-R 601: 0.299 * 255 = 76.2
    [prepared] = prepare(make_modality(size=16, spec=InputSpec(channels, (0.0, 255.0))), red)
    assert to_tensor(prepared).shape == (channels, 16, 16)
    assert to_tensor(prepared)[:, 8, 8].tolist() == value


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"size": 250}, ["modality.with.size", "height 250", "a multiple of 8", "248 and 256"]),
        (
            {"size": (256, 520)},
            ["modality.with.size", "width 520", "a multiple of 16, at most 512", "nearest: 512"],
        ),
        (
            {"buckets": {"shapes": [[64, 64], [64, 72]]}},
            ["modality.with.buckets.shapes: [64, 72] has a width of 72", "nearest: 64 and 80"],
        ),
        (
            {"buckets": {"area": 250 * 250, "step": 24}},
            ["modality.with.buckets", "a multiple of 16", "make step a multiple of 16"],
        ),
    ],
)
def test_size_that_the_encoder_does_not_take_is_refused_with_its_neighbors(
    options: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        make_modality(spec=InputSpec(3, sizes=SIZES), **options)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_number_of_channels_without_a_meaning_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"1, 3 or 4 channels, but the encoder takes 2"):
        make_modality(spec=InputSpec(2))


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"views": ["vflip"]},
        {"views": ["plain", "plain"]},
        {"crop_scale": (0.5, 0.2)},
        {"crop_scale": (0.0, 1.0)},
        {"background": (0, 0, 256)},
        {"buckets": {"area": 4096, "step": 64, "min": 128}},
        {"size": 64, "buckets": {"area": 4096}},
        {"buckets": {}},
        {"buckets": "sd3"},
        {"buckets": {"shapes": []}},
        {"buckets": {"shapes": [[64, 0]]}},
        {"buckets": {"shapes": [[64, 64], [64, 64]]}},
        {"buckets": {"area": 4096, "shapes": [[64, 64]]}},
        {"buckets": {"shapes": [[64, 64]], "step": 32}},
        {"min_size": 0},
        {"min_size": "large"},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        ImageConfig(**options)


def test_contact_sheet_holds_every_picture_of_every_row(tmp_path: Path) -> None:
    red, blue = (
        torch.tensor([1.0, -1, -1])[:, None, None],
        torch.tensor([-1.0, -1, 1])[:, None, None],
    )
    rows = [
        [red.expand(3, 20, 30), blue.expand(3, 10, 10).to(torch.bfloat16)],
        [torch.zeros(1, 8, 8)],
        [],
    ]
    path = tmp_path / "new" / "folder" / "sheet.png"
    make_modality().render(rows, path)
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        assert sheet.size == (4 + 30 + 4 + 10 + 4, 4 + 20 + 4 + 8 + 4)
        places = {
            (4, 4): (255, 0, 0),
            (33, 23): (255, 0, 0),
            (38, 4): (0, 0, 255),
            (4, 28): (128, 128, 128),
            (34, 4): (255, 255, 255),
        }
        assert {place: sheet.getpixel(place) for place in places} == places


def test_contact_sheet_clips_what_lies_outside_and_shows_alpha_over_white(tmp_path: Path) -> None:
    wild = torch.tensor([float("nan"), 7.0, -float("inf")])[:, None, None].expand(3, 8, 8)
    clear = torch.tensor([1.0, 0.0, 0.0, 0.0])[:, None, None].expand(4, 8, 8)
    make_modality(spec=InputSpec(4, (0.0, 1.0))).render([[wild, clear]], tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert (sheet.getpixel((8, 8)), sheet.getpixel((20, 8))) == ((0, 255, 0), (255, 255, 255))


@pytest.mark.parametrize(
    ("rows", "reason"),
    [([], "at least one"), ([[]], "at least one"), ([[torch.zeros(2, 4, 4)]], r"\(2, 4, 4\)")],
)
def test_contact_sheet_of_nothing_is_refused(
    rows: list[list[torch.Tensor]], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=reason):
        make_modality().render(rows, tmp_path / "sheet.png")
