"""float16 and bfloat16 in levels that have kernels of their own: weights, labels, other norms."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Array, bits, early, lay_out, rehearsals, together
from test_half import BFLOAT16, FLOAT16, TOLERANCE, TYPES, step
from test_properties import layouts
from test_templates import undefined_names, unused_names

import projgen
from projgen.cpu.ball import Ball
from projgen.cpu.group_kernel import GroupKernel
from projgen.cpu.groups import walk_groups

LEVELS = [
    *(f"{norm}(w=w, axis={{}})" for norm in ("l1", "l2", "linf")),
    *(f"lp(p={p}, axis={{}})" for p in (1.5, 2.5, 3)),
    "lp(p=3, w=w, axis={})",
    "l0(axis={})",
    "simplex(axis={})",
    "l1(w=w, axis={}, nonneg=True)",
    "l2(w=w, axis={}, nonneg=True)",
    "linf(w=w, axis={}, nonneg=True)",
    "l0(axis={}, nonneg=True)",
    *(f"{norm}(axis={{}}, groups=g)" for norm in ("l1", "l2", "linf", "l0")),
    "lp(p=3, axis={}, groups=g)",
    *(f"{norm}(axis={{}}, w=w, groups=g)" for norm in ("l1", "l2", "linf")),
]


def given_for(spec: str, shape: tuple[int, ...], axis: int) -> dict[str, Array]:
    """Weights, some of which are 0, and labels, if a level asks for them."""
    rng = np.random.default_rng(8)
    weights = rng.uniform(0.5, 2.0, shape).astype(np.float32)
    weights[rng.random(shape) < 0.1] = 0
    found = {"w": weights, "g": rng.integers(0, 3, shape[axis])}
    return {name: found[name] for name in found if f"={name}" in spec}


def radii_for(spec: str, y: Array, part: float, bound: dict[str, Array]) -> Array:
    """A part of what the norms are; of l0 a whole number."""
    radii = part * np.asarray(projgen.build(spec, backend="numpy").norm(y, **bound))
    return np.floor(radii) if spec.startswith("l0") else radii


def assert_rounded(
    spec: str, y: Array, radii: Any, x: Array, bound: dict[str, Array], tolerance: float = 3e-5
) -> None:
    """That `x` is the projection of `y` by the reference, rounded once."""
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
    p = projgen.build(spec, backend="numpy")
    wide, narrow = y.astype(np.float64), x.astype(np.float64)
    expected = p(wide, radii, **bound)
    top = max(np.abs(wide).max(), np.abs(expected).max())
    error = np.abs(narrow - expected) - tolerance * top
    worst = (error / step(expected, y.dtype)).max()
    assert worst <= 0.5 * (1 + 1e-6), f"{worst} steps from the oracle"
    assert np.all((narrow == 0) | (np.signbit(narrow) == np.signbit(wide)) | (wide < 0))
    if not spec.startswith(("simplex", "l1(simplex")):
        assert np.all(np.abs(narrow) <= np.abs(wide)), "a value grew"
    heaviest = float(bound["w"].max()) if "w" in bound else 1.0
    info = ml_dtypes.finfo(y.dtype)
    room = np.asarray(radii) * (1 + float(info.eps) / 2 + tolerance)
    room = room + heaviest * (tolerance * top + y.size * float(info.smallest_subnormal) / 2)
    assert np.all(p.norm(narrow, **bound) <= room), "above the radius by more than rounding"


@TYPES
@pytest.mark.parametrize("shape", [(300, 4), (40, 70)], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("level", LEVELS)
def test_every_level(level: str, axis: int, shape: tuple[int, ...], dtype: Any) -> None:
    """Rehearsed: rows, columns, short groups; by itself and below another level."""
    spec = level.format(axis)
    y = np.random.default_rng(3).standard_normal(shape).astype(dtype)
    bound = given_for(spec, shape, axis)
    if "groups" in spec:
        spec = f"linf({spec})"
    radii = radii_for(spec, y.astype(np.float64), 0.3, bound)
    p = projgen.build(spec, threads=1)
    with rehearsals():
        x = p(y, radii, **bound)
        assert_rounded(spec, y, radii, x, bound)
        assert p.norm(y, **bound) == pytest.approx(
            projgen.build(spec, backend="numpy").norm(y.astype(np.float64), **bound), rel=1e-6
        )
        z = y.copy()
        assert p(z, radii, out=z, **bound) is z
        assert bits(z) == bits(x)
        broken, out = y.copy(), np.ones_like(y)
        broken[-1, -1] = np.nan
        with pytest.raises(ValueError, match="nothing was written"):
            p(broken, radii, out=out, **bound)
        assert np.all(out == 1)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_layout_and_radius(data: st.DataObject) -> None:
    """Rehearsed."""
    dtype = data.draw(st.sampled_from([FLOAT16, BFLOAT16]))
    shape = data.draw(st.tuples(*[st.sampled_from([1, 2, 9, 17])] * 3))
    axis = data.draw(st.integers(0, 2))
    spec = data.draw(st.sampled_from(LEVELS)).format(axis)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    y = data.draw(layouts(rng.standard_normal(shape).astype(dtype)))
    bound = given_for(spec, shape, axis)
    if "groups" in spec:
        spec = f"linf({spec})"
    part = data.draw(st.sampled_from([0.0, 1e-3, 0.3, 1.0, 2.0]))
    radii = radii_for(spec, y.astype(np.float64), part, bound)
    p = projgen.build(spec, threads=1)
    with rehearsals():
        x = p(y, radii, **bound)
        assert_rounded(spec, y, radii, x, bound)
        if part >= 1 and "nonneg" not in spec and "simplex" not in spec:
            assert bits(x) == bits(y), "changed inside the ball"
        z = np.array(y)
        p(z, radii, out=z, **bound)
        assert_rounded(spec, y, radii, z, bound)


@TYPES
@pytest.mark.parametrize("team", [early, together])
@pytest.mark.parametrize("level", ["l1(w=w, axis=1)", "linf(w=w, axis=0)", "l0(axis=1)"])
def test_teams(level: str, team: Any, dtype: Any) -> None:
    y = np.random.default_rng(11).standard_normal((300, 200)).astype(dtype)
    bound = given_for(level, y.shape, 1)
    radii = radii_for(level, y.astype(np.float64), 0.3, bound)
    with rehearsals():
        alone = projgen.build(level, threads=1)(y, radii, **bound)
    with rehearsals(team):
        assert bits(projgen.build(level, threads=3)(y, radii, **bound)) == bits(alone)


@TYPES
def test_gaps_are_left_alone(dtype: Any) -> None:
    values = np.random.default_rng(0).standard_normal((20, 30)).astype(dtype)
    bound = given_for("w=w", values.shape, 1)
    for spec in ("l1(w=w, axis=1)", "linf(w=w, axis=0)"):
        radii = radii_for(spec, values.astype(np.float64), 0.3, bound)
        for order, steps in (((0, 1), (1, 2)), ((1, 0), (2, 1)), ((0, 1), (-1, -2))):
            y = lay_out(values, order, steps)
            memory = y.base if y.base.dtype == dtype else y
            gaps = np.isnan(memory)
            with rehearsals():
                projgen.build(spec)(y, radii, out=y, **bound)
            assert_rounded(spec, values, radii, np.array(y), bound)
            assert np.array_equal(np.isnan(memory), gaps)


@TYPES
@pytest.mark.parametrize(
    "ball",
    [Ball("l1", weighted=True), Ball("l2", weighted=True), Ball("linf"), Ball("simplex")],
    ids=str,
)
def test_a_contiguous_group_is_not_copied(ball: Ball, dtype: Any) -> None:
    """Which may be all of the array."""
    own = (1,) if ball.weighted else None
    walk = walk_groups(ball, dtype.name, (1 << 20,), (1,), (0,), (1,), own, None)
    room = 2 if ball.norm == "l2" else 0  # numbers for each element, whatever the array's type
    cells = walk.cells
    assert cells["spare_size"] == room << 20  # once for all threads, beside what passes found
    assert cells["scratch_size"] + cells["slots_size"] < (room << 20) + 2048


@TYPES
@pytest.mark.parametrize("part", [1e-8, 2.0])
@pytest.mark.parametrize("level", LEVELS)
def test_groups_of_any_sign_and_size(level: str, part: float, dtype: Any) -> None:
    spec = level.format(1)
    y = np.random.default_rng(12).standard_normal((4, 130)).astype(dtype)
    y[1], y[2] = -np.abs(y[1]), np.float32(1e-3) * y[2]
    bound = given_for(spec, y.shape, 1)
    if "groups" in spec:
        spec = f"linf({spec})"
    radii = radii_for(spec, y.astype(np.float64), part, bound)
    p = projgen.build(spec)
    with rehearsals():
        x = p(y, radii, **bound)
        assert_rounded(spec, y, radii, x, bound)
        z = y.copy()
        assert bits(p(z, radii, out=z, **bound)) == bits(x)


@TYPES
def test_trees_of_several_types_and_what_is_said_of_them(dtype: Any) -> None:
    rng = np.random.default_rng(4)
    y = {"a": rng.standard_normal((6, 20)).astype(dtype), "b": rng.standard_normal((4, 30))}
    spec = "l1(a=lp(p=3, axis=1), b=linf(axis=1, w=w))"
    weights = rng.uniform(1, 2, (4, 30))
    wide = {name: array.astype(np.float64) for name, array in y.items()}
    reference = projgen.build(spec, backend="numpy")
    expected = reference(wide, 6.0, w=weights)
    with rehearsals():
        x, info = projgen.build(spec)(y, 6.0, w=weights, return_info=True)
    assert x["a"].dtype == dtype
    error = np.abs(x["a"].astype(np.float64) - expected["a"])
    assert np.all(error <= 0.5 * step(expected["a"], dtype) + 1e-6)
    assert np.allclose(x["b"], expected["b"], rtol=1e-6)
    after = {name: array.astype(np.float64) for name, array in x.items()}
    assert info.norm_before == pytest.approx(reference.norm(wide, w=weights), rel=1e-6)
    assert info.norm_after == pytest.approx(reference.norm(after, w=weights), rel=1e-6)


@TYPES
@pytest.mark.parametrize(
    "spec",
    ["l1(linf(axis=1, w=w))", "lp(p=3, axis=1)", "simplex(axis=1)", "l1(l2(axis=1, groups=g))"],
)
def test_gradients(spec: str, dtype: Any) -> None:
    """Those of the same numbers in float32, rounded once: of x as it is, which is rounded."""
    rng = np.random.default_rng(5)
    y, g = (rng.standard_normal((12, 30)).astype(dtype) for _ in range(2))
    bound = given_for(spec, y.shape, 1)
    radii = radii_for(spec, y.astype(np.float64), 0.3, bound)
    p = projgen.build(spec)
    with rehearsals():
        x, back = p.vjp(y, radii, **bound)
        assert bits(x) == bits(p(y, radii, **bound))
        pulled = back(g)[0]
        _, wide_back = p.vjp(y.astype(np.float32), radii, **bound)
        wide = wide_back(g.astype(np.float32))[0]
    assert (pulled.shape, pulled.dtype) == (y.shape, dtype)
    off = np.abs(pulled.astype(np.float64) - wide)
    epsilon = float(ml_dtypes.finfo(dtype).eps)
    assert np.all(off <= 4 * epsilon * np.abs(wide).max())
    assert off.mean() <= epsilon * np.abs(wide).mean()


def kernels(stored: str) -> Iterator[GroupKernel]:
    """The kernels of every kind of group."""
    shapes = [((40, 30), (1,)), ((40, 30), (0,)), ((90, 80), (0,)), ((90, 4), (1,)),
              ((9, 8, 7), (0, 2)), ((4, 90, 3), (1,))]  # fmt: skip
    for norm in ("l1", "l2", "linf", "l0", "simplex", "lp"):
        for weighted in {False, norm not in ("l0", "simplex")}:
            for p in (1.3, 1.5, 3.0) if norm == "lp" else (None,):
                for shape, axes in shapes:
                    for ragged in (False, len(axes) == 1 and norm != "simplex"):
                        for in_place in (False, True):
                            ball = Ball(norm, p, weighted, False, ragged)
                            strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
                            labels = np.arange(shape[axes[0]]) % 3 if ragged else None
                            own = strides if weighted else None
                            out = None if in_place else strides
                            ways = strides, axes, out, own, labels, "float32"
                            yield walk_groups(ball, stored, shape, *ways).kernel


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_kernels_define_what_they_use(stored: str) -> None:
    """And use what they define, where those of float32 do."""
    for kernel in set(kernels(stored)):
        source, wide = kernel.source, replace(kernel, stored="float32").source
        assert undefined_names(source) == [], kernel
        assert set(unused_names(source)) <= set(unused_names(wide)), kernel


COMPILED = [
    ("l1(w=w, axis=1)", FLOAT16, (300, 1000), 1),
    ("simplex(axis=0)", BFLOAT16, (500, 300), 0),
    ("linf(axis=1, w=w, groups=g)", FLOAT16, (300, 500), 1),
    ("l0(axis=1)", BFLOAT16, (60_000, 4), 1),
]


@pytest.mark.parametrize(("level", "dtype", "shape", "axis"), COMPILED)
def test_compiled(level: str, dtype: Any, shape: tuple[int, ...], axis: int) -> None:
    """Against the oracle, whatever the threads; and as near as that to the kernel of float32."""
    y = np.random.default_rng(5).standard_normal(shape).astype(dtype)
    bound = given_for(level, shape, axis)
    spec = f"linf({level})" if "groups" in level else level
    radii = radii_for(spec, y.astype(np.float64), 0.3, bound)
    x = projgen.build(spec, threads=1)(y, radii, **bound)
    assert_rounded(spec, y, radii, x, bound, TOLERANCE)
    for threads in (2, 3):
        assert bits(projgen.build(spec, threads=threads)(y, radii, **bound)) == bits(x)


@pytest.mark.parametrize("weights", ["float32", "float64"])
def test_columns_of_weighted_l2_are_compiled(weights: str) -> None:
    """Rounding from float64 to float16 at once would call a function that is not there."""
    y = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float16)
    w = np.linspace(0.0, 2.0, 16).astype(weights)
    x = projgen.build("l1(l2(axis=0, w=w))")(y, 1.0, w=w)
    expected = projgen.build("l1(l2(axis=0, w=w))", backend="numpy")(y, 1.0, w=w)
    np.testing.assert_allclose(x.astype(float), expected.astype(float), rtol=2**-10, atol=1e-7)


def test_weights_of_halves() -> None:
    """Are numbers as others are: those of bfloat16 too, which is not among NumPy's kinds."""
    y = np.random.default_rng(2).standard_normal((6, 5)).astype(np.float32)
    for spec, shape in (("l1(w=w)", (6, 5)), ("l1(linf(axis=1), w=w)", (6,))):
        p = projgen.build(spec)
        for dtype in (FLOAT16, BFLOAT16):
            w = np.linspace(0.5, 2, int(np.prod(shape))).reshape(shape).astype(dtype)
            with rehearsals():
                x = p(y, 1.0, w=w)
                np.testing.assert_allclose(x, p(y, 1.0, w=w.astype(np.float64)), atol=1e-6)
                for bad in (-w, w * dtype.type(np.nan), w * dtype.type(np.inf)):
                    with pytest.raises(ValueError, match="'w' has weights that are negative"):
                        p(y, 1.0, w=bad)


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16, np.dtype(np.float32)], ids=str)
def test_a_simplex_that_its_type_has_no_room_for(backend: Any, dtype: Any) -> None:
    """Its values grow with the radius. Nothing is written; large radii that fit are projected."""
    largest = float(ml_dtypes.finfo(dtype).max)
    y = np.array([[1, 2, 3], [3, 1, 2]], dtype)
    whole, rows = (projgen.build(s, backend=backend) for s in ("simplex", "simplex(axis=1)"))
    with rehearsals():
        for _ in range(2):  # the second call may take a shorter way
            for p, radius in ((whole, 7 * largest), (rows, np.array([1.0, 4 * largest]))):
                out = np.full_like(y, 7)
                with pytest.raises(ValueError, match=f"those of {dtype} end at"):
                    p(y, radius, out=out)
                assert (out == 7).all()
                with pytest.raises(ValueError, match="those of"):
                    p.vjp(y, radius)
            x = whole(y, 5 * largest)
            np.testing.assert_allclose(x.astype(float) / largest, 5 / 6, rtol=2**-7)
        x = rows(y, np.array([2 * largest, 1.0]))
        np.testing.assert_allclose(x[0].astype(float) / largest, 2 / 3, rtol=2**-7)
        assert np.array_equal(x[1].astype(float), [1, 0, 0])
        open_ = projgen.build("simplex(axis=1)", backend=backend, check_finite=False)
        bad = np.where([[True], [False]], dtype.type(np.nan), y)
        assert np.isnan(open_(bad, 2 * largest)[0].astype(float)).all()
        with pytest.raises(ValueError, match="nan at index"):
            rows(bad, 4 * largest)
