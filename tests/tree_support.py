"""What the tests of trees share: the oracle's verdict on several arrays, and random trees."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from support import TOLERANCE, Array, lay_out, tree_of

import projgen
from projgen import interpret_trees
from projgen.structure import Key, flat, places
from projgen.trees import BoundTree, bind_tree
from projgen.weights import read_given


def bound_tree(spec: str, y: Any, given: Mapping[str, Any]) -> tuple[BoundTree, dict[Key, Array]]:
    tree = tree_of(spec)
    place = places(tree, y, "pass")
    arrays = {key: array for key, array in flat(y) if key in {leaf.key for leaf in place.arms}}
    ordered = {leaf.key: np.asarray(arrays[leaf.key]) for leaf in place.arms}
    shapes = {key: array.shape for key, array in ordered.items()}
    return bind_tree(tree, place, shapes, read_given(tree, given).labels), ordered


def norm_of(spec: str, y: Any, **given: Any) -> Array:
    bound, arrays = bound_tree(spec, y, given)
    return interpret_trees.norm(bound, arrays, given, read_given(bound.tree, given).labels)


def assert_tree_projected(spec: str, y: Any, radius: Any, x: Any, **given: Any) -> None:
    """That `x` is the projection of `y`: near the oracle's, in the ball, between 0 and y."""
    bound, before = bound_tree(spec, y, given)
    after = {key: array for key, array in flat(x) if key in before}
    assert list(after) == [key for key, _ in flat(y) if key in before]
    root = bound.tree.root
    labels = read_given(bound.tree, given).labels
    count = root.k if radius is None else radius
    expected = interpret_trees.project(bound, before, count, given, labels)
    tolerance = max(TOLERANCE[array.dtype.name] for array in before.values())
    top = max((float(np.abs(array).max(initial=0.0)) for array in before.values()), default=0.0)
    for key, array in before.items():
        assert (after[key].shape, after[key].dtype) == (array.shape, array.dtype), key
        error = np.abs(after[key].astype(np.float64) - expected[key])
        assert error.max(initial=0.0) <= tolerance * max(top, 1e-300), (key, error.max())
        if root.norm == "simplex":
            continue
        if any(node.nonneg for node in bound.tree.levels):
            continue
        same = np.signbit(after[key]) == np.signbit(array)
        assert np.all((after[key] == 0) | same), f"a sign of {key} changed"
        assert np.all(np.abs(after[key]) <= np.abs(array)), f"a value of {key} grew"
    norms = interpret_trees.norm(bound, after, given, labels)
    total = interpret_trees.norm(bound, before, given, labels)
    radii = np.broadcast_to(np.asarray(count, np.float64), norms.shape)
    room = radii + tolerance * np.maximum(np.maximum(radii, 1.0), total)
    assert np.all(norms <= room), f"outside the ball: {norms} > {radii}"
    if np.all(total * (1 + 1e-9) <= radii) and root.norm != "simplex":
        for key, array in before.items():
            if not any(node.nonneg for node in bound.tree.levels):
                assert np.array_equal(after[key], array), f"{key} changed inside the ball"


@dataclass
class Problem:
    spec: str
    y: Any
    given: dict[str, Any] = field(default_factory=dict)


_CHAINED = st.sampled_from(["l1", "l2", "linf"])


@st.composite
def arrays(draw: st.DrawFn, rank: int) -> Array:
    shape = tuple(draw(st.integers(1, 5)) for _ in range(rank))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.standard_normal(shape) * draw(st.sampled_from([1.0, 1.0, 1e-3, 30.0]))
    if draw(st.booleans()):
        values = values.round()  # ties and zeros
    values = values.astype(draw(st.sampled_from(["float64", "float64", "float32"])))
    order = tuple(draw(st.permutations(range(rank))))
    steps = st.sampled_from([1, 1, 1, 2, -1])
    return lay_out(values, order, tuple(draw(steps) for _ in order))


@st.composite
def limbs(draw: st.DrawFn, given: dict[str, Any], special: bool) -> tuple[str, Array]:
    """A chain over one array, of which it leaves at most one axis to the branch above it."""
    rank = draw(st.integers(1, 3))
    array = draw(arrays(rank))
    axes = list(draw(st.permutations(range(rank))))
    if len(axes) > 1 and draw(st.booleans()):
        axes.pop()
    cut = draw(st.integers(1, len(axes)))
    shares = [axes[:cut], axes[cut:]] if cut < len(axes) else [axes]
    spec = ""
    for level, share in enumerate(reversed(shares)):
        leaf = level == 0
        arguments = [spec] if spec else []
        arguments.append(f"axis=({', '.join(map(str, share))},)")
        name = draw(_CHAINED)
        choice = draw(st.integers(0, 7)) if special and leaf else 0
        if choice == 1 and len(axes) == rank and len(share) == 1:
            arguments.append(f"block=({', '.join('2' for _ in share)},)")
        elif choice == 2:
            label = f"w{len(given)}"
            weights = np.round(np.abs(draw(arrays(rank)).ravel()[:1]), 2) + draw(st.integers(0, 2))
            extent = array.shape[-1]
            given[label] = np.resize(weights * np.arange(1, 4), extent)
            arguments.append(f"w={label}")
        elif choice == 3:
            name, arguments = (
                "lp",
                [*arguments, f"p={draw(st.sampled_from([1.2, 1.5, 3.0, 20.0]))}"],
            )
        elif choice == 4 and len(share) == 1 and len(axes) == rank:
            label = f"g{len(given)}"
            extent = array.shape[share[0]]
            given[label] = np.array(
                draw(st.lists(st.integers(0, 3), min_size=extent, max_size=extent))
            )
            arguments.append(f"groups={label}")
        elif choice == 5:
            arguments.append("nonneg=True")
        spec = f"{name}({', '.join(arguments)})"
    return spec, array


@st.composite
def branches(draw: st.DrawFn, given: dict[str, Any], depth: int, special: bool) -> tuple[str, Any]:
    named = draw(st.booleans())
    specs: list[str] = []
    values: list[Any] = []
    for _ in range(draw(st.integers(1, 3))):
        deeper = depth > 1 and draw(st.integers(0, 2)) == 0
        made = branches(given, depth - 1, special) if deeper else limbs(given, special)
        spec, value = draw(made)
        specs.append(spec)
        values.append(value)
    if not named and len(specs) == 1:
        named = True
    weights = [draw(st.sampled_from(["", "", "2.0*", "0.5*", "0*"])) for _ in specs]
    if not special:
        weights = [""] * len(specs)
    names = [f"n{i}=" if named else "" for i in range(len(specs))]
    parts = [f"{a}{b}{c}" for a, b, c in zip(names, weights, specs, strict=True)]
    y = {f"n{i}": value for i, value in enumerate(values)} if named else values
    return f"{draw(_CHAINED)}({', '.join(parts)})", y


@st.composite
def problems(draw: st.DrawFn, special: bool = True) -> Problem:
    given: dict[str, Any] = {}
    spec, y = draw(branches(given, 2, special))
    return Problem(spec, y, given)


def project(problem: Problem, radius: Any, **options: Any) -> Any:
    return projgen.build(problem.spec, **options)(problem.y, radius, **problem.given)
