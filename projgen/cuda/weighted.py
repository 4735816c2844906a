"""A branch whose children have weights, on a GPU: the kernel of one level of their values, joined.

A block of threads takes a group, so groups of more than some 10^5 values are not its strength.
Weights reach the kernel as at most 1, with a power of two in front: so their squares have room.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.cuda.cupy import cupy
from projgen.cuda.load import load
from projgen.render import render_weighted

VERSION = 1  # of the generated code
WARP = 32
THREADS = 1024  # of a block, at most
MOST_VALUES = (1 << 31) - (1 << 20)  # of a group: the kernel counts them in int
LEAST = 2.0**-500  # of a weight that is not zero, relative to the largest
BALLS = ("l1", "l2", "linf")  # the norms that have such a kernel


@dataclass(frozen=True, slots=True)
class WeightedKernel:
    """All that the template may know."""

    norm: str
    version: int = VERSION

    @property
    def title(self) -> str:
        return f"{self.norm} with weights"

    @property
    def ball(self) -> str:
        """The template that holds the norm's macros."""
        return f"cuda/balls/{self.norm}.cu.j2"

    @property
    def maxima(self) -> bool:
        return self.norm != "l1"

    @property
    def joins(self) -> tuple[tuple[str, str], ...]:
        """What blocks join: an operation, a C++ type."""
        sums = (("sum", "double"),) if self.norm != "linf" else ()
        return (*sums, ("max", "long long")) if self.maxima else sums

    @property
    def source(self) -> str:
        """CUDA C++."""
        return render_weighted(self)


class Weighted:
    """Projects `groups` groups of values, which lie one after the other, on balls with `weights`.

    As `projgen.cuda.call.Call` for a level: begun on the way up, ended on the way down, on CuPy's
    current stream. Making it waits for the GPU, which then has the weights for calls on all
    streams. A ValueError for more values than the kernel can count.
    """

    def __init__(self, norm: str, groups: int, weights: NDArray[np.float64], device: int) -> None:
        if weights.size > MOST_VALUES:
            raise ValueError(
                f"{norm} joins {weights.size} values, and with weights a GPU takes {MOST_VALUES}"
            )
        exponent = int(np.frexp(weights.max())[1])
        scaled = np.ldexp(weights, -exponent)
        cp = cupy()
        self._weights = cp.asarray(np.where(weights > 0, np.maximum(scaled, LEAST), 0.0))
        cp.cuda.get_current_stream().synchronize()
        self._scale = np.float64(np.ldexp(1.0, exponent))
        self._count = np.int32(weights.size)
        self._groups = groups
        threads = min(THREADS, max(WARP, 1 << (weights.size - 1).bit_length()))
        self._size = (groups, 1, 1), (threads, 1, 1)
        module = load(WeightedKernel(norm).source, device)
        self._aggregate, self._project = map(module.get_function, ("aggregate", "project"))
        self.work = 8 * groups

    def begin(self, y: int, work: Any) -> Any:
        """The groups' norms, which lie in `work`, of the values at `y`."""
        arguments = np.uintp(y), self._weights, np.uintp(work.ptr), self._scale, self._count
        self._aggregate(*self._size, arguments)
        return cupy().ndarray((self._groups,), np.float64, work)

    def end(self, y: int, x: int, radius: float | Any, work: Any) -> None:
        """Their projections, at `x`."""
        number = isinstance(radius, float)
        arguments = (
            np.uintp(y),
            self._weights,
            np.uintp(work.ptr),
            np.uintp(0) if number else radius,
            np.float64(radius if number else 0.0),
            np.uintp(x),
            self._scale,
            self._count,
        )
        self._project(*self._size, arguments)
