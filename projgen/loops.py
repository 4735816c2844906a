"""Loops over some axes of arrays that lie in memory each in its own way, as few as will do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Offsets = NDArray[np.int64]
Loop: TypeAlias = "tuple[int, dict[str, int]]"  # its extent, and its step in each array


def merged(
    shape: Sequence[int], steps: Mapping[str, Sequence[int]], axes: Sequence[int]
) -> list[Loop]:
    """Loops over `axes`; two are one where every array lets them be."""
    loops: list[Loop] = []
    for axis in axes:
        own = {name: way[axis] for name, way in steps.items()}
        if shape[axis] == 1 and len(axes) > 1:
            continue
        if loops and all(loops[-1][1][name] == own[name] * shape[axis] for name in own):
            loops[-1] = loops[-1][0] * shape[axis], own
        else:
            loops.append((shape[axis], own))
    return loops


def sums(extents: Sequence[int], steps: Sequence[int]) -> Offsets:
    """The offsets of all indices of some axes, in their order."""
    offsets = np.zeros(1, np.int64)
    for extent, step in zip(extents, steps, strict=True):
        offsets = (offsets[:, None] + np.arange(extent, dtype=np.int64) * step).reshape(-1)
    return offsets


__all__ = ["Loop", "Offsets", "merged", "sums"]
