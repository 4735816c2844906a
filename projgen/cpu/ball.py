"""What a level of groups is projected on, in a kernel of its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ball:
    """What a level projects on.

    ``p`` is the exponent of `lp`; ``weighted``: each value counts times its weight; ``nonneg``:
    only values of 0 and above belong to it; ``ragged``: its groups are given by labels.
    """

    norm: str
    p: float | None = None
    weighted: bool = False
    nonneg: bool = False
    ragged: bool = False

    @property
    def closed(self) -> bool:
        """Whether it is of an `lp` where an element is the root of a quadratic equation."""
        return self.p in (1.5, 3.0)

    @property
    def title(self) -> str:
        options = ([f"p={self.p!r}"] if self.p is not None else []) + ["w"] * self.weighted
        options += ["nonneg=True"] * self.nonneg + ["groups"] * self.ragged
        return self.norm + (f"({', '.join(options)})" if options else "")


__all__ = ["Ball"]
