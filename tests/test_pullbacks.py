"""Gradients: the reference against differences, kernels against the reference, and the corners."""

import itertools
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import support
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Array, bits, early, lay_out, rehearsals, together
from tree_support import bound_tree, norm_of, problems

import projgen
from projgen import interpret_pullbacks
from projgen.check import parse_tree
from projgen.cpu.call import Workspace
from projgen.structure import flat
from projgen.weights import read_given

RNG = np.random.default_rng(20261129)
NORMS = ("l1", "l2", "linf")


def chain(norms: tuple[str, ...]) -> str:
    return "(".join(norms) + ")" * (len(norms) - 1)


def normal(*shape: int, dtype: str = "float64") -> Array:
    return RNG.standard_normal(shape).astype(dtype)


def reference(spec: str, y: Array, radius: Any, g: Array) -> tuple[Array, Array]:
    return interpret_pullbacks.pull_back_chain(parse_tree(spec), y, radius, g)


def slopes_agree(spec: str, y: Any, share: float = 0.4, **given: Any) -> None:
    """That the gradients are the slopes of the projection, along random lines."""
    p = projgen.build(spec, backend="numpy")
    radius = share * np.asarray(p.norm(y, **given))
    x, pullback = p.vjp(y, radius, **given)
    gs = {key: RNG.standard_normal(np.shape(v)) for key, v in flat(x)}
    pulled, slope = pullback(_like(y, gs))
    step = 1e-6
    for _ in range(2):
        ways = {key: RNG.standard_normal(np.shape(v)) for key, v in flat(y)}
        turn = RNG.standard_normal(np.shape(radius))
        ends = []
        for sign in (1, -1):
            there = {key: v + sign * step * ways[key] for key, v in flat(y)}
            found = p(_like(y, there), np.maximum(radius + sign * step * turn, 0), **given)
            ends.append(sum((gs[key] * v).sum() for key, v in flat(found)))
        expected = (ends[0] - ends[1]) / (2 * step)
        along = sum((v * ways[key]).sum() for key, v in flat(pulled)) + np.sum(slope * turn)
        assert along == pytest.approx(expected, abs=3e-7 * (1 + abs(expected)))


def _like(y: Any, arrays: dict[Any, Array]) -> Any:
    from projgen.structure import rebuilt

    return rebuilt(y, arrays)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_reference_has_the_slopes_of_the_projection(depth: int) -> None:
    for norms in itertools.product(NORMS, repeat=depth):
        slopes_agree(chain(norms), normal(*(4, 3, 3, 2)[:depth]))


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("lp(p=1.5)", (7,)),
        ("lp(p=3)", (7,)),
        ("l1(lp(p=4))", (4, 5)),
        ("simplex(axis=1)", (3, 6)),
        ("l1(nonneg=True)", (9,)),
        ("l2(axis=0)", (4, 3)),
        ("l1(linf(axis=1, block=2))", (4, 5)),
    ],
)
def test_the_slopes_of_other_norms(spec: str, shape: tuple[int, ...]) -> None:
    slopes_agree(spec, normal(*shape) + 1.0)


@pytest.mark.parametrize("norm", [*NORMS, "lp"])
@pytest.mark.parametrize("outer", NORMS)
def test_the_slopes_of_weighted_groups(outer: str, norm: str) -> None:
    """What has weight 0 stays as it is, be it all of a group or all of one that is not zero."""
    p = "p=2.5, " if norm == "lp" else ""
    w = np.abs(normal(4, 5)) * (np.arange(5) != 2)
    w[1] = 0
    y = normal(4, 5)
    y[2] *= w[2] == 0
    slopes_agree(f"{outer}({norm}({p}axis=1, w=v))", y[[0, 1, 3]], v=w[[0, 1, 3]])
    pulled, g = {}, normal(4, 5)
    for backend in ("auto", "numpy"):
        with rehearsals():
            tree = projgen.build(f"{outer}({norm}({p}axis=1, w=v))", backend=backend)  # type: ignore[arg-type]
            pulled[backend] = tree.vjp(y, 0.1, v=w)[1](g)[0]
        assert np.array_equal(pulled[backend][w == 0], g[w == 0])
    np.testing.assert_allclose(pulled["auto"], pulled["numpy"], atol=1e-12)


def test_the_slopes_of_trees() -> None:
    y = {"enc": normal(4, 5), "dec": normal(3, 4)}
    slopes_agree("l1(enc=linf(axis=1), dec=2.0*l2(axis=0))", y)
    slopes_agree("l1(linf, l1)", [normal(5), normal(2, 3)])
    slopes_agree("l1(linf(axis=1, groups=q))", normal(4, 5), q=np.array([0, 1, 0, 2, 1]))


def test_the_slopes_of_the_nearest_point() -> None:
    p = projgen.build("l1(linf)", exact=True, backend="numpy")
    y, g, way, step = normal(6, 7), normal(6, 7), normal(6, 7), 1e-6
    radius = 0.4 * p.norm(y)
    pulled, slope = p.vjp(y, radius)[1](g)
    ends = [(g * p(y + s * step * way, radius + s * step)).sum() for s in (1, -1)]
    expected = (ends[0] - ends[1]) / (2 * step)
    assert (pulled * way).sum() + slope == pytest.approx(expected, abs=1e-6)


def agrees(spec: str, y: Array, g: Array, share: Any = 0.3) -> tuple[Array, Any]:
    """A kernel's gradients, which are those of the reference."""
    p = projgen.build(spec)
    radius = share * np.asarray(p.norm(y))
    _, pullback = p.vjp(y, radius)
    assert pullback.tape is not None  # type: ignore[attr-defined]
    pulled, slope = pullback(g)
    expected, slopes = reference(spec, y, radius, g)
    scale = np.abs(expected).max() + 1
    tolerance = 1e-12 if y.dtype == np.float64 else 5e-5
    assert (pulled.shape, pulled.dtype) == (y.shape, y.dtype)
    assert np.abs(pulled - expected).max() <= tolerance * scale
    assert np.abs(slope - slopes).max() <= tolerance * (np.abs(slopes).max() + scale)
    return pulled, slope


CASES = [
    *(f"{outer}({inner})" for outer in ("l1", "l2") for inner in NORMS),
    *(f"l1({inner}(axis=0))" for inner in NORMS),
    *NORMS,
    "linf(l1)",
    "l1(axis=0)",
    "linf(axis=1)",
]


@pytest.mark.parametrize("spec", CASES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_kernels_agree_with_the_reference(spec: str, dtype: str) -> None:
    y, g = normal(11, 13, dtype=dtype), normal(11, 13, dtype=dtype)
    with rehearsals():
        for share in (0.1, 0.9):
            agrees(spec, y, g, share)
        agrees(spec, np.asfortranarray(y), g)


@pytest.mark.parametrize("norm", NORMS)
def test_short_groups_many_at_a_time(norm: str) -> None:
    with rehearsals():
        for size in (2, 7, 9):
            agrees(f"l1({norm})", normal(40, size), normal(40, size))
        agrees(f"l1(l2({norm}))", normal(3, 21, 6), normal(3, 21, 6))


@pytest.mark.parametrize("norm", NORMS)
def test_blocks_of_groups_and_of_values(norm: str) -> None:
    """Slots of partial sums, strips of columns, short sums: small sizes that are cut like large."""
    with rehearsals(BLOCK_BYTES=512):
        for spec in (f"l1({norm})", f"l1({norm}(axis=0))", norm):
            agrees(spec, normal(70, 40), normal(70, 40))
        agrees(f"l1({norm}(axis=0))", normal(300, 5), normal(300, 5))  # several slots
        agrees(f"l1({norm}(axis=(0, 2)))", normal(9, 5, 8), normal(9, 5, 8))
        agrees(f"l1({norm}(axis=0))", normal(3, 600), normal(3, 600))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_chain_layout_and_batch(data: Any) -> None:
    rank = data.draw(st.integers(1, 4))
    shape = tuple(data.draw(st.integers(1, 5)) for _ in range(rank))
    depth = data.draw(st.integers(1, rank))
    norms = [data.draw(st.sampled_from(NORMS)) for _ in range(depth)]
    axes = data.draw(st.permutations(range(rank)))[:depth]
    spec = chain(tuple(norms)) if data.draw(st.booleans()) else _nested(norms, axes)
    order = tuple(data.draw(st.permutations(range(rank))))
    y = lay_out(normal(*shape), order, (1,) * rank)
    batch = [n for axis, n in enumerate(shape) if axis not in axes] if "axis" in spec else []
    share = RNG.uniform(0.05, 1.2, batch) if batch else data.draw(st.floats(0.05, 1.2))
    with rehearsals():
        agrees_anywhere(spec, y, normal(*shape), share)


def _nested(norms: list[str], axes: list[int]) -> str:
    spec = ""
    for norm, axis in reversed(list(zip(norms, axes, strict=True))):
        spec = f"{norm}({spec + ', ' if spec else ''}axis={axis})"
    return spec


def agrees_anywhere(spec: str, y: Array, g: Array, share: Any) -> None:
    p = projgen.build(spec)
    radius = share * np.asarray(p.norm(y))
    pulled, slope = p.vjp(y, radius)[1](g)
    expected, slopes = reference(spec, y, radius, g)
    np.testing.assert_allclose(pulled, expected, atol=1e-11 * (1 + np.abs(expected).max()))
    np.testing.assert_allclose(slope, slopes, atol=1e-11 * (1 + np.abs(g).sum()))


@pytest.mark.parametrize("team", [early, together])
def test_teams_have_the_same_bits(team: Any) -> None:
    y, g = normal(70, 40), normal(70, 40)
    for spec in ("l1(linf)", "l1(l2(axis=0))"):
        with rehearsals(BLOCK_BYTES=512):
            alone = agrees(spec, y, g)
        with rehearsals(team, BLOCK_BYTES=512):
            shared = agrees(spec, y, g)
        assert bits(alone[0]) == bits(shared[0])
        assert alone[1] == shared[1]


def test_compiled_kernels() -> None:
    y, g = normal(700, 200, dtype="float32"), normal(700, 200, dtype="float32")
    for spec in ("l1(linf)", "l1(linf(axis=0))", "linf(l1)"):
        results = set()
        for threads in (1, 2, 7):
            p = projgen.build(spec, threads=threads)
            radius = 0.2 * float(support.norm(spec, y))
            pulled, slope = p.vjp(y, radius)[1](g)
            expected, slopes = reference(spec, y, radius, g)
            assert np.abs(pulled - expected).max() <= 5e-5
            assert slope == pytest.approx(float(slopes), rel=1e-4)
            results.add((bits(pulled), slope))
        assert len(results) == 1


def test_compiled_kernels_of_trees() -> None:
    y = {"a": normal(300, 200, dtype="float32"), "b": normal(200, 90, dtype="float32")}
    results = set()
    for threads in (1, 3):
        p = projgen.build("l1(a=linf(axis=1), b=linf(axis=1))", threads=threads)
        pulled, slope = p.vjp(y, 40.0)[1]({key: np.cos(v) for key, v in y.items()})
        results.add((bits(pulled["a"]), bits(pulled["b"]), slope))
    assert len(results) == 1
    tree_agrees("l1(a=linf(axis=1), b=linf(axis=1))", y)


def test_halves_go_back_in_float32() -> None:
    y = normal(20, 30).astype(np.float16)
    g = np.full((20, 30), 60000, np.float16)
    with rehearsals():
        p = projgen.build("l1(linf)")
        pulled, _ = p.vjp(y, 0.3 * p.norm(y))[1](g)
    assert pulled.dtype == np.float16
    assert np.isinf(pulled).any()  # seen to overflow, and not clipped
    expected, _ = reference("l1(linf)", y, 0.3 * p.norm(y), g)
    kept = np.abs(expected) < 60000
    np.testing.assert_allclose(pulled[kept], expected[kept], rtol=2e-3, atol=60)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_in_any_layout(dtype: str) -> None:
    kind = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else np.float16
    y, g = normal(20, 30).astype(kind), normal(20, 30).astype(kind)
    with rehearsals():
        p = projgen.build("l1(linf)")
        pullback = p.vjp(y, 0.3 * p.norm(y))[1]
        one, other = pullback(g)[0], pullback(np.asfortranarray(g))[0]
    assert np.array_equal(one, other)


def test_corners() -> None:
    y, g = normal(5, 6), normal(5, 6)
    with rehearsals():
        p = projgen.build("l1(linf)")
        for radius in (p.norm(y), 2 * p.norm(y), np.inf):
            pulled, slope = p.vjp(y, radius)[1](g)
            assert bits(pulled) == bits(g)
            assert slope == 0
        pulled, slope = p.vjp(y, 0.0)[1](g)
        assert not pulled.any()
        assert slope == 0
        assert p.vjp(np.zeros((0, 3)), 1.0)[1](np.zeros((0, 3)))[0].shape == (0, 3)
        assert np.isnan(p.vjp(y, 0.3 * p.norm(y))[1](np.nan * g)[0]).any()


def test_what_is_not_finite_has_no_gradient() -> None:
    y, g = normal(2, 3, 4), normal(2, 3, 4)
    y[1, 2, 1] = np.nan
    with rehearsals():
        p = projgen.build("l1(linf(axis=2), axis=1)", check_finite=False)
        _, pullback = p.vjp(y, [1.0, 1.0])
        pulled, slopes = pullback(g)
    assert np.isnan(pulled[1]).all()
    assert np.isnan(slopes[1])
    assert np.isfinite(pulled[0]).all()
    assert np.isfinite(slopes[0])


@pytest.mark.parametrize(("spec", "left"), [("l1(linf)", 0), ("l1(l2)", 0), ("l1(l1)", 0),
    ("linf(l2)", 1), ("l2(l1)", 0.4), ("l1(linf(l1))", 0), ("linf(linf(l1))", 1)])  # fmt: skip
def test_groups_of_zeros_live_or_not(spec: str, left: float) -> None:
    """Those in a group that l1 thins out do not; in one that l2 scales they would be scaled."""
    y = np.array([[3.0, 1.0], [0.0, 0.0], [2.0, -1.0]])
    y = y[:, :, np.newaxis] * np.ones(2) if spec.count("(") == 2 else y
    for backend in ("auto", "numpy"):
        with rehearsals():
            p = projgen.build(spec, backend=backend)  # type: ignore[arg-type]
            pulled, _ = p.vjp(y, 0.4 * p.norm(y))[1](np.ones(y.shape))
            assert np.allclose(pulled[1], left)
            zeros = np.zeros((2, 3, 2)[: y.ndim])
            assert np.all(p.vjp(zeros, 1.0)[1](np.ones(zeros.shape))[0] == 1)


def test_zeros_beside_others_in_a_tree() -> None:
    y = {"a": normal(4, 5), "b": np.zeros(3)}
    p = projgen.build("l2(a=l2, b=l2)")
    with rehearsals():
        pulled, _ = p.vjp(y, 1.0)[1]({"a": np.zeros((4, 5)), "b": np.ones(3)})
    np.testing.assert_allclose(pulled["b"], 1 / np.linalg.norm(y["a"]))


@pytest.mark.parametrize("norm", ["l1", "l2", "linf", "lp(p=3, ", "lp(p=1.5, "])
@pytest.mark.parametrize("backend", ["auto", "numpy"])
def test_zeros_that_have_weights(norm: str, backend: Any) -> None:
    """What would be left of a group of zeros depends on its weight. It is what is left of a small
    one; of one that weighs nothing, all."""
    start = norm if "(" in norm else f"{norm}("
    q = np.array([1.0, 2.0, 0.0, 0.5])
    y, g = np.zeros((4, 3)), np.abs(normal(4, 3))
    y[0] = 3.0, 4.0, 1.0
    with rehearsals():
        p = projgen.build(f"{start}l2(axis=1), w=q)", backend=backend)
        pulled, _ = p.vjp(y, 1.0, q=q)[1](g)
        small = p(y + 1e-12 * g * (y == 0), 1.0, q=q) / 1e-12
    np.testing.assert_allclose(pulled[1:], small[1:], atol=1e-4)


def test_zeros_beside_others_of_another_weight() -> None:
    y, g = {"a": np.array([3.0, 4.0]), "b": np.zeros(3)}, {"a": np.zeros(2), "b": np.ones(3)}
    for backend in ("auto", "numpy"):
        with rehearsals():
            p = projgen.build("l2(a=l2, b=2.0*l2)", backend=backend)  # type: ignore[arg-type]
            pulled, _ = p.vjp(y, 1.0)[1](g)
        np.testing.assert_allclose(pulled["b"], 1 / 17)


def test_equal_largest_values_share() -> None:
    y = np.array([[1.0, -1.0, 0.5], [0.2, 0.1, 0.3]])
    g = np.array([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    with rehearsals():
        pulled, _ = projgen.build("l1(linf)").vjp(y, 1.0)[1](g)
    # The first row's radius is owed 2, which the mean over both rows takes half of.
    np.testing.assert_allclose(pulled, [[0.5, -0.5, 0], [0, 0, -1.0]])


def test_any_layout_of_both() -> None:
    y, g = normal(8, 9), normal(8, 9)
    with rehearsals():
        p = projgen.build("l1(linf)")
        radius = 0.3 * p.norm(y)
        expected = p.vjp(y, radius)[1](g)[0]
        gaps = lay_out(y, (1, 0), (2, -1))
        assert np.allclose(p.vjp(gaps, radius)[1](np.asfortranarray(g))[0], expected)
        assert np.allclose(p.vjp(y[::-1], radius)[1](g[::-1])[0], expected[::-1])


def test_beyond_the_range_of_sums() -> None:
    y, g = normal(4, 5) * 1e300, normal(4, 5)
    with rehearsals():
        p = projgen.build("l1(l2)")
        pulled, slope = p.vjp(y, 1e299)[1](g)
    expected, slopes = reference("l1(l2)", y * 2.0**-1000, 1e299 * 2.0**-1000, g)
    np.testing.assert_allclose(pulled, expected, rtol=1e-9, atol=1e-12)
    assert slope == pytest.approx(float(slopes))


def test_a_gradient_must_fit() -> None:
    with rehearsals():
        p = projgen.build("l1(linf)")
        pullback = p.vjp(normal(4, 5), 1.0)[1]
        with pytest.raises(ValueError, match="index"):
            p.vjp(np.full((2, 2), np.nan), 1.0)
    with pytest.raises(ValueError, match=r"must have the shape and dtype of y, \(4, 5\) float64"):
        pullback(normal(5, 4))
    with pytest.raises(ValueError, match=r"it has .* float32"):
        pullback(normal(4, 5, dtype="float32"))
    with pytest.raises(ValueError, match="there is no gradient: it must have y's structure"):
        pullback(None)
    with pytest.raises(TypeError, match="junk"):
        projgen.build("l1(linf)", exact=True).vjp(normal(4, 5), 1.0, junk=3)
    with pytest.raises(TypeError, match="takes arrays on a GPU"):
        projgen.build("l1(linf)", backend="cuda").vjp(normal(4, 5), 1.0)
    with pytest.raises(TypeError, match="a radius is missing"):
        projgen.build("l1(linf)").vjp(normal(4, 5))


# Trees: parts with kernels, and single levels of any norm


def tree_agrees(spec: str, y: Any, share: Any = 0.3, radius: Any = None, **given: Any) -> Any:
    """The gradients of a tree by the tape of its projection, which are those of the reference."""
    p = projgen.build(spec)
    norm = norm_of(spec, y, **given)
    radius = share * norm if p.tree.root.k is None and radius is None else radius
    x, pullback = p.vjp(y, radius, **given)
    gs = {key: normal(*v.shape, dtype=v.dtype.name) for key, v in flat(y)}
    pulled, slope = pullback(_like(y, gs))
    bound, arrays = bound_tree(spec, y, given)
    count = p.tree.root.k if radius is None else radius
    labels = read_given(bound.tree, given).labels
    expected, slopes = interpret_pullbacks.pull_back(bound, arrays, count, gs, given, labels)
    single = any(v.dtype == np.float32 for v in arrays.values())
    top = 1 + max(np.abs(v).max(initial=0.0) for v in expected.values())
    tolerance = top * (2e-4 if single else 1e-10)
    for key, own in flat(pulled):
        assert (own.shape, own.dtype) == (arrays[key].shape, arrays[key].dtype)
        assert np.abs(own - expected[key]).max(initial=0.0) <= tolerance, key
    assert np.abs(slope - slopes).max(initial=0.0) <= tolerance + 1e-9 * np.abs(slopes).max()
    again = flat(p(y, radius, **given))
    for (_, own), (_, other) in zip(flat(x), again, strict=True):
        np.testing.assert_allclose(own, other, atol=1e-6 if single else 1e-12)
    return pullback


SPECIAL = [
    ("l1(l1(axis=1, w=v))", (9, 7), {"v": (7,)}),
    ("l1(l2(axis=0, w=v))", (9, 7), {"v": (9, 7)}),
    ("linf(linf(axis=1, w=v))", (9, 7), {"v": (7,)}),
    ("l1(lp(p=1.5))", (3, 4), {}),
    ("l2(lp(axis=0, p=3))", (4, 3), {}),
    ("l1(l1(axis=1, groups=q))", (9, 7), {"q": 7}),
    ("l1(l2(axis=0, groups=q), axis=1)", (9, 7), {"q": 9}),
    ("l2(linf(axis=1, groups=q))", (9, 7), {"q": 7}),
    ("l1(linf(axis=1, block=3))", (9, 7), {}),
    ("l1(l2(axis=(0, 1), block=(2, 3)))", (9, 7), {}),
    ("l1(linf, nonneg=True)", (9, 7), {}),
    ("l2(l1(axis=0, w=v), nonneg=True)", (9, 7), {"v": (7,)}),
    ("l0(k=9)", (9, 7), {}),
    ("l0(axis=1, k=3)", (9, 7), {}),
    ("l1(l1(axis=2, w=v), axis=0)", (4, 3, 5), {"v": (5,)}),
]


@pytest.mark.parametrize(("spec", "shape", "named"), SPECIAL)
def test_levels_of_any_norm(spec: str, shape: tuple[int, ...], named: Any) -> None:
    given = {
        key: np.abs(normal(*of)) * (RNG.uniform(size=of) < 0.8) if isinstance(of, tuple)
        else np.arange(of) * 5 % 3
        for key, of in named.items()
    }  # fmt: skip
    with rehearsals():
        for dtype in ("float64", "float32"):
            y = normal(*shape, dtype=dtype)
            y[0] = 0  # a group that may live
            for values in (y, np.asfortranarray(y), y[::-1, ::2]):
                if values.shape == shape or not named:
                    assert tree_agrees(spec, values, **given).taped.tape is not None


@settings(max_examples=25, deadline=None)
@given(problems(), st.one_of(st.just(0.0), st.floats(0.05, 0.95), st.just(1.5)))
def test_any_tree(problem: Any, share: float) -> None:
    with rehearsals():
        tree_agrees(problem.spec, problem.y, share, **problem.given)


def test_small_arrays_go_back_together() -> None:
    y = {f"a{i}": normal(5, 6) for i in range(4)}
    with rehearsals():
        for spec in ('l1(linf @ "*")', 'l2(l1(l2) @ "*")', 'l1(2.0 * l2(axis=0) @ "*")'):
            pullback = tree_agrees(spec, y)
            assert len(pullback.taped.ready.made.pulls._serial) == 4
        y["a1"][:, :] = 0  # groups of zeros do not
        tree_agrees('l1(linf @ "*")', y)
        tree_agrees('l2(linf @ "*")', y)


def test_teams_go_back_through_trees() -> None:
    y = {"a": normal(70, 40), "b": normal(30, 70)}
    spec = "l1(a=linf(axis=1), b=l2(axis=0))"
    results = []
    for team in (None, early, together):
        with rehearsals(team, BLOCK_BYTES=512):
            p = projgen.build(spec, threads=3)
            g = {key: np.cos(v) for key, v in y.items()}
            results.append(p.vjp(y, 9.0)[1](g))
    for pulled, slope in results[1:]:
        assert slope == results[0][1]
        assert all(bits(pulled[key]) == bits(results[0][0][key]) for key in y)


def test_halves_of_trees_go_back_in_float32() -> None:
    y = {"a": normal(6, 7).astype(np.float16), "b": normal(5).astype(np.float16)}
    g = {key: np.full(v.shape, 6000, np.float16) for key, v in y.items()}
    with rehearsals():
        p = projgen.build("l1(a=linf, b=linf)")
        pulled, _ = p.vjp(y, 2.0)[1](g)
        wide = {key: v.astype(np.float32) for key, v in y.items()}
        expected, _ = p.vjp(wide, 2.0)[1]({key: v.astype(np.float32) for key, v in g.items()})
    for key in y:
        np.testing.assert_allclose(pulled[key], expected[key], rtol=2e-3, atol=10)


def test_corners_of_trees() -> None:
    y, g = {"a": normal(4, 5), "b": normal(3)}, {"a": normal(4, 5), "b": normal(3)}
    with rehearsals():
        p = projgen.build("l1(a=linf, b=l2)")
        for radius in (p.norm(y) * 1.01, np.inf):
            pulled, slope = p.vjp(y, radius)[1](g)
            assert slope == 0
            assert all(bits(pulled[key]) == bits(g[key]) for key in y)
        pulled, slope = p.vjp(y, 0.0)[1](g)
        assert slope == 0
        assert not any(v.any() for v in pulled.values())
        huge = {key: 1e300 * v for key, v in y.items()}
        _, pullback = projgen.build("l1(a=l2, b=l2)").vjp(huge, 1e300)
        assert pullback.taped.tape is None  # type: ignore[attr-defined]
        assert np.isfinite(pullback(g)[1])
        pullback = p.vjp(y, 1.0)[1]
        with pytest.raises(ValueError, match=r"must have the shape and dtype of y \('a',\)"):
            pullback({"a": normal(5, 4), "b": normal(3)})
        for short in (None, {}, {"b": g["b"]}, {"a": None, "b": g["b"]}):
            with pytest.raises(ValueError, match="the gradient lacks 'a': it must have y's struct"):
                pullback(short)
        with pytest.raises(ValueError, match="the gradient has 'c', and y has no such array"):
            pullback({**g, "c": g["a"]})
        p = projgen.build('l1(linf @ "a")', unmatched="pass")
        passed, _ = p.vjp(y, 1.0)[1](g)
        assert passed["b"] is g["b"]


# Memory: kernels in workspaces with guards


class Watched(np.ndarray):
    """An array in which an index below 0, which would count from the end, is an error as well as
    one beyond it. Slices end with the array, as those of Numba do."""

    def _check(self, index: Any) -> None:
        parts = index if isinstance(index, tuple) else (index,)
        for part, extent in zip(parts, self.shape, strict=False):
            if isinstance(part, slice):
                ends = part.start, part.stop
            else:
                ends = np.min(part), extent - 1 - np.max(part)
            if not all(end is None or end >= 0 for end in ends):
                raise IndexError(f"{index} of {extent}")

    def __getitem__(self, index: Any) -> Any:
        self._check(index)
        return super().__getitem__(index)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._check(index)
        super().__setitem__(index, value)


GUARD = 64


class Guarded(Workspace):
    """A workspace that is known to have been written to within its bounds alone."""

    made: ClassVar[list[Any]] = []

    def __init__(self, memory: int, desk: int) -> None:
        super().__init__(memory + 2 * GUARD, desk + 2 * GUARD)
        self.wholes = self.memory, self.desk
        self.memory[:], self.desk[:] = np.nan, 77
        self.memory, self.desk = self.memory[GUARD:-GUARD], self.desk[GUARD:-GUARD]
        self.memory_at, self.desk_at = self.memory_at + 8 * GUARD, self.desk_at + 8 * GUARD
        Guarded.made.append(self)

    def check(self) -> None:
        memory, desk = self.wholes
        for side in (slice(None, GUARD), slice(-GUARD, None)):
            assert np.isnan(memory[side]).all()
            assert (desk[side] == 77).all()


@pytest.mark.parametrize("norm", NORMS)
def test_kernels_stay_in_their_memory(norm: str) -> None:
    """Run as Python, where NumPy tells of indices that are too large; others would count from the
    end. Results and gradients that are read have guards as well."""

    def watched(pointer: Any, size: int) -> Any:
        return support._carray(pointer, size).view(Watched)

    support._function.cache_clear()  # they have been given another one
    with (
        patch.object(support._NUMBA, "carray", watched),
        patch("projgen.cpu.call.Workspace", Guarded),
        rehearsals(BLOCK_BYTES=512),
    ):
        for inner in (f"{norm}", f"{norm}(axis=0)"):
            agrees(f"l1({inner})", normal(21, 30), normal(21, 30))
            agrees(f"l2(linf({inner}))", normal(4, 6, 9), normal(4, 6, 9))
            tree_agrees(f"l1(a={inner}, b=l2({norm}))", {"a": normal(9, 8), "b": normal(5, 7)})
        tree_agrees(f"l1({norm}(axis=1, block=4))", normal(6, 11))
    support._function.cache_clear()
    assert Guarded.made
    for work in Guarded.made:
        work.check()
    Guarded.made.clear()


FAR = [-1000, -700, -250, 250, 600, 1000]  # powers of 2 beyond which, or soon, squares have no room


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize(
    "spec",
    [
        *(f"{norm}, axis={axis}, w=w)" for norm in ("l1(", "l2(", "lp(p=1.5", "lp(p=3", "linf(")
          for axis in (0, 1)),
        "l1(linf(axis=1), w=v)",
        "l2(l1(axis=1, w=w))",
        "l1(l2(axis=0, w=w))",
        "l1(linf(axis=1, w=w))",
        "l1(l1(axis=1, w=w, groups=q))",
        "l2(l2(axis=1, w=w, groups=q))",
    ],
)  # fmt: skip
def test_weights_whose_squares_have_no_room(spec: str, backend: Any) -> None:
    """All weights times a power of 2: the radius goes with them, and its gradient against them."""
    spec = spec.replace("(,", "(")
    rng = np.random.default_rng(7)
    y, g = rng.standard_normal((2, 6, 9))
    arrays = {"w": 0.2 + rng.random((6, 9)), "v": 0.2 + rng.random(6), "q": np.arange(9) % 3}
    names = projgen.build(spec).tree.bound_names
    given = {name: arrays[name] for name in names}
    p = projgen.build(spec, backend=backend, threads=1)
    with rehearsals():
        radius = 0.4 * np.asarray(p.norm(y, **given))
        x, back = p.vjp(y, radius, **given)
        expected, slope = back(g)
        for power in FAR:
            far = {n: a if n == "q" else np.ldexp(a, power) for n, a in given.items()}
            z, back = p.vjp(y, np.ldexp(radius, power), **far)
            found, own = back(g)
            np.testing.assert_allclose(z, x, atol=1e-12)
            np.testing.assert_allclose(found, expected, atol=1e-11)
            np.testing.assert_allclose(np.ldexp(own, power), slope, atol=1e-11)


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("norm", ["l1(", "l2(", "lp(p=3, "])
def test_each_group_has_weights_of_its_own_size(norm: str, backend: Any) -> None:
    rng = np.random.default_rng(8)
    y, g = rng.standard_normal((2, 6, 9))
    w = 0.2 + rng.random((6, 9))
    p = projgen.build(f"{norm}axis=1, w=w)", backend=backend, threads=1)
    powers = np.array([-400, -300, 0, 260, 300, 400])
    with rehearsals():
        radius = 0.4 * p.norm(y, w=w)
        expected, slope = p.vjp(y, radius, w=w)[1](g)
        far = np.ldexp(w, powers[:, None])
        found, own = p.vjp(y, np.ldexp(radius, powers), w=far)[1](g)
    np.testing.assert_allclose(found, expected, atol=1e-11)
    np.testing.assert_allclose(np.ldexp(own, powers), slope, atol=1e-11)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(40, 7), (70, 40), (12, 300), (200, 3, 2)])
@pytest.mark.parametrize("leaf", NORMS)
def test_chains_without_negative_values(leaf: str, shape: tuple[int, ...], order: Any) -> None:
    """Whose kernels read y as it is: nothing comes to values below 0, inside the ball either."""
    y, g = (np.array(normal(*shape), order=order) for _ in range(2))
    y[0] = -np.abs(y[0])
    for spec, share in itertools.product(
        (f"l1({leaf}, nonneg=True)", f"l2({leaf}(axis=0), nonneg=True)", f"{leaf}(nonneg=True)"),
        (0.3, 1.5, 0.0),
    ):
        p = projgen.build(spec, threads=1)
        radius = share * np.asarray(projgen.build(spec, backend="numpy").norm(y))
        expected, slope = projgen.build(spec, backend="numpy").vjp(y, radius)[1](g)
        with rehearsals():
            found, own = p.vjp(y, radius)[1](g)
        np.testing.assert_allclose(found, expected, atol=1e-11)
        np.testing.assert_allclose(own, slope, atol=1e-10)
        assert not np.any(np.asarray(found)[y < 0])
