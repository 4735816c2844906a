"""Whole trees on the CPU: arrays that no kernel walks, and values out of a kernel's range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from projgen import interpret_trees
from projgen.cpu.call import Call
from projgen.cpu.compose import Composition, TreeTape
from projgen.cpu.part_kernels import OutOfRangeError
from projgen.cpu.pool import default_threads
from projgen.cpu.project import remember
from projgen.cpu.pull_trees import TreePull
from projgen.dtypes import put
from projgen.interpret_trees import finite_entries, spread
from projgen.operands import same_directions, same_memory, walkable
from projgen.structure import Key
from projgen.trees import BoundTree
from projgen.weights import Given

if TYPE_CHECKING:
    from projgen.projection import Projection
    from projgen.reading import Ready

Array = NDArray[Any]

# Magnitudes below these can be added up, and squared, whatever the kernel.
TAME = {"float16": np.inf, "bfloat16": 1e30, "float32": 1e30, "float64": 1e140}


@dataclass(slots=True)
class Made:
    """A composition, and how the arrays of a call reach it.

    ``keys`` are those of the arrays, in its order. Of these numbers, ``copies`` are those of which
    copies are projected, ``in_place`` those that are projected in place: they, or their copies.
    ``pulls`` are made for the first gradients.
    """

    composition: Composition
    keys: tuple[Key, ...]
    in_place: tuple[int, ...]
    copies: tuple[int, ...]
    pulls: TreePull | None = None

    def operands(
        self, arrays: Mapping[Key, Array], outs: Mapping[Key, Array]
    ) -> tuple[list[Array], list[Array | None]]:
        """What kernels read, and what they write to; None: in place."""
        targets: list[Array | None] = [outs[key] for key in self.keys]
        for number in self.in_place:
            targets[number] = None
        return self.sources(arrays), targets

    def sources(self, arrays: Mapping[Key, Array]) -> list[Array]:
        """What kernels read."""
        ys = [arrays[key] for key in self.keys]
        for number in self.copies:
            ys[number] = _copy(ys[number])
        return ys


def project(
    projection: Projection,
    ready: Ready,
    arrays: Mapping[Key, Array],
    outs: Mapping[Key, Array],
    radii: Array,
    given: Given,
) -> None:
    """`arrays` into `outs`, all of which have been checked; or in place, where both are one."""
    made = _made(projection, ready, arrays, outs, given)
    _project(projection, ready, made, arrays, outs, radii, given, taped=False)


def taped(
    projection: Projection,
    ready: Ready,
    arrays: Mapping[Key, Array],
    outs: Mapping[Key, Array],
    radii: Array,
    given: Given,
) -> TreeTape | None:
    """`project` for arrays that lie densely in memory, and what it found on its way; None for
    values that are out of range."""
    made = _made(projection, ready, arrays, outs, given)
    return _project(projection, ready, made, arrays, outs, radii, given, taped=True)


def pull(
    projection: Projection,
    ready: Ready,
    arrays: Mapping[Key, Array],
    xs: Mapping[Key, Array],
    gradients: Mapping[Key, Array],
    outs: Mapping[Key, Array],
    tape: TreeTape,
    given: Given,
) -> Array:
    """Write the gradients of `arrays` to `outs`, by those of their projections `xs`, of which
    `taped` has left a tape; the gradients of the radii."""
    batch = ready.bound.batch
    if not tape.parts:
        for key, out in outs.items():
            np.copyto(out, gradients[key])
        return np.zeros(batch)
    made: Made = ready.made
    if made.pulls is None:
        threads = projection._threads or default_threads()
        made.pulls = TreePull(made.composition, threads)
    ys, own_xs, gs, results = (
        [each[key] for key in made.keys] for each in (arrays, xs, gradients, outs)
    )
    return made.pulls.pull(ys, own_xs, gs, results, tape, given.arrays).reshape(batch)


def _project(
    projection: Projection,
    ready: Ready,
    made: Made,
    arrays: Mapping[Key, Array],
    outs: Mapping[Key, Array],
    radii: Array,
    given: Given,
    taped: bool,
) -> TreeTape | None:
    ys, targets = made.operands(arrays, outs)
    try:
        tape = made.composition.project(ys, targets, radii.reshape(-1), given.arrays, taped)
    except OutOfRangeError:
        _rescue(projection, ready.bound, made, arrays, outs, radii, given)
        return None
    for number in made.copies:
        np.copyto(outs[made.keys[number]], ys[number])
    return tape


def norms(
    projection: Projection,
    ready: Ready,
    arrays: Mapping[Key, Array],
    given: Given,
    outs: Mapping[Key, Array] | None = None,
) -> Array:
    """The norm of each index of the batch, by the kernels that project into arrays like `outs`;
    or new arrays."""
    bound = ready.bound
    made = _made(projection, ready, arrays, outs, given)
    ys = made.sources(arrays)
    try:
        return made.composition.norms(ys, given.arrays).reshape(bound.batch)
    except OutOfRangeError:
        for arm in bound.arms:
            projection._finite(arrays[arm.key], arm.arm.label)
        return interpret_trees.norm(bound, arrays, given.arrays, given.labels)


def root_values(
    projection: Projection,
    ready: Ready,
    arrays: Mapping[Key, Array],
    given: Given,
    outs: Mapping[Key, Array],
) -> Array | None:
    """What the root aggregates, along the last axis; None if only the reference can say it."""
    made = _made(projection, ready, arrays, outs, given)
    ys = made.sources(arrays)
    try:
        return made.composition.root_values(ys, given.arrays)
    except OutOfRangeError:
        return None


def _made(
    projection: Projection,
    ready: Ready,
    arrays: Mapping[Key, Array],
    outs: Mapping[Key, Array] | None,
    given: Given,
) -> Made:
    """The composition for arrays like these: made at their first call."""
    found: Made | None = ready.made
    if found is not None:
        return found
    bound = ready.bound
    keys = tuple(arm.key for arm in bound.arms)
    if outs is None:
        outs = {key: np.empty_like(array) for key, array in arrays.items()}
    copies = tuple(n for n, key in enumerate(keys) if _is_copied(arrays[key], outs[key]))
    ys = [_copy(arrays[key]) if n in copies else arrays[key] for n, key in enumerate(keys)]
    in_place = tuple(
        n for n, key in enumerate(keys) if n in copies or same_memory(ys[n], outs[key])
    )
    targets = [None if number in in_place else outs[key] for number, key in enumerate(keys)]
    threads = projection._threads or default_threads()
    composition = Composition(
        bound, ys, targets, given.arrays, given.labels, threads, projection._warm_start
    )
    ready.made = made = Made(composition, keys, in_place, copies)
    if composition.alone and not copies:
        (y,), (target,) = ys, targets
        form = y.dtype, y.shape, y.strides, None if target is None else target.strides
        remember(projection, form, composition.alone)
    return made


def _is_copied(y: Array, out: Array) -> bool:
    """Whether arrays like these are copied for the kernels; else they are walked as they are."""
    if not (walkable(y) and walkable(out)):
        return True
    return not (same_memory(y, out) or same_directions(y, out))


def _copy(y: Array) -> Array:
    return np.array(y, order="C")


@np.errstate(over="ignore", under="ignore", invalid="ignore")  # radii leave the range
def _rescue(
    projection: Projection,
    bound: BoundTree,
    made: Made,
    arrays: Mapping[Key, Array],
    outs: Mapping[Key, Array],
    radii: Array,
    given: Given,
) -> None:
    """Values that are not finite, or whose sums leave the range of float64: the reference's way,
    which scales them. Rare, and not fast. Entries of the batch that have none go by the kernels."""
    for arm in bound.arms:
        projection._finite(arrays[arm.key], arm.arm.label)
    results = interpret_trees.project_any(bound, arrays, radii, given.arrays, given.labels)
    tame = _tame_entries(bound, arrays, radii)
    spared = _project_tame(bound, made, arrays, outs, radii, given, tame)
    for arm in bound.arms:
        put(outs[arm.key], results[arm.key])
        if spared is not None:
            np.copyto(outs[arm.key], spared[arm.key], where=spread(arm, tame))


def _tame_entries(bound: BoundTree, arrays: Mapping[Key, Array], radii: Array) -> Array:
    """The entries of the batch whose values are neither too large nor too small to be added up."""
    tame = finite_entries(bound, arrays)
    if not bound.batch or any(
        cut.axis in arm.arm.batch for arm in bound.arms for cut in arm.arm.cuts
    ):
        return np.zeros_like(tame)
    small = radii < Call.VANISHING
    for arm in bound.arms:
        array = arrays[arm.key]
        axes = tuple(axis for axis in range(array.ndim) if axis not in arm.arm.batch)
        top = np.abs(array).max(axis=axes, initial=0).astype(np.float64)
        tame &= top < TAME[array.dtype.name]
        small &= top < Call.VANISHING
    return tame & ~small


def _project_tame(
    bound: BoundTree,
    made: Made,
    arrays: Mapping[Key, Array],
    outs: Mapping[Key, Array],
    radii: Array,
    given: Given,
    tame: Array,
) -> dict[Key, Array] | None:
    """The projection where all other entries of the batch are zeros; None if there is none."""
    if not tame.any() or tame.all():
        return None
    ys = {key: array.copy("K") for key, array in arrays.items()}
    results = {key: np.empty_like(out) for key, out in outs.items()}
    for arm in bound.arms:
        zeros = ~np.broadcast_to(spread(arm, tame), ys[arm.key].shape)
        np.copyto(ys[arm.key], ys[arm.key].dtype.type(0), where=zeros)
    for before, after in ((arrays, ys), (outs, results)):
        if any(before[key].strides != after[key].strides for key in after):
            return None  # kernels are made for gaps
    sources, targets = made.operands(ys, results)
    own = np.where(tame, radii, 1.0).reshape(-1)
    try:
        made.composition.project(sources, targets, own, given.arrays)
    except OutOfRangeError:  # of weights
        return None
    for number in made.in_place:
        np.copyto(results[made.keys[number]], sources[number])
    return results
