"""Source `sample-photos`: the color photographs in the scikit-image package, for trying things
without a download.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from latentkit.contracts import Entry, Sample
from latentkit.errors import SourceError

# Those in color among the files of the wheel itself; the rest of skimage.data is downloaded on
# first use.
CAPTIONS = {
    "astronaut.png": (
        "an astronaut in an orange suit in front of a flag and a model of a space shuttle"
    ),
    "chelsea.png": "a tabby cat looking into the camera",
    "coffee.png": "a cup of espresso with a spoon on a wooden table",
    "hubble_deep_field.jpg": (
        "hundreds of galaxies in a patch of dark sky, seen by a space telescope"
    ),
    "ihc.png": "stained tissue under a microscope, brown and blue",
    "motorcycle_left.png": "a motorcycle in a garage, seen by the left one of two cameras",
    "motorcycle_right.png": "a motorcycle in a garage, seen by the right one of two cameras",
    "retina.jpg": "the retina of an eye with its blood vessels",
    "rocket.jpg": "a rocket on its launch pad at night",
}


@dataclass(frozen=True)
class SamplePhotos:
    """The photographs in one folder: the key is the file name, "text" a caption, the media a
    `Path`, the stamp the size and package version.
    """

    folder: Path
    package_version: str

    def __len__(self) -> int:
        return len(CAPTIONS)

    def __getitem__(self, index: int) -> Sample:
        """Return the photograph at a position, in the order of file names."""
        name, caption = list(CAPTIONS.items())[index]
        path = self.folder / name
        return Sample(
            name, path, {"text": caption}, f"{path.stat().st_size}-{self.package_version}"
        )

    def entries(self) -> Iterator[Entry]:
        """Yield one entry per photograph, in order. None is opened."""
        samples = (self[index] for index in range(len(self)))
        return (Entry(sample.key, sample.stamp, sample.attributes) for sample in samples)


def open_sample_photos() -> SamplePhotos:
    """Return the photographs of the installed scikit-image, which is not imported.

    Raises:
        SourceError: scikit-image is not installed, or lacks a photograph.
    """
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(
            "source sample-photos: scikit-image is not installed;"
            ' pip install "latentkit-diffusion[demo]"'
        )
    folder = Path(spec.submodule_search_locations[0]) / "data"
    try:
        photos = SamplePhotos(folder, version("scikit-image"))
    except PackageNotFoundError as err:
        raise SourceError(
            f"source sample-photos: {folder.parent} is not an installed scikit-image; pip install"
            ' "latentkit-diffusion[demo]"'
        ) from err
    missing = [name for name in CAPTIONS if not (folder / name).is_file()]
    if missing:
        raise SourceError(
            f"source sample-photos: scikit-image {photos.package_version} has no"
            f" {', '.join(missing)} in {folder}; install it again: pip install --force-reinstall"
            ' "latentkit-diffusion[demo]"'
        )
    return photos
