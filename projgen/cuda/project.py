"""What a `Projection` does with arrays on a GPU: checks, on which device and stream, and calls."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from projgen import measure
from projgen.arrays import Array, on_gpu, written
from projgen.bind import Binding
from projgen.compare import chain_info, chain_subject
from projgen.cuda.arrays import DeviceArray, view
from projgen.cuda.call import Call, Launches, PullCall, on_stream, wait_for
from projgen.cuda.compiler import compile_binding, compile_pull
from projgen.cuda.cupy import cupy
from projgen.cuda.plan import ACCESS
from projgen.info import Info
from projgen.operands import (
    axis_order,
    check_out,
    check_radii,
    memory_order,
    same_directions,
    same_memory,
    walkable,
)

if TYPE_CHECKING:
    from projgen.projection import Projection

REMEMBERED = 256  # calls that are kept ready, of all projections
SENT = 1 << 22  # elements that go to the host at once


def project(projection: Projection, y: Any, radius: Any, out: Any) -> Any:
    """As `Projection.__call__`, for arrays on a GPU."""
    source = view(y)
    binding = projection._bind(source.ghost)
    radii = chain_radii(radius, binding, source)
    with on_stream(source.device, source.stream):
        made = source.empty() if out is None else out
    target = source if made is y else view_out(made)
    if out is not None:
        check_target(source, target)
        wait_for(source.device, source.stream, target.stream)
    if source.ghost.size:
        if projection._check_finite:
            _check_finite(binding, source)
        _project(binding, source, target, radii)
    if out is not None:
        wait_for(source.device, target.stream, source.stream)
        return written(out)
    return source.wrap(made) if isinstance(made, cupy().ndarray) else made


def norm(projection: Projection, y: Any) -> Any:
    """As `Projection.norm`: a float, which waits for the GPU, or an array of y's kind."""
    source = view(y)
    binding = projection._bind(source.ghost)
    shape = tuple(source.ghost.shape[axis] for axis in binding.batch)
    with on_stream(source.device, source.stream):
        if source.ghost.size == 0:
            norms = cupy().zeros(shape, np.float64)
        else:
            norms = _norms(binding, source)
        return source.wrap(norms) if binding.batch else float(norms)


def active(projection: Projection, x: Any) -> Any:
    """As `Projection.active`, by CuPy."""
    source = view(x)
    axes = projection._bind(source.ghost).levels[-1].axes
    with on_stream(source.device, source.stream):
        values = source.cupy()
        if source.dtype == "bfloat16":
            values = values & 0x7FFF
        found = (values != 0).any(axis=axes)
        return source.wrap(found) if found.ndim else bool(found)


def with_info(projection: Projection, y: Any, radius: Any, out: Any) -> tuple[Any, Info]:
    """As `projgen.compare.with_info`; y and the result are sent to the host in parts."""
    source = view(y)
    binding = projection._bind(source.ghost)
    radii = chain_radii(radius, binding, source)
    before = source
    if on_gpu(out) and np.may_share_memory(source.ghost, view(out).ghost):
        with on_stream(source.device, source.stream):
            before = source.copy()
    made = project(projection, y, radius, out)
    after = view(made)
    with on_stream(before.device, before.stream):
        norms, values = _root(binding, before)
        if not isinstance(radii, float):
            radii = radii.get()
    with on_stream(after.device, after.stream):
        norms_after, _ = _root(binding, after)

    def read(array: DeviceArray) -> measure.Read:
        def part(index: measure.Index) -> Array:
            with on_stream(array.device, array.stream):
                return array.read(index)

        return part

    subject = chain_subject(binding, before.ghost, before.dtype, read(before), read(after), SENT)
    return made, chain_info(binding, subject, norms, norms_after, values, radii)


def _root(binding: Binding, y: DeviceArray) -> tuple[Array, Array | None]:
    """As `measure.root_by_reference`, by the GPU."""
    if not y.ghost.size:
        return measure.root_by_reference(binding, y.ghost)
    values = None
    if measure.needs_values(binding, y.ghost.shape):
        values = measure.by_root(binding, _norms(measure.beneath(binding), y).get())
    return _norms(binding, y).get(), values


def chain_radii(radius: Any, binding: Binding, y: DeviceArray) -> Any:
    shape = y.ghost.shape
    batch = tuple(shape[axis] for axis in binding.batch)
    return radii_for(radius, batch, f"{binding.tree} on shape {shape}", y)


def radii_for(radius: Any, batch: tuple[int, ...], what: str, y: DeviceArray) -> Any:
    """A float, or a CuPy array of this shape, on y's device and stream; `what` it is for.

    Radii that are on the GPU already are not read here: a negative one, or NaN, makes NaN.
    """
    cp = cupy()
    if not on_gpu(radius):
        radii = check_radii(radius, batch, what)
        if isinstance(radii, float):
            return radii
        with on_stream(y.device, y.stream):
            return cp.asarray(radii)
    try:
        given = view(radius)
    except TypeError as error:
        raise TypeError(f"radius: {error}") from None
    if given.device != y.device:
        raise ValueError(f"radius is on GPU {given.device}, and y on GPU {y.device}")
    if given.dtype == "bfloat16":
        raise TypeError("a radius of bfloat16 is too coarse: use float32 or float64")
    check_radii(np.broadcast_to(1.0, given.ghost.shape), batch, what)
    wait_for(y.device, y.stream, given.stream)
    with on_stream(y.device, y.stream):
        return cp.broadcast_to(given.cupy().astype(np.float64), batch)


def view_out(out: Any) -> DeviceArray:
    if not on_gpu(out):
        raise TypeError(f"y is on a GPU, and out, of type {type(out).__name__}, is not")
    return view(out)


def check_target(y: DeviceArray, out: DeviceArray) -> None:
    if out.device != y.device:
        raise ValueError(f"out is on GPU {out.device}, and y on GPU {y.device}")
    if out.dtype != y.dtype:
        raise ValueError(f"out must have y's dtype, {y.dtype}; it has {out.dtype}")
    check_out(y.ghost, out.ghost)
    if out.ghost.size and not walkable(out.ghost):
        raise ValueError("out's elements do not lie at whole steps")


def _project(binding: Binding, y: DeviceArray, out: DeviceArray, radii: Any) -> None:
    in_place = same_memory(y.ghost, out.ghost)
    if not in_place and not (walkable(y.ghost) and same_directions(y.ghost, out.ghost)):
        with on_stream(y.device, y.stream):
            out.cupy()[...] = y.cupy()
        y, in_place = out, True
    call = _call(binding, y, None if in_place else out)
    ordered = ordered_radii(radii, binding, call, y.stream)
    call.project(y.pointer, out.pointer, ordered, y.stream, radii)


def taped(
    projection: Projection, binding: Binding, y: DeviceArray, x: DeviceArray, radii: Any
) -> Any:
    """Project `y`, which is not empty, into `x`, which lies like it: see `Call.taped`."""
    if projection._check_finite:
        _check_finite(binding, y)
    call = _call(binding, y, x)
    ordered = ordered_radii(radii, binding, call, y.stream)
    return call.taped(y.pointer, x.pointer, ordered, y.stream, radii, y)


def ordered_radii(
    radii: float | Any, binding: Binding, call: Launches, stream: int | None
) -> float | Any:
    """Radii as the kernels count their batch entries."""
    if isinstance(radii, float):
        return radii
    with on_stream(call.device, stream):
        return cupy().ascontiguousarray(memory_order(radii, binding, call.plan))


def _norms(binding: Binding, y: DeviceArray) -> Any:
    """A CuPy array over the batch axes."""
    if not walkable(y.ghost):
        y = y.copy()
    call = _call(binding, y, None)
    ordered = call.norms(y.pointer, y.stream)
    return axis_order(ordered, binding, call.plan, y.ghost.shape)


def _check_finite(binding: Binding, y: DeviceArray) -> None:
    """Waits for the GPU."""
    with on_stream(y.device, y.stream):
        if not bool(cupy().isfinite(_norms(binding, y)).all()):
            raise ValueError(
                "y has NaN or infinity in it, or its norm is beyond float64; nothing was written. "
                "Numbers must be finite, or build with check_finite=False"
            )


_calls: OrderedDict[tuple[Any, ...], Call | PullCall] = OrderedDict()
_lock = threading.Lock()


def _call(binding: Binding, y: DeviceArray, out: DeviceArray | None) -> Call:
    """The call that is ready for these shapes and strides, or a new one."""
    aligned = y.lowest % ACCESS == (out or y).lowest % ACCESS == 0
    strides = None if out is None else out.strides

    def make() -> Call:
        compiled = compile_binding(
            binding,
            y.ghost.shape,
            y.dtype,
            y.strides,
            strides,
            in_place=out is None,
            aligned=aligned,
        )
        return Call(compiled, y.device)

    key = (binding, y.dtype, y.ghost.shape, y.strides, strides, aligned, y.device)
    found: Call = _remembered(key, make)
    return found


def pull_call(binding: Binding, y: DeviceArray, aligned: bool) -> PullCall:
    """The way back that is ready for arrays that lie as `y` does, or a new one."""

    def make() -> PullCall:
        compiled = compile_pull(binding, y.ghost.shape, y.dtype, y.strides, aligned)
        return PullCall(compiled, y.device)

    key = (binding, y.dtype, y.ghost.shape, y.strides, "pull", aligned, y.device)
    found: PullCall = _remembered(key, make)
    return found


def _remembered(key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    with _lock:
        call = _calls.get(key)
        if call is not None:
            _calls.move_to_end(key)
            return call
    made = make()
    with _lock:
        _calls[key] = made
        if len(_calls) > REMEMBERED:
            _calls.popitem(last=False)
    return made
