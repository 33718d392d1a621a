"""Source `sample-photos`: photographs that come with scikit-image."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
from PIL import Image

from latentkit.contracts import Source
from latentkit.errors import SourceError
from latentkit.sources.sample_photos import open_sample_photos


def test_several_photographs_in_color_with_captions_in_a_fixed_order() -> None:
    source = open_sample_photos()
    assert isinstance(source, Source)
    keys = [entry.key for entry in source.entries()]
    assert keys == sorted(set(keys))
    assert len(keys) == len(source) >= 6
    for index, entry in enumerate(source.entries()):
        sample = source[index]
        assert (sample.key, sample.stamp, sample.attributes) == (
            entry.key,
            entry.stamp,
            entry.attributes,
        )
        assert len(entry.attributes["text"].split()) > 4
        with Image.open(sample.media) as photo:  # type: ignore[arg-type]
            assert photo.mode == "RGB"
            assert min(photo.size) >= 256


def test_source_outlives_pickling() -> None:
    source = open_sample_photos()
    again = pickle.loads(pickle.dumps(source))
    assert list(again.entries()) == list(source.entries())
    assert again[0].read() == source[0].read()


def test_scikit_image_is_not_imported() -> None:
    program = (
        "import sys; from latentkit.sources.sample_photos import open_sample_photos; "
        "print(len(list(open_sample_photos().entries())), 'skimage' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    assert answer == [str(len(open_sample_photos())), "False"]


def test_missing_package_is_named_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    with pytest.raises(SourceError, match=r'pip install "latentkit-diffusion\[demo\]"'):
        open_sample_photos()
