"""How the contract ages: a plugin of the first version works, one of a newer version is refused by
name, a retired hook says so.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from latentkit import hooks

HERE = Path(__file__).parent
GUIDE = HERE.parents[1] / "docs" / "contract.md"


def environment_with(*folders: str) -> dict[str, str]:
    """The environment of an interpreter in which these fake distributions are installed."""
    paths = [str(HERE / folder) for folder in folders] + list(
        filter(None, [os.environ.get("PYTHONPATH")])
    )
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LATENTKIT_DISABLE": "",
    }


def run_python(program: str, *folders: str) -> Any:
    """What a new interpreter prints as JSON in its last line."""
    line = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(
        line, env=environment_with(*folders), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


KIT = """
import json, sys, tempfile
from pathlib import Path
import acme_first as first
from latentkit.contracts import Sample
from latentkit.testing import EncoderContract, LossContract, ModalityContract, SourceContract, StreamSourceContract, find_failures

ramp, shards = first.latentkit_sources()

class Ramp(SourceContract):
    spec = ramp
class Shards(StreamSourceContract):
    spec = shards
class Bytes(ModalityContract):
    spec = first.latentkit_modalities()
    def make_samples(self, tmp_path):
        return [first.draw(number, []) for number in range(2)]
class Patch(EncoderContract):
    spec = first.latentkit_encoders()
class Quartic(LossContract):
    spec = first.latentkit_losses()

failures = {}
with tempfile.TemporaryDirectory() as folder:
    for contract in (Ramp, Shards, Bytes, Patch, Quartic):
        (Path(folder) / contract.__name__).mkdir()
        found = find_failures(contract(), Path(folder) / contract.__name__)
        failures |= {f"{contract.__name__}: {name}": repr(error) for name, error in found.items()}
print(json.dumps(failures))
"""


def test_a_plugin_of_the_first_contract_passes_todays_contract_kit() -> None:
    assert run_python(KIT, "first_contract") == {}


USE = """
import json, sys
import torch
import latentkit as lk
from latentkit.plugins import discover

problems = [str(one) for one in discover().problems if one.distribution == "acme-first"]
with_captions = {"use": "first-ramp", "with": {"count": 5, "captions": ["one", "two"]}}
common = {"modality": {"use": "first-bytes"}, "batch_size": 2}
encode = {"task": "encode", "encoder": {"use": "first-patch"}, "threads": 1, "preview": 2, **common}
data = lk.run({**encode, "source": with_captions, "output": {"path": sys.argv[1] + "/rows"}})
stream = lk.run({**encode, "source": {"use": "first-shards"}, "output": {"path": sys.argv[1] + "/stream"}})
train = {"task": "train", "source": with_captions, "model": {"use": "first-patch"}, "losses": [{"use": "first-quartic"}, {"use": "kl"}]}
lk.run({**train, **common, "steps": 2, "optimizer": {"lr": 0.001}, "output": {"path": sys.argv[1] + "/trained"}})
texts = lk.open(sys.argv[1] + "/rows", columns=["text"], views=["plain"])
decoded = data.decode(lk.open(sys.argv[1] + "/rows", posterior="mean")[0]["latent"][None])
print()
print(json.dumps({
    "problems": problems,
    "rows": [len(data), len(stream)],
    "shape": list(data[0]["latent"].shape),
    "texts": [texts[number]["text"] for number in range(5)],
    "decoded": list(decoded.shape),
}))
"""


def test_a_plugin_of_the_first_contract_encodes_trains_and_decodes(tmp_path: Path) -> None:
    line = [sys.executable, "-c", USE, str(tmp_path)]
    done = subprocess.run(
        line, env=environment_with("first_contract"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "problems": [],
        "rows": [10, 8],
        "shape": [2, 4, 4],
        "texts": ["one", "two", "", "", ""],
        "decoded": [1, 3, 32, 32],
    }
    assert (tmp_path / "rows" / "preview.png").stat().st_size > 0


def test_a_plugin_for_a_newer_contract_is_refused_in_one_line_and_costs_nobody_else(
    tmp_path: Path,
) -> None:
    line = [sys.executable, "-m", "latentkit", "plugins"]
    done = subprocess.run(
        line,
        env=environment_with("newer_contract", "good"),
        capture_output=True,
        text=True,
        check=True,
    )
    (problem,) = [line for line in done.stdout.splitlines() if "acme-newer" in line]
    assert problem.startswith(
        "problem   acme-newer 2.0: newer = acme_newer.plugin: made for version 99 of the plugin"
        " contract; this is"
    )
    assert f"which has version {hooks.CONTRACT}: install a newer latentkit-diffusion" in problem
    assert "good-count" in done.stdout


RETIRED = """
import json
from latentkit import hooks

warning = DeprecationWarning("latentkit_losses is retired since version 9 of the contract: return a LossSpec from latentkit_parts")
hooks.hookspec(warn_on_impl=warning)(hooks.latentkit_losses)
from latentkit.plugins import discover
registry = discover()
found = registry.find("loss", "good-loss").spec.summary
print(json.dumps([found, [str(one) for one in registry.problems if one.distribution == "acme-good"]]))
"""


def test_a_retired_hook_works_and_says_what_to_do_instead() -> None:
    found, problems = run_python(RETIRED, "good")
    assert found == "a loss"
    assert problems == [
        "acme-good 1.2: good = acme_good: latentkit_losses: latentkit_losses is retired since"
        " version 9 of the contract: return a LossSpec from latentkit_parts"
    ]


def test_the_page_on_the_contract_ends_with_the_version_there_is() -> None:
    versions = [
        int(number)
        for number in re.findall(
            r"^## Version (\d+)", GUIDE.read_text(encoding="utf-8"), flags=re.M
        )
    ]
    assert versions == list(range(1, hooks.CONTRACT + 1))


ENCODE = """
import contextlib, io, json, sys
from latentkit.cli import main

said = {}
for name in sys.argv[2:]:
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main(["encode", "sample-photos", f"{sys.argv[1]}/{name}", "--encoder", name, "--size", "32", "--set", "batch_size=2"])
    said[name] = [code, " ".join(errors.getvalue().split())]
print(json.dumps(said))
"""
LIES = {
    "lies-channels": (
        r"'latent' has shape \(2, 3, 4, 4\); its layout says 2 rows, axes CHW, 4 channels"
    ),
    "lies-sizes": r"'latent' has sizes .*4.*4.* for an input of .*32.*32.*; its layout says .*8.*8",
    "lies-kind": r"the encoder returned \['latent'\]; a gaussian layout needs \['logvar', 'mean'\]",
    "lies-axes": (
        r"'latent' has shape \(2, 3, 4, 4\); its layout says 2 rows, axes CTHW, 3 channels"
    ),
}


def test_a_layout_that_lies_is_caught_on_the_first_batch(tmp_path: Path) -> None:
    line = [sys.executable, "-c", ENCODE, str(tmp_path), *LIES]
    done = subprocess.run(
        line, env=environment_with("lying_layout"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert {name: code for name, (code, _) in said.items()} == dict.fromkeys(LIES, 2)
    assert [name for name, (_, text) in said.items() if not re.search(LIES[name], text)] == []
    assert list(tmp_path.glob("*/units/*")) == []
