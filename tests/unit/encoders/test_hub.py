"""Models of the hub: which files are downloaded, what is told when they can't be, and which words
name a place there.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import Failure, FakeHub, commit_of, read_files
from huggingface_hub import constants

from latentkit.encoders.diffusers_loading import find_model
from latentkit.encoders.hub import hub_commit
from latentkit.errors import EncoderError
from latentkit.runtime.hub_places import HubPlace, parse_hub_place
from latentkit.tasks.recipe_from_arguments import encoder_from_word

Files = dict[str, bytes]
STEM = "diffusion_pytorch_model"
TRANSFORMER = json.dumps({"_class_name": "WanModel"}).encode()


def find(
    model: str, modality: str = "image", subfolder: str | None = None, revision: str | None = None
) -> Path:
    return find_model(model, subfolder, revision, Path("/nowhere"), modality)


def find_error(model: str, **options: Any) -> str:
    with pytest.raises(EncoderError) as caught:
        find(model, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="session")
def config(kl_folder: Path) -> bytes:
    return (kl_folder / "config.json").read_bytes()


# ---------------------------------------------------------------- what is downloaded


def test_of_a_pipeline_its_configs_and_the_weights_of_the_autoencoder_are_downloaded_once(
    hub: FakeHub, kl_folder: Path
) -> None:
    parts = {f"{part}/{STEM}.safetensors": b"x" * 99 for part in ("unet", "text_encoder")}
    configs = {f"{part}/config.json": TRANSFORMER for part in ("unet", "text_encoder")}
    files = {
        **read_files(kl_folder, "vae/"),
        **parts,
        **configs,
        "model_index.json": b"{}",
        "README.md": b"me",
    }
    hub.add("o/pipe", files)
    folder = find("o/pipe")
    assert (folder / f"{STEM}.safetensors").read_bytes() == (
        kl_folder / f"{STEM}.safetensors"
    ).read_bytes()
    weights = [name for name in hub.downloads if not name.endswith(".json")]
    assert weights == [f"o/pipe/vae/{STEM}.safetensors"]
    assert hub_commit(folder) == f"o/pipe@{commit_of(files)}"
    hub.downloads.clear()
    assert find("o/pipe") == folder
    assert hub.downloads == []


SHARDS = [
    f"{STEM}-00001-of-00002.safetensors",
    f"{STEM}-00002-of-00002.safetensors",
    f"{STEM}.safetensors.index.json",
]
FORMS: dict[str, tuple[list[str], list[str]]] = {
    "plain and variant and bin": (
        [
            f"{STEM}.safetensors",
            f"{STEM}.fp16.safetensors",
            f"{STEM}.bin",
            f"{STEM}.non_ema.safetensors",
        ],
        [f"{STEM}.safetensors"],
    ),
    "bin only": ([f"{STEM}.bin"], [f"{STEM}.bin"]),
    "bin and a variant": (
        [f"{STEM}.bin", f"{STEM}.fp16.safetensors", f"{STEM}.fp16.bin"],
        [f"{STEM}.bin"],
    ),
    "variant only": (
        [f"{STEM}.fp16.safetensors", f"{STEM}.fp16.bin"],
        [f"{STEM}.fp16.safetensors"],
    ),
    "variant as bin": ([f"{STEM}.fp16.bin"], [f"{STEM}.fp16.bin"]),
    "shards": ([*SHARDS, f"{STEM}.fp16.safetensors"], SHARDS),
    "shards of an upload before": (
        [
            f"{STEM}-00001-of-00001.safetensors",
            f"{STEM}-00001-of-00003.safetensors",
            f"{STEM}.safetensors.index.json",
        ],
        [f"{STEM}-00001-of-00001.safetensors", f"{STEM}.safetensors.index.json"],
    ),
    "shards of a variant": (
        [f"{STEM}.fp16-00001-of-00001.safetensors", f"{STEM}.safetensors.index.fp16.json"],
        [f"{STEM}.fp16-00001-of-00001.safetensors", f"{STEM}.safetensors.index.fp16.json"],
    ),
    "shards of a variant as once named": (
        [f"{STEM}-00001-of-00001.fp16.safetensors", f"{STEM}.safetensors.index.fp16.json"],
        [f"{STEM}-00001-of-00001.fp16.safetensors", f"{STEM}.safetensors.index.fp16.json"],
    ),
    "flax and onnx beside": (
        [f"{STEM}.safetensors", "diffusion_flax_model.msgpack", "model.onnx"],
        [f"{STEM}.safetensors"],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_form_of_the_weights_is_downloaded(hub: FakeHub, config: bytes, form: str) -> None:
    there, wanted = FORMS[form]
    below = "vae/" if len(form) % 2 else ""
    shards = [name for name in wanted if "-of-" in name]
    index = json.dumps(
        {"weight_map": {str(number): name for number, name in enumerate(shards)}}
    ).encode()
    files = {below + name: index if name.endswith(".json") else name.encode() for name in there}
    hub.add("o/m", {below + "config.json": config, **files})
    folder = find("o/m")
    assert sorted(hub.downloads) == sorted(
        f"o/m/{below}{name}" for name in [*wanted, "config.json"]
    )
    assert all((folder / name).is_file() for name in wanted)


def test_of_a_pipeline_with_two_autoencoders_only_the_one_that_takes_the_modality_is_downloaded(
    hub: FakeHub, config: bytes
) -> None:
    audio = json.dumps({"_class_name": "AutoencoderOobleck"}).encode()
    weights = {f"{part}/{STEM}.safetensors": part.encode() for part in ("vae", "audio_vae")}
    hub.add("o/both", {"vae/config.json": config, "audio_vae/config.json": audio, **weights})
    assert find("o/both", "audio").name == "audio_vae"
    assert f"o/both/vae/{STEM}.safetensors" not in hub.downloads
    assert find("o/both", "image").name == "vae"
    message = find_error("o/both", modality="image", subfolder="audio_vae")
    assert "audio_vae doesn't accept the modality 'image'; vae beside it does" in message


def test_transformers_repository_is_refused_before_its_weights_with_what_to_give_instead(
    hub: FakeHub, kl_folder: Path
) -> None:
    shards = {f"{STEM}-0000{number}-of-00002.safetensors": b"x" * 999 for number in (1, 2)}
    index = {f"{STEM}.safetensors.index.json": b'{"weight_map": {}}'}
    files = {
        "config.json": TRANSFORMER,
        **shards,
        **index,
        "Wan2.1_VAE.pth": b"x",
        "models_t5.pth": b"x",
    }
    hub.add("o/Wan-14B", files)
    hub.add("o/Wan-14B-Diffusers", read_files(kl_folder, "vae/"))
    message = find_error("o/Wan-14B")
    assert "_class_name is 'WanModel'" in message
    assert "o/Wan-14B-Diffusers has it in diffusers' form" in message
    assert "name a single file as o/Wan-14B/Wan2.1_VAE.pth" in message
    assert hub.downloads == ["o/Wan-14B/config.json"]


def test_repository_of_single_files_names_them(hub: FakeHub) -> None:
    hub.add(
        "o/original", {"vae-ft-mse.safetensors": b"x", "vae-ft-mse.ckpt": b"x", "README.md": b"me"}
    )
    message = find_error("o/original")
    assert "no config.json" in message
    assert "o/original/vae-ft-mse.ckpt or o/original/vae-ft-mse.safetensors" in message
    assert hub.downloads == []


def test_several_variants_and_no_plain_weights_are_named(hub: FakeHub, config: bytes) -> None:
    names = [f"{STEM}.fp16.safetensors", f"{STEM}.non_ema.safetensors"]
    hub.add("o/m", {"config.json": config} | dict.fromkeys(names, b"x"))
    message = find_error("o/m")
    assert "only as fp16 and non_ema; choose by the option variant, such as variant: fp16" in message
    find_model("o/m", None, None, Path("/nowhere"), "image", "non_ema")
    assert f"o/m/{names[1]}" in hub.downloads
    assert f"o/m/{names[0]}" not in hub.downloads
    with pytest.raises(
        EncoderError, match="no weights of variant 'bf16'; available: fp16, non_ema"
    ):
        find_model("o/m", None, None, Path("/nowhere"), "image", "bf16")


def test_weights_of_another_name_are_taken_where_they_are_alone(
    hub: FakeHub, config: bytes
) -> None:
    hub.add(
        "o/m", {"config.json": config, "model.safetensors": b"x", "other/model.safetensors": b"y"}
    )
    assert (find("o/m") / "model.safetensors").is_file()
    assert "o/m/other/model.safetensors" not in hub.downloads


def test_config_without_weights_lists_what_is_there(hub: FakeHub, config: bytes) -> None:
    hub.add("o/m", {"config.json": config, "diffusion_flax_model.msgpack": b"x"})
    message = find_error("o/m")
    assert "no weights" in message
    assert "diffusion_flax_model.msgpack" in message


# ---------------------------------------------------------------- words that name a place


def test_every_way_to_name_a_place_finds_it(hub: FakeHub, kl_folder: Path) -> None:
    repository = hub.add("o/pipe", {"README.md": b""})
    repository.revisions["v1"] = read_files(kl_folder, "vae/")
    weights = f"vae/{STEM}.safetensors"
    texts = [
        f"{hub.endpoint}/o/pipe/tree/v1",
        f"{hub.endpoint}/o/pipe/tree/v1/vae/",
        "o/pipe@v1",
        "o/pipe@v1/vae",
        "hf://o/pipe@v1/vae",
    ]
    folders = {find(text) for text in texts} | {
        find("o/pipe", revision="v1"),
        find("o/pipe/vae", revision="v1"),
    }
    assert [folder.name for folder in folders] == ["vae"]
    files = [
        f"{hub.endpoint}/o/pipe/{page}/v1/{weights}" for page in ("blob", "resolve", "raw")
    ] + [f"o/pipe@v1/{weights}"]
    [file] = {find(text) for text in files}
    assert file.read_bytes() == (kl_folder / f"{STEM}.safetensors").read_bytes()
    assert file.with_name("config.json").is_file()  # a single file needs it


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("https://huggingface.co/o/n", HubPlace("o/n")),
        ("http://www.huggingface.co/o/n/", HubPlace("o/n")),
        ("hf.co/o/n/tree/main/vae", HubPlace("o/n", "main", "vae")),
        ("https://hf-mirror.com/o/n/tree/refs%2Fpr%2F1", HubPlace("o/n", "refs/pr/1")),
        ("https://huggingface.co/o/n/tree/refs/pr/1/vae", HubPlace("o/n", "refs/pr/1", "vae")),
        (
            "https://huggingface.co/o/n/blob/main/a%20b.ckpt?download=true#L1",
            HubPlace("o/n", "main", "a b.ckpt"),
        ),
        ("https://huggingface.co/o/n/discussions/3", HubPlace("o/n")),
        ("https://huggingface.co/datasets/o/n/tree/main", HubPlace("o/n", "main", kind="dataset")),
        ("https://huggingface.co/spaces/o/n", HubPlace("o/n", kind="space")),
        ("hf://datasets/o/n@x/data", HubPlace("o/n", "x", "data", kind="dataset")),
        ("o/n/vae/a.safetensors", HubPlace("o/n", None, "vae/a.safetensors")),
        *(
            (text, None)
            for text in (
                "photos",
                "./o/n",
                "/o/n",
                "~/o/n",
                "o n/m",
                "o/n/../m",
                "weights/vae.safetensors",
                "",
            )
        ),
        *(
            (text, None)
            for text in (
                "https://example.com/o/n",
                "s3://o/n",
                "C:/o/n",
                "https://huggingface.co/",
                "o/vae.CKPT",
            )
        ),
    ],
)
def test_place_of_a_text(text: str, place: HubPlace | None) -> None:
    assert parse_hub_place(text) == place


@pytest.mark.parametrize("model", ["model-of-mine", "weights/vae.safetensors", "./o/n", "a b/c"])
def test_mistyped_path_is_called_no_path_and_no_hub_id(hub: FakeHub, model: str) -> None:
    message = find_error(model)
    assert f"no such file or folder ({Path('/nowhere') / model}), nor a hub id" in message
    assert hub.requests == []


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("https://example.com/vae.safetensors", "download it, and give the path of the file"),
        ("https://huggingface.co/datasets/o/n", "this is a dataset on the hub; expected a model"),
        ("https://huggingface.co/spaces/o/n", "this is a space on the hub; expected a model"),
    ],
)
def test_address_of_something_else_is_refused(hub: FakeHub, model: str, words: str) -> None:
    assert words in find_error(model)


def test_two_revisions_are_refused(hub: FakeHub) -> None:
    assert "'v1', but the option revision is 'v2'. Leave one out" in find_error(
        "o/n@v1", revision="v2"
    )


# ---------------------------------------------------------------- what the hub refuses, and a hub
# out of reach


def test_gated_model_tells_to_accept_its_terms_and_log_in(
    hub: FakeHub, kl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("o/gated", read_files(kl_folder), token="hf_good", is_gated=True)
    message = find_error("o/gated")
    assert (
        f"o/gated is gated: accept its terms at {hub.endpoint}/o/gated, then log in with `hf auth"
        " login`, or set HF_TOKEN"
        in message
    )
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    words = (
        'the account of your token has no access ("Access to model o/gated is restricted."):'
        " accept its terms"
    )
    assert words in find_error("o/gated")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert (find("o/gated") / "config.json").is_file()


def test_missing_or_private_model_is_told_so(
    hub: FakeHub, kl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("o/private", read_files(kl_folder), token="hf_good")
    for name in ("o/private", "o/nothing"):
        message = find_error(name)
        assert (
            f"the hub has no model of that name ({name}). Check the spelling; for a private one"
            " log in with `hf auth login`"
            in message
        )
        assert f"no such file or folder here (/nowhere/{name})" in message
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "Check the spelling; your token has no access to a private one" in find_error(
        "o/private"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert (find("o/private") / "config.json").is_file()


def test_missing_revision_folder_and_file_are_named(hub: FakeHub, kl_folder: Path) -> None:
    hub.add("o/m", read_files(kl_folder, "vae/") | {"text/merges.txt": b"x"})
    assert (
        f"o/m has no revision 'nope'; branches and tags: {hub.endpoint}/o/m/branches"
        in find_error("o/m@nope")
    )
    assert "no config.json in unet" in find_error("o/m", subfolder="unet")
    assert "o/m has no file or folder vae/missing.safetensors" in find_error(
        "o/m/vae/missing.safetensors"
    )
    assert "o/m has no config.json of a model or pipeline in text" in find_error("o/m/text")


FAILURES: dict[str, tuple[Failure, str]] = {
    "limit": (
        Failure(429, {"Retry-After": "37"}),
        "limit of requests is reached (429): run again in 37 seconds",
    ),
    "limit without a time": (
        Failure(429),
        "limit of requests is reached (429): run again in a few minutes",
    ),
    "error of the hub": (Failure(500), "the hub has an internal error (500 from"),
    "maintenance": (Failure(503), "the hub has an internal error (503 from"),
    "bad gateway": (Failure(502, body=b"<html>"), "the hub has an internal error (502 from"),
    "token that is refused": (
        Failure(401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
        (
            "the hub refuses your token: it is mistyped, expired or revoked; log in with `hf auth"
            " login`"
        ),
    ),
    "token of few rights": (
        Failure(403, {"X-Error-Message": "Forbidden: pass a token"}),
        "give a fine-grained token read access",
    ),
    "disabled": (
        Failure(403, {"X-Error-Message": "Access to this resource is disabled."}),
        "the hub has disabled o/m",
    ),
    "a page": (
        Failure(200, {"Content-Type": "text/html"}, b"<html>Sign in to the network"),
        "is not the hub",
    ),
    "other JSON": (Failure(200, {"Content-Type": "application/json"}, b"[]"), "is not the hub"),
    "teapot": (Failure(418), "the hub answers 418"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_each_failure_has_its_own_sentence(hub: FakeHub, failure: str) -> None:
    hub.failure, words = FAILURES[failure]
    assert words in find_error("o/m")


def test_failures_leave_what_is_in_the_cache_usable(hub: FakeHub, kl_folder: Path) -> None:
    hub.add("o/m", read_files(kl_folder))
    folder = find("o/m")
    for failure, _ in FAILURES.values():
        hub.failure = failure
        assert find("o/m") == folder


@pytest.mark.parametrize("model", ["o/m", "o/m/vae.safetensors"])
def test_files_that_the_hubs_library_leaves_out_are_missed_at_once(
    hub: FakeHub, kl_folder: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions before 1.0 give the folder of the cache, as it is, where the limit is reached
    between listing and fetching.
    """
    hub.add("o/m", read_files(kl_folder) | {"vae.safetensors": b"x"})
    folder = find("o/m")
    shutil.rmtree(folder.parent.parent / "blobs")
    (folder / "config.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("latentkit.encoders.hub.snapshot_download", lambda *_, **__: str(folder))
        message = find_error(model)
    assert "vae.safetensors" in message if "/vae" in model else "config.json" in message
    assert "can't be downloaded from the hub now; run again in a few minutes" in message
    assert find(model).exists()


def test_repository_in_the_cache_is_opened_by_its_folder(hub: FakeHub, kl_folder: Path) -> None:
    hub.add("o/m", read_files(kl_folder))
    folder = find("o/m")
    repository = folder.parent.parent
    assert encoder_from_word(str(repository), [])["use"] == "diffusers"
    assert find(str(repository)) == folder
    shutil.copytree(folder, repository / "snapshots" / "another")
    assert find(str(repository)) == folder
    shutil.rmtree(repository / "refs")
    assert "none of its 2 snapshots is of the revision 'main'" in find_error(str(repository))
    assert find(str(repository), revision="another").name == "another"


@pytest.fixture
def dead_endpoint() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("way", ["offline", "dead mirror"])
def test_without_the_hub_the_cached_snapshot_is_used(
    hub: FakeHub,
    kl_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    dead_endpoint: str,
    put_hub_at: Callable[[str], None],
) -> None:
    hub.add("o/m", read_files(kl_folder, "vae/"))
    hub.add("o/config-only", {"vae/config.json": (kl_folder / "config.json").read_bytes()})
    folder = find("o/m")
    find_error("o/config-only")
    if way == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        words = (
            "HF_HUB_OFFLINE is set, and {} is missing or incomplete in the cache"
            f" {constants.HF_HUB_CACHE}: unset it once"
        )
    else:
        put_hub_at(dead_endpoint)
        words = f"{dead_endpoint} can't be reached"
    hub.requests.clear()
    assert find("o/m") == folder
    assert words.format("o/other") in find_error("o/other")
    partly = find_error("o/config-only")
    assert "only a part of it is in the cache" in partly
    assert words.format("o/config-only") in partly
    assert hub.requests == []
