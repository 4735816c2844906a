"""A group kernel made ready for arrays of one shape, dtype and layout: all but the pointers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from projgen.cpu import call as cpu  # a module: tests replace what it loads kernels with
from projgen.cpu.group_kernel import (
    ABREAST,
    CELLS,
    CROSSED,
    LANES,
    RANKED,
    Ball,
    GroupKernel,
)
from projgen.cpu.sharing import Sharing
from projgen.dtypes import ITEMSIZE, arithmetic

__all__ = ["Ball", "Form", "GroupCall", "Walk", "plan_walk", "walk_groups"]

Array = NDArray[Any]
Offsets = NDArray[np.int64]

LONG = 64  # elements: groups of so many are worth to be turned into rows
CROSSABLE = 4096  # labelled elements: of more, a tile of rows has no place in a cache
BLOCK = 32768  # elements, about, that a thread draws together
PIECES = 32  # of labelled elements, if there are few rows of them

_INFINITE = int(np.array(np.inf).view(np.int64))  # its bits


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
) -> Walk[GroupKernel]:
    """Plan the walk over arrays of `shape`, no axis of which is empty. See `GroupCall`."""

    def kernel(form: Form) -> GroupKernel:
        way = form.lanes, form.contiguous, form.direct, form.ranked, form.spread
        turned = form.stripped, form.crossed
        own = weight_dtype if ball.weighted else "float64"
        return GroupKernel(ball, dtype, out_strides is None, *way, *turned, own)

    spreads = ball.norm == "linf" or (ball.norm == "l2" and weight_strides is None)
    ways = strides, axes, out_strides, weight_strides, labels
    return plan_walk(kernel, ball, shape, *ways, spreads, halves=ITEMSIZE[dtype] == 2)


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
    halves: bool = False,
) -> Walk[Made]:
    """The walk of a kernel that is made by its form. `spreads`: whether it reads labelled elements
    in their own order, where groups do not lie side by side. `halves`: of these lp and l0, which
    look at a value many times, work on copies; and labelled elements are not turned."""
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
        direct = direct and not (halves and ball.norm in ("lp", "l0"))
    lanes = 1 if not tiled else ABREAST if direct else LANES
    lanes = ABREAST if ranked else lanes
    crossed = False
    if labels is not None and ball.norm == "l1" and not (tiled or spread) and "w" not in steps:
        along = extent >= LANES and all(step[name] == 1 for name in steps)
        crossed = along and labels.size <= CROSSABLE and not halves
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


@np.errstate(invalid="ignore")  # what is not finite is noticed by the kernel
def _length(lengths: Array, axis: int) -> Any:
    """The length of vectors that consist of some of these lengths."""
    top = lengths.max(axis=axis, keepdims=True)
    shares = lengths / np.where(top > 0, top, 1.0)
    return np.sqrt(np.square(shares).sum(axis=axis)) * top.squeeze(axis)


class GroupCall:
    """Values and projections of the groups of one level.

    `shape` and `strides` (in elements) are the array's, `axes` those that a group spans; each index
    along the others is a group. `out_strides` are the result's, None for in place. `weight_strides`
    are those of weights of the same shape (0 where they are broadcast), of dtype `weight_dtype`.
    `labels` say which group each index along the only one of `axes` belongs to: groups of a batch
    index then are numbered along a last axis of the values.
    """

    def __init__(
        self,
        ball: Ball,
        dtype: str,
        shape: Sequence[int],
        strides: Sequence[int],
        axes: Sequence[int],
        out_strides: Sequence[int] | None,
        weight_strides: Sequence[int] | None,
        labels: Offsets | None,
        threads: int,
        weight_dtype: str = "float64",
    ) -> None:
        numbers = [] if labels is None else [int(labels.max(initial=-1)) + 1]
        outer = [axis for axis in range(len(shape)) if axis not in axes]
        self.values_shape = (*(shape[axis] for axis in outer), *numbers)
        self._walk: Walk[GroupKernel] | None = None
        if 0 in shape or 0 in numbers:
            return
        ways = strides, axes, out_strides, weight_strides, labels, weight_dtype
        walk = walk_groups(ball, dtype, shape, *ways)
        self._walk = walk
        # From the shape of values as the kernel walks them, to their order by axis.
        self._walked = (*(shape[axis] for axis in walk.batch), *numbers)
        self._natural = (*np.argsort(walk.batch).tolist(), *range(len(outer), len(self._walked)))
        self._memory = tuple(np.argsort(self._natural).tolist())
        self._module = cpu.load_kernel(walk.kernel)  # keeps the machine code alive
        self._address = int(self._module.project.address)
        self._entry = cpu.ENTRY(self._address)
        threads = max(1, min(threads, walk.cells["blocks"]))
        groups, itemsize = walk.cells["groups"], ITEMSIZE[dtype]
        self._groups = groups
        slots = walk.cells["slots_size"]
        self._slots = slice(2 * groups, 2 * groups + slots)
        self._slots_shape = groups // walk.cells["labels"], -1, walk.cells["labels"]
        self._combine = np.maximum.reduce if ball.norm == "linf" else _length
        size = 2 * groups + slots + threads * walk.cells["scratch_size"]
        cells = {**dict.fromkeys(CELLS, 0), **walk.cells, "seats": threads, "memory_size": size}
        self._cells = np.concatenate([[cells[name] for name in CELLS], walk.index]).astype(np.int64)
        shares = walk.kernel.shares_cell
        self._sizes = size, shares + 16 * threads
        self._highest = slice(shares + 1, None, 16)
        self._offset = walk.offset["y"] * itemsize
        self._out_offset = walk.offset.get("x", walk.offset["y"]) * itemsize
        self._own_offset = walk.offset.get("w", 0) * np.dtype(weight_dtype).itemsize
        work = int(np.prod(shape, dtype=np.int64)) * ITEMSIZE[arithmetic(dtype)]
        if ball.norm == "lp":
            work *= 16  # its arithmetic is what takes long
        self._followers = threads - 1 if work >= cpu.SHARED_BYTES else 0
        self._sharing = {False: Sharing(), True: Sharing()}  # by whether a call projects
        self._idle: list[cpu.Workspace] = []

    @property
    def step(self) -> cpu.Step | None:
        """For a series; None if other threads may help, or the values have another order."""
        walk = self._walk
        if walk is None or self._followers or walk.kernel.ball.weighted:
            return None
        if walk.cells["slots_size"]:  # they are put together here
            return None
        if self._natural != tuple(range(len(self._natural))):
            return None
        memory, desk = self._sizes
        ways = self._offset, self._out_offset
        geometry = int(self._cells.ctypes.data)
        values, radii = slice(0, self._groups), slice(self._groups, 2 * self._groups)
        return cpu.Step(
            *(self._address, geometry, *ways, memory, desk, radii.start, values.start),
            flags=(0, 1),
            tape=(radii, values),
        )

    def begin(self, y: int, weights: int) -> cpu.Workspace | None:
        """Find the values of the groups of the array at address `y`; what to end the call with.

        `weights` is the address of the weights, or unused. None for an array without elements.
        """
        if self._walk is None:
            return None
        work = self._borrow()
        work.memory[self._groups] = -1.0
        self._run(y, y, weights, work, 0, projects=False)
        slots = work.memory[self._slots]
        if slots.size:
            values = work.memory[: self._groups].reshape(-1, self._slots_shape[-1])
            values[...] = self._combine(slots.reshape(self._slots_shape), axis=1)
        return work

    def values(self, begun: cpu.Workspace | None) -> NDArray[np.float64] | None:
        """The value of each group, good until `begun` is ended; None if one is not finite."""
        if self._walk is None or begun is None:
            return np.zeros(self.values_shape)
        if begun.desk[self._highest].max() >= _INFINITE:
            return None
        walked = begun.memory[: self._groups].reshape(self._walked)
        return np.asarray(walked.transpose(self._natural), order="C")

    def end(
        self, begun: cpu.Workspace | None, y: int, out: int, radii: Array, weights: int
    ) -> None:
        """Project the array at address `y`, whose values are finite, into that at `out`.

        `radii` have the shape of the values. A group whose value is no more than its radius keeps
        its elements.
        """
        if self._walk is None or begun is None:
            return
        alike = not any(radii.strides)
        if alike:
            begun.memory[self._groups] = radii.flat[0]
        else:
            ordered = np.asarray(radii, np.float64).reshape(self.values_shape)
            to = begun.memory[self._groups : 2 * self._groups].reshape(self._walked)
            to[...] = ordered.transpose(self._memory)
        self._run(y, out, weights, begun, 0 if alike else 1, projects=True)
        self.abandon(begun)

    def abandon(self, begun: cpu.Workspace | None) -> None:
        """Give back what was begun and is not to be ended."""
        if begun is not None:
            self._idle.append(begun)

    def _borrow(self) -> cpu.Workspace:
        try:
            return self._idle.pop()
        except IndexError:
            return cpu.Workspace(*self._sizes)

    def _run(
        self, y: int, out: int, weights: int, work: cpu.Workspace, radius_step: int, projects: bool
    ) -> None:
        work.desk.fill(0)
        work.desk[1:3] = weights + self._own_offset, radius_step
        arguments = (
            y + self._offset,
            out + self._out_offset,
            int(self._cells.ctypes.data),
            work.memory_at,
            work.desk_at,
        )
        sharing = self._sharing[projects]
        cpu.run_shared(self._entry, self._address, arguments, self._followers, sharing)
