"""Gradients of what a GPU projects: chains of l1, l2 and linf over one array.

The projection leaves its workspace, which is the tape; kernels go back by it. All is launched on
the stream of the arrays' owner, and nothing is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from projgen.arrays import detached
from projgen.bind import Binding
from projgen.cuda import project as forward
from projgen.cuda.arrays import DeviceArray, view
from projgen.cuda.call import on_stream, wait_for
from projgen.cuda.cupy import cupy
from projgen.cuda.plan import ACCESS
from projgen.norms import NORMS
from projgen.operands import axis_order
from projgen.pullback import Pullback

if TYPE_CHECKING:
    from projgen.projection import Projection


def vjp(projection: Projection, y: Any, radius: Any) -> tuple[Any, Pullback]:
    """As `Projection.vjp`, for arrays on a GPU. The gradient of one radius is an array as well."""
    projected = project(projection, y, radius)
    return projected.result, _DevicePullback(projected)


@dataclass(frozen=True, slots=True)
class Projected:
    """A projection and what it left: `y` and `x` lie alike, `result` is x as its owner knows it.

    ``tape`` is a CuPy array; None if the others are empty.
    """

    binding: Binding
    y: DeviceArray
    x: DeviceArray
    radii: float | Any
    tape: Any
    result: Any


def project(projection: Projection, y: Any, radius: Any) -> Projected:
    """Project `y`, checked as in a call, into a new array."""
    source = view(y)
    if not has_kernel(projection):
        refuse(projection)
    binding = projection._bind(source.ghost)
    radii = forward.chain_radii(radius, binding, source)
    result, x = new_like(source, source.stream)
    source = lying_like(x, source)
    tape = None
    if source.ghost.size:
        tape = forward.taped(projection, binding, source, x, radii)
    return Projected(binding, source, x, radii, tape, result)


def has_kernel(projection: Projection) -> bool:
    """Whether a GPU takes gradients back through this tree."""
    plain = projection._is_plain and not projection.is_joint
    return plain and all(NORMS[node.norm].pulls for node in projection.tree.levels)


def refuse(projection: Projection) -> NoReturn:
    """A TypeError that says which trees have gradients on a GPU."""
    raise TypeError(
        "on a GPU, gradients go through chains of l1, l2 and linf over one array, and "
        f"{projection.spec} is another tree: use arrays on the CPU, as with y.cpu()"
    )


def new_like(y: DeviceArray, stream: int | None) -> tuple[Any, DeviceArray]:
    """A new array of y's kind, without gaps, for work on `stream`: as its owner has it, and we."""
    with on_stream(y.device, stream):
        made = y.empty()
    own = replace(view(made), stream=stream)
    return y.wrap(made) if isinstance(made, cupy().ndarray) else made, own


def lying_like(x: DeviceArray, array: DeviceArray) -> DeviceArray:
    """`array` in memory as `x` is: itself, or a copy on its stream."""
    steps = zip(x.ghost.shape, x.ghost.strides, array.ghost.strides, strict=True)
    if array.ghost.flags.aligned and all(n == 1 or s == t for n, s, t in steps):
        return array
    _, own = new_like(x, array.stream)
    with on_stream(array.device, array.stream):
        own.cupy()[...] = array.cupy()
    return own


def pull_back(
    binding: Binding,
    y: DeviceArray,
    x: DeviceArray,
    radii: float | Any,
    tape: int,
    dx: DeviceArray,
    *also: Any,
) -> tuple[Any, Any]:
    """The gradient of y, by that of x, and those of the radii: a CuPy array of the batch's shape.

    `y` and `x` are what `project` left, as is what lies at `tape`. Launched on dx's stream. A graph
    keeps `also`.
    """
    result, dy = new_like(y, dx.stream)
    operands = {"y": lying_like(dy, y), "x": lying_like(dy, x), "dx": lying_like(dy, dx), "dy": dy}
    wait_for(y.device, dx.stream, y.stream)
    aligned = all(array.lowest % ACCESS == 0 for array in operands.values())
    call = forward.pull_call(binding, dy, aligned)
    pointers = {name: array.lowest for name, array in operands.items()}
    ordered = forward.ordered_radii(radii, binding, call, dx.stream)
    also = (radii, *operands.values(), *also)
    slopes = call.pull({**pointers, "tape": tape}, ordered, dx.stream, *also)
    wait_for(y.device, y.stream, dx.stream)  # which may reuse the memory from here on
    with on_stream(y.device, dx.stream):
        return result, axis_order(slopes, binding, call.plan, y.ghost.shape)


@dataclass(frozen=True, slots=True)
class _DevicePullback(Pullback):
    projected: Projected

    def __call__(self, gradient: Any) -> tuple[Any, Any]:
        p = self.projected
        dx = view(detached(gradient))
        check_like(dx, p.y)
        if p.tape is None:
            result, _ = new_like(p.y, dx.stream)
            batch = [p.y.ghost.shape[axis] for axis in p.binding.batch]
            with on_stream(p.y.device, dx.stream):
                slopes = cupy().zeros(batch, np.float64)
        else:
            result, slopes = pull_back(p.binding, p.y, p.x, p.radii, p.tape.data.ptr, dx, p)
        with on_stream(p.y.device, dx.stream):
            return result, dx.wrap(slopes)


def check_like(dx: DeviceArray, y: DeviceArray) -> None:
    """A ValueError for a gradient that is not like y."""
    if dx.device != y.device:
        raise ValueError(f"the gradient is on GPU {dx.device}, and y on GPU {y.device}")
    if dx.ghost.shape != y.ghost.shape or dx.dtype != y.dtype:
        raise ValueError(
            f"the gradient must have the shape and dtype of y, {y.ghost.shape} {y.dtype}; "
            f"it has {dx.ghost.shape} {dx.dtype}"
        )
