"""The registry: looking up, configuring, listing, and what of a config counts for a fingerprint."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from pydantic import Field

from latentkit import contracts, hooks
from latentkit.contracts import (
    BuildContext,
    Config,
    EncoderSpec,
    LossSpec,
    NamedSpec,
    PluginSpec,
    neutral,
)
from latentkit.encoders.options import DiffusersConfig
from latentkit.errors import PluginError, RecipeError
from latentkit.modalities.options import ImageConfig
from latentkit.plugins import (
    HOOKS,
    KINDS,
    Problem,
    Provided,
    Registry,
    Row,
    discover,
    fingerprint_fields,
)


class InnerConfig(Config):
    area: int = Field(description="pixels")
    step: int = Field(64, description="pixels")
    cache: int = neutral(1, description="bytes")


class NetConfig(Config):
    net: str = Field("vgg", description="name of the network")
    layers: list[int] = Field([1, 2], min_length=1, description="numbers of the layers")
    weight: float | None = Field(None, description="factor; none: 1")
    inner: InnerConfig | None = Field(None, description="a part")
    inners: dict[str, InnerConfig] = Field(default_factory=dict, description="parts by name")
    tags: frozenset[str] = Field(frozenset(), description="words")
    cache: str | None = neutral(None, description="folder")


def build(config: Config, context: BuildContext) -> Any:
    return config


NET = Provided(LossSpec("net", "a network's distance", NetConfig, build), "acme-net", "1.0")
NET_TOO = Provided(LossSpec("net", "another's", NetConfig, build), "acme-too", "2.0")
NET_ENCODER = Provided(
    EncoderSpec("net", "same name, another kind", NetConfig, build), "acme-net", "1.0"
)


def configure(options: dict[str, Any], origin: str = "") -> Any:
    return Registry([NET]).configure("loss", "net", options, "losses[1]", origin)


def test_there_is_a_spec_for_every_hook_and_a_hook_for_every_spec() -> None:
    declared = {
        name
        for name, function in vars(hooks).items()
        if name.startswith("latentkit_") and inspect.isfunction(function)
    }
    specs = {
        spec
        for spec in vars(contracts).values()
        if isinstance(spec, type) and issubclass(spec, NamedSpec) and spec not in (NamedSpec, PluginSpec)
    }
    assert set(HOOKS) == declared
    assert set(HOOKS.values()) == specs
    for name, spec in HOOKS.items():
        assert (
            inspect.signature(getattr(hooks, name)).return_annotation
            == f"{spec.__name__} | Iterable[{spec.__name__}]"
        )
        assert not inspect.signature(getattr(hooks, name)).parameters


def test_core_has_no_problem_of_its_own() -> None:
    registry = discover()
    assert registry is discover()
    assert [
        problem for problem in registry.problems if problem.distribution == "latentkit-diffusion"
    ] == []
    assert registry.find("encoder", "tiny-kl").spec.config.__name__ == "TinyKLConfig"


def test_a_name_is_found_among_its_kind() -> None:
    registry = Registry([NET, NET_ENCODER])
    assert registry.find("loss", "net") is NET
    assert registry.find("encoder", "net") is NET_ENCODER


def test_an_unknown_kind_is_a_misuse() -> None:
    with pytest.raises(
        ValueError,
        match=(
            "unknown kind of plugin 'losses'; known: source, modality, encoder, loss, executor,"
            " exporter, metric, task, command"
        ),
    ):
        Registry().find("losses", "l1")


def test_a_name_of_an_empty_kind_is_an_error_that_says_so() -> None:
    with pytest.raises(PluginError, match=r"no exporter is named 'npy'\. Known: none"):
        Registry([NET]).find("exporter", "npy")


def test_a_missing_plugin_brings_the_problems_recorded() -> None:
    with pytest.raises(PluginError) as caught:
        Registry(
            [NET], [Problem("acme", "1.0", "acme = acme", "ImportError: no")], [("acme-b", "2.0")]
        ).find("loss", "nett")
    assert str(caught.value).splitlines() == [
        "no loss is named 'nett', did you mean 'net'? Known: net",
        "  left out by LATENTKIT_DISABLE: acme-b 2.0",
        "  a plugin has a problem: acme 1.0: acme = acme: ImportError: no",
    ]


def test_a_clash_names_every_provider_and_its_version() -> None:
    with pytest.raises(
        PluginError,
        match=(
            r"loss 'net' is provided by acme-net 1\.0 and acme-too 2\.0; uninstall one, or"
            r" .*LATENTKIT_DISABLE"
        ),
    ):
        Registry([NET, NET_ENCODER, NET_TOO]).find("loss", "net")


def test_options_become_the_spec_s_config() -> None:
    config = configure({"net": "alex", "layers": [3], "weight": 1, "inner": {"area": 4}})
    assert isinstance(config, NetConfig)
    assert config == NetConfig(net="alex", layers=[3], weight=1.0, inner=InnerConfig(area=4))


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({"nett": "alex"}, ["losses[1].with.nett: unknown key, did you mean 'net'?"]),
        ({"layers": [1, "2"]}, ["losses[1].with.layers[1]: expected a whole number, got '2'"]),
        ({"layers": []}, ["losses[1].with.layers: expected a length of at least 1, got []"]),
        ({"inner": {}}, ["losses[1].with.inner.area: missing; expected pixels"]),
        (
            {"inner": {"area": 1, "stp": 2}},
            ["losses[1].with.inner.stp: unknown key, did you mean 'step'?"],
        ),
        (
            {"inners": {"a": {"area": "x"}}},
            ["losses[1].with.inners.a.area: expected a whole number, got 'x'"],
        ),
        (
            {"inners": {"a": {"aera": 1, "area": 2}}},
            ["losses[1].with.inners.a.aera: unknown key, did you mean 'area'?"],
        ),
        (
            {"weight": True, "net": None},
            [
                "losses[1].with.net: expected text, got null",
                "losses[1].with.weight: expected a number, got true",
            ],
        ),
        ({"net": "x" * 99, "inner": 3}, ["losses[1].with.inner: expected a mapping, got 3"]),
        ({"net": ["x" * 99]}, [f'losses[1].with.net: expected text, got ["{"x" * 58}...']),
    ],
)
def test_refused_options_are_one_line_each_with_the_whole_key(
    options: dict[str, Any], lines: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        configure(options)
    assert str(caught.value).splitlines() == lines
    with pytest.raises(RecipeError) as caught:
        configure(options, origin="vae.yaml")
    assert str(caught.value).splitlines() == [f"vae.yaml: {line}" for line in lines]


def test_a_union_is_explained_by_the_branch_that_came_further() -> None:
    registry = discover()
    for size, line in [
        ([256, "x"], "modality.with.size[1]: expected a whole number, got 'x'"),
        ([256], "modality.with.size[1]: missing"),
        ("x", "modality.with.size: expected a whole number or a list, got 'x'"),
    ]:
        with pytest.raises(RecipeError) as caught:
            registry.configure("modality", "image", {"size": size}, "modality")
        assert str(caught.value) == line


def test_what_a_config_s_own_validator_says_is_passed_on() -> None:
    registry = discover()
    with pytest.raises(
        RecipeError, match=r"^encoder\.with: give model \(weights to load\) or config"
    ):
        registry.configure("encoder", "diffusers", {}, "encoder")
    with pytest.raises(
        RecipeError,
        match=(
            r"^modality\.with\.views: unknown view 'vflip'; known: .*, got \[\"plain\","
            r" \"vflip\"\]$"
        ),
    ):
        registry.configure("modality", "image", {"views": ["plain", "vflip"]}, "modality")


def test_a_plugin_that_a_recipe_names_wrong_is_an_error_at_its_use() -> None:
    with pytest.raises(PluginError, match=r"^vae\.yaml: losses\[0\]\.use: no loss is named 'l3'"):
        discover().configure("loss", "l3", {}, "losses[0]", "vae.yaml")


def test_rows_go_by_kind_then_name_and_hold_what_the_listing_shows() -> None:
    rows = Registry([NET_TOO, NET, NET_ENCODER]).rows()
    assert rows == [
        Row("encoder", "net", "acme-net", "1.0", "same name, another kind"),
        Row("loss", "net", "acme-net", "1.0", "a network's distance"),
        Row("loss", "net", "acme-too", "2.0", "another's"),
    ]
    parts = ("source", "modality", "encoder", "loss", "executor", "exporter", "metric")
    assert (*parts, "task", "command") == KINDS


def test_a_field_at_its_default_is_no_part_of_a_fingerprint_given_or_not() -> None:
    assert fingerprint_fields(NetConfig()) == {}
    assert fingerprint_fields(NetConfig(net="vgg", layers=[1, 2], weight=None, inners={})) == {}


def test_a_neutral_field_is_no_part_of_a_fingerprint_at_any_depth() -> None:
    assert fingerprint_fields(NetConfig(cache="/tmp")) == {}
    assert fingerprint_fields(DiffusersConfig(model="a/b", revision="main", dtype="bfloat16")) == {
        "dtype": '"bfloat16"'
    }
    assert fingerprint_fields(NetConfig(inner=InnerConfig(area=9, cache=5))) == {
        "inner": '{"area":9}'
    }


def test_a_fingerprint_holds_canonical_json_of_what_differs() -> None:
    config = NetConfig(
        weight=1e-6,
        layers=[3, 1],
        inner=InnerConfig(area=9, step=64),
        inners={"b": InnerConfig(area=1, step=2), "a": InnerConfig(area=1)},
        tags=frozenset({"c", "a", "b"}),
    )
    assert fingerprint_fields(config) == {
        "weight": "1e-06",
        "layers": "[3,1]",
        "inner": '{"area":9}',
        "inners": '{"a":{"area":1},"b":{"area":1,"step":2}}',
        "tags": '["a","b","c"]',
    }
    assert fingerprint_fields(ImageConfig(size=(256, 384), views=["plain", "hflip"])) == {
        "size": "[256,384]",
        "views": '["plain","hflip"]',
    }
