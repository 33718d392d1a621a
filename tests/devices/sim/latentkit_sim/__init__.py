"""A simulated accelerator: the torch device "sim". See tests/devices/README.md.

torch calls `autoload` when it is imported and this folder's parent is on PYTHONPATH.
"""

import os


def autoload() -> None:
    """Register the device if LATENTKIT_SIM is set: to "1", or options as "devices=2,no-bf16"."""
    if os.environ.get("LATENTKIT_SIM", "0") not in {"", "0"}:
        from latentkit_sim.backend import register

        register(os.environ["LATENTKIT_SIM"])
