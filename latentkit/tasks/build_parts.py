"""Builds the objects that a checked recipe names. It loads only what the plugins load."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentkit.contracts import (
    BuildContext,
    Encoder,
    Executor,
    Modality,
    Source,
    StreamSource,
)
from latentkit.contracts.encoder_description import readable_input
from latentkit.errors import DeviceError, RecipeError
from latentkit.plugins.registry import (
    default_fields,
    discover,
    fingerprint_fields,
    parse_fingerprint_field,
)
from latentkit.recipe.schema import EncodeRecipe, SourceRecipe, parse_recipe
from latentkit.runtime.paths import is_url
from latentkit.runtime.yaml_files import parse_yaml
from latentkit.tasks.check_recipe import ConfiguredPlugin, check_recipe

if TYPE_CHECKING:
    from latentkit.store.folder import Folder


@dataclass
class EncoderOpener:
    """Takes a device and returns the encoder. Each is built once per process; built ones aren't
    pickled.

    Args:
        modality: name of the recipe's modality; empty if there is none.
    """

    plugin: ConfiguredPlugin
    seed: int
    recipe_dir: Path
    modality: str = ""
    _opened: dict[str, Encoder] = field(default_factory=dict, repr=False)

    def __call__(self, device: str) -> Encoder:
        if device not in self._opened:
            self._check_dtype(device)
            context = BuildContext(
                device=device, seed=self.seed, recipe_dir=self.recipe_dir, modality=self.modality
            )
            self._opened[device] = self.plugin.provided.spec.build(self.plugin.config, context)
        return self._opened[device]

    def _check_dtype(self, device: str) -> None:
        """Refuse a dtype that the device doesn't support, because latents of another dtype would
        look the same.
        """
        if getattr(self.plugin.config, "dtype", None) != "bfloat16":
            return
        from latentkit.runtime.device import has_bfloat16

        if not has_bfloat16(device):
            raise DeviceError(
                f"{device} can't compute in bfloat16; set the encoder's dtype to float32, or to"
                " float16"
            )

    def in_float32(self) -> EncoderOpener | None:
        """Return the opener of the same encoder computing in float32, which may be this one.

        Return None if its options have no dtype.
        """
        if "dtype" not in type(self.plugin.config).model_fields:
            return None
        if self.plugin.config.dtype == "float32":
            return self
        config = self.plugin.config.model_copy(update={"dtype": "float32"})
        return EncoderOpener(
            replace(self.plugin, config=config), self.seed, self.recipe_dir, self.modality
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}


@dataclass(frozen=True)
class ConfiguredEncode:
    """One source, modality and encoder of a recipe, found and configured.

    Args:
        name: the encoder's name in `encoders`; empty for the only one.
    """

    name: str
    recipe: SourceRecipe
    source: ConfiguredPlugin
    modality: ConfiguredPlugin
    encoder: ConfiguredPlugin

    def encoder_opener(self) -> EncoderOpener:
        """Return what opens the encoder."""
        return EncoderOpener(
            self.encoder, self.recipe.seed, self.recipe.base_dir, self.modality.provided.spec.name
        )

    def open_source(self) -> Source | StreamSource:
        """Return the source. If the modality's config has a `media_attribute`, that attribute of
        samples is their media.

        Raises:
            SourceError: the source doesn't exist or is empty.
        """
        source: Source | StreamSource = self.source.provided.spec.build(
            self.source.config, self._context()
        )
        attribute: str | None = getattr(self.modality.config, "media_attribute", None)
        if attribute is None:
            return source
        from latentkit.sources.attribute_media import take_attribute

        return take_attribute(source, attribute)

    def open_modality(self, encoder: Encoder) -> Modality:
        """Return the modality, built for the encoder's input.

        Raises:
            RecipeError: the encoder takes another modality, or the options don't fit the encoder.
        """
        wanted, got = encoder.modality, self.modality.provided.spec.name
        if wanted != got:
            model = getattr(self.encoder.config, "model", None)
            name = f"{self.encoder.provided.spec.name!r}" + (f" (model {model})" if model else "")
            expected = (
                f"the encoder {name} takes the modality {wanted!r}, got {got!r}; set it to"
                f" {wanted}, or name another encoder"
            )
            raise RecipeError(f"{self.recipe.origin}: modality.use: {expected}")
        try:
            return self.modality.provided.spec.build(self.modality.config, self._context(encoder))  # type: ignore[no-any-return]
        except RecipeError as error:
            if str(error).startswith(str(self.recipe.origin)):
                raise
            raise RecipeError(f"{self.recipe.origin}: {error}") from error

    def settled(self, recorded: Mapping[str, str] | None) -> ConfiguredEncode:
        """Return the same with each option that the recipe leaves open set to the existing
        dataset's value, or to the value for a new dataset.

        A modality's config lists these options, with the values for a new dataset, by an optional
        method `for_new_dataset()`. So every process of a run, and every later run, uses the values
        of the first plan.

        Args:
            recorded: parts of the fingerprint in the dataset's plan; None for a new dataset.
        """
        config = self.modality.config
        options: dict[str, Any] = (
            config.for_new_dataset() if hasattr(config, "for_new_dataset") else {}
        )
        if recorded is not None:
            there = {name: recorded.get(f"modality.with.{name}") for name in options}
            options = {
                name: parse_fingerprint_field(text) for name, text in there.items() if text
            }
        return self._with_modality_options(options) if options else self

    def fitted(self, encoder: Encoder) -> tuple[ConfiguredEncode, list[str]]:
        """Return the same with sizes that the recipe leaves open set to the nearest that the
        encoder accepts.

        A modality's config declares these options, with their values, by an optional method
        `fitted(InputSpec)`.

        Returns:
            The changed encode, and a remark for each size that was set.
        """
        config, taken = self.modality.config, self._context(encoder).input
        options: dict[str, Any] = config.fitted(taken) if hasattr(config, "fitted") else {}
        if not options:
            return self, []
        remarks = [
            (
                f"{self.modality.where}.with.{name}: {value}, because the encoder doesn't accept"
                f" the default {getattr(config, name)}"
            )
            for name, value in options.items()
        ]
        return self._with_modality_options(options), remarks

    def _with_modality_options(self, options: Mapping[str, Any]) -> ConfiguredEncode:
        """Return the same with these options added to its recipe."""
        use = self.recipe.modality.model_copy(
            update={"with_": {**self.recipe.modality.with_, **options}}
        )
        recipe = self.recipe.model_copy(update={"modality": use})
        config = discover().configure(
            "modality", use.use, use.with_, self.modality.where, recipe.origin
        )
        return replace(self, recipe=recipe, modality=replace(self.modality, config=config))

    @property
    def views(self) -> Sequence[str]:
        """Return the names of the views that the modality makes of each sample: its option `views`,
        else "plain".
        """
        return list(getattr(self.modality.config, "views", ["plain"]))

    def fingerprint_parts(self, encoder: Encoder) -> dict[str, str]:
        """Return the names and values of everything in encoder and modality that affects the value
        of a latent.
        """
        parts = _option_parts(self.encoder) | _option_parts(self.modality) | _own_parts(encoder)
        if getattr(self.modality.config, "crop", None) == "random" or any(
            "-" in view for view in self.views
        ):
            parts["modality.seed"] = str(self.recipe.seed)
        return parts

    def default_parts(self) -> dict[str, str]:
        """Return the names and values of the options that `fingerprint_parts` leaves out at their
        default.
        """
        plugins = (("encoder", self.encoder), ("modality", self.modality))
        fields = ((kind, default_fields(plugin.config)) for kind, plugin in plugins)
        return {
            f"{kind}.with.{name}": value for kind, found in fields for name, value in found.items()
        }

    def _context(self, encoder: Encoder | None = None) -> BuildContext:
        """Return the context for building the modality, with the encoder's input if there is one.
        """
        taken = None
        if encoder is not None:
            taken = readable_input(encoder.input, encoder.layout, encoder.normalization)
        modality = self.modality.provided.spec.name
        return BuildContext(
            seed=self.recipe.seed, recipe_dir=self.recipe.base_dir, input=taken, modality=modality
        )


def encoder_parts(plugin: ConfiguredPlugin, encoder: Encoder) -> dict[str, str]:
    """Return the names and values of everything in an encoder that affects the value of a
    latent.
    """
    return _option_parts(plugin) | _own_parts(encoder)


def _option_parts(plugin: ConfiguredPlugin) -> dict[str, str]:
    kind, spec = plugin.kind, plugin.provided.spec
    fields = fingerprint_fields(plugin.config)
    options = {f"{kind}.with.{name}": value for name, value in fields.items()}
    return {f"{kind}.name": spec.name, f"{kind}.version": str(spec.version)} | options


def _own_parts(encoder: Encoder) -> dict[str, str]:
    return {f"encoder.{name}": value for name, value in encoder.fingerprint().items()}


def configured_encodes(recipe: EncodeRecipe) -> list[ConfiguredEncode]:
    """Return one configured encode per encoder.

    Raises:
        PluginError, RecipeError: as for `check_recipe`.
    """
    plugins = {plugin.where: plugin for plugin in check_recipe(recipe, discover())}
    names = (
        {"": "encoder"}
        if recipe.encoder is not None
        else {name: f"encoders.{name}" for name in recipe.encoders or {}}
    )
    return [
        ConfiguredEncode(name, recipe, plugins["source"], plugins["modality"], plugins[where])
        for name, where in names.items()
    ]


def configured_encode_of(folder: Folder) -> ConfiguredEncode:
    """Return the encode that made the latent dataset in `folder`, from its recipe.yaml.

    Raises:
        RecipeError, PluginError: the recipe, or a plugin that it names, is missing.
    """
    where = f"{folder}/recipe.yaml"
    values = parse_yaml(folder.read("recipe.yaml").decode(errors="replace"), where)
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where}: expected a mapping that starts with 'task:'")
    recipe = parse_recipe(values, where, Path.cwd() if is_url(str(folder)) else Path(str(folder)))
    if not isinstance(recipe, EncodeRecipe):
        raise RecipeError(f"{where}: expected task: encode, got {recipe.task}")
    return configured_encodes(recipe)[0]


def open_executor(
    recipe: EncodeRecipe, device: str = "auto", devices: Sequence[str] = ()
) -> Executor:
    """Return the executor of a recipe. `auto` is accelerate if launched by it, else local.

    Args:
        device: replaces the executor's option of that name, unless "auto".
        devices: replaces the option of that name, unless empty.

    Raises:
        DeviceError: the device doesn't exist.
        RecipeError: the executor chooses devices itself.
    """
    use, options = recipe.executor.use, dict(recipe.executor.with_)
    if use == "auto":
        use = "accelerate" if is_launched() else "local"
    registry = discover()
    spec = registry.find("executor", use).spec
    if devices and "devices" not in spec.config.model_fields:
        whose = (
            "a launcher gives each process its device"
            if is_launched()
            else f"executor {use!r} chooses devices itself"
        )
        raise RecipeError(
            f"{recipe.origin}: --devices {','.join(devices)}: {whose}; leave the option out"
        )
    if devices or device != "auto":
        options = {
            name: value for name, value in options.items() if name not in ("device", "devices")
        }
        options |= (
            {"devices": list(devices)}
            if devices
            else {"device": device}
            if "device" in spec.config.model_fields
            else {}
        )
    config = registry.configure("executor", use, options, "executor", recipe.origin)
    from latentkit.runtime.device import choose_device

    build: Callable[[Any, BuildContext], Executor] = spec.build
    wanted = device if device != "auto" else getattr(config, "device", "auto")
    return build(config, BuildContext(choose_device(wanted), recipe.seed, recipe.base_dir))


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether `accelerate launch` or torchrun started this process."""
    return "LOCAL_RANK" in environment or "ACCELERATE_MIXED_PRECISION" in environment
