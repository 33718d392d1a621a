"""What a folder is taken for by the names of its files, and a model by its config; of modalities
there are `image` and one of a plugin.
"""

from __future__ import annotations

import json
import shlex
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from latentkit.contracts import BuildContext, Config, EncoderSpec, ModalitySpec, SourceSpec
from latentkit.errors import RecipeError
from latentkit.plugins import Problem, Provided, Registry, discover
from latentkit.recipe.schema import EncodeRecipe, parse_recipe, resolve
from latentkit.tasks import recipe_from_arguments as shorthand


class NoConfig(Config):
    """Without options."""


def with_sounds() -> Registry:
    spec = ModalitySpec(
        "sound", "sounds", NoConfig, lambda config, context: None, suffixes=[".wav", ".nii.gz"]
    )
    own = [one for one in discover().provided if one.distribution == "latentkit-diffusion"]
    return Registry([*own, Provided(spec, "acme-sound", "1")])


@pytest.fixture(autouse=True)
def _sounds_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_sounds()
    monkeypatch.setattr(shorthand, "discover", lambda: found)


def recipe_of(
    folder: Path, names: list[str], encoder: str | None = "owner/name"
) -> tuple[dict[str, Any], list[str]]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return shorthand.encode_recipe(str(folder), "out", encoder)


@pytest.mark.parametrize(
    ("names", "source", "modality"),
    [
        (["a.jpg"], "folder", "image"),
        (["a.jpg", "b.jpg", "a.wav", "b.wav"], "folder", "image"),
        (["a.jpg", "b.jpg", "a.wav"], "folder", "image"),
        (["cover.jpg", "a.wav", "b.wav"], "folder", "sound"),
        (["a.jpg", "a.tar", "b.tar"], "folder", "image"),
        (["a.jpg", "a.wav", "b.wav", "0.tar", "1.tar"], "folder", "image"),
        (["a.wav", "metadata.csv"], "folder", "sound"),
        (["metadata.csv"], "datasets", "image"),
        (
            ["a.wav", "old/preview.png", "old/more.png", "old/plans/000", "old/units/x"],
            "folder",
            "sound",
        ),
        (["a.wav", "._a.jpg", ".thumbs/a.jpg"], "folder", "sound"),
        (["a.parquet"], "datasets", "image"),
        (["deep/a.wav"], "folder", "sound"),
        (["a.WAV", "b.wav", "metadata.csv"], "folder", "sound"),
        (["a.nii.gz"], "folder", "sound"),
        (["a.wav", "0.tar", "1.tar"], "datasets", "image"),
        (["a.xyz"], "folder", "image"),
    ],
)
def test_a_folder_is_what_its_files_are(
    tmp_path: Path, names: list[str], source: str, modality: str
) -> None:
    values, remarks = recipe_of(tmp_path, names)
    assert (values["source"]["use"], values["modality"]["use"]) == (source, modality)
    assert values["source"]["with"].get("suffixes") == (
        [".wav", ".nii.gz"] if modality == "sound" else None
    )
    assert any("taken for files of the modality sound" in remark for remark in remarks) == (
        modality == "sound"
    )


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["a.jpg", "a.wav"], "1 file of the modality sound is left out"),
        (
            ["a.jpg", "b.jpg", "c.jpg", "a.wav", "b.wav"],
            "2 files of the modality sound are left out",
        ),
        (
            ["a.jpg", "b.png", "a.wav", "b.wav", "c.wav"],
            "2 files of the modality image are left out",
        ),
        (["a.wav", "0.tar", "1.tar"], "1 file of the modality sound is left out"),
    ],
)
def test_what_is_left_out_is_counted_and_its_options_take_it(
    tmp_path: Path, names: list[str], what: str
) -> None:
    values, remarks = recipe_of(tmp_path, names)
    (remark,) = [remark for remark in remarks if "left out" in remark]
    assert what in remark
    words = shlex.split(remark.partition("to use those instead: ")[2])
    assert words[::2] == ["--set"] * (len(words) // 2)
    recipe = parse_recipe(values, "encode", tmp_path, words[1::2])
    assert isinstance(recipe, EncodeRecipe)
    left = [".jpg", ".png"] if "modality image" in what else [".wav"]
    assert (recipe.source.use, recipe.source.with_) == (
        "folder",
        {"path": str(tmp_path), "suffixes": left},
    )
    assert recipe.modality.use == ("image" if "modality image" in what else "sound")


@pytest.mark.parametrize("names", [["a.jpg", "b.txt"], ["a.wav", "metadata.csv"], ["0.tar"]])
def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path, names: list[str]) -> None:
    assert not any("left out" in remark for remark in recipe_of(tmp_path, names)[1])


@pytest.mark.parametrize(
    ("name", "modality"), [("a.WAV", "sound"), ("a.nii.gz", "sound"), ("a.jpg", "image")]
)
def test_a_single_file_of_media_asks_for_its_folder(
    tmp_path: Path, name: str, modality: str
) -> None:
    (tmp_path / name).touch()
    with pytest.raises(
        RecipeError,
        match=f"a single file of the modality {modality}; expected a folder of such files",
    ):
        shorthand.encode_recipe(str(tmp_path / name), "out", "tiny-kl")


def test_a_single_table_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").touch()
    assert (
        shorthand.encode_recipe(str(tmp_path / "metadata.csv"), "out", "tiny-kl")[0]["source"][
            "use"
        ]
        == "datasets"
    )


MODELS: list[tuple[dict[str, Any], str | None]] = [
    ({"config.json": {"_class_name": "AutoencoderKL"}}, "diffusers"),
    ({"config.json": {"_class_name": "TinyKL"}}, "tiny-kl"),
    (
        {
            "vae/config.json": {"_class_name": "AutoencoderKLWan"},
            "text_encoder/config.json": {"architectures": ["T5"]},
        },
        "diffusers",
    ),
    ({"audio_vae/config.json": {"_class_name": "AutoencoderOobleck"}}, "diffusers"),
    ({"movq/config.json": {"_class_name": "VQModel"}}, "diffusers"),
    ({"Wan2.1_VAE.PTH": None}, "diffusers"),
    ({"vae.safetensors": None, "config.json": {"kind": "volume-kl"}}, None),
    ({"config.json": {"kind": "volume-kl", "channels": 1}}, None),
    ({"config.json": {"architectures": ["T5EncoderModel"], "model_type": "t5"}}, None),
    ({"config.json": {"_class_name": None}}, None),
    ({"config.json": ["_class_name"]}, None),
    ({"text_encoder/config.json": {"architectures": ["CLIPTextModel"]}}, None),
    ({}, None),
]


@pytest.mark.parametrize(("configs", "encoder"), MODELS)
def test_a_model_is_opened_by_what_its_config_names(
    tmp_path: Path, configs: dict[str, Any], encoder: str | None
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name, config in configs.items():
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("" if config is None else json.dumps(config))
    if encoder is None:
        with pytest.raises(RecipeError) as refused:
            recipe_of(tmp_path / "sounds", ["a.wav"], str(model))
        assert (
            f"--encoder NAME --set encoder.with.model={model}, where NAME is an encoder plugin:"
            " diffusers, tiny-kl"
            in str(refused.value)
        )
    else:
        values, _ = recipe_of(tmp_path / "sounds", ["a.wav"], str(model))
        assert values["encoder"] == {"use": encoder, "with": {"model": str(model)}}


def test_a_config_that_is_no_json_is_left_to_diffusers_to_explain(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{")
    values, _ = recipe_of(tmp_path / "photos", ["a.jpg"], str(tmp_path / "model"))
    assert values["encoder"]["use"] == "diffusers"


@pytest.mark.parametrize(("source", "encoder"), [("sample-photos", "acme"), ("acme", "tiny-kl")])
def test_an_unknown_name_comes_with_what_plugins_have_gone_missing(
    monkeypatch: pytest.MonkeyPatch, source: str, encoder: str
) -> None:
    problem = Problem("acme-kl", "2.0", "acme = acme_kl", "ImportError: libacme.so.3")
    registry = Registry(discover().provided, [problem], [("acme-off", "1.0")])
    monkeypatch.setattr(shorthand, "discover", lambda: registry)
    with pytest.raises(RecipeError) as refused:
        shorthand.encode_recipe(source, "out", encoder)
    first, *others = str(refused.value).splitlines()
    assert "acme: no such path, no " in first
    assert others == [
        "  left out by LATENTKIT_DISABLE: acme-off 1.0",
        f"  a plugin has a problem: {problem}",
    ]


def test_what_the_usual_encoder_cannot_take_needs_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="taken for sound, and no --encoder"):
        recipe_of(tmp_path, ["a.wav"], encoder=None)


@pytest.mark.parametrize("suffixes", [["wav"], [".WAV"], ".wav"])
def test_suffixes_are_endings_in_lower_case(suffixes: Any) -> None:
    with pytest.raises(ValueError, match="suffixes must be like"):
        ModalitySpec("sound", "sounds", NoConfig, lambda config, context: None, suffixes=suffixes)


def write_sounds(folder: Path) -> None:
    folder.mkdir()
    (folder / "b.wav").write_bytes(b"sound")
    for name in ("00.tar", "01.tar"):
        with tarfile.open(folder / name, "w") as tar:
            tar.add(folder / "b.wav", "b.wav")
    (folder / "b.wav").unlink()
    (folder / "list.csv").write_text("path,text\nx/b.wav,said\n")


@pytest.mark.parametrize(
    "source",
    [
        "wds",
        "wds/00.tar",
        "wds/*.tar",
        "wds/{00..01}.tar",
        "wds/00.tar::wds/01.tar",
        "wds/list.csv",
    ],
)
def test_tars_patterns_of_them_and_tables_are_of_the_modality_of_their_media(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sounds(tmp_path / "wds")
    monkeypatch.chdir(tmp_path)
    values, _ = shorthand.encode_recipe(source, "out", "tiny-kl")
    assert (values["source"]["use"], values["modality"]["use"]) == ("datasets", "sound")
    paths = values["source"]["with"]["path"].split("::")
    assert paths == [str(tmp_path / part) for part in source.split("::")]


def test_pattern_stays_what_it_names_in_the_recipe_of_an_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values, _ = shorthand.encode_recipe("wds/{0..1}.tar", "out", "tiny-kl")
    values["source"]["with"]["path"] = ["wds/{0..1}.tar", "more/*.tar"]
    recipe = parse_recipe(values, "encode", tmp_path)
    assert resolve(recipe)["source"]["with"]["path"] == [
        str(tmp_path / "wds/{0..1}.tar"),
        str(tmp_path / "more/*.tar"),
    ]


def test_pattern_of_pictures_asks_for_their_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(RecipeError, match="expected a folder of such files"):
        shorthand.encode_recipe(str(tmp_path / "*.jpg"), "out", "tiny-kl")


def test_tables_beside_media_are_their_captions(tmp_path: Path) -> None:
    values, _ = recipe_of(tmp_path, ["a.wav", "train.csv", "test.csv", "metadata.parquet"])
    assert (values["source"]["use"], values["modality"]["use"]) == ("folder", "sound")


@pytest.mark.parametrize(
    ("names", "source"),
    [
        (["a.slice", "b.slice"], "series"),
        (["a.slice", "b.slice", "a.wav"], "series"),
        (["a.slice", "a.jpg"], "folder"),
        (["a.slice", "a.wav"], "folder"),
        (["1.2.3", "1.2.4"], "series"),
        (["1.2.3", "a.jpg"], "folder"),
    ],
)
def test_a_source_takes_the_files_that_it_makes_better_samples_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], source: str
) -> None:
    """By their endings, where they are the most; by how they begin, where endings tell nothing."""
    spec = SourceSpec(
        "series",
        "slices",
        NoConfig,
        lambda config, context: None,
        suffixes=[".slice"],
        signature=(4, b"SLICE"),
        modality="sound",
    )
    found = with_sounds()
    registry = Registry([*found.provided, Provided(spec, "acme-series", "1")])
    monkeypatch.setattr(shorthand, "discover", lambda: registry)
    (tmp_path / "1.2.3").write_bytes(b"0000SLICE" if "1.2.3" in names else b"")
    values, remarks = recipe_of(tmp_path, names)
    assert values["source"]["use"] == source
    if source == "series":
        assert values["source"]["with"] == {"path": str(tmp_path)}
        assert values["modality"]["use"] == "sound"
        assert any("source series" in remark for remark in remarks)
    assert shorthand.encode_recipe("series", "out", "tiny-kl")[0]["modality"]["use"] == "sound"


@pytest.mark.parametrize("suffixes", [["slice"], ".slice"])
def test_suffixes_of_a_source_are_endings_in_lower_case(suffixes: Any) -> None:
    with pytest.raises(ValueError, match="suffixes must be like"):
        SourceSpec("series", "slices", NoConfig, lambda config, context: None, suffixes=suffixes)


def test_of_media_of_two_modalities_the_encoder_decides(tmp_path: Path) -> None:
    """Where it says which it takes; one of a hub, which isn't opened to ask, leaves it to what
    there is most of.
    """
    names = ["cover.jpg", "a.wav", "b.wav"]
    values, remarks = recipe_of(tmp_path, names, "tiny-kl")
    assert (values["source"]["use"], values["modality"]["use"]) == ("folder", "image")
    assert any("2 files of the modality sound are left out" in remark for remark in remarks)
    assert recipe_of(tmp_path, names)[0]["modality"]["use"] == "sound"


def test_an_ending_of_two_modalities_is_read_as_the_encoder_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def build(config: NoConfig, context: BuildContext) -> Any:
        built.append(config)
        return SimpleNamespace(modality="points")

    points = ModalitySpec(
        "points", "points", NoConfig, lambda config, context: None, suffixes=[".wav"]
    )
    encoder = EncoderSpec("pointnet", "points", NoConfig, build)
    registry = Registry(
        [
            *with_sounds().provided,
            Provided(points, "acme-points", "1"),
            Provided(encoder, "acme-points", "1"),
        ]
    )
    monkeypatch.setattr(shorthand, "discover", lambda: registry)
    values, remarks = recipe_of(tmp_path, ["a.wav"], "pointnet")
    assert values["modality"]["use"] == "points"
    assert not any("sound" in remark for remark in remarks)
    assert built == [NoConfig()]


def test_a_modality_that_the_overrides_name_is_the_one_looked_for(tmp_path: Path) -> None:
    for name in ("cover.jpg", "a.wav", "b.wav"):
        (tmp_path / name).touch()
    values, _ = shorthand.encode_recipe(
        str(tmp_path), "out", "tiny-kl", None, ["modality.use=sound"]
    )
    assert values["modality"]["use"] == "sound"
    assert values["source"]["with"]["suffixes"] == [".wav", ".nii.gz"]
