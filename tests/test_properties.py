"""Any tree, any shape, any memory layout: kernels are rehearsed in Python against the oracle."""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import Array, assert_projected, early, lay_out, norm, rehearsals, together

import projgen
from projgen.bind import bind
from projgen.check import parse_tree
from projgen.compiler import compile_binding
from projgen.cpu.call import Call
from projgen.norms import CHAINED
from projgen.operands import memory_order, walkable

NAMES = st.sampled_from(list(CHAINED))

# Plans cut arrays by these sizes. Made small, they cut the arrays of these tests.
TINY = {
    "BLOCK_BYTES": 256,
    "MAX_BLOCKS": 7,
    "SCRATCH_BYTES": 2048,
    "SHARED_VALUES": 8,
    "STREAMED_BYTES": 2000,
    "STRETCH_BYTES": 64,
    "BAKED": 12,
    "WIDE": 8,
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
        spec = f"{draw(NAMES)}({', '.join(filter(None, [spec, axis]))})"
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


def run(problem: Problem, tiny: bool, **options: Any) -> Array:
    with rehearsals(**TINY if tiny else {}):
        return projgen.build(problem.spec)(problem.y, problem.radius, **options)


@settings(max_examples=400)
@given(problems(), st.booleans())
def test_any_projection(problem: Problem, tiny: bool) -> None:
    spec, y, radius = problem.spec, problem.y, problem.radius
    with rehearsals(**TINY if tiny else {}):
        p = projgen.build(spec)
        x = p(y, radius)
        assert_projected(spec, y, radius, x)
        np.testing.assert_allclose(p.norm(y), norm(spec, y), rtol=1e-12)


def restricted(spec: str) -> str:
    """The chain with a ball that has no negative values."""
    return f"{spec[:-1]}, nonneg=True)"


@settings(max_examples=300)
@given(problems(), st.booleans(), st.booleans())
def test_negative_values_count_as_zeros(problem: Problem, tiny: bool, in_place: bool) -> None:
    """Wherever they lie, and where the projection goes."""
    spec, y, radius = problem.spec, problem.y, problem.radius
    assume(not in_place or (y.flags.writeable and walkable(y)))
    kept = y.copy("K")
    np.maximum(kept, 0, out=kept)
    p = projgen.build(restricted(spec))
    with rehearsals(**TINY if tiny else {}):
        np.testing.assert_allclose(p.norm(y), norm(spec, kept), rtol=1e-12)
        x = p(y, radius, out=y) if in_place else p(y, radius)
        assert_projected(spec, kept, radius, x)


@settings(max_examples=100)
@given(problems(), st.booleans())
def test_in_place(problem: Problem, tiny: bool) -> None:
    """The same bits, by another kernel, if both results lie in memory like y."""
    x = run(problem, tiny)
    out = np.zeros_like(problem.y)
    assert run(problem, tiny, out=out) is out
    y = problem.y
    assert np.array_equal(out, x) or out.strides != x.strides
    assume(y.flags.writeable)
    before = y.copy()
    assert run(problem, tiny, out=y) is y
    in_place, y[...] = y.copy(), before
    with rehearsals():  # for their tolerance
        assert_projected(problem.spec, before, problem.radius, in_place)
    assert x.strides != y.strides or np.array_equal(in_place, x)


@settings(max_examples=100)
@given(problems(("float64",)), st.booleans())
def test_twice_is_once(problem: Problem, tiny: bool) -> None:
    """Up to rounding, which may leave the first result just outside of the ball."""
    x = run(problem, tiny)
    top = np.abs(problem.y).max()
    twice = run(Problem(problem.spec, x, problem.radius), tiny)
    assert np.abs(twice / (top or 1) - x / (top or 1)).max() <= 1e-12


@settings(max_examples=100)
@given(problems(("float64",)), st.booleans())
def test_the_norm_identity(problem: Problem, tiny: bool) -> None:
    """Under an l1 root, what is taken away and what remains add up: ||y - x|| + ||x|| = ||y||."""
    spec, y = problem.spec, problem.y
    assume(spec.startswith("l1(") and np.abs(y).max() < 1e200)
    x = run(problem, tiny)
    parts = norm(spec, y - x) + norm(spec, x)
    np.testing.assert_allclose(parts, norm(spec, y), rtol=1e-12, atol=0)


@settings(max_examples=100)
@given(st.data(), problems(), st.booleans())
def test_permuted_axes_permute_the_result(
    data: st.DataObject, problem: Problem, tiny: bool
) -> None:
    """Of the same memory: the plan follows memory, not the order of the axes."""
    spec, y, radius = problem.spec, problem.y, problem.radius
    order = data.draw(st.permutations(range(y.ndim)))
    assume(np.ndim(radius) == 0)
    renamed = re.sub(r"\d+(?=[,)])", lambda axis: str(order.index(int(axis[0]))), spec)
    with rehearsals(**TINY if tiny else {}):
        x = projgen.project(y, spec, radius)
        z = projgen.project(y.transpose(order), renamed, radius)
    top = np.abs(y).max() or 1
    assert np.abs(z / top - x.transpose(order) / top).max() <= (2e-5 if y.itemsize == 4 else 1e-12)


@settings(max_examples=100)
@given(problems(), st.booleans())
def test_signs_do_not_matter(problem: Problem, tiny: bool) -> None:
    y = problem.y.copy("K")
    x, negative = (run(Problem(problem.spec, z, problem.radius), tiny) for z in (y, -y))
    assert np.array_equal(negative, -x)


@settings(max_examples=100)
@given(problems(("float64",)), st.booleans(), st.sampled_from([-30, 7, 40]))
def test_powers_of_two_scale_along(problem: Problem, tiny: bool, power: int) -> None:
    spec, y, radius = problem.spec, problem.y.copy("K"), problem.radius
    assume(1e-100 < np.abs(y).max() < 1e100 and np.all(np.asarray(radius) > 1e-120))
    assume(not np.any((y != 0) & (np.abs(y) < 1e-280)))
    scaled = Problem(spec, np.ldexp(y, power), np.ldexp(radius, power))
    x = run(Problem(spec, y, radius), tiny)
    assert np.array_equal(run(scaled, tiny), np.ldexp(x, power))


@settings(max_examples=60)
@given(problems(), st.integers(2, 5), st.sampled_from([early, together]))
def test_any_projection_by_a_team(problem: Problem, threads: int, team: Any) -> None:
    spec, y, radius = problem.spec, problem.y, problem.radius
    with rehearsals(team, **TINY):
        assert_projected(spec, y, radius, projgen.build(spec, threads=threads)(y, radius))


@settings(max_examples=60)
@given(problems(), st.integers(1, 4), st.sampled_from([early, together]))
def test_in_two_steps_is_in_one(problem: Problem, threads: int, team: Any) -> None:
    """The same bits, if the second step resumes the first, in whose workspace the norms are."""
    y = problem.y
    assume(walkable(y))
    x, z = np.zeros_like(y), np.zeros_like(y)
    binding = bind(parse_tree(problem.spec), y.ndim)
    strides, out_strides = ([s // y.itemsize for s in a.strides] for a in (y, x))
    assume(all(s > 0 for s in strides))
    compiled = compile_binding(binding, y.shape, y.dtype.name, strides, out_strides)
    radii = np.broadcast_to(problem.radius, norm(problem.spec, y).shape)
    ordered = memory_order(np.asarray(radii, np.float64), binding, compiled.plan)
    with rehearsals(team, **TINY):
        call = Call(compiled, threads)
        once = call.project(y.ctypes.data, x.ctypes.data, ordered)
        assume(once != Call.OUT_OF_RANGE)
        left, begun = call.begin(y.ctypes.data), call.begin(y.ctypes.data)
        assert left is not None and begun is not None
        call.abandon(left)
        norms = call.norms_of(begun).copy()
        assert call.end(begun, y.ctypes.data, z.ctypes.data, ordered) == once
    assert np.array_equal(z, x)
    expected = memory_order(norm(problem.spec, y), binding, compiled.plan)
    np.testing.assert_allclose(norms, expected, rtol=1e-12)
