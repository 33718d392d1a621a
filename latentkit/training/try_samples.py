"""Prepares some samples of a source before the first step, so that a source that can't be used is
noticed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from latentkit.contracts import Prepared, Sample, Source
from latentkit.preparing.sample_trier import SampleTrier
from latentkit.runtime.bad_samples import BadSamplePolicy
from latentkit.runtime.cores import share_of_cores

NUM_TRIED = 64


def try_samples(
    source: Source,
    prepare: Callable[[Sample], Iterable[object]],
    policy: BadSamplePolicy,
) -> list[str]:
    """Return warnings about up to 64 samples, spread over the source: images that are enlarged.

    Args:
        prepare: returns the views of a sample, as `Prepared` if their geometry is checked.
        max_bad: share of bad samples above which a run fails, when they are more than 10.

    Raises:
        SourceError: enough of them are bad to end the run, or they can't be reached.
    """
    count, trier = min(len(source), NUM_TRIED), SampleTrier(source)
    places = (place * len(source) // count for place in range(count))
    with ThreadPoolExecutor(share_of_cores()) as pool:
        found = list(pool.map(lambda place: trier.try_sample(place, prepare), places))
    reasons = {tried.key: tried.reason for tried in found if tried.reason}
    for key, reason in reasons.items():
        policy.check_one(key, reason)
    policy.check_all(reasons, count, what="samples that were tried before the first step")
    num_enlarged = sum(any(map(_is_enlarged, tried.views)) for tried in found)
    if not num_enlarged:
        return []
    advice = "modality.with.min_size leaves small ones out"
    small = (
        f"{num_enlarged} of {count} images that were tried are smaller than the size they are"
        " prepared to"
    )
    return [f"{small}, and are enlarged; {advice}"]


def _is_enlarged(view: object) -> bool:
    """Return whether a view of an image or video has more pixels than that, by its geometry."""
    if (
        not isinstance(view, Prepared)
        or not isinstance(view.tensor, Tensor)
        or not {"height", "width"} <= set(view.geometry or ())
    ):
        return False
    assert view.geometry is not None
    return bool(
        view.tensor.shape[-2] > view.geometry["height"]
        or view.tensor.shape[-1] > view.geometry["width"]
    )
