"""Any tree, any arrays, any layout: compositions of kernels, rehearsed, against the oracle."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Array, rehearsals
from tree_support import Problem, assert_tree_projected, norm_of, problems, project

import projgen
from projgen.structure import flat, rebuilt

PARTS = st.sampled_from([0.0, 0.05, 0.3, 0.9, 1.0, np.inf])


def radius_of(problem: Problem, part: float) -> float:
    total = float(norm_of(problem.spec, problem.y, **problem.given))
    return part * total if total and np.isfinite(part) else part


def changed(y: Any, change: Any) -> Any:
    return rebuilt(y, {key: change(array) for key, array in flat(y)})


@given(problems(), PARTS)
@settings(max_examples=3000)
def test_near_the_oracle(problem: Problem, part: float) -> None:
    radius = radius_of(problem, part)
    with rehearsals():
        x = project(problem, radius, threads=1)
        assert_tree_projected(problem.spec, problem.y, radius, x, **problem.given)
        norm = projgen.build(problem.spec).norm(problem.y, **problem.given)
    expected = float(norm_of(problem.spec, problem.y, **problem.given))
    assert abs(norm - expected) <= 1e-6 * expected


@given(problems(), PARTS)
@settings(max_examples=1000)
def test_in_place_is_out_of_place(problem: Problem, part: float) -> None:
    radius = radius_of(problem, part)
    with rehearsals():
        y = changed(problem.y, np.copy)
        out = changed(y, np.empty_like)
        p = projgen.build(problem.spec, threads=1)
        assert p(y, radius, out=out, **problem.given) is out
        p(y, radius, out=y, **problem.given)
    for (_, a), (_, b) in zip(flat(y), flat(out), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12 * max(1.0, np.abs(a).max(initial=0)))


@given(problems(special=False), PARTS)
@settings(max_examples=1000)
def test_a_projection_stays_where_it_is(problem: Problem, part: float) -> None:
    radius = radius_of(problem, part)
    x = project(problem, radius, backend="numpy")
    again = projgen.build(problem.spec, backend="numpy")(x, radius, **problem.given)
    for (_, a), (_, b) in zip(flat(x), flat(again), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6 * max(1e-3, np.abs(a).max(initial=0)))


def test_the_order_of_children_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    y: dict[str, Array] = {"a": rng.standard_normal((5, 4)), "b": rng.standard_normal((3, 6))}
    with rehearsals():
        one = projgen.project(y, "l1(a=linf(axis=1), b=l2(axis=0))", 2.0)
        two = projgen.project(y, "l1(b=l2(axis=0), a=linf(axis=1))", 2.0)
    for name in y:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-13)


def test_a_branch_is_the_chain_over_its_arrays_side_by_side() -> None:
    rng = np.random.default_rng(1)
    y = rng.standard_normal((9, 7))
    with rehearsals():
        whole = projgen.project(y, "l1(linf(axis=1))", 3.0)
        parts = projgen.project([y[:4], y[4:]], "l1(linf(axis=1), linf(axis=1))", 3.0)
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-13)
