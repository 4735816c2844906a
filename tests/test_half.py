"""float16 and bfloat16 on the CPU: stored in half, worked on in float32, rounded once."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Array, bits, bound, early, lay_out, norm, rehearsals, together
from test_properties import KINDS, TINY, layouts, radii, specs

import projgen
from projgen import exact, interpret
from projgen.dtypes import put
from projgen.norms import CHAINED
from projgen.templates import environment

FLOAT16, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
TYPES = pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.int16)
TOLERANCE = 1e-6  # of the largest magnitude: what float32 may be off by, before it is rounded


def step(x: Array, dtype: Any) -> Array:
    """How far apart the halves are around float64 numbers `x`."""
    info = ml_dtypes.finfo(dtype)
    _, exponent = np.frexp(x)
    least = int(np.log2(float(info.smallest_normal)))
    return np.ldexp(1.0, np.maximum(exponent - 1, least) - info.nmant)


def assert_rounded(spec: str, y: Array, radius: Any, x: Array, tolerance: float) -> None:
    """That `x` is the projection of `y`, rounded once: see `support.assert_projected`."""
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
    if not y.size:
        return
    binding = bound(spec, y)
    reduced = tuple(axis for axis in range(y.ndim) if axis not in binding.batch)
    wide, narrow = y.astype(np.float64), x.astype(np.float64)
    expected = interpret.project(binding, wide, radius)
    top = np.abs(wide).max(axis=reduced, keepdims=True)
    error = np.abs(narrow - expected) - tolerance * top
    worst = (error / step(expected, y.dtype)).max()
    assert worst <= 0.5 * (1 + 1e-6), f"{worst} steps from the oracle"
    assert np.all((narrow == 0) | (np.signbit(narrow) == np.signbit(wide))), "a sign changed"
    assert np.all(np.abs(narrow) <= np.abs(wide)), "a value grew"
    norms = norm(spec, wide)
    all_radii = np.broadcast_to(np.asarray(radius, np.float64), norms.shape)
    tops = top.reshape(norms.shape)
    info = ml_dtypes.finfo(y.dtype)
    room = all_radii * (1 + float(info.eps) / 2 + tolerance) + tolerance * tops
    room += y.size * float(info.smallest_subnormal) / 2
    assert np.all(norm(spec, narrow) <= room), "above the radius by more than rounding"
    if np.all(norms <= all_radii):
        assert bits(x) == bits(y), "changed inside the ball"
    if np.all(all_radii == 0):
        assert not np.any(narrow)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_tree_and_layout(data: st.DataObject) -> None:
    """Rehearsed."""
    rank = data.draw(st.integers(1, 4))
    shape = data.draw(st.tuples(*[st.sampled_from([1, 2, 3, 9, 17, 33])] * rank))
    dtype = data.draw(st.sampled_from([FLOAT16, BFLOAT16]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    scales = [1e-6, 1.0, 1e4] if dtype == FLOAT16 else [1e-38, 1.0, 1e30]
    values = data.draw(st.sampled_from(KINDS))(rng, shape) * data.draw(st.sampled_from(scales))
    y = data.draw(layouts(values.astype(dtype)))
    spec = data.draw(specs(rank))
    radius = data.draw(radii(norm(spec, y.astype(np.float64))))
    p = projgen.build(spec, threads=1)
    with rehearsals(**(TINY if data.draw(st.booleans()) else {})):
        assert_rounded(spec, y, radius, p(y, radius), 3e-5)
        x = np.array(y)
        assert p(x, radius, out=x) is x
        assert_rounded(spec, y, radius, x, 3e-5)


WAYS = [  # every walk, and every way to a threshold
    ("l1(linf)", (40, 50)),
    ("l1(l2(axis=0))", (40, 50)),
    ("l1(linf(axis=0))", (64, 5)),
    ("l1(linf(axis=(0, 2)))", (9, 7, 3)),
    ("linf(l1)", (20, 80)),
    ("l1(linf)", (300, 9)),
    ("l1(l2)", (300, 3)),
    ("l1(l1)", (300, 3)),
    ("l1(l1)", (300, 9)),
    ("linf(l1(axis=0))", (40, 50)),
    ("linf(l1(axis=0))", (300, 7)),
    ("l1", (9_000,)),
    ("l1(l1(axis=(0, 2)))", (10, 9, 8)),
    ("l1(l2(linf(l1)))", (4, 3, 5, 40)),
]


@TYPES
@pytest.mark.parametrize(("spec", "shape"), WAYS)
def test_every_way(spec: str, shape: tuple[int, ...], dtype: Any) -> None:
    y = np.random.default_rng(3).standard_normal(shape).astype(dtype)
    whole = norm(spec, y.astype(np.float64))
    p = projgen.build(spec, threads=1)
    with rehearsals(BLOCK_BYTES=1 << 10):
        assert p.norm(y) == pytest.approx(whole, rel=1e-6)
        for radius in (0.3 * whole, 1e-3 * whole, 0.0, whole, 2 * whole):
            assert_rounded(spec, y, radius, p(y, float(radius)), 3e-5)
        x = y.copy()
        p(x, float(0.3 * whole), out=x)
        assert bits(x) == bits(p(y, float(0.3 * whole)))
        for bad in (np.inf, -np.inf, np.nan):
            broken, out = y.copy(), np.ones_like(y)
            broken.flat[-1] = bad
            with pytest.raises(ValueError, match="nothing was written"):
                p(broken, 1.0, out=out)
            assert np.all(out == 1)


@TYPES
@pytest.mark.parametrize("name", CHAINED)
def test_every_norm(name: str, dtype: Any) -> None:
    """As a leaf by rows, by columns, packed; above others."""
    for spec, shape in (
        (f"l1({name})", (20, 80)),
        (f"l1({name}(axis=0))", (20, 30)),
        (f"l1({name})", (100, 3)),
        (f"l1({name})", (100, 9)),
        (f"{name}(linf)", (20, 30)),
    ):
        y = np.random.default_rng(7).standard_normal(shape).astype(dtype)
        radius = 0.3 * float(norm(spec, y.astype(np.float64)))
        with rehearsals():
            assert_rounded(spec, y, radius, projgen.build(spec)(y, radius), 3e-5)


@TYPES
@pytest.mark.parametrize("team", [early, together])
@pytest.mark.parametrize(("spec", "shape"), [("l1(linf(axis=1))", (40, 40)), ("l1", (2000,))])
def test_teams(spec: str, shape: tuple[int, ...], team: Any, dtype: Any) -> None:
    y = np.random.default_rng(11).standard_normal(shape).astype(dtype)
    radius = 0.3 * float(norm(spec, y.astype(np.float64)))
    with rehearsals(BLOCK_BYTES=512, SCRATCH_BYTES=2048):
        alone = projgen.build(spec, threads=1)(y, radius)
    with rehearsals(team, BLOCK_BYTES=512, SCRATCH_BYTES=2048):
        assert bits(projgen.build(spec, threads=3)(y, radius)) == bits(alone)


COMPILED = [
    ("l1(linf)", FLOAT16, (600, 1000)),
    ("linf(l2)", BFLOAT16, (20_000, 9)),
    ("linf(l1)", FLOAT16, (600, 1000)),
    ("l1(l2(axis=0))", BFLOAT16, (600, 1000)),
    ("linf(l1(axis=0))", FLOAT16, (600, 1000)),
]


@pytest.mark.parametrize(("spec", "dtype", "shape"), COMPILED)
def test_compiled(spec: str, dtype: Any, shape: tuple[int, ...]) -> None:
    """Against the oracle and the kernel of float32, whatever the threads."""
    y = np.random.default_rng(5).standard_normal(shape).astype(dtype)
    p = projgen.build(spec, threads=1)
    radius = 0.2 * norm(spec, y.astype(np.float64))
    x = p(y, radius)
    assert p.norm(y) == pytest.approx(5 * radius, rel=1e-6)
    assert_rounded(spec, y, radius, x, TOLERANCE)
    wide = p(y.astype(np.float32), radius).astype(np.float64)
    off = np.abs(x.astype(np.float64) - wide) - TOLERANCE * np.abs(y.astype(np.float64)).max()
    assert np.all(off <= 0.5 * step(wide, dtype))
    for threads in (2, 3):
        assert bits(projgen.build(spec, threads=threads)(y, radius)) == bits(x)
    broken = y.copy()
    broken[-1, -1] = np.nan
    with pytest.raises(ValueError, match="nothing was written"):
        p(broken, radius)


def conversions(template: str) -> dict[str, Any]:
    """What a template of halves defines, compiled for arrays."""
    from numba import njit, types
    from numba.core.cgutils import ir
    from numba.core.registry import cpu_target
    from numba.extending import intrinsic, register_jitable

    names: dict[str, Any] = {
        "np": np, "types": types, "ir": ir, "cpu_target": cpu_target,
        "intrinsic": intrinsic, "register_jitable": register_jitable,
    }  # fmt: skip
    text = getattr(environment().get_template("cpu/halves.py.j2").module, template)()
    memory = environment().get_template("cpu/memory.py.j2").module
    exec(getattr(memory, "memory")(text) + text, names)  # noqa: B009, which mypy would not know

    def over_arrays(function: Any) -> Any:
        @njit
        def loop(source: Array, target: Array) -> None:
            for i in range(source.size):
                target[i] = function(source[i])

        return loop

    loops = {name: over_arrays(names[name]) for name in names if name[:5] in ("widen", "narro")}
    return {**loops, "converts": names.get("converts"), "native": names.get("CONVERTS")}


def numbers(dtype: Any) -> Array:
    """float32 numbers: any, those in the middle of two halves, and some beyond all."""
    halves = EVERY.view(dtype).astype(np.float32)
    halves = np.sort(halves[np.isfinite(halves)])
    middles = (halves[1:].astype(np.float64) + halves[:-1]) / 2
    near = middles.astype(np.float32)
    rng = np.random.default_rng(0)
    some = rng.integers(0, 1 << 32, 50_000, dtype=np.uint32).view(np.float32)
    some = some[np.abs(some) <= halves[-1]]
    beyond = np.array([1e38, -1e38, 3.4e38, np.inf], np.float32)  # which have none: infinity
    below, above = (np.nextafter(near, np.float32(to)) for to in (-np.inf, np.inf))
    return np.concatenate([halves, near, below, above, some, beyond])


@pytest.mark.parametrize("way", ["", "_at_once", "_by_steps"])
def test_float16_from_and_to_float32(way: str) -> None:
    found = conversions("float16")
    if way == "_at_once" and not found["native"]:
        pytest.skip("this processor does not convert")
    wide = np.empty(EVERY.size, np.float32)
    found[f"widen{way}"](EVERY, wide)
    expected = EVERY.view(np.float16).astype(np.float32)
    assert np.array_equal(wide, expected, equal_nan=True)
    assert np.array_equal(np.signbit(wide), np.signbit(expected))
    x = numbers(FLOAT16)
    narrow = np.empty(x.size, np.int16)
    found[f"narrow{way}"](x, narrow)
    with np.errstate(over="ignore"):
        nearest = x.astype(np.float16)
    assert np.array_equal(narrow, nearest.view(np.int16))


def test_bfloat16_from_and_to_float32() -> None:
    found = conversions("bfloat16")
    wide = np.empty(EVERY.size, np.float32)
    found["widen"](EVERY, wide)
    assert np.array_equal(wide, EVERY.view(BFLOAT16).astype(np.float32), equal_nan=True)
    x = numbers(BFLOAT16)
    narrow = np.empty(x.size, np.int16)
    found["narrow"](x, narrow)
    assert np.array_equal(narrow, x.astype(BFLOAT16).view(np.int16))


def test_which_processors_convert() -> None:
    """Where one does not, LLVM would call a function that need not be there."""
    converts = conversions("float16")["converts"]
    assert converts("x86_64-unknown-linux-gnu", "haswell", "+avx,+avx2,+f16c")
    assert not converts("x86_64-unknown-linux-gnu", "haswell", "-avx,+f16c")
    assert not converts("x86_64-unknown-linux-gnu", "generic", "")
    assert converts("aarch64-unknown-linux-gnu", "generic", "")


@TYPES
def test_numbers_are_rounded_once(dtype: Any) -> None:
    """By the reference: float64 that lies just beside the middle of two halves."""
    halves = np.array([1.0, 3.14, 2.0**-20, 100.0]).astype(dtype)
    spacing = step(halves.astype(np.float64), dtype)
    middle = halves.astype(np.float64) + spacing / 2
    x = np.empty_like(halves)
    for sign in (1, -1):
        put(x, sign * middle * (1 + 2.0**-50))
        assert np.array_equal(np.abs(x.astype(np.float64)), halves.astype(np.float64) + spacing)
        put(x, sign * middle * (1 - 2.0**-50))
        assert np.array_equal(np.abs(x), halves)
    put(x, np.array([np.inf, -np.inf, np.nan, -0.0]))
    assert str(x.astype(np.float64).tolist()) == "[inf, -inf, nan, -0.0]"


@TYPES
@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_the_ways_to_call(backend: Any, dtype: Any) -> None:
    rng = np.random.default_rng(2)
    y = rng.standard_normal((5, 40)).astype(dtype)
    y[0, :3] = ml_dtypes.finfo(dtype).smallest_subnormal
    spec = "l2(axis=1)"
    p = projgen.build(spec, backend=backend, check_finite=False)
    wide = y.astype(np.float64)
    each = 0.5 * norm(spec, wide)
    each[0], each[1] = np.inf, 0.0
    with rehearsals():
        x = p(y, each)
        assert bits(x[0]) == bits(y[0])
        assert not np.any(x[1])
        assert_rounded(spec, y, each, x, 3e-5)
        assert p.norm(y) == pytest.approx(norm(spec, wide), rel=1e-6)
        assert p.active(x).tolist() == [True, False, True, True, True]
        out = np.empty((40, 5), dtype).T
        assert p(y, each, out=out) is out
        assert bits(out) == bits(x)
        odd = np.zeros(y.shape, [("flag", "u1"), ("value", dtype)])["value"]
        p(y, each, out=odd)
        assert bits(odd) == bits(x)
        if backend == "cpu":
            y[2, 7] = np.nan
            x = p(y, each)
            assert np.all(np.isnan(x[2]))
            y[2, 7] = 0
            assert_rounded(spec, y[3:], each[3:], x[3:], 3e-5)


def test_sums_beyond_float32() -> None:
    y = np.full((3, 50), 3e38).astype(BFLOAT16)
    y[1] = -1.0
    with rehearsals():
        x = projgen.build("l1(axis=1)")(y, [1e38, 5.0, np.inf])
        assert_rounded("l1(axis=1)", y, [1e38, 5.0, np.inf], x, 3e-5)


@TYPES
def test_gaps_are_left_alone(dtype: Any) -> None:
    values = np.random.default_rng(0).standard_normal((20, 30)).astype(dtype)
    for order, steps in (((0, 1), (1, 2)), ((1, 0), (2, 1)), ((0, 1), (-1, -2))):
        y = lay_out(values, order, steps)
        memory = y.base if y.base.dtype == dtype else y
        gaps = np.isnan(memory)
        with rehearsals():
            projgen.build("l1(linf)")(y, 2.0, out=y)
        assert_rounded("l1(linf)", values, 2.0, np.array(y), 3e-5)
        assert np.array_equal(np.isnan(memory), gaps)


@TYPES
@pytest.mark.parametrize("axis", [0, 1])
def test_the_nearest_point_and_what_is_said_of_it(axis: int, dtype: Any) -> None:
    spec = f"l1(linf(axis={axis}))"
    y = np.random.default_rng(6).standard_normal((30, 40)).astype(dtype)
    wide = y.astype(np.float64)
    radius = 0.3 * float(norm(spec, wide))
    expected = exact.project(bound(spec, y), wide, radius)
    with rehearsals():
        x, info = projgen.build(spec, exact=True)(y, radius, return_info=True)
    off = np.abs(x.astype(np.float64) - expected) - 3e-5 * np.abs(wide).max()
    assert np.all(off <= 0.5 * step(expected, dtype))
    assert info.arrays[0].dtype == dtype.name
    assert info.norm_after == pytest.approx(norm(spec, x.astype(np.float64)), rel=1e-6)
    moved = np.linalg.norm(x.astype(np.float64) - wide)
    assert info.distance == pytest.approx(moved, rel=1e-6)


@TYPES
def test_trees(dtype: Any) -> None:
    """Arrays of several types under one radius."""
    rng = np.random.default_rng(4)
    y = {"a": rng.standard_normal((6, 20)).astype(dtype), "b": rng.standard_normal((4, 30))}
    spec = "l1(a=linf(axis=1), b=l2)"
    wide = {name: array.astype(np.float64) for name, array in y.items()}
    expected = projgen.build(spec, backend="numpy")(wide, 3.0)
    with rehearsals():
        x = projgen.build(spec)(y, 3.0)
        rounded = projgen.build(spec, backend="numpy")(y, 3.0)
    assert x["a"].dtype == rounded["a"].dtype == dtype
    assert np.allclose(x["b"], expected["b"], rtol=1e-6)
    for one in (x, rounded):
        error = np.abs(one["a"].astype(np.float64) - expected["a"])
        assert np.all(error <= 0.5 * step(expected["a"], dtype) + 1e-6)


def test_what_is_refused() -> None:
    y = np.ones((4, 6), np.float16)
    with pytest.raises(TypeError, match="byte-swapped"):
        projgen.project(y.astype(">f2"), "l1", 1.0)
    with pytest.raises(ValueError, match="float16"):
        projgen.project(y, "l1", 1.0, out=np.empty((4, 6), np.float32))
    missing = patch("projgen.dtypes.import_module", side_effect=ImportError)
    with missing, pytest.raises(ImportError, match="pip install ml_dtypes"):
        projgen.dtypes.bfloat16()


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import save_file

    from projgen import files
    from projgen.cli import main

    rng = np.random.default_rng(0)
    tensors = {
        "b": rng.standard_normal((6, 8)).astype(BFLOAT16),
        "h": rng.standard_normal((6, 8)).astype(np.float16),
    }
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, source)
    words = ["run", "l1(linf)", str(source)]
    rest = ["--radius", "30%", "--tensor", "b", "--tensor", "h"]
    with rehearsals():
        assert main([*words, str(target), *rest]) == 0
    assert "bfloat16" in capsys.readouterr().out
    found = files.open_tensors(target)
    for name, y in tensors.items():
        x = found.read(name)
        assert_rounded("l1(linf)", y, 0.3 * norm("l1(linf)", y.astype(float)), x, 3e-5)
    with rehearsals():
        assert main([*words, str(tmp_path / "out.npz"), *rest]) != 0
    assert "cannot hold tensor 'b', which is bfloat16" in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()
