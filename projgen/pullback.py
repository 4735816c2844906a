"""A projection and the way back: gradients of what was projected from those of the result.

`vjp` is reverse mode: it gives the projection and a `Pullback`. On the CPU the projection leaves a
tape of what it found, and kernels go back by it: of chains of l1, l2 and linf, and of single levels
of any norm. What has no tape goes back by the reference. For a GPU see `projgen.cuda.pull`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from projgen.arrays import Array, check_dtype, detached, view
from projgen.bind import Binding
from projgen.dtypes import put
from projgen.errors import quote
from projgen.forks import wholly
from projgen.operands import check_radius, in_shards, is_dense
from projgen.structure import Key, at, dotted, flat, rebuilt

if TYPE_CHECKING:
    from projgen.calls import Taped
    from projgen.projection import Projection


class Pullback(ABC):
    """What takes gradients of a projection's result back: call it, as often as you like.

    It keeps the arrays that were given and the result; they must not change before it is called.
    """

    @abstractmethod
    def __call__(self, gradient: Any) -> tuple[Any, Any]:
        """The gradients of what was projected and of the radius.

        `gradient` is that of the result, of its structure, shapes and dtypes (NaN and inf pass
        through). The gradients are like what they belong to: arrays in y's structure, and for the
        radius a float (on a GPU an array without axes), or an array over the batch axes. At
        radius 0 that of the radius is 0.
        """


def vjp(
    projection: Projection, y: Any, radius: Any, named: Mapping[str, Any]
) -> tuple[Any, Pullback]:
    """See `Projection.vjp`."""
    if in_shards(y, named):
        raise TypeError("gradients of DTensors are not taken: project them under torch.no_grad()")
    if projection._is_plain and not named:
        return _vjp_chain(projection, y, radius)
    from projgen import calls

    x, taped = calls.taped(projection, y, radius, named)
    return x, _TreePullback(projection, taped, frozenset(key for key, _ in flat(x)))


def _vjp_chain(projection: Projection, y: Any, radius: Any) -> tuple[Any, Pullback]:
    if radius is None:
        raise TypeError("a radius is missing: the call is p.vjp(y, radius)")
    if projection._gpu(y):
        from projgen.cuda import pull as gpu

        return gpu.vjp(projection, y, radius)
    source, wrap = view(y)
    check_dtype(source)
    binding = projection._bind(source)
    radii = check_radius(radius, binding, source.shape)
    x = np.empty_like(source)
    tape = project(projection, binding, source, x, radii)
    return wrap(x), _ChainPullback(projection, binding, source, radii, x, tape)


@wholly
def project(
    projection: Projection, binding: Binding, y: Array, x: Array, radii: float | Array
) -> Array | None:
    """Project `y`, which has been checked, into `x`, which is like it.

    The tape: see `projgen.cpu.pull`. None where gradients go the reference's way.
    """
    from projgen.cpu import pull

    kernels = projection.backend != "numpy" and not projection.is_joint
    if kernels and pull.has_kernel(binding) and y.size and is_dense(y) and x.strides == y.strides:
        return pull.project(projection, binding, y, x, radii)
    if y.size:
        projection._project(binding, y, x, radii)
    return None


@wholly
def pull_back(
    projection: Projection,
    binding: Binding,
    y: Array,
    radii: float | Array,
    x: Array,
    tape: Array | None,
    g: Array,
    out: Array,
) -> Array:
    """Write the gradient of `y` to `out`, which is like it, from that of `x`.

    The gradients of the radii, of the batch's shape.
    """
    if tape is not None:
        from projgen.cpu import pull

        return pull.pull(projection, binding, y, x, tape, g, out)
    if projection.is_joint:
        from projgen import exact

        result, slopes = exact.pull_back(binding, y, x, g)
    else:
        from projgen import interpret_pullbacks

        result, slopes = interpret_pullbacks.pull_back_chain(binding.tree, y, radii, g)
    put(out, result)
    return slopes


@dataclass(frozen=True, slots=True)
class _ChainPullback(Pullback):
    projection: Projection
    binding: Binding
    y: Array
    radii: float | Array
    x: Array
    tape: Array | None

    def __call__(self, gradient: Any) -> tuple[Any, Any]:
        g, wrap = view(detached(_part(gradient, ())))
        _check_like(g, self.y, "y")
        result = np.empty_like(self.y)
        slopes = pull_back(
            self.projection, self.binding, self.y, self.radii, self.x, self.tape, g, result
        )
        return wrap(result), wrap(slopes) if self.binding.batch else float(slopes)


@dataclass(frozen=True, slots=True)
class _TreePullback(Pullback):
    projection: Projection
    taped: Taped
    keys: frozenset[Key]  # of all arrays, those as well that passed unmatched

    def __call__(self, gradient: Any) -> tuple[Any, Any]:
        call = self.taped
        gradients: dict[Any, Array] = {}
        wraps: dict[Any, Any] = {}
        for key, array in call.arrays.items():
            gradients[key], wraps[key] = view(detached(_part(gradient, key)))
            _check_like(gradients[key], array, f"y {key!r}" if key else "y")
        for key, _ in flat(gradient) if self.keys != {()} else ():
            if key not in self.keys:
                raise ValueError(
                    f"the gradient has {quote(dotted(key))}, and y has no such array: it must have "
                    "y's structure"
                )
        results, slopes = pull_back_tree(self.projection, call, gradients)
        batch = call.bound.batch
        wrap = wraps[next(iter(results))]
        wrapped = {key: wraps[key](result) for key, result in results.items()}
        return rebuilt(gradient, wrapped), wrap(slopes) if batch else float(slopes)


@wholly
def pull_back_tree(
    projection: Projection, call: Taped, gradients: Mapping[Key, Array]
) -> tuple[dict[Key, Array], Array]:
    """The gradients of the arrays of `call` and of its radii, by those of its results."""
    results = {key: np.empty_like(array) for key, array in call.arrays.items()}
    if call.tape is not None:
        from projgen.cpu import trees

        slopes = trees.pull(
            projection, call.ready, call.arrays, call.results, gradients, results, call.tape,
            call.given,
        )  # fmt: skip
        return results, slopes
    from projgen import interpret_pullbacks

    pulled, slopes = interpret_pullbacks.pull_back(
        call.bound, call.arrays, call.radii, gradients, call.given.arrays, call.given.labels
    )
    for key, result in results.items():
        put(result, pulled[key])
    return results, slopes


def _part(gradient: Any, key: Key) -> Any:
    """The gradient of one array."""
    try:
        found = at(gradient, key)
    except ValueError:
        found = None
    if found is None:
        lack = f"the gradient lacks {quote(dotted(key))}" if key else "there is no gradient"
        raise ValueError(f"{lack}: it must have y's structure")
    return found


def _check_like(g: Array, y: Array, name: str) -> None:
    if g.shape != y.shape or g.dtype != y.dtype:
        raise ValueError(
            f"the gradient must have the shape and dtype of {name}, {y.shape} {y.dtype}; "
            f"it has {g.shape} {g.dtype}"
        )
