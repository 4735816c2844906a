"""Where the groups of one level lie, and how a kernel walks them: planned by shape and strides."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from projgen.cpu.ball import Ball
from projgen.loops import Loop, Offsets, merged, sums

LANES = 16  # of float32 a cache line, and of float64 two: what is turned into rows together
ABREAST = 256  # groups that are worked on together where they lie: fewer leave short inner loops
COPIED = 1 << 17  # elements, about, of groups that are copied together
STRIP = 64  # groups, at most, that are turned into rows together: four cache lines of each row
CROSSED = 64  # rows that are turned into columns together
RANKED = 16  # values: among so few, which are the largest is found by comparing each with each
BESIDE = 8  # rows of labelled elements that are read together, by squares
LONG = 64  # elements: groups of so many are worth turning into rows
CROSSABLE = 4096  # labelled elements: of more, a tile of rows has no place in a cache
BLOCK = 32768  # elements, about, that a thread draws together
WIDE = 1024  # the same of linf, which needs no search: whole rows are read, some at a time
SLICES = 16  # of the rows of such a tile
PIECES = 32  # of labelled elements, if there are few rows of them
HUGE = 3 << 16  # elements: groups of so many are shared among the threads,
FEW = 16  # if there are fewer of them
PART = 1 << 14  # elements of them that a thread draws together
SOME = 16  # blocks of them, of which parts are looked at first
RECORDS = 512  # passes over them, at the end of each of which the threads meet, that are on record

# The geometry that a kernel is given: these, and then the vectors of the walk's index.
CELLS = (
    "index_size",
    "y_size",
    "x_size",
    "w_size",
    "memory_size",
    "seats",
    "scratch_size",
    "spare_size",
    "pitch",
    "groups",
    "blocks",
    "block_size",
    "items",
    "labels",
    "tiles",
    "extent",
    "starts_at",
    "y_bases_at",
    "x_bases_at",
    "w_bases_at",
    "run",
    "y_step",
    "x_step",
    "w_step",
    "y_lane",
    "x_lane",
    "w_lane",
    "pieces",
    "piece",
    "slots_at",
    "slots_size",
    "y_offsets",
    "y_offsets_end",
    "x_offsets",
    "x_offsets_end",
    "w_offsets",
    "w_offsets_end",
)


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
    direct: bool = False
    ranked: int = 0
    spread: bool = False
    stripped: int = 0
    surveyed: int = 0
    crossed: bool = False
    huge: bool = False
    sliced: bool = False
    tiled: bool = False
    beside: frozenset[str] = frozenset()


def plan_walk(
    make: Callable[[Form], Made],
    ball: Ball,
    shape: Sequence[int],
    strides: Sequence[int],
    axes: Sequence[int],
    out_strides: Sequence[int] | None,
    weight_strides: Sequence[int] | None,
    labels: Offsets | None,
    spreads: int,
    halves: bool = False,
    shares: bool = False,
) -> Walk[Made]:
    """The walk of a kernel that is made by its form. `spreads`: how many rows of
    labelled elements it can read together in their own order, where groups do not lie side by
    side; 0 for none. `halves`: of these lp and l0, which look at a value many times, work on
    copies; and labelled elements are not turned. `shares`: threads can share a group."""
    ways = {"y": strides, "x": out_strides, "w": weight_strides}
    steps = {name: tuple(way) for name, way in ways.items() if way is not None}
    outward = sorted(range(len(shape)), key=lambda axis: -abs(strides[axis]))
    batch = tuple(axis for axis in outward if axis not in axes)
    # Of equal values l0 keeps the first: its elements are walked in the order of their axes.
    inner = sorted(axes) if ball.norm == "l0" else [axis for axis in outward if axis in axes]
    loops = merged(shape, steps, inner) or [(1, dict.fromkeys(steps, 1))]
    rows = merged(shape, steps, batch) or [(1, dict.fromkeys(steps, 0))]
    extent, lane = rows.pop()
    size = math.prod(shape[axis] for axis in axes)
    form = _form(ball, loops, (extent, lane), labels, size, spreads, halves)
    few = math.prod(shape[axis] for axis in batch) < FEW
    form = form._replace(huge=shares and form.direct and form.lanes == 1 and few and size >= HUGE)
    if shares and form.direct and form.lanes == ABREAST and ball.norm == "linf" and labels is None:
        form = form._replace(sliced=True, lanes=WIDE)
    kernel = make(form)
    run, step = loops[-1]
    if labels is not None:
        run = size if form.spread or form.crossed else 1
    starts, numbers, offsets = _elements(form, loops, labels)
    bases, offset, span = {}, {}, {}
    for name, way in steps.items():
        low = sum(min(0, s * (n - 1)) for s, n in zip(way, shape, strict=True))
        high = sum(max(0, s * (n - 1)) for s, n in zip(way, shape, strict=True))
        offset[name], span[name] = low, high - low + 1
        bases[name] = sums([n for n, _ in rows], [way[name] for _, way in rows]) - low
    each = 1 if form.crossed else run
    longest = 0 if form.spread else int(np.diff(starts).max(initial=0)) * each
    tiles = -(-extent // kernel.lanes)
    groups, pieces = bases["y"].size * extent * numbers, 1
    items = bases["y"].size * tiles * numbers
    average = max(1, int(starts[-1]) * run // max(1, numbers)) * kernel.lanes
    if form.crossed:
        items, average = bases["y"].size * tiles, run * kernel.lanes
    if form.spread and form.lanes > 1:
        items, average = bases["y"].size * tiles, run * kernel.lanes
    elif form.spread:
        pieces = max(1, min(PIECES * numbers // groups, run // max(BLOCK // 2, 16 * numbers)))
        items, average = groups // numbers * pieces, -(-run // pieces)
    elif form.sliced:
        # A piece is some of the groups' runs, or some of the elements of their only one.
        each, across = int(starts[-1]), min(extent, kernel.lanes)
        whole = each if each > 1 else run
        piece = -(-whole // max(1, min(SLICES, each * run * across // BLOCK)))
        pieces = -(-whole // piece)
        items, average = items * pieces, -(-each * run // pieces) * across
    block_size = max(1, BLOCK // average)
    slots = groups * pieces if pieces > 1 else 0
    if form.huge:
        pieces = -(-run // PART)
        slots = 3 * max(pieces, SOME) + 3 * RECORDS + kernel.spare_size(longest)
    if kernel.searches:  # each search starts from what the last one found
        block_size = max(block_size, min(4, items // 16))
    # Of what is copied, an odd number of cache lines: so that rows have other sets of the cache.
    pitch = longest if form.direct and form.lanes == 1 else 16 * (-(-longest // 16) | 1)
    pitch = longest | 1 if form.surveyed else pitch
    cells = {
        "spare_size": kernel.spare_size(longest),
        "pitch": pitch,
        "groups": groups,
        "blocks": pieces if form.huge else -(-items // block_size),
        "block_size": block_size,
        "items": items,
        "labels": numbers,
        "tiles": tiles,
        "extent": extent,
        "run": run,
        "pieces": pieces,
        "piece": PART if form.huge else piece if form.sliced else -(-run // pieces),
        "slots_at": 2 * groups if pieces > 1 else 0,
        "slots_size": slots,
        "scratch_size": kernel.scratch_size(pitch, numbers if form.spread else longest, run),
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


def _form(
    ball: Ball,
    loops: Sequence[Loop],
    side: Loop,
    labels: Offsets | None,
    size: int,
    spreads: int,
    halves: bool,
) -> Form:
    """How groups of `size` elements are walked, those of all `labels` together if there are any:
    `loops` are over a group's elements, `side` is the innermost over groups."""
    (run, step), (extent, lane) = loops[-1], side
    run = run if labels is None else 1
    weighted = "w" in step
    beside = frozenset(name for name in step if lane[name] == 1)
    tiled = extent > 1 and beside >= step.keys() - {"w"} and (labels is not None or step["y"] != 1)
    if tiled:
        swept = ball.norm in ("l1", "l2", "linf") and (not weighted or lane["w"] in (0, 1))
        rooted = ball.closed and not (weighted or halves) and (labels is not None or size < LONG)
        alone = ball.norm in ("simplex", "l0") and labels is None
        direct = swept or rooted or alone
        ranked = _ranked(ball, loops, labels)
        if ranked:
            return Form(ABREAST, frozenset(), False, ranked, tiled=True, beside=beside)
        searches = ball.norm == "l1" or (ball.norm == "l2" and weighted)
        long = direct and searches and labels is None and size >= LONG
        together = max(LANES, COPIED // size // LANES * LANES)
        surveyed = min(ABREAST, together) if long and weighted and not halves else 0
        stripped = min(STRIP, together) if alone or (long and not surveyed) else 0
        lanes = ABREAST if direct else LANES
        way = Form(lanes, beside, direct, stripped=stripped, tiled=True, beside=beside)
        return way._replace(surveyed=surveyed)
    contiguous = frozenset(name for name in step if step[name] == 1)
    along = contiguous == step.keys()
    if labels is not None and spreads:
        rows = spreads if along and extent >= LANES else 1
        return Form(rows, contiguous, spread=True, beside=beside)
    if labels is not None:
        crossed = ball.norm == "l1" or ball.closed
        crossed = crossed and not weighted and along and extent >= LANES
        if crossed and size <= CROSSABLE and not halves:
            return Form(CROSSED, contiguous, direct=True, crossed=True, beside=beside)
        return Form(1, frozenset(), beside=beside)
    if along and extent > 1 and all(lane[name] == run for name in contiguous):
        ranked = _ranked(ball, loops, labels)
        if ranked:
            return Form(ABREAST, contiguous, ranked=ranked, beside=beside)
    direct = along and len(loops) == 1 and not (halves and ball.norm in ("lp", "l0"))
    return Form(1, contiguous, direct, beside=beside)


def _ranked(ball: Ball, loops: Sequence[Loop], labels: Offsets | None) -> int:
    """Of l0, how many values each group has, where they are few; else 0."""
    run = loops[-1][0]
    few = ball.norm == "l0" and labels is None and len(loops) == 1 and 1 < run <= RANKED
    return run if few else 0


def _elements(
    form: Form, loops: Sequence[Loop], labels: Offsets | None
) -> tuple[Offsets, int, dict[str, Offsets]]:
    """Where the offsets of each label's elements begin, how many labels there are, and the
    offsets; where labelled elements are spread, the labels themselves."""
    step = loops[-1][1]
    if labels is None:
        extents, ways = [n for n, _ in loops[:-1]], [way for _, way in loops[:-1]]
        offsets = {name: sums(extents, [way[name] for way in ways]) for name in step}
        return np.array([0, offsets["y"].size]), 1, offsets
    if form.spread:
        return labels, int(labels.max()) + 1, {name: np.zeros(0, np.int64) for name in step}
    order = np.argsort(labels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels))])
    offsets = {name: order * (CROSSED if form.crossed else step[name]) for name in step}
    return starts, starts.size - 1, offsets


__all__ = ["ABREAST", "CELLS", "LANES", "Form", "Offsets", "Walk", "plan_walk"]
