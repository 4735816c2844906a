"""When to project, and on which radius: a number, a part of the norm, or a schedule of these."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from projgen.outcome import Radius

Shape = Literal["linear", "cosine", "geometric"]
# What a user may write: a number, "10%" of the initial norm, an array over the batch axes, or a
# schedule: what gives one of these for a number of steps.
RadiusLike = Any


@dataclass(frozen=True, slots=True)
class When:
    """Each `every`-th step, or each epoch, after the first `start` and until the `stop`-th."""

    every: int | Literal["epoch"]
    start: int
    stop: int | None

    def __post_init__(self) -> None:
        every, start, stop = self.every, self.start, self.stop
        if every != "epoch" and not (_is_count(every) and every >= 1):
            raise ValueError(f"every is a whole number of at least 1, or 'epoch'; got {every!r}")
        if not (_is_count(start) and start >= 0):
            raise ValueError(f"start is a whole number of at least 0, got {start!r}")
        if stop is not None and not (_is_count(stop) and stop > start):
            raise ValueError(f"stop is a whole number above start, or None; got {stop!r}")

    @property
    def by_epoch(self) -> bool:
        return self.every == "epoch"

    def is_due(self, clock: int) -> bool:
        """Whether to project after that many steps, or epochs."""
        since = clock - self.start
        each = 1 if self.every == "epoch" else self.every
        return since > 0 and since % each == 0 and (self.stop is None or clock <= self.stop)

    def meets(self, other: When) -> bool:
        """Whether both may be due at one time. Steps and epochs are not compared."""
        apart = any(
            one.stop is not None and one.stop <= two.start
            for one, two in ((self, other), (other, self))
        )
        return self.by_epoch == other.by_epoch and not apart

    def __str__(self) -> str:
        """``every 10 steps``."""
        return f"every {self.every} steps" if self.every not in (1, "epoch") else (
            f"every {'epoch' if self.by_epoch else 'step'}"
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ramp:
    """A schedule: the radius goes from `start` to `stop` in `steps` steps, and stays there.

    Made by `linear`, `cosine` and `geometric`. Steps are counted from where the constraint starts;
    with ``every="epoch"`` they are epochs.
    """

    start: Radius
    stop: Radius
    steps: int
    shape: Shape

    def at(self, step: int, norm: Any) -> Any:
        """The radius after `step` steps, where the norm was `norm` in the beginning."""
        t = min(1.0, max(0, step) / self.steps)
        start, stop = self.start.of(norm), self.stop.of(norm)
        if t == 1:
            return stop
        if self.shape == "geometric":
            return start ** (1 - t) * stop**t
        if self.shape == "cosine":
            t = (1 - math.cos(math.pi * t)) / 2
        return start + t * (stop - start)


def linear(start: float | str, stop: float | str, steps: int) -> Ramp:
    """A schedule for the radius of `constrain`: evenly from `start` to `stop`.

    Args:
        start: where it begins: a number, or a part of the initial norm such as ``"100%"``.
        stop: where it ends, and stays; likewise.
        steps: in how many of the optimiser's steps, or epochs with ``every="epoch"``; at least 1.

    Raises:
        ValueError: an end that is negative, not finite or no part of the norm; wrong `steps`.
    """
    return _ramp(start, stop, steps, "linear")


def cosine(start: float | str, stop: float | str, steps: int) -> Ramp:
    """As `linear`, along half a wave: slowly at both ends."""
    return _ramp(start, stop, steps, "cosine")


def geometric(start: float | str, stop: float | str, steps: int) -> Ramp:
    """As `linear`, by the same factor at each step; neither end may be 0."""
    ramp = _ramp(start, stop, steps, "geometric")
    if not (ramp.start.value and ramp.stop.value):
        raise ValueError("a geometric schedule neither begins nor ends at 0: use linear or cosine")
    return ramp


def _ramp(start: float | str, stop: float | str, steps: int, shape: Shape) -> Ramp:
    if not _is_count(steps) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}")
    ends = read_radius(start), read_radius(stop)
    for end in ends:
        if not isinstance(end, Radius) or math.isinf(end.value):
            raise ValueError(f"a schedule goes between finite numbers or parts of the norm, "
                             f"such as '100%': got {start!r} and {stop!r}")  # fmt: skip
    return Ramp(ends[0], ends[1], steps, shape)


def read_radius(radius: RadiusLike) -> Any:
    """`radius` as a `Radius`; a `Ramp`, another schedule, an array or None as it is.

    A ValueError for a negative one, NaN, or text that is none; a TypeError for other things.
    """
    if radius is None or isinstance(radius, (Ramp, Radius)) or callable(radius):
        return radius
    if isinstance(radius, str):
        found = Radius.parse(radius)
        if not found.relative:
            raise ValueError(f"{radius!r} is text: write radius={found}, a number, or with % a "
                             "part of the norm, such as '10%'")  # fmt: skip
        return found
    if isinstance(radius, bool):
        raise TypeError(f"a radius is a number, not {radius!r}")
    if isinstance(radius, (int, float)):
        if not radius >= 0:
            raise ValueError(f"radius must be at least 0, got {radius}")
        return Radius(float(radius))
    if getattr(radius, "requires_grad", False):
        raise TypeError("this radius requires a gradient, and a projection after a step records "
                        "none: give radius.detach()")  # fmt: skip
    if hasattr(radius, "__array__"):
        return radius
    raise TypeError(f"a radius is a number, a part of the norm such as '10%', an array over the "
                    f"batch axes or a schedule; got {type(radius).__name__}")  # fmt: skip


def is_relative(radius: RadiusLike) -> bool:
    """Whether it is a part of the norm: of a schedule, in the end. Functions do not say."""
    end = radius.stop if isinstance(radius, Ramp) else radius
    return isinstance(end, Radius) and end.relative and end.value > 0


def radius_at(radius: RadiusLike, step: int, norm: Any) -> Any:
    """What a `Projection` takes, after `step` steps, for a parameter whose norm was `norm`."""
    if isinstance(radius, Radius):
        return radius.of(norm)
    if isinstance(radius, Ramp):
        return radius.at(step, norm)
    if callable(radius):
        schedule: Callable[[int], Any] = radius
        return radius_at(read_radius(schedule(step)), step, norm)
    return radius


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


__all__ = [
    "Ramp", "When", "cosine", "geometric", "is_relative", "linear", "radius_at", "read_radius",
]  # fmt: skip
