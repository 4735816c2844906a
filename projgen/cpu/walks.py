"""Where the groups of one level lie, and how a kernel walks them: planned by shape and strides."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from projgen.cpu.group_kernel import ABREAST, CELLS, CROSSED, LANES, RANKED, Ball

Offsets = NDArray[np.int64]

LONG = 64  # elements: groups of so many are worth to be turned into rows
CROSSABLE = 4096  # labelled elements: of more, a tile of rows has no place in a cache
BLOCK = 32768  # elements, about, that a thread draws together
PIECES = 32  # of labelled elements, if there are few rows of them


class Walker(Protocol):
    """What a walk has to know of its kernel."""

    @property
    def lanes(self) -> int: ...
    @property
    def searches(self) -> bool: ...
    def spare_size(self, longest: int) -> int: ...
    def scratch_size(self, pitch: int, longest: int, elements: int) -> int: ...


Made = TypeVar("Made", bound=Walker)


@dataclass(frozen=True, slots=True)
class Walk(Generic[Made]):
    """Where the groups of some arrays lie, and what kernel walks them.

    ``batch`` are the batch axes as they are walked, outermost first; the kernel's vectors of values
    have that order. ``offset`` is the way, in elements, from an array's address to its first
    element in memory, ``span`` how many lie from there to its last.
    """

    kernel: Made
    shape: tuple[int, ...]
    batch: tuple[int, ...]
    offset: Mapping[str, int]
    span: Mapping[str, int]
    cells: Mapping[str, int]
    index: Offsets


class Form(NamedTuple):
    """What a walk says of its kernel: see `GroupKernel`.

    ``tiled``: groups that lie side by side are worked on together; ``beside``: arrays in which
    their elements are neighbours.
    """

    lanes: int
    contiguous: frozenset[str]
    direct: bool
    ranked: int
    spread: bool
    stripped: bool
    crossed: bool
    tiled: bool
    beside: frozenset[str]


def plan_walk(
    make: Callable[[Form], Made],
    ball: Ball,
    shape: Sequence[int],
    strides: Sequence[int],
    axes: Sequence[int],
    out_strides: Sequence[int] | None,
    weight_strides: Sequence[int] | None,
    labels: Offsets | None,
    spreads: bool,
) -> Walk[Made]:
    """The walk of a kernel that is made by its form. `spreads`: whether it reads labelled elements
    in their own order, where groups do not lie side by side."""
    ways = {"y": strides, "x": out_strides, "w": weight_strides}
    steps = {name: tuple(way) for name, way in ways.items() if way is not None}
    outward = sorted(range(len(shape)), key=lambda axis: -abs(strides[axis]))
    batch = tuple(axis for axis in outward if axis not in axes)
    # Of equal values l0 keeps the first: its elements are walked in the order of their axes.
    inner = sorted(axes) if ball.norm == "l0" else [axis for axis in outward if axis in axes]
    loops = _merged(shape, steps, inner)
    run, step = loops[-1] if loops else (1, dict.fromkeys(steps, 1))
    if labels is not None:
        run = 1
    rows = _merged(shape, steps, batch)
    extent, lane = rows.pop() if rows else (1, dict.fromkeys(steps, 0))
    dense = [name for name in steps if name != "w"]
    side_by_side = extent > 1 and all(lane[name] == 1 for name in dense)
    tiled = side_by_side and (labels is not None or step["y"] != 1)
    spread = labels is not None and not tiled and spreads
    contiguous = frozenset(name for name in steps if step[name] == 1 and not tiled)
    if labels is not None and not spread:
        contiguous = frozenset()
    adjacent = tiled or (extent > 1 and all(lane[name] == run for name in contiguous))
    swept = ball.norm in ("l1", "l2", "linf")
    beside = frozenset(name for name in steps if lane[name] == 1)
    ranked, direct = 0, False
    if ball.norm == "l0" and labels is None and len(loops) <= 1 and 1 < run <= RANKED and adjacent:
        ranked = run if tiled or contiguous == steps.keys() else 0
    elif tiled:
        contiguous = beside
        direct = swept and ("w" not in steps or lane["w"] in (0, 1))
        direct = direct or (ball.norm == "simplex" and labels is None)
    else:
        direct = len(loops) <= 1 and contiguous == steps.keys() and labels is None
    lanes = 1 if not tiled else ABREAST if direct else LANES
    lanes = ABREAST if ranked else lanes
    crossed = False
    if labels is not None and ball.norm == "l1" and not (tiled or spread) and "w" not in steps:
        along = extent >= LANES and all(step[name] == 1 for name in steps)
        crossed = along and labels.size <= CROSSABLE
    if crossed and labels is not None:
        lanes, contiguous, direct, run = CROSSED, frozenset(steps), True, labels.size
    searches = ball.norm == "l1" or (ball.norm == "l2" and "w" in steps)
    size = math.prod(shape[axis] for axis in axes)
    stripped = tiled and direct and searches and labels is None and size >= LONG
    stripped = stripped or (tiled and direct and ball.norm == "simplex")
    kernel = make(Form(lanes, contiguous, direct, ranked, spread, stripped, crossed, tiled, beside))
    if labels is not None and spread:
        offsets = {name: np.zeros(0, np.int64) for name in steps}
        starts, numbers, run = labels, int(labels.max()) + 1, labels.size
    elif labels is not None:
        order = np.argsort(labels, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(labels))])
        numbers = starts.size - 1
        offsets = {name: order * (CROSSED if crossed else step[name]) for name in steps}
    else:
        outer = loops[:-1]
        offsets = {
            name: _sums([n for n, _ in outer], [way[name] for _, way in outer]) for name in steps
        }
        starts, numbers = np.array([0, offsets["y"].size]), 1
    bases, offset, span = {}, {}, {}
    for name, way in steps.items():
        low = sum(min(0, s * (n - 1)) for s, n in zip(way, shape, strict=True))
        high = sum(max(0, s * (n - 1)) for s, n in zip(way, shape, strict=True))
        offset[name], span[name] = low, high - low + 1
        bases[name] = _sums([n for n, _ in rows], [way[name] for _, way in rows]) - low
    longest = 0 if spread else int(np.diff(starts).max(initial=0)) * (1 if crossed else run)
    tiles = -(-extent // kernel.lanes)
    groups, pieces = bases["y"].size * extent * numbers, 1
    items = bases["y"].size * tiles * numbers
    average = max(1, int(starts[-1]) * run // max(1, numbers)) * kernel.lanes
    if crossed:
        items, average = bases["y"].size * tiles, run * kernel.lanes
    if spread:
        pieces = max(1, min(PIECES * numbers // groups, run // max(BLOCK // 2, 16 * numbers)))
        items, average = groups // numbers * pieces, -(-run // pieces)
    block_size = max(1, BLOCK // average)
    if kernel.searches:  # each search starts from what the last one found
        block_size = max(block_size, min(4, items // 16))
    # Of what is gathered, an odd number of cache lines: so that rows have other sets of the cache.
    pitch = longest if direct and lanes == 1 else 16 * (-(-longest // 16) | 1)
    cells = {
        "spare_size": kernel.spare_size(longest),
        "pitch": pitch,
        "groups": groups,
        "blocks": -(-items // block_size),
        "block_size": block_size,
        "items": items,
        "labels": numbers,
        "tiles": tiles,
        "extent": extent,
        "run": run,
        "pieces": pieces,
        "piece": -(-run // pieces),
        "slots_at": 2 * groups if pieces > 1 else 0,
        "slots_size": groups * pieces if pieces > 1 else 0,
        "scratch_size": kernel.scratch_size(pitch, numbers if spread else longest, run),
        **{f"{name}_step": step[name] for name in steps},
        **{f"{name}_lane": lane[name] for name in steps},
        **{f"{name}_size": span[name] for name in steps},
    }
    vectors = [starts]
    at = len(CELLS)
    cells["starts_at"], at = at, at + starts.size
    for name in steps:
        cells[f"{name}_bases_at"], at = at, at + bases[name].size
        cells[f"{name}_offsets"], cells[f"{name}_offsets_end"] = at, at + offsets[name].size
        at += offsets[name].size
        vectors += [bases[name], offsets[name]]
    cells["index_size"] = at
    return Walk(kernel, tuple(shape), batch, offset, span, cells, np.concatenate(vectors))


def _merged(
    shape: Sequence[int], steps: Mapping[str, Sequence[int]], axes: Sequence[int]
) -> list[tuple[int, dict[str, int]]]:
    """(extent, steps) of loops over `axes`; two are one where every array lets them be."""
    loops: list[tuple[int, dict[str, int]]] = []
    for axis in axes:
        own = {name: way[axis] for name, way in steps.items()}
        if shape[axis] == 1 and len(axes) > 1:
            continue
        if loops and all(loops[-1][1][name] == own[name] * shape[axis] for name in own):
            loops[-1] = loops[-1][0] * shape[axis], own
        else:
            loops.append((shape[axis], own))
    return loops


def _sums(extents: Sequence[int], steps: Sequence[int]) -> Offsets:
    """The offsets of all indices of some axes, in their order."""
    offsets = np.zeros(1, np.int64)
    for extent, step in zip(extents, steps, strict=True):
        offsets = (offsets[:, None] + np.arange(extent, dtype=np.int64) * step).reshape(-1)
    return offsets


__all__ = ["Form", "Offsets", "Walk", "plan_walk"]
