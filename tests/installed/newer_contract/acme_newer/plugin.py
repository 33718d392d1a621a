"""It imports what isn't there yet, which would be all one hears of it."""

from latentkit.contracts import HologramSpec  # type: ignore[attr-defined]

hologram = HologramSpec
