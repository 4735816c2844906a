"""Any tree, any shape, any memory layout: kernels are rehearsed in Python against the oracle."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from support import Array, assert_projected, bits, lay_out, norm, rehearsals

import projgen

NORMS = st.sampled_from(["l1", "l2", "linf"])

# Plans cut arrays by these sizes. Made small, they cut the arrays of these tests.
TINY = {
    "BLOCK_BYTES": 256,
    "MAX_BLOCKS": 7,
    "SCRATCH_BYTES": 2048,
    "SHARED_VALUES": 8,
    "STREAMED_BYTES": 2000,
    "BAKED": 12,
}
SCALES = {"float32": [1e-38, 1e-30, 1.0, 1e30], "float64": [1e-300, 1e-140, 1.0, 1e300]}


@dataclass(frozen=True)
class Problem:
    spec: str
    y: Array
    radius: Any


@st.composite
def specs(draw: st.DrawFn, rank: int) -> str:
    """A chain for arrays of this rank; some of its axes may be left to the batch."""
    order = draw(st.permutations(range(rank)))
    depth = draw(st.integers(1, min(rank, 6)))
    cuts = sorted(draw(st.permutations(range(1, rank)))[: depth - 1])
    shares = [order[a:b] for a, b in zip([0, *cuts], [*cuts, rank], strict=True)]
    spec = ""
    for share in reversed(shares):
        kept = share[: draw(st.integers(1, len(share)))] if draw(st.booleans()) else share
        axis = f"axis={kept[0]}" if len(kept) == 1 else f"axis=({', '.join(map(str, kept))})"
        spec = f"{draw(NORMS)}({', '.join(filter(None, [spec, axis]))})"
    return spec


@st.composite
def layouts(draw: st.DrawFn, values: Array) -> Array:
    order = tuple(draw(st.permutations(range(values.ndim))))
    steps = st.sampled_from([1, 1, 1, 1, 1, 2, -1, -2, 0])
    return lay_out(values, order, tuple(draw(steps) for _ in order))


@st.composite
def problems(draw: st.DrawFn, dtypes: tuple[str, ...] = ("float32", "float64")) -> Problem:
    rank = draw(st.integers(1, 5))
    most = 1200
    shape: list[int] = []
    for _ in range(rank):
        extents = [n for n in (1, 2, 3, 5, 7, 16, 17, 20, 33, 70, 150) if n <= most]
        shape.append(draw(st.sampled_from(extents)))
        most //= shape[-1]
    shape = draw(st.permutations(shape))
    dtype = draw(st.sampled_from(dtypes))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = draw(st.sampled_from(KINDS))(rng, tuple(shape)) * draw(st.sampled_from(SCALES[dtype]))
    y = draw(layouts(values.astype(dtype)))
    spec = draw(specs(rank))
    return Problem(spec, y, draw(radii(norm(spec, y))))


@st.composite
def radii(draw: st.DrawFn, norms: Array) -> Any:
    fractions = st.sampled_from([1e-9, 0.01, 0.3, 0.5, 0.9, 0.999, 1.0, 1.5]) | st.floats(0, 1)
    finite = np.minimum(norms, 1e308)
    if norms.ndim and draw(st.booleans()):
        each = [draw(fractions) for _ in range(min(norms.size, 5))]
        return finite * np.resize(each, norms.shape)
    return float(finite.max(initial=0.0)) * draw(fractions)


def normal(rng: Any, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape)


def ties(rng: Any, shape: tuple[int, ...]) -> Array:
    return rng.integers(-2, 3, shape).astype(np.float64)


def equal(rng: Any, shape: tuple[int, ...]) -> Array:
    return np.full(shape, rng.standard_normal())


def geometric(rng: Any, shape: tuple[int, ...]) -> Array:
    """Each Newton step drops a few: the longest searches there are."""
    size = math.prod(shape)
    powers = 2.0 ** -(np.arange(size) * min(1.0, 60 / size))
    return rng.permutation(powers).reshape(shape) * rng.choice([-1.0, 1.0], shape)


def peak(rng: Any, shape: tuple[int, ...]) -> Array:
    """One value that dwarfs the others."""
    y = 1e-6 * rng.random(shape)
    y.flat[rng.integers(y.size)] = -1.0
    return y


def sparse(rng: Any, shape: tuple[int, ...]) -> Array:
    return np.where(rng.random(shape) < 0.7, -0.0, rng.standard_normal(shape))


KINDS = [normal, ties, equal, geometric, peak, sparse]


@settings(max_examples=300)
@given(problems(), st.booleans())
def test_any_projection(problem: Problem, tiny: bool) -> None:
    spec, y, radius = problem.spec, problem.y, problem.radius
    with rehearsals(**TINY if tiny else {}):
        x = projgen.build(spec)(y, radius)
    assert_projected(spec, y, radius, x)
