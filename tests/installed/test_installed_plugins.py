"""Entry points as an installed distribution has them, one folder beside this file per way to fail.

Each folder holds a module and its `.dist-info`; put on the path of a new interpreter, it is what
`pip install` leaves behind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from latentkit import __version__

HERE = Path(__file__).parent
HEAVY = {"torch", "diffusers", "accelerate", "datasets", "numpy", "pyarrow", "transformers", "PIL"}

REPORT = """
import json
from latentkit.errors import PluginError
from latentkit.plugins import KINDS, discover

registry = discover()

def look_up(kind, name):
    try:
        one = registry.find(kind, name)
    except PluginError as err:
        return str(err)
    return [one.distribution, one.version, one.spec.summary]

names = {(row.kind, row.name) for row in registry.rows()} | {("source", name) for name in ("never-heard-of", "good-cuont")}
print(json.dumps({
    "found": {f"{kind} {name}": look_up(kind, name) for kind, name in sorted(names)},
    "problems": [[p.distribution, p.version, p.where, p.cause, str(p)] for p in registry.problems],
    "disabled": registry.disabled,
}))
"""


def run_python(program: str, *folders: str, **environment: str) -> Any:
    """What a new interpreter prints as JSON, with folders of fake distributions installed, in that
    order.
    """
    paths = [str(HERE / folder) for folder in folders] + list(
        filter(None, [os.environ.get("PYTHONPATH")])
    )
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LATENTKIT_DISABLE": "",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


BROKEN = {
    "bad_name": ("acme-bad-name", "0.6", "latentkit_sources", "name must be kebab-case"),
    "extra_argument": (
        "acme-extra-argument",
        "0.4",
        "latentkit_sources",
        "Argument(s) {'recipe'} are declared in the hookimpl",
    ),
    "import_error": (
        "acme-import-error",
        "0.1",
        "import-error = acme_import_error",
        "ImportError: libacme.so.3: cannot open shared object file",
    ),
    "late_generator": ("acme-late-generator", "0.5", "latentkit_sources", "KeyError: 'ACME_TOKEN'"),
    "misspelled_hook": (
        "acme-misspelled",
        "0.3",
        "latentkit_source",
        "there is no such hook, did you mean 'latentkit_sources'?",
    ),
    "nameless": (
        "acme_nameless-0.9.dist-info",
        "",
        "entry_points.txt",
        "its METADATA is missing or names no distribution",
    ),
    "newer_contract": (
        "acme-newer",
        "2.0",
        "newer = acme_newer.plugin",
        "made for version 99 of the plugin contract; this is latentkit",
    ),
    "no_hook": ("acme-no-hook", "0.8", "no-hook = acme_no_hook", "implements no hook"),
    "odd_contract": (
        "acme-odd",
        "1.3",
        "odd = acme_odd",
        "acme_odd.requires_contract: expected a whole number from 1, got '2'",
    ),
    "system_exit": (
        "acme-system-exit",
        "0.2",
        "system-exit = acme_system_exit",
        "SystemExit: usage: acme [OPTIONS]",
    ),
    "wrong_type": (
        "acme-wrong-type",
        "0.7",
        "latentkit_sources",
        "expected SourceSpec or an iterable of them, got int",
    ),
}
OTHERS = (
    "good",
    "first_contract",
    "lying_layout",
    "new_kinds",
    "twin_a",
    "twin_b",
    "clash_with_builtin",
    "taken_task",
    "shadow_new",
    "shadow_old",
)


@pytest.fixture(scope="module")
def everything() -> Mapping[str, Any]:
    """The report with all fake distributions installed at once."""
    report: Mapping[str, Any] = run_python(REPORT, *BROKEN, *OTHERS)
    return report


def test_every_folder_beside_this_file_is_installed_by_these_tests() -> None:
    assert {folder.name for folder in HERE.iterdir() if any(folder.glob("*.dist-info"))} == {
        *BROKEN,
        *OTHERS,
    }


@pytest.mark.parametrize("folder", BROKEN)
def test_a_broken_plugin_is_recorded_with_distribution_version_place_and_cause(
    folder: str, everything: Mapping[str, Any]
) -> None:
    distribution, version, where, cause = BROKEN[folder]
    found = [
        problem
        for problem in everything["problems"]
        if problem[:2] == [distribution, version] and where in problem[2] and cause in problem[3]
    ]
    assert len(found) == 1
    assert "\n" not in found[0][4]


def test_a_spec_of_another_kind_a_text_and_a_forgotten_mark_are_recorded(
    everything: Mapping[str, Any],
) -> None:
    causes = {
        (problem[0], problem[2].split()[-1]): problem[3] for problem in everything["problems"]
    }
    assert causes["acme-wrong-type", "latentkit_losses"] == "expected LossSpec, got SourceSpec"
    assert causes["acme-wrong-type", "latentkit_modalities"] == "expected ModalitySpec, got str"
    assert (
        causes["acme-extra-argument", "latentkit_losses"]
        == "not marked as a hook; add @hookimpl (from latentkit.hooks)"
    )


def test_no_broken_plugin_stops_another_name_from_being_found(
    everything: Mapping[str, Any],
) -> None:
    found = everything["found"]
    assert found["source good-count"] == ["acme-good", "1.2", "counts"]
    assert found["loss good-loss"][0] == "acme-good"
    builtin = {name for name, answer in found.items() if answer[0] == "latentkit-diffusion"}
    assert builtin >= {
        "source datasets",
        "source sample-photos",
        "modality image",
        "encoder diffusers",
        "encoder tiny-kl",
        "loss l1",
        "executor local",
    }


def test_a_good_hook_counts_beside_a_bad_one_and_a_hook_counts_whole_or_not_at_all(
    everything: Mapping[str, Any],
) -> None:
    found = everything["found"]
    assert found["loss beside-misspelled"][:2] == ["acme-misspelled", "0.3"]
    assert found["loss beside-late"][:2] == ["acme-late-generator", "0.5"]
    assert not {
        "source before-the-end",
        "loss in-bad-company",
        "source misspelled-source",
        "loss unmarked",
    } & set(found)


def test_two_providers_of_a_name_are_named_with_versions_and_only_that_name_fails(
    everything: Mapping[str, Any],
) -> None:
    advice = "; uninstall one, or leave one out with LATENTKIT_DISABLE=DISTRIBUTION"
    twins = "source 'twin' is provided by acme-twin-a 1.0 and acme-twin-b 1.1" + advice
    folder = (
        f"source 'folder' is provided by latentkit-diffusion {__version__} and acme-clash 3.0"
        + advice
    )
    assert everything["found"]["source twin"] == twins
    assert everything["found"]["source only-a"][0] == "acme-twin-a"
    assert everything["found"]["source only-b"][0] == "acme-twin-b"
    assert everything["found"]["source folder"] == folder
    assert [
        problem[3]
        for problem in everything["problems"]
        if problem[2] in ("source twin", "source folder")
    ] == [folder, twins]


def test_of_a_distribution_installed_twice_the_first_on_the_path_counts(
    everything: Mapping[str, Any],
) -> None:
    assert everything["found"]["loss shadow"] == ["Acme.Shadow", "2.0", "version 2.0"]
    assert run_python(REPORT, "shadow_old", "shadow_new")["found"]["loss shadow"] == [
        "Acme.Shadow",
        "1.0",
        "version 1.0",
    ]


def test_an_unknown_name_brings_a_near_one_the_known_ones_and_the_problems_that_may_be_why(
    everything: Mapping[str, Any],
) -> None:
    first, *others = everything["found"]["source good-cuont"].splitlines()
    question, known = first.split("? Known: ")
    assert question == "no source is named 'good-cuont', did you mean 'good-count'"
    names = known.split(", ")
    assert names == sorted(names)
    assert set(names) >= {
        "datasets",
        "folder",
        "good-count",
        "good-count-too",
        "only-a",
        "only-b",
        "sample-photos",
        "twin",
    }
    assert others == [
        f"  a plugin has a problem: {problem[4]}" for problem in everything["problems"]
    ]
    assert everything["found"]["source never-heard-of"].startswith(
        "no source is named 'never-heard-of'. Known: "
    )


def test_a_disabled_distribution_is_left_out_and_listed() -> None:
    report = run_python(
        REPORT,
        "twin_a",
        "twin_b",
        "system_exit",
        "good",
        LATENTKIT_DISABLE="acme_twin.B, Acme-System-Exit,acme-absent",
    )
    assert report["found"]["source twin"][0] == "acme-twin-a"
    assert report["disabled"] == [["acme-system-exit", "0.2"], ["acme-twin-b", "1.1"]]
    ((distribution, _, where, cause, _),) = report["problems"]
    assert (distribution, where) == ("acme-absent", "LATENTKIT_DISABLE")
    assert cause == "no installed distribution of this name has plugins"
    assert (
        "left out by LATENTKIT_DISABLE: acme-system-exit 0.2, acme-twin-b 1.1" in report["found"][
            "source never-heard-of"
        ]
    )


@pytest.mark.parametrize("folder", BROKEN)
def test_each_broken_plugin_alone_costs_only_itself(folder: str) -> None:
    report = run_python(REPORT, folder, "good")
    assert report["found"]["source good-count"][0] == "acme-good"
    assert report["found"]["encoder diffusers"][0] == "latentkit-diffusion"
    assert {problem[0] for problem in report["problems"]} == {BROKEN[folder][0]}


LIGHT = f"""
import json, sys
import latentkit.builtin, latentkit.tasks.check_recipe, latentkit.contracts, latentkit.errors, latentkit.hooks, latentkit.plugins, latentkit.recipe.schema
from pathlib import Path

values = {{
    "task": "train", "source": {{"use": "folder", "with": {{"path": "photos"}}}},
    "modality": {{"use": "image", "with": {{"buckets": {{"area": 65536}}}}}},
    "model": {{"use": "tiny-kl"}}, "losses": [{{"use": "l1"}}, {{"use": "kl", "weight": 1e-6}}], "steps": 1, "output": {{"path": "out"}},
}}
recipe = latentkit.recipe.schema.parse_recipe(values, "light", Path())
configured = latentkit.tasks.check_recipe.check_recipe(recipe, latentkit.plugins.discover())
print(json.dumps([len(configured), sorted({HEAVY!r} & set(sys.modules))]))
"""


def test_finding_checking_and_listing_load_nothing_heavy() -> None:
    assert run_python(LIGHT, "good") == [5, []]


DISCOVERY_TIME = """
import json, time

start = time.process_time()
import pydantic

class Warm(pydantic.BaseModel):
    number: int = pydantic.Field(1, description="pydantic loads parts of itself at the first class")

loaded = time.process_time()
from latentkit.plugins import discover
registry = discover()
print(json.dumps((time.process_time() - loaded) / (loaded - start)))
"""


def test_discovery_takes_the_processor_less_long_than_two_thirds_of_loading_pydantic(
    tmp_path: Path,
) -> None:
    """As a ratio, since processors differ in speed, and one from minute to minute.

    Both are compiled before, as they are where they were installed.
    """
    others = ",".join(
        {
            entry.dist.name
            for entry in metadata.entry_points(group="latentkit")
            if entry.dist is not None
        }
    )
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    _, *ratios = [
        run_python(DISCOVERY_TIME, LATENTKIT_DISABLE=others, **compiled) for _ in range(4)
    ]
    assert min(ratios) < 2 / 3
