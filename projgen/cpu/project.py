"""What a `Projection` does with arrays in the CPU's memory that have passed its checks.

Arrays that no kernel walks go through one that a kernel does, and values out of a kernel's range
are brought into it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from projgen import interpret, measure
from projgen.arrays import Array, address
from projgen.bind import Binding
from projgen.compiler import compile_binding
from projgen.cpu.call import Call
from projgen.cpu.load import making
from projgen.cpu.pool import default_threads
from projgen.dtypes import put
from projgen.forks import whole
from projgen.operands import (
    axis_order,
    is_finite,
    memory_order,
    same_directions,
    same_memory,
    walkable,
)

if TYPE_CHECKING:
    from projgen.projection import Projection

REMEMBERED = 256  # calls of one projection that are kept ready


def project(
    projection: Projection, binding: Binding, y: Array, out: Array, radii: float | Array
) -> None:
    """`y` into `out`, both of which have been checked, or in place."""
    if not (walkable(y) and walkable(out)):  # odd strides: rare, through plain memory
        x = np.empty(y.shape, y.dtype)
        np.copyto(x, y)
        project(projection, binding, x, x, radii)
        np.copyto(out, x)
        return
    in_place = same_memory(y, out)
    if not in_place and not same_directions(y, out):
        projection._finite(y)
        np.copyto(out, y)
        project(projection, binding, out, out, radii)
        return
    call = ready(projection, binding, y, None if in_place else out)
    ordered = radii if isinstance(radii, float) else memory_order(radii, binding, call.plan)
    verdict = call.project(y.ctypes.data, out.ctypes.data, ordered)
    if verdict == call.INSIDE:
        if not in_place:
            np.copyto(out, y)
    elif verdict == call.OUT_OF_RANGE:
        rescue(projection, binding, y, out, radii)


def norms(projection: Projection, binding: Binding, y: Array) -> Array:
    """The norms of `y` over the batch axes."""
    if not walkable(y):
        y = y.copy()
    call = _ready_for_norms(projection, binding, y)
    ordered = call.norms(y.ctypes.data)
    if ordered is None:
        projection._finite(y)
        return np.asarray(interpret.norm(binding, y))
    return axis_order(ordered, binding, call.plan, y.shape)


def root(projection: Projection, binding: Binding, y: Array) -> tuple[Array, Array | None]:
    """The norms of `y` over the batch axes, and the root's values in one more, the last.

    The values are None where `measure.needs_values` says that nobody asks for them.
    """
    if not walkable(y):
        y = y.copy()
    call = _ready_for_norms(projection, binding, y)
    found = call.root(y.ctypes.data)
    if found is None:
        return measure.root_by_reference(binding, y)
    norms = axis_order(found[0], binding, call.plan, y.shape)
    if not measure.needs_values(binding, y.shape):
        return norms, None
    if all(y.shape[axis] == 1 for axis in binding.root.axes):  # a level that has vanished
        return norms, norms[..., np.newaxis]
    assert found[1] is not None
    rows = axis_order(np.arange(norms.size), binding, call.plan, y.shape)
    return norms, found[1][rows]


def _ready_for_norms(projection: Projection, binding: Binding, y: Array) -> Call:
    """Whichever call is there: they have the same sweep 1, and a new one may be compiled first."""
    for strides in (y.strides, None, "norm"):
        call = projection._calls.get((y.dtype, y.shape, y.strides, strides))
        if call is not None:
            return call
    return ready(projection, binding, y, None, only_norm=True)


def ready(
    projection: Projection,
    binding: Binding,
    y: Array,
    out: Array | None,
    only_norm: bool = False,
) -> Call:
    """The call that is ready for these shapes and strides, or a new one.

    Those that have only been asked for a norm are kept apart: `Projection._again` takes it that
    what it finds has passed the checks of `out`.
    """
    strides = None if out is None else out.strides
    key = y.dtype, y.shape, y.strides, "norm" if only_norm else strides
    call = projection._calls.get(key)
    if call is not None:
        return call
    with whole, making:  # once, for whichever threads ask
        call = projection._calls.get(key)
        if call is not None:
            return call
        size = y.itemsize
        compiled = compile_binding(
            binding,
            y.shape,
            y.dtype.name,
            [stride // size for stride in y.strides],
            None if strides is None else [stride // size for stride in strides],
            in_place=out is None,
            exact=projection.is_joint,
        )
        call = Call(compiled, projection._threads or default_threads(), projection._warm_start)
        remember(projection, key, call)
        return call


def remember(projection: Projection, key: tuple[Any, ...], call: Call) -> None:
    """For arrays of this dtype, shape, strides and strides of the result; of None in place."""
    if len(projection._calls) >= REMEMBERED:
        projection._calls.clear()
    projection._calls[key] = call


def _lost(
    projection: Projection, binding: Binding, y: Array, out: Array, each: Array
) -> NDArray[np.bool_]:
    """Which entries are out of the kernel's range, by batch axis."""
    call = ready(projection, binding, y, None if same_memory(y, out) else out)
    found = call.lost(address(y), memory_order(each, binding, call.plan))
    return axis_order(found, binding, call.plan, y.shape)


@np.errstate(over="ignore", under="ignore")  # whatever the caller's: radii leave the range
def rescue(
    projection: Projection, binding: Binding, y: Array, out: Array, radii: float | Array
) -> None:
    """Entries that are not finite, or whose norms or sums the kernel has no room for: one by one,
    narrower types in float64, float64 scaled. The others go together, as if these were zeros."""
    projection._finite(y)
    shape = tuple(y.shape[axis] for axis in binding.batch)
    each = np.broadcast_to(radii, shape)
    lost = _lost(projection, binding, y, out, each)
    if not lost.all():
        spared = lost.reshape([n if a in binding.batch else 1 for a, n in enumerate(y.shape)])
        tame = y.copy("K")
        np.copyto(tame, y.dtype.type(0), where=spared)
        project(projection, binding, tame, tame, np.where(lost, 1.0, each))
        np.copyto(out, tame, where=~spared)
    for index in zip(*np.nonzero(lost), strict=True) if shape else [()]:
        entry: list[Any] = [slice(None)] * y.ndim
        for axis, i in zip(binding.batch, index, strict=True):
            entry[axis] = slice(i, i + 1)
        part, result = y[tuple(entry)], out[tuple(entry)]
        if not is_finite(part):
            result[...] = np.nan
            continue
        if part.dtype != np.float64:  # which has room for all that they can add up to
            wide = part.astype(np.float64)
            project(projection, binding, wide, wide, float(each[index]))
            put(result, wide)
            continue
        # A power of two scales exactly, and the projection scales with it.
        largest = max(float(part.max()), -float(part.min()))
        exponent = int(np.frexp(largest)[1])
        small = np.ldexp(part, -exponent)
        x = small.copy()
        if largest:
            project(projection, binding, x, x, float(np.ldexp(each[index], -exponent)))
        if np.array_equal(x, small):
            np.copyto(result, part)
        else:
            # What scaling rounds, at the far end of the range, is kept where it was kept, and does
            # not grow.
            kept = (x == small) & (np.ldexp(small, exponent) == part)
            found = np.where(kept, part, np.ldexp(x, exponent))
            np.copyto(result, np.where(np.abs(found) > np.abs(part), part, found))
