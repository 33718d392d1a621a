"""Chooses which file of a sample in a tar is its media."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from latentkit.contracts import Remark
from latentkit.contracts.samples import one_line
from latentkit.errors import SampleError
from latentkit.sources.endings import list_few, missing_plugin
from latentkit.sources.shards import Group, kind_of


@dataclass(frozen=True)
class MediaChoice:
    """Chooses the field of a sample that is its media.

    Args:
        field: the field that the recipe names; None means the one whose ending is in `endings`.
        endings: endings, with the dot, of the files that the modality reads.
        usual: the field that is taken where several match; None if nothing is known to decide.
        companions: fields such as "mask.png" that belong to other media, so they are none.
    """

    field: str | None
    endings: tuple[str, ...]
    usual: str | None = None
    companions: frozenset[str] = frozenset()

    def fit(self, groups: Sequence[Group]) -> MediaChoice:
        """Return the choice for a dataset with these samples.

        Of several fields that match, the one that every sample has is usual. A longer ending, such
        as "mask.png", that stands beside a plain one, such as "jpg", is a companion.
        """
        if self.field is not None:
            return self
        beside = {
            field
            for group in groups
            if (matches := self._matches(group))[0]
            for field in matches[1]
        }
        fitted = replace(self, companions=frozenset(beside))
        having_media = (found for group in groups if (found := fitted.candidates(group)))
        common = set(next(having_media, ()))
        for found in having_media:
            common.intersection_update(found)
        return replace(fitted, usual=common.pop() if len(common) == 1 else None)

    def candidates(self, group: Group) -> list[str]:
        """Return the fields of a sample that may be its media; usually one, or none."""
        if self.field is not None:
            return [self.field] if self.field in group.fields else []
        plain, longer = self._matches(group)
        return plain or [field for field in longer if field not in self.companions]

    def of(self, group: Group) -> str | None:
        """Return the sample's media field, or None.

        Raises:
            SampleError: several fields may be it.
        """
        found = self.candidates(group)
        if self.usual in found:
            return self.usual
        if len(found) > 1:
            raise SampleError(f"it has {_list_several(found)}")
        return found[0] if found else None

    def decides(self, groups: Iterable[Group]) -> bool:
        """Return whether any sample has media, and only one file of it."""
        every = (self.candidates(group) for group in groups)
        return any(len(found) == 1 or self.usual in found for found in every)

    def _matches(self, group: Group) -> tuple[list[str], list[str]]:
        """Return the fields that are an ending of the modality, and those that end in one."""
        matches = [field for field in group.fields if f".{field}".endswith(self.endings)]
        plain = [field for field in matches if f".{field}" in self.endings]
        return plain, [field for field in matches if field not in plain]


def _list_several(fields: Sequence[str]) -> str:
    """Return what is wrong with a sample that has several media files, and what to do."""
    names = ", ".join(sorted(fields))
    return f"several media files: {names}; name the ending of one in source.with.media"


def explain_no_media(groups: Sequence[Group], choice: MediaChoice) -> str:
    """Return why no sample has media: several files that may be it, or what was looked for and
    which endings exist.
    """
    for group in groups:
        if found := choice.candidates(group):
            return f"the sample {group.key!r} has {_list_several(found)}"
    counts = Counter(field for group in groups for field in group.fields)
    there = ", ".join(f"{field} ({count})" for field, count in counts.most_common(8)) or "none"
    wanted = (
        f"the ending {choice.field}"
        if choice.field is not None
        else f"an ending of {list_few(choice.endings)}"
    )
    advice = "name one in source.with.media, or set modality.use to the modality that reads them"
    for field, _ in counts.most_common():
        if plugin := missing_plugin(f".{field}"):
            advice = f".{field} is read by {plugin}: pip install {plugin}"
            break
    return f"no file in the tars has {wanted}; endings there: {there}; {advice}"


def unused_fields(groups: Iterable[Group], choice: MediaChoice) -> list[Remark]:
    """Return one remark for each ending of files that are neither media nor attributes. A sample
    with several media files is a bad sample, so these have no remark.
    """
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for group in groups:
        found = choice.candidates(group)
        media = {choice.usual} if choice.usual in found else set(found)
        for field in group.fields:
            if field not in media and kind_of(field) == "bytes":
                counts[field] += 1
                examples.setdefault(field, f"{group.key}.{field}")
    return [
        Remark(f"files in tars, not used: .{one_line(field)}", count, examples[field])
        for field, count in sorted(counts.items())
    ]
