"""A plugin that writes the version of the contract as a text."""

from latentkit.contracts import BuildContext, Config, SourceSpec
from latentkit.hooks import hookimpl

requires_contract = "2"


@hookimpl
def latentkit_sources() -> SourceSpec:
    return SourceSpec("odd", "never listed", Config, lambda config, context: BuildContext())
