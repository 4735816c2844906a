"""Which level reduces which axes. The errors are in ``test_spec_errors.py``."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projgen.bind import Binding, Level, bind
from projgen.check import parse_tree
from projgen.errors import SpecError
from projgen.norms import CHAINED
from projgen.tree import Node, NormTree


def axes_of(spec: str, rank: int) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    binding = bind(parse_tree(spec), rank)
    return [level.axes for level in binding.levels], binding.batch


@pytest.mark.parametrize(
    ("spec", "rank", "levels", "batch"),
    [
        # Without axis=: one axis each from the root down, and the last takes the rest.
        ("l1", 1, [(0,)], ()),
        ("l1", 3, [(0, 1, 2)], ()),
        ("l1(linf)", 2, [(0,), (1,)], ()),
        ("l1(linf)", 4, [(0,), (1, 2, 3)], ()),
        ("l1(l2(linf))", 3, [(0,), (1,), (2,)], ()),
        ("l1(l2(linf))", 5, [(0,), (1,), (2, 3, 4)], ()),
        # With axis= at every level: the rest is the batch.
        ("l1(axis=-1)", 1, [(0,)], ()),
        ("l1(axis=-1)", 3, [(2,)], (0, 1)),
        ("l1(linf(axis=2), axis=0)", 4, [(0,), (2,)], (1, 3)),
        ("l1(linf(axis=(3, 1, -2)), axis=0)", 4, [(0,), (1, 2, 3)], ()),
        # Some of each: named axes are taken out first, and nothing is left for a batch.
        ("l1(linf(axis=1))", 2, [(0,), (1,)], ()),
        ("l1(linf(axis=0))", 2, [(1,), (0,)], ()),
        ("l1(linf(axis=0))", 4, [(1, 2, 3), (0,)], ()),
        ("l1(linf(axis=(1, 2, 3)))", 4, [(0,), (1, 2, 3)], ()),
        ("l1(linf, axis=-1)", 3, [(2,), (0, 1)], ()),
        ("l1(l2(linf(axis=0)))", 4, [(1,), (2, 3), (0,)], ()),
        ("l1(l2(linf), axis=1)", 4, [(1,), (0,), (2, 3)], ()),
        ("l1(l2(linf, axis=-1))", 3, [(0,), (2,), (1,)], ()),
    ],
)
def test_axes(spec: str, rank: int, levels: list[tuple[int, ...]], batch: tuple[int, ...]) -> None:
    assert axes_of(spec, rank) == (levels, batch)


@st.composite
def specs_with_rank(draw: st.DrawFn) -> tuple[NormTree, int]:
    """Trees that fit the rank, with some levels' axes named."""
    rank = draw(st.integers(1, 6))
    axes = draw(st.permutations(range(rank)))
    depth = draw(st.integers(1, rank))
    cuts = sorted(draw(st.sets(st.integers(1, rank), min_size=depth, max_size=depth)))
    node = None
    for start, stop in zip([0, *cuts], cuts, strict=False):
        named = tuple(draw(st.sampled_from([axis, axis - rank])) for axis in axes[start:stop])
        axis = draw(st.sampled_from([named, None]))
        node = Node(draw(st.sampled_from(list(CHAINED))), axis, (node,) if node else ())
    assert node is not None
    return NormTree(node), rank


@given(specs_with_rank())
def test_every_axis_has_one_place(case: tuple[NormTree, int]) -> None:
    tree, rank = case
    binding = bind(tree, rank)
    groups = [*(level.axes for level in binding.levels), binding.batch]
    assert sorted(itertools.chain(*groups)) == list(range(rank))
    assert all(list(axes) == sorted(axes) for axes in groups)
    for node, level in zip(tree.levels, binding.levels, strict=True):
        assert level.axes
        assert level.norm == node.norm
        assert node.axis is None or level.axes == tuple(sorted(axis % rank for axis in node.axis))


@given(specs_with_rank())
def test_a_binding_says_itself_in_full(case: tuple[NormTree, int]) -> None:
    """The tree that names every axis of a binding has the same levels and the same batch."""
    tree, rank = case
    binding = bind(tree, rank)
    node = None
    for level in reversed(binding.levels):
        node = Node(level.norm, level.axes, (node,) if node else ())
    assert node is not None
    again = bind(NormTree(node), rank)
    assert (again.root, again.batch) == (binding.root, binding.batch)


def test_a_binding_is_a_value() -> None:
    first, second = (bind(parse_tree(spec), 2) for spec in ("l1(linf)", "ℓ1( ℓ∞ )"))
    assert first == second
    assert hash(first) == hash(second)
    assert first == Binding(
        parse_tree("l1(linf)"), 2, Level("l1", (0,), (Level("linf", (1,)),)), ()
    )
    assert first != bind(parse_tree("l1(linf)"), 3)


def test_str() -> None:
    binding = bind(parse_tree("l1(axis=3, linf(axis=(2, 1)))"), 4)
    assert str(binding).split("\n") == [
        "l1(linf(axis=(2, 1)), axis=3) on rank 4",
        "  l1     axes 3",
        "  linf   axes 1, 2",
        "  batch  axes 0",
    ]
    assert "batch" not in str(bind(parse_tree("l1(linf)"), 2))


@pytest.mark.parametrize(
    "root",
    [
        Node("l1", None, (Node("l2"), Node("linf"))),
        Node("l3"),
        Node("l1", ()),
        Node("l1", (0, 0)),
        Node("l1", (True,)),
        Node("l1", (1.5,)),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_a_tree_made_by_hand_is_checked(root: Node) -> None:
    with pytest.raises(SpecError):
        bind(NormTree(root), 2)


@pytest.mark.parametrize("shape", [(5, 4), None])
def test_the_error_shows_the_spec_and_the_array(shape: tuple[int, ...] | None) -> None:
    with pytest.raises(SpecError) as caught:
        bind(parse_tree("l1(l2(linf))"), 2, shape)
    assert "l1(l2(linf))" in str(caught.value)
    assert ("shape (5, 4)" if shape else "rank 2") in caught.value.message
