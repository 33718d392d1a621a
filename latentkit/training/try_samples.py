"""Some samples of a source prepared before the first step, so that a source that can't be trained
on shows at once.
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
    """Warnings about up to 64 samples, evenly spread over the source: pictures that are enlarged.

    Args:
        prepare: gives the views of a sample, `Prepared` where their geometry is to be looked at.
        policy: the recipe's on bad samples.

    Raises:
        SourceError: as many of them can't be used as would end the run; or they can't be reached.
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
        f"{num_enlarged} of {count} pictures that were tried are smaller than the size they are"
        " prepared to"
    )
    return [f"{small}, and are enlarged; {advice}"]


def _is_enlarged(view: object) -> bool:
    """Return whether a view has more pixels than its picture or video had."""
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
