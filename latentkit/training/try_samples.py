"""Prepares some samples of a source before the first step, so that a source that can't be used is
noticed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from latentkit.contracts import Prepared, Sample, Source
from latentkit.errors import SampleError, SourceError
from latentkit.preparing.media_retry import with_retries
from latentkit.runtime.bad_samples import exceeds_max_bad
from latentkit.runtime.cores import share_of_cores
from latentkit.runtime.sample_faults import faults_skip_sample

NUM_TRIED = 64


def try_samples(
    source: Source,
    prepare: Callable[[Sample], Iterable[object]],
    on_bad_sample: str,
    max_bad: float,
) -> list[str]:
    """Return warnings about up to 64 samples, spread over the source: images that are enlarged.

    Args:
        prepare: returns the views of a sample, as `Prepared` if their geometry is checked.
        max_bad: share of bad samples above which a run fails, when they are more than 10.

    Raises:
        SourceError: enough of them are bad to end the run, or they can't be reached.
    """
    count = min(len(source), NUM_TRIED)

    def tried(place: int) -> tuple[str, bool]:
        index = place * len(source) // count
        name = f"sample {index}"

        def views() -> list[object]:
            nonlocal name
            with faults_skip_sample(source):
                sample = source[index]
            name = repr(sample.key)
            with faults_skip_sample(getattr(prepare, "__self__", prepare), sample.key):
                return list(prepare(sample))

        try:
            return "", any(_is_enlarged(view) for view in with_retries(views, f"sample {name}"))
        except SampleError as error:
            return f"{name}: {error}", False

    with ThreadPoolExecutor(share_of_cores()) as pool:
        found = list(pool.map(tried, range(count)))
    bad = [reason for reason, _ in found if reason]
    if bad and (
        on_bad_sample == "fail" or len(bad) == count or exceeds_max_bad(len(bad), count, max_bad)
    ):
        advice = (
            "remove them, or set on_bad_sample: skip"
            if on_bad_sample == "fail"
            else f"max_bad is {max_bad:g}"
        )
        raise SourceError(
            f"{len(bad)} of {count} samples that were tried before the first step can't be used,"
            f" such as {bad[0]}; {advice}"
        )
    num_enlarged = sum(enlarged for _, enlarged in found)
    if not num_enlarged:
        return []
    advice = "modality.with.min_size leaves small ones out"
    small = (
        f"{num_enlarged} of {count} pictures that were tried are smaller than the size they are"
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
