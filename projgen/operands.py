"""What a call is given: is it allowed, and where does it lie in memory?"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from projgen.arrays import Array, address, span
from projgen.bind import Binding
from projgen.structure import Key, dotted, flat

if TYPE_CHECKING:
    from projgen.plan import Plan


_LARGE = 10**308


def in_shards(y: Any, named: Mapping[str, Any]) -> Any:
    """The module that projects DTensors if there is one among `y` and `named`; or None.

    PyTorch has the type only once something has imported it.
    """
    module = sys.modules.get("torch.distributed.tensor")
    if module is None or type(y) is np.ndarray:
        return None
    kind = module.DTensor
    if not isinstance(y, kind):
        if not named and isinstance(y, sys.modules["torch"].Tensor):
            return None
        if not any(isinstance(each, kind) for _, each in flat([y, *named.values()])):
            return None
    return import_module("projgen.torch.sharded")


def check_radius(radius: Any, binding: Binding, shape: tuple[int, ...]) -> float | Array:
    """A float, or an array of the batch axes' shape; a ValueError for a negative one or NaN."""
    if type(radius) is float and radius >= 0:
        return radius
    batch = tuple(shape[axis] for axis in binding.batch)
    return check_radii(radius, batch, f"{binding.tree} on shape {shape}")


def check_radii(radius: Any, batch: tuple[int, ...], what: object) -> float | Array:
    """`check_radius` for a batch of this shape; `what` the radius is for, in words."""
    if type(radius) is int:  # of any size, which NumPy's are not
        radius = float(min(max(radius, -_LARGE), _LARGE))
    if type(radius) is not float:
        if getattr(radius, "requires_grad", False):
            raise TypeError(
                "this radius requires a gradient, and a projection records none: use "
                "projgen.torch.project, or radius.item()"
            )
        given = np.asarray(radius)
        if given.dtype.kind not in "fiu":
            percent = isinstance(radius, str) and radius.endswith("%")
            hint = ": a tenth of y's norm is 0.1 * p.norm(y)" if percent else ""
            raise TypeError(f"radius must be a number or an array of numbers, got {radius!r}{hint}")
        if given.ndim:
            try:
                radii = np.broadcast_to(given.astype(np.float64, copy=False), batch)
            except ValueError:
                has = (
                    f"the batch axes' shape {batch}"
                    if batch
                    else "no batch axis, so it takes a number"
                )
                raise ValueError(
                    f"a radius of shape {given.shape} does not fit {what}: it has {has}"
                ) from None
            if not np.all(radii >= 0):
                raise ValueError("radius must be at least 0, and not NaN")
            return radii
        radius = float(given)
    if not radius >= 0:
        raise ValueError(f"radius must be at least 0, got {radius}")
    return float(radius)


def check_out(y: Array, out: Array) -> None:
    if out.shape != y.shape or out.dtype != y.dtype:
        raise ValueError(
            f"out must have y's shape and dtype, {y.shape} {y.dtype}; "
            f"it has {out.shape} {out.dtype}"
        )
    if not out.flags.writeable:
        raise ValueError("out is read-only")
    if overlaps_itself(out):
        raise ValueError("out has elements that share memory: it is a broadcast or sliding view")
    if not same_memory(y, out) and overlap(y, out):
        raise ValueError("out overlaps y without being y: pass out=y for in place, or a new array")


def check_apart(
    keys: Sequence[Key],
    arrays: Sequence[Array],
    targets: Sequence[Array],
    spans: list[tuple[int, int]] | None = None,
) -> None:
    """A ValueError if a result of one call would be written to where another of its arrays is.

    `spans` are where the targets begin and end, and the arrays that are not their own targets, if
    that is known.
    """
    if spans is None:
        spans = [span(target) for target in targets]
        pairs = zip(arrays, targets, strict=True)
        spans += [span(own) for own, target in pairs if not same_memory(own, target)]
    spans.sort()
    if all(stop <= start for (_, stop), (start, _) in pairwise(spans)):
        return  # nothing is near anything else
    for key, own, target in zip(keys, arrays, targets, strict=True):
        if not same_memory(own, target):
            check_out(own, target)
        for other, array in zip(keys, arrays, strict=True):
            if other != key and overlap(array, target):
                raise ValueError(
                    f"out {dotted(key)} shares memory with y {dotted(other)}: the result of one "
                    "array would be written over another"
                )
        for other, second in zip(keys, targets, strict=True):
            if other != key and overlap(second, target):
                raise ValueError(f"out {dotted(key)} and out {dotted(other)} share memory")


def overlap(y: Array, out: Array) -> bool:
    if not np.may_share_memory(y, out):
        return False
    try:
        return np.shares_memory(y, out, max_work=1_000_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def overlaps_itself(out: Array) -> bool:
    axes = sorted((abs(s), n) for s, n in zip(out.strides, out.shape, strict=True) if n > 1)
    reach = out.itemsize
    for stride, extent in axes:
        if stride < reach:
            break
        reach += stride * (extent - 1)
    else:
        return False
    offsets = sum(
        np.arange(n).reshape([-1 if i == axis else 1 for i in range(out.ndim)]) * s
        for axis, (n, s) in enumerate(zip(out.shape, out.strides, strict=True))
    )
    unique = np.unique(offsets)
    return unique.size < out.size or bool(np.any(np.diff(unique) < out.itemsize))


def same_memory(y: Array, out: Array) -> bool:
    """Whether both are the same elements in the same places."""
    if out is y:
        return True
    return address(y) == address(out) and all(
        n == 1 or s == t for n, s, t in zip(y.shape, y.strides, out.strides, strict=True)
    )


def walkable(array: Array) -> bool:
    """Whether its elements lie at whole steps, none of them zero."""
    return array.flags.aligned and all(
        n == 1 or (s != 0 and s % array.itemsize == 0)
        for n, s in zip(array.shape, array.strides, strict=True)
    )


def is_dense(array: Array) -> bool:
    """Whether it lies in memory without gaps, in any order of its axes, and forwards."""
    return array.flags.aligned and np.empty_like(array).strides == array.strides


def same_directions(y: Array, out: Array) -> bool:
    return all(
        n == 1 or (s > 0) == (t > 0)
        for n, s, t in zip(y.shape, y.strides, out.strides, strict=True)
    )


def is_finite(y: Array) -> bool:
    if y.size == 0:
        return True
    # NaN comes out of both; no array of booleans is made.
    with np.errstate(invalid="ignore"):  # which bfloat16 would warn of
        return bool(np.isfinite(y.max()) and np.isfinite(y.min()))


def require_finite(
    y: Array, name: str = "y", hint: str = ", or build with check_finite=False"
) -> None:
    """A ValueError for NaN and inf, with the first place."""
    if not is_finite(y):
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(y))[0])
        raise ValueError(
            f"{name} has {y[at]} at index {at}; nothing was written. Numbers must be finite{hint}"
        )


def memory_order(radii: Array, binding: Binding, plan: Plan) -> Array:
    """Radii by batch axis, as the kernel counts its batch entries."""
    for axis, reverse in plan.layout.batch:
        if reverse:
            radii = np.flip(radii, binding.batch.index(axis))
    order = [binding.batch.index(axis) for axis, _ in plan.layout.batch]
    rest = [i for i in range(radii.ndim) if i not in order]
    return radii.transpose(*rest, *order).ravel()


def axis_order(norms: Array, binding: Binding, plan: Plan, shape: tuple[int, ...]) -> Array:
    """What the kernel counts, by batch axis: the inverse of `memory_order`."""
    if not binding.batch:
        return norms.reshape(())
    order = [binding.batch.index(axis) for axis, _ in plan.layout.batch]
    rest = [i for i in range(len(binding.batch)) if i not in order]
    axes = rest + order
    extents = [shape[axis] for axis in binding.batch]
    array = norms.reshape([extents[i] for i in axes]).transpose(np.argsort(axes))
    for axis, reverse in plan.layout.batch:
        if reverse:
            array = np.flip(array, binding.batch.index(axis))
    return array
