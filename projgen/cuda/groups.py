"""Where groups lie in arrays on a GPU, and their kernel made ready: all but the pointers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from projgen.cpu.ball import Ball
from projgen.cuda.cupy import cupy
from projgen.cuda.group_kernel import GroupKernel
from projgen.cuda.load import load
from projgen.loops import Offsets, merged, sums

WARP = 32
LONG = 1024  # elements: groups of more are worth a block of threads
MOST_GROUPS = (1 << 31) - 1  # that a launch has room for
MOST_VALUES = (1 << 31) - (1 << 20)  # of a group: the kernel counts them in int


@dataclass(frozen=True, slots=True, eq=False)
class GroupWalk:
    """What a kernel is told of arrays of one shape and layout.

    Groups are numbered by the axes that they do not span, in their order, and then by label:
    ``values_shape``. ``index`` and ``geometry`` are what the kernel gets; ``grid`` and ``block``
    how it is launched.
    """

    kernel: GroupKernel
    values_shape: tuple[int, ...]
    index: Offsets
    geometry: bytes
    grid: int
    block: int

    @property
    def groups(self) -> int:
        return math.prod(self.values_shape)


def walk_groups(
    ball: Ball,
    dtype: str,
    shape: Sequence[int],
    strides: Sequence[int],
    axes: Sequence[int],
    out_strides: Sequence[int] | None,
    weight_strides: Sequence[int] | None,
    labels: Offsets | None,
    weight_dtype: str = "float64",
) -> GroupWalk:
    """Plan the walk over arrays of `shape`, no axis of which is empty; strides are in elements.

    Groups span `axes`, or with `labels` are the places along their only one that have a label.
    `out_strides` are the result's, None for in place; `weight_strides` those of weights of the
    same shape. A ValueError for more values or groups than a kernel counts.
    """
    ways = {"y": strides, "x": strides if out_strides is None else out_strides}
    if weight_strides is not None:
        ways["w"] = weight_strides
    inner = sorted(axes)
    outer = [axis for axis in range(len(shape)) if axis not in axes]
    loops = merged(shape, ways, inner) or [(1, dict.fromkeys(ways, 1))]
    rows = merged(shape, ways, outer) or [(1, dict.fromkeys(ways, 0))]
    (run, step), (extent, lane) = loops[-1], rows[-1]
    size = math.prod(n for n, _ in loops)
    numbers: tuple[int, ...] = ()
    if labels is not None:
        counts = np.bincount(labels)
        numbers, size = (counts.size,), int(counts.max())
    if size > MOST_VALUES:
        raise ValueError(
            f"{ball.title} has a group of {size} values, and a GPU takes {MOST_VALUES}"
        )
    line = labels is None and len(loops) == 1
    kernel = GroupKernel(
        ball, dtype, size <= LONG, line, weight_dtype if ball.weighted else "float64"
    )
    values_shape = (*(shape[axis] for axis in outer), *numbers)
    groups = math.prod(values_shape)
    cells = {
        "groups": groups,
        "extent": extent,
        "count": size,
        "run": run,
    }
    vectors: list[Offsets] = []
    at = 0

    def place(vector: Offsets) -> int:
        nonlocal at
        vectors.append(vector)
        at += vector.size
        return at - vector.size

    if labels is not None:
        cells |= {"labels": counts.size, "starts": place(np.append(0, np.cumsum(counts)))}
    places: list[int] = []
    for name in kernel.arrays:
        known = {
            "bases": place(_offsets(rows[:-1], name)),
            "lane": lane[name],
            "step": step[name],
        }
        if "offsets" in kernel.places:
            order = None if labels is None else np.argsort(labels, kind="stable") * step[name]
            known["offsets"] = place(_offsets(loops[:-1], name) if order is None else order)
        places += [known[cell] for cell in kernel.places]
    geometry = np.array([*(cells[name] for name in kernel.cells), *places], np.int64)
    block = kernel.threads
    grid = -(-groups // (block // WARP)) if kernel.warps else groups
    if groups > MOST_GROUPS:
        raise ValueError(f"{ball.title} has {groups} groups, and a GPU takes {MOST_GROUPS}")
    index = np.concatenate(vectors).astype(np.int64)
    return GroupWalk(kernel, values_shape, index, geometry.tobytes(), grid, block)


def _offsets(loops: Sequence[tuple[int, Mapping[str, int]]], name: str) -> Offsets:
    return sums([extent for extent, _ in loops], [step[name] for _, step in loops])


class GroupCall:
    """Projects groups of arrays that lie as the walk says, on CuPy's current stream.

    As `projgen.cuda.call.Call`: begun on the way up, ended on the way down. Pointers are those of
    the arrays' first elements; of weights too, if there are any. Making it waits for the GPU,
    which then has the index for calls on all streams.
    """

    def __init__(self, walk: GroupWalk, device: int) -> None:
        cp = cupy()
        self.walk = walk
        self.work = 8 * walk.groups  # the bytes of its workspace
        self._index = cp.asarray(walk.index)
        cp.cuda.get_current_stream().synchronize()
        self._geometry = np.frombuffer(walk.geometry, f"V{len(walk.geometry)}")
        self._size = (walk.grid, 1, 1), (walk.block, 1, 1)
        module = load(walk.kernel.source, device)
        self._aggregate, self._project = map(module.get_function, ("aggregate", "project"))

    def begin(self, y: int, weights: int, work: Any) -> Any:
        """The groups' values, which lie in `work`: a CuPy array of the walk's shape of values."""
        arguments = np.uintp(y), *self._weights(weights), np.uintp(work.ptr)
        self._aggregate(*self._size, (*arguments, self._index, self._geometry))
        return cupy().ndarray(self.walk.values_shape, np.float64, work)

    def end(self, y: int, x: int, weights: int, radius: float | Any, work: Any) -> None:
        """Their projections, at `x`, on a number or a dense CuPy array in that shape."""
        number = isinstance(radius, float)
        arguments = (
            np.uintp(y),
            np.uintp(x),
            *self._weights(weights),
            np.uintp(work.ptr),
            np.uintp(0) if number else radius,
            np.float64(radius if number else 0.0),
            self._index,
            self._geometry,
        )
        self._project(*self._size, arguments)

    def _weights(self, weights: int) -> tuple[np.uintp, ...]:
        return (np.uintp(weights),) if self.walk.kernel.weighted else ()


__all__ = ["GroupCall", "GroupWalk", "walk_groups"]
