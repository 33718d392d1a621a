"""The extension module, compiled once for each state of its sources and each torch."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import torch

SOURCES = Path(__file__).with_name("csrc")
BUILD = Path(__file__).parents[1] / "build"
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-w"]


def load_extension() -> ModuleType:
    """Compile the extension if need be, and import it.

    Raises:
        RuntimeError: there is no C++ compiler, or it failed; with its message.
    """
    sources = sorted(SOURCES.iterdir())
    state = [
        torch.__version__,
        sysconfig.get_config_var("SOABI"),
        *FLAGS,
        *(file.read_text() for file in sources),
    ]
    folder = BUILD / hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "_C.so"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            _compile(library)
    spec = importlib.util.spec_from_file_location("latentkit_sim._C", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(library: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise RuntimeError("The simulated device needs a C++ compiler: install g++, or set CXX.")
    root = Path(torch.__file__).parent
    includes = [
        root / "include",
        root / "include/torch/csrc/api/include",
        sysconfig.get_paths()["include"],
    ]
    partial = library.with_suffix(".partial")
    line = [
        compiler,
        *FLAGS,
        *(f"-I{folder}" for folder in includes),
        str(SOURCES / "backend.cpp"),
        "-o",
        str(partial),
    ]
    line += [
        f"-L{root / 'lib'}",
        f"-Wl,-rpath,{root / 'lib'}",
        "-lc10",
        "-ltorch_cpu",
        "-ltorch",
        "-ltorch_python",
    ]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"The simulated device didn't compile with {compiler}:\n{done.stderr[-4000:]}"
        )
    partial.replace(library)
