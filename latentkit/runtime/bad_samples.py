"""Limits on the number of bad samples in a run, and advice on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from latentkit.errors import SourceError

MIN_BAD_ALLOWED = 10
MOST_NAMED = 3

NOT_FINITE = (
    "the latents are not finite; set on_overflow: retry-fp32, encode with dtype bfloat16 or "
    "float32, or store with dtype float32"
)
"""Reason of a sample whose latents, not its media, are the problem."""


@dataclass(frozen=True)
class BadSamplePolicy:
    """A recipe's settings for bad samples, the same in every task.

    Args:
        on_bad_sample: "skip", or "fail" at the first.
        max_bad: share of all samples above which bad ones end the run; ten never do.
    """

    on_bad_sample: str = "skip"
    max_bad: float = 0.05

    def check_one(self, key: str, reason: str) -> None:
        """Raise an error for a bad sample if `on_bad_sample` is "fail".

        Raises:
            SourceError: the message names the sample and the reason.
        """
        if self.on_bad_sample == "fail":
            advice = "remove it, or set on_bad_sample: skip, which records it and leaves it out"
            raise SourceError(f"sample {key!r} can't be used: {reason}; {advice}")

    def exceeds_max_bad(self, num_bad: int, num_samples: int) -> bool:
        """Return whether this many bad samples are more than `max_bad` allows."""
        return num_bad > MIN_BAD_ALLOWED and num_bad > self.max_bad * num_samples

    def check_all(
        self,
        reasons: Mapping[str, str],
        num_samples: int,
        advice: str = "Repair the source, or raise max_bad",
        *,
        what: str = "samples",
        when: str = "",
    ) -> None:
        """Raise an error if too many samples are bad.

        Args:
            reasons: reason for each bad sample, by key.
            num_samples: number of all samples, good and bad.
            advice: what to do, for the message.
            what, when: which samples these are, and until when they were counted; for the message.

        Raises:
            SourceError: the message has their number, the most frequent reasons and a few keys.
        """
        if self.exceeds_max_bad(len(reasons), num_samples):
            problem = f"{len(reasons)} of {num_samples} {what} can't be used{when}"
            allowed = f"more than max_bad: {self.max_bad:g} allows"
            raise SourceError(f"{problem}: {_summarize(reasons, f', {allowed}')}. {advice}")
        if reasons and len(reasons) == num_samples:
            refuse_all(reasons, f"{num_samples} {what}")


def refuse_all(reasons: Mapping[str, str], what: str = "samples of the source") -> NoReturn:
    """Raise an error because no sample is good.

    Raises:
        SourceError: the message has the most frequent reasons and a few keys.
    """
    found = f": {_summarize(reasons)}" if reasons else ""
    raise SourceError(f"none of the {what} can be used{found}")


def _summarize(reasons: Mapping[str, str], middle: str = "") -> str:
    counts = Counter(reasons.values()).most_common(MOST_NAMED)
    named = "; ".join(why if count == 1 else f"{why} ({count} times)" for why, count in counts)
    return f"{named}{middle}, such as {', '.join(list(reasons)[:MOST_NAMED])}"


def advise_on_bad_samples(reasons: Mapping[str, str], folder: str) -> str:
    """Return what to do about samples with these reasons, for the run in `folder`."""
    why = set(reasons.values())
    fixes = ["repair the source"] * bool(why - {NOT_FINITE})
    fixes += ["set on_overflow or a dtype as described"] * (NOT_FINITE in why)
    again = f"raise max_bad and run {folder}/recipe.yaml again"
    return f"Either {' and '.join(fixes)} and choose another output.path, or {again}"
