"""An account of a projection: arrays before and after, measured and summed up in an `Info`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from projgen import measure
from projgen.arms import BATCH
from projgen.arrays import Array, check_dtype, detached, view, writable_view
from projgen.bind import Binding
from projgen.info import ArrayInfo, Info, LevelInfo, Numbers
from projgen.measure import Changes, Read
from projgen.operands import check_radius, in_shards
from projgen.tree import Node, NormTree

if TYPE_CHECKING:
    from projgen.projection import Projection


@dataclass(frozen=True)
class Subject:
    """An array before and after. ``y`` is asked for its shape and strides alone.

    ``owners`` has the level that reduces each axis, or `BATCH`; ``sources`` the axes of the array
    that they come from (an axis that is cut into blocks is two). ``whole`` is that array's shape.
    ``labelled`` says, of a level, which of its groups have entries, if there may be others.
    """

    name: str
    y: Array
    dtype: str
    read_y: Read
    read_x: Read
    owners: tuple[int, ...]
    sources: tuple[int, ...]
    whole: tuple[int, ...]
    depth: int
    block: int = measure.BLOCK
    labelled: Callable[[int], Array] | None = None

    def axes(self, first: int, last: int) -> tuple[int, ...]:
        """The axes of the levels from `first` to `last`."""
        return tuple(axis for axis, owner in enumerate(self.owners) if first <= owner <= last)

    def changes(self) -> Changes:
        reduced, within = self.axes(0, self.depth), self.axes(self.depth - 1, self.depth)
        return measure.changes(self.y, self.read_y, self.read_x, reduced, within, self.block)

    def alive(self, level: int, leaf: Array) -> Array:
        """Which groups of a level are not all zero, from those of the leaf: along its axes."""
        found = np.any(leaf, axis=self.axes(level, self.depth - 2), keepdims=True)
        return np.asarray(np.squeeze(found, axis=self.axes(level, self.depth)))

    def filled(self, level: int) -> Array:
        """Which groups of a level have entries: along its axes, as `alive`."""
        if self.labelled:
            return self.labelled(level)
        return np.ones([self.y.shape[axis] for axis in self.axes(BATCH, level - 1)], bool)

    def by_entry(self, level: int, groups: Array) -> Array:
        """The groups of a level with one axis for the batch and one for the levels above."""
        axes = self.axes(BATCH, level - 1)
        order = sorted(range(len(axes)), key=lambda i: (self.owners[axes[i]], i))
        batch = math.prod(self.y.shape[axis] for axis in self.axes(BATCH, BATCH))
        count = math.prod(self.y.shape[axis] for axis in self.axes(0, level - 1))
        found: Array = groups.transpose(order).reshape(batch, count)
        return found


@dataclass(frozen=True)
class Level:
    """A node of the tree, and its places: at each the subjects beneath it."""

    node: Node
    level: int
    places: Sequence[Sequence[int]]


def with_info(
    projection: Projection, y: Any, radius: Any, out: Any, arrays: Mapping[str, Any]
) -> tuple[Any, Info]:
    """Project as `Projection.__call__` does, and say what that did.

    The result is the same, to the bit. What is said costs some sweeps over y and the result, which
    a GPU sends to the host for it, and a copy of y where `out` is y.
    """
    if in_shards(y, arrays):
        raise TypeError("return_info=True looks at whole arrays, and a DTensor is in shards: use "
                        "p.norm(x) and p.active(x)")  # fmt: skip
    if arrays or not projection.tree.is_plain:
        from projgen import calls

        return calls.with_info(projection, y, radius, out, arrays)
    if gpu := projection._gpu(y):
        made, info = gpu.with_info(projection, y, radius, out)
        return made, info
    source = view(y)[0]
    check_dtype(source)
    binding = projection._bind(source)
    if radius is None:
        raise TypeError("a radius is missing: the call is p(y, radius)")
    radii = check_radius(radius, binding, source.shape)
    before = source
    if out is not None and np.may_share_memory(source, writable_view(out)):
        before = source.copy(order="K")
    made = projection(y, radius, out=out)
    return made, compare(projection, binding, before, view(detached(made))[0], radii)


def compare(
    projection: Projection, binding: Binding, y: Array, x: Array, radii: float | Array
) -> Info:
    """What projecting `y` to `x` did: arrays in the CPU's memory that have been checked."""
    norms, values = _root(projection, binding, y)
    after, _ = _root(projection, binding, x)
    subject = chain_subject(binding, y, y.dtype.name, y.__getitem__, x.__getitem__)
    info = chain_info(binding, subject, norms, after, values, radii)
    if projection.is_joint:  # its root's values meet no threshold: see `projgen.exact`
        return replace(info, threshold=info.threshold * np.nan)
    return info


def _root(projection: Projection, binding: Binding, y: Array) -> tuple[Array, Array | None]:
    """The norms over the batch axes, and the root's values, in one more axis, if it has any."""
    if y.size and projection.backend != "numpy":
        from projgen.cpu import project

        return project.root(projection, binding, y)
    return measure.root_by_reference(binding, y)


def chain_subject(
    binding: Binding,
    y: Array,
    dtype: str,
    read_y: Read,
    read_x: Read,
    block: int = measure.BLOCK,
) -> Subject:
    owner = {axis: i for i, level in enumerate(binding.levels) for axis in level.axes}
    axes = tuple(range(binding.rank))
    owners = tuple(owner.get(axis, BATCH) for axis in axes)
    depth = len(binding.levels)
    return Subject("", y, dtype, read_y, read_x, owners, axes, y.shape, depth, block)


def chain_info(
    binding: Binding,
    subject: Subject,
    norms: Array,
    norms_after: Array,
    values: Array | None,
    radii: float | Array,
) -> Info:
    """That of a chain over one array; `values` are those of `measure.root_by_reference`."""
    found = subject.changes()
    each = np.broadcast_to(np.asarray(radii, np.float64), norms.shape)
    threshold = measure.root_threshold(
        binding, subject.y, subject.read_y, norms, values, each, found.largest
    )
    levels = [Level(node, i, [[0]]) for i, node in enumerate(binding.tree.levels)]
    tree = binding.tree
    return summarise(tree, levels, [subject], [found], norms, norms_after, threshold, each)


def summarise(
    tree: NormTree,
    levels: Sequence[Level],
    subjects: Sequence[Subject],
    found: Sequence[Changes],
    norms: Array,
    norms_after: Array,
    threshold: Array,
    radii: Array,
) -> Info:
    """The report. Arrays have the shape of the batch."""

    def by_entry(a: Array) -> Numbers:
        a = np.asarray(a).reshape(norms.shape)
        return a if a.ndim else a.item()

    arrays = [
        ArrayInfo(
            name=subject.name,
            shape=subject.whole,
            dtype=subject.dtype,
            entries=math.prod(subject.whole) // max(norms.size, 1),
            nonzero=by_entry(changes.nonzero),
            nonzero_before=by_entry(changes.nonzero_before),
            distance=by_entry(changes.distance),
            largest_change=by_entry(changes.largest),
        )
        for subject, changes in zip(subjects, found, strict=True)
    ]
    distances = np.stack([np.asarray(array.distance) for array in arrays])
    return Info(
        spec=tree.spec,
        radius=by_entry(radii.copy()),
        norm_before=by_entry(norms),
        norm_after=by_entry(norms_after),
        threshold=by_entry(np.where(np.isnan(norms_after), np.nan, threshold)),
        distance=by_entry(measure.length(distances, (0,))),
        levels=tuple(_level_info(level, subjects, found, by_entry) for level in levels),
        arrays=tuple(arrays),
    )


def _level_info(
    level: Level, subjects: Sequence[Subject], found: Sequence[Changes], by_entry: Any
) -> LevelInfo:
    def counts(groups: Callable[[int], Array]) -> Array:
        """How many groups of each batch entry `groups` has, which it says for each array: those of
        all arrays of a place are the same."""
        masks = [
            np.logical_or.reduce([subjects[i].by_entry(level.level, groups(i)) for i in place])
            for place in level.places
        ]
        return np.asarray(sum(np.count_nonzero(mask, axis=1) for mask in masks))

    along, alive, filled = None, None, None
    if len(level.places) == len(level.places[0]) == 1:
        (i,) = level.places[0]
        along = tuple(
            subjects[i].sources[axis] for axis in subjects[i].axes(BATCH, level.level - 1)
        )
        alive = subjects[i].alive(level.level, found[i].alive)
        filled = subjects[i].filled(level.level)
    return LevelInfo(
        norm=level.node.norm,
        name=level.node.name or level.node.pattern or "",
        groups=int(counts(lambda i: subjects[i].filled(level.level)).max(initial=0)),
        active=by_entry(counts(lambda i: subjects[i].alive(level.level, found[i].alive))),
        active_before=by_entry(
            counts(lambda i: subjects[i].alive(level.level, found[i].alive_before))
        ),
        along=along,
        alive=alive,
        filled=filled,
    )


__all__ = ["Level", "Subject", "chain_info", "chain_subject", "compare", "summarise", "with_info"]
