"""`build`, `project` and `Projection` as objects, and what a call means."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from support import Array, assert_projected, bits, norm, rehearsals, run_python

import projgen
from projgen.tree import NormTree

SPEC = "l1(linf(axis=1))"


@pytest.fixture
def y() -> Array:
    return np.random.default_rng(0).standard_normal((20, 30))


def test_packages_to_import_first() -> None:
    for name in ("torch", "sklearn"):
        text = f"module 'projgen' has no attribute '{name}': import projgen.{name} first"
        with pytest.raises(AttributeError, match=f"^{text}$"):
            projgen.__getattr__(name)
    with pytest.raises(AttributeError, match=r"no attribute 'project_all'$"):
        projgen.__getattr__("project_all")


# The object


def test_equal_specs_make_equal_projections() -> None:
    p, q = projgen.build(SPEC), projgen.build(" ℓ1( l∞(axis = (1,)) )")
    assert p == q
    assert hash(p) == hash(q)
    assert len({p, q}) == 1
    assert p == projgen.build(p.tree)


@pytest.mark.parametrize(
    "other",
    [
        projgen.build("l1(linf)"),
        projgen.build("l1(linf(axis=-1))"),
        projgen.build(SPEC, backend="numpy"),
        projgen.build(SPEC, threads=1),
        projgen.build(SPEC, check_finite=False),
        SPEC,
        None,
    ],
)
def test_others_are_different(other: Any) -> None:
    assert projgen.build(SPEC) != other


def test_it_is_immutable() -> None:
    p = projgen.build(SPEC)
    for name in ("spec", "tree", "is_euclidean", "_tree", "_threads", "anything"):
        with pytest.raises(AttributeError):
            setattr(p, name, None)
        with pytest.raises(AttributeError):
            delattr(p, name)
    assert p == projgen.build(SPEC)
    assert not hasattr(p, "__dict__")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(protocol: int, y: Array) -> None:
    p = projgen.build(SPEC, threads=2, check_finite=False)
    with rehearsals():
        p(y, 1.0)  # what is remembered of calls does not travel
        again = pickle.loads(pickle.dumps(p, protocol))
        assert again == p
        assert hash(again) == hash(p)
        assert np.array_equal(again(y, 1.0), p(y, 1.0))
    assert len(pickle.dumps(p, protocol)) < 300


def test_copy() -> None:
    p = projgen.build(SPEC, backend="numpy")
    assert copy.copy(p) == copy.deepcopy(p) == p


def test_hash_does_not_depend_on_what_was_called(y: Array) -> None:
    p = projgen.build(SPEC)
    before = hash(p)
    with rehearsals():
        p(y, 1.0)
    assert hash(p) == before


@pytest.mark.parametrize(
    "options", [{}, {"backend": "numpy"}, {"threads": 3, "check_finite": False}]
)
def test_repr_builds_it_again(options: dict[str, Any]) -> None:
    p = projgen.build("ℓ1(ℓ∞(axis=1))", **options)
    assert repr(p).startswith("projgen.build('l1(linf(axis=1))'")
    assert eval(repr(p)) == p


def test_what_it_tells() -> None:
    p = projgen.build("ℓ1( ℓ2 )")
    assert p.spec == "l1(l2)"
    assert isinstance(p.tree, NormTree)
    assert p.is_euclidean is True
    assert projgen.build("l1(linf)").is_euclidean is False


def test_a_built_projection_has_compiled_nothing() -> None:
    code = "import sys, projgen; projgen.build('l1(linf)'); assert 'numba' not in sys.modules"
    run_python(code)


# Results


def test_project_is_build_and_call(y: Array) -> None:
    out = np.empty_like(y)
    with rehearsals():
        assert np.array_equal(projgen.project(y, SPEC, 1.0), projgen.build(SPEC)(y, 1.0))
        assert projgen.project(y, SPEC, radius=1.0, out=out) is out
        assert np.array_equal(out, projgen.build(SPEC)(y, radius=1.0))


def test_backends_agree(y: Array) -> None:
    reference = projgen.build(SPEC, backend="numpy")
    with rehearsals():
        for backend in ("auto", "cpu"):
            p = projgen.build(SPEC, backend=backend)
            np.testing.assert_allclose(p(y, 3.0), reference(y, 3.0), rtol=0, atol=1e-14)
            assert p.norm(y) == pytest.approx(reference.norm(y), rel=1e-14)


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_have_the_input_s_type(backend: Any, dtype: str, y: Array) -> None:
    y = y.astype(dtype)
    p = projgen.build(SPEC, backend=backend)
    with rehearsals():
        x = p(y, 3.0)
        assert (type(x), x.dtype, x.shape) == (np.ndarray, y.dtype, y.shape)
        assert type(p.norm(y)) is float
        assert type(projgen.build("l1(linf)")(y.tolist(), 3.0)) is np.ndarray


@pytest.mark.parametrize(
    "radius", [3, 3.0, np.float32(3), np.int64(3), np.array(3.0), np.array(3, np.uint8)]
)
def test_numbers_as_radius(radius: Any, y: Array) -> None:
    with rehearsals():
        assert np.array_equal(projgen.project(y, SPEC, radius), projgen.project(y, SPEC, 3.0))


def test_a_radius_for_each_batch_entry() -> None:
    y = np.random.default_rng(1).standard_normal((3, 20, 4))
    p = projgen.build("l1(axis=1)")
    radii = np.linspace(0, 20, 12).reshape(3, 4)
    with rehearsals():
        x = p(y, radii)
        assert_projected(p.spec, y, radii, x)
        assert p.norm(y).shape == (3, 4)
        for i, j in np.ndindex(3, 4):
            assert_projected("l1", y[i, :, j], radii[i, j], x[i, :, j])
        for fewer in (5.0, [5.0], [1.0, 2.0, 3.0, 4.0], [[1.0], [2.0], [3.0]], radii.tolist()):
            each = np.broadcast_to(np.asarray(fewer), (3, 4))
            assert np.array_equal(p(y, fewer), p(y, each))
        assert np.array_equal(p(y, np.asfortranarray(radii)), x)
        assert np.array_equal(p(y, radii.astype(np.float32)), p(y, np.float64(np.float32(radii))))


@pytest.mark.parametrize("radius", [0, 0.0, -0.0])
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e-320, 1e200])
@pytest.mark.parametrize("spec", ["l1", "l2", "linf", "l1(l2)", "l2(linf)"])
def test_radius_0_gives_zeros(radius: float, scale: float, spec: str, y: Array) -> None:
    with rehearsals():
        assert not np.any(projgen.project(y * scale, spec, radius))


def test_radius_0_gives_zeros_next_to_sums_beyond_the_range() -> None:
    y = np.array([1e308, 1e308, 1e-300])
    with rehearsals():
        assert not np.any(projgen.project(y, "l1", 0.0))


@pytest.mark.parametrize("spec", ["l1", "l2", "linf(l2)"])
def test_an_infinite_radius_gives_y(spec: str, y: Array) -> None:
    y[3] = -0.0
    with rehearsals():
        for scale in (1.0, 1e-320, 1e300):
            assert bits(projgen.project(y * scale, spec, np.inf)) == bits(y * scale)


def test_a_call_leaves_its_input_alone(y: Array) -> None:
    before = bits(y)
    with rehearsals():
        x = projgen.project(y, SPEC, 1.0)
        inside = projgen.project(y, SPEC, 1e9)
    assert bits(y) == before
    assert not np.shares_memory(x, y)
    assert not np.shares_memory(inside, y)


def test_active() -> None:
    x = np.zeros((3, 4, 2))
    x[1, 2, 0], x[2, 0, 1] = 1.0, -0.0
    assert projgen.build("l1(linf(axis=1))").active(x[..., 0]).tolist() == [False, True, False]
    assert projgen.build("l1(linf(axis=(1, 2)))").active(x).tolist() == [False, True, False]
    assert projgen.build("l1(l2(linf))").active(x).shape == (3, 4)
    assert projgen.build("l1(l2(linf))").active(x).sum() == 1
    assert projgen.build("l1").active(x) is True
    assert projgen.build("l1").active(0 * x) is False
    y = np.random.default_rng(5).standard_normal((20, 30))
    with rehearsals():
        sparse = projgen.project(y, SPEC, 5.0)
    active = projgen.build(SPEC).active(sparse)
    assert 0 < active.sum() < 20
    assert np.array_equal(active, np.abs(sparse).max(axis=1) > 0)


@pytest.mark.parametrize("scale", [0.0, 1e-320, 1e-200, 1.0, 1e300])
def test_norm(scale: float) -> None:
    y = scale * np.random.default_rng(6).standard_normal((5, 6, 7))
    with rehearsals():
        for spec in ("l1", "l2", "linf", "l1(l2(linf))", "l2(axis=1)", "linf(l1(axis=2), axis=0)"):
            found = projgen.build(spec).norm(y)
            np.testing.assert_allclose(found, norm(spec, y), rtol=1e-13)


# Plans and sources


def test_plan_and_source(y: Array) -> None:
    p = projgen.build(SPEC)
    assert "2 groups of 3" in str(p.plan((2, 3)))
    assert p.plan((1000, 1000)) == p.plan([1000, 1000], "float32") == p.plan((1000, 1000), "f4")
    assert p.source((1000, 1000)) == p.source(2) == p.source(np.int64(2))
    assert "float64" in p.source(2, np.float64).splitlines()[0]
    compile(p.source((3, 4, 5)[:2]), "source", "exec")


def test_the_source_is_what_is_loaded(y: Array) -> None:
    """`source` shows the code that runs for such an array."""
    code = """
import pathlib, numpy as np, projgen
p = projgen.build("l1(linf)")
p(np.ones((1000, 1000), np.float32), 1.0)
(call,) = p._calls.values()
assert pathlib.Path(call._module.__file__).read_text() == p.source((1000, 1000))
"""
    run_python(code)


def test_a_large_rank() -> None:
    spec = "l1(l2(linf(l1(l2(linf(l1(linf)))))))"
    y = np.random.default_rng(7).standard_normal((2, 3, 1, 2, 2, 3, 2, 2))
    with rehearsals():
        assert_projected(
            spec, y, 0.4 * norm(spec, y), projgen.project(y, spec, 0.4 * norm(spec, y))
        )
    assert "level 6" in str(projgen.build(spec).plan(y.shape))
    compile(projgen.build(spec).source(8), "source", "exec")


def test_many_shapes_one_projection() -> None:
    """What is remembered of calls is bounded."""
    p = projgen.build("linf")
    with rehearsals():
        for n in range(1, 400):
            assert p(np.full(n, 2.0), 1.0).tolist() == [1.0] * n
    assert len(p._calls) <= 256


def test_the_example_of_the_package_works() -> None:
    import doctest

    with rehearsals():
        assert doctest.testmod(projgen).failed == 0


def test_import_is_quick() -> None:
    code = (
        "import sys, projgen; print(sorted({'numba', 'jinja2', 'lark', 'torch'} & {*sys.modules}))"
    )
    assert run_python(code) == "[]\n"
