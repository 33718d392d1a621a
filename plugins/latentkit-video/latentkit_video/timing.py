"""Chooses the frames of a clip by time stamps, so that a variable frame rate is no special case."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from av.video import VideoFrame

from latentkit.errors import SampleError
from latentkit_video.decoding import ShownFrame


@dataclass(frozen=True)
class Clip:
    """The frames that a clip takes from a video.

    Args:
        start: seconds from the video's first frame.
        stop: end of the sample's span, in the same seconds; None: the video's end.
        frames: number of frames.
        video_rate: average frames per second of the video.
        fps: rate at which frames are taken; None: the video's frames, whatever their times.
        stride: use every n-th of these.
    """

    start: float
    stop: float | None
    frames: int
    video_rate: float
    fps: float | None
    stride: int

    @property
    def rate(self) -> float:
        """Return the frames per second of the clip."""
        return (self.fps or self.video_rate) / self.stride

    @property
    def slack(self) -> float:
        """Return half the time between two frames. A frame counts as shown at a time if it starts
        at most this much later.
        """
        return 0.5 / max(self.fps or 0.0, self.video_rate)

    def pick(self, shown: Iterable[ShownFrame]) -> Iterator[VideoFrame]:
        """Yield the clip's `frames` frames from those of a video. A frame that stays on screen is
        repeated.

        Raises:
            SampleError: the video or the span has fewer; the message says how many, and where it
                ends.
        """
        return self._pick_each(shown) if self.fps is None else self._pick_by_time(shown, self.rate)

    def _pick_each(self, shown: Iterable[ShownFrame]) -> Iterator[VideoFrame]:
        """Yield every `stride`-th frame from the start on."""
        count = number = 0
        end = 0.0
        for one in shown:
            if self.stop is not None and one.start >= self.stop - self.slack:
                break
            end = one.end
            if one.start <= self.start - self.slack:
                continue
            if number % self.stride == 0:
                yield one.frame
                count += 1
                if count == self.frames:
                    return
            number += 1
        which = f"every {self.stride}. frame" if self.stride > 1 else "all frames"
        where = f" to {end:.3f} s" if count else f", as the video ends at {end:.3f} s"
        text = f"{count} frames from {self.start:.3f} s{where} ({which})"
        raise SampleError(f"{text}, but a clip has {self.frames}")

    def _pick_by_time(self, shown: Iterable[ShownFrame], rate: float) -> Iterator[VideoFrame]:
        """Yield the frame on screen at the start, and every 1 / rate seconds after it."""
        times = [self.start + number / rate for number in range(self.frames)]
        if self.stop is not None and times[-1] + self.slack >= self.stop:
            raise SampleError(
                f"{self.frames} frames at {rate:g} per second don't fit between {self.start:.3f} s"
                f" and {self.stop:.3f} s"
            )
        last, number = None, 0
        for one in shown:
            while (
                last is not None and number < self.frames and times[number] + self.slack < one.start
            ):
                yield last.frame
                number += 1
            if number == self.frames:
                return
            if last is None and one.start > self.start + self.slack:
                raise SampleError(
                    f"its first frame is shown at {one.start:.3f} s, and the clip begins at"
                    f" {self.start:.3f} s"
                )
            last = one
        while last is not None and number < self.frames and times[number] + self.slack < last.end:
            yield last.frame
            number += 1
        if number < self.frames:
            end = 0.0 if last is None else last.end
            raise SampleError(
                f"the video ends at {end:.3f} s; {self.frames} frames at {rate:g} per second need"
                f" it until {times[-1]:.3f} s"
            )
