"""How long the light commands take: whole processes, the best of several.

python tests/benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import latentkit": ["-c", "import latentkit"],
    "latentkit --help": ["-m", "latentkit", "--help"],
    "latentkit plugins": ["-m", "latentkit", "plugins"],
}


def best_of(arguments: list[str], times: int = 10) -> float:
    """Seconds of the quickest run."""
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


if __name__ == "__main__":
    bare = best_of(COMMANDS["python -c pass"])
    for name, arguments in COMMANDS.items():
        seconds = best_of(arguments)
        print(f"{name:24s} {seconds:.3f} s, {seconds - bare:.3f} s above a bare interpreter")
