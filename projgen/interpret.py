"""The reference: a norm tree's norm and projection in plain NumPy and float64.

It walks the same levels as the kernels and shares no code with them, so it can be their oracle.
Arrays keep all their axes on the way, reduced ones with length 1: an axis has one number
throughout.
"""

import numpy as np
import numpy.typing as npt

from projgen.bind import Binding, Level
from projgen.references import REFERENCES

Array = npt.NDArray[np.float64]
Exponent = npt.NDArray[np.int32]

_TOP = 900  # the largest magnitude becomes about 2**900: 2**100 of them still have a finite sum


@np.errstate(over="ignore", under="ignore")
def norm(binding: Binding, y: npt.ArrayLike) -> Array:
    """The tree's norm of `y`, for each index along the batch axes.

    `y` has rank ``binding.rank`` and finite values. The result has the shape of the batch axes, in
    their order; it is infinite where the norm is beyond float64.
    """
    array = _checked(binding, y)
    exponent = _exponent(binding, array)
    values = _value(binding.root, _scale(np.abs(array), -exponent))
    return _scale(values, exponent).reshape(_batch_shape(binding, array))


@np.errstate(over="ignore", under="ignore")
def project(binding: Binding, y: npt.ArrayLike, radius: npt.ArrayLike) -> Array:
    """`y` projected, level by level, on the ball of the tree's norm.

    `y` has rank ``binding.rank`` and finite values; `radius` is a number, or an array that
    broadcasts over the shape of the batch axes. The result is a new float64 array of y's shape.
    Entries whose group is inside its ball, and so all of a `y` inside the ball, are unchanged to
    the bit. A ValueError for a wrong rank, and for a negative, NaN or misshapen radius.
    """
    array = _checked(binding, y)
    radii = _radii(binding, array, radius)
    if array.size == 0:
        return np.copy(array)
    exponent = _exponent(binding, array)
    a = _scale(np.abs(array), -exponent)
    u = _project(binding.root, a, _scale(radii, -exponent))
    # Scaling back is exact but for subnormal numbers; unchanged entries do without it.
    x: Array = np.copysign(np.where(u == a, np.abs(array), _scale(u, exponent)), array)
    return x


def _value(level: Level, a: Array) -> Array:
    """Upward: the level's norm of each of its groups."""
    return REFERENCES[level.norm].norm(_inner(level, a), level.axes)


def _project(level: Level, a: Array, radius: Array) -> Array:
    """Downward: the level shares its radius out, and each share is the radius of a group below."""
    values = _inner(level, a)
    reference = REFERENCES[level.norm]
    inside = reference.norm(values, level.axes) <= radius
    u = np.where(inside, values, reference.ball(values, level.axes, radius))
    if not level.children:
        return u
    (child,) = level.children
    return _project(child, a, u)


def _inner(level: Level, a: Array) -> Array:
    """What the level aggregates: its child's values, or at the leaf the array's own."""
    if not level.children:
        return a
    (child,) = level.children
    return _value(child, a)


def _exponent(binding: Binding, y: Array) -> Exponent:
    """Of the power of two to divide by, so that no sum overflows and nothing small vanishes."""
    reduced = tuple(axis for axis in range(binding.rank) if axis not in binding.batch)
    _, exponent = np.frexp(np.abs(y).max(axis=reduced, keepdims=True, initial=0.0))
    shifted: Exponent = exponent - _TOP
    return shifted


def _scale(a: Array, exponent: Exponent) -> Array:
    """``a * 2**exponent``, exact within the range of float64 and infinite above it."""
    scaled: Array = np.ldexp(a, exponent)
    return scaled


def _checked(binding: Binding, y: npt.ArrayLike) -> Array:
    array = np.asarray(y, dtype=np.float64)
    if array.ndim != binding.rank:
        raise ValueError(f"an array of rank {binding.rank} is expected, not {array.ndim}")
    return array


def _batch_shape(binding: Binding, array: Array) -> tuple[int, ...]:
    return tuple(array.shape[axis] for axis in binding.batch)


def _radii(binding: Binding, array: Array, radius: npt.ArrayLike) -> Array:
    """The radius for each index along the batch axes, with length 1 along all others."""
    radii = np.asarray(radius, dtype=np.float64)
    if not np.all(radii >= 0):
        raise ValueError("a radius must not be negative or NaN")
    batch = _batch_shape(binding, array)
    try:
        radii = np.broadcast_to(radii, batch)
    except ValueError:
        message = f"a radius of shape {radii.shape} does not fit the batch axes' shape {batch}"
        raise ValueError(message) from None
    lengths = (array.shape[axis] if axis in binding.batch else 1 for axis in range(array.ndim))
    return radii.reshape(tuple(lengths))
