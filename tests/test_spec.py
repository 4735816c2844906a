"""The language: what parses, what it means, and how it is printed."""

import dataclasses
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projgen import norms
from projgen.check import parse_tree
from projgen.errors import SpecError
from projgen.parse import MAX_NESTING, parse
from projgen.tree import Node, NormTree

L1, L2, LINF = Node("l1"), Node("l2"), Node("linf")


@st.composite
def trees(draw: st.DrawFn, max_depth: int = 6) -> NormTree:
    """Chains with any mixture of axes; no axis is named twice."""
    names = draw(st.lists(st.sampled_from(list(norms.CHAINED)), min_size=1, max_size=max_depth))
    axes = iter(draw(st.lists(st.integers(-99, 99), unique=True, min_size=3 * max_depth)))
    node = None
    for name in names:
        count = draw(st.integers(0, 3))
        axis = tuple(next(axes) for _ in range(count)) or None
        node = Node(name, axis, (node,) if node else ())
    assert node is not None
    return NormTree(node)


@given(trees())
def test_printing_then_parsing_gives_the_same_tree(tree: NormTree) -> None:
    again = parse_tree(tree.spec)
    assert again == tree
    assert hash(again) == hash(tree)
    assert again.spec == str(again) == tree.spec


@given(trees(), st.sampled_from([" ", "\n", "\t", "\r\n  "]))
def test_whitespace_between_tokens_means_nothing(tree: NormTree, space: str) -> None:
    text = tree.spec.replace(" ", "")
    for char in "(),=":
        text = text.replace(char, space + char + space)
    assert parse_tree(space + text + space) == tree


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("l1", L1),
        ("l1()", L1),
        ("l1(linf,)", Node("l1", None, (LINF,))),
        ("ℓ1(ℓ2(ℓ∞))", Node("l1", None, (Node("l2", None, (LINF,)),))),
        ("ℓ₁(ℓ₂(l∞()))", Node("l1", None, (Node("l2", None, (LINF,)),))),
        ("linf(axis=1)", Node("linf", (1,))),
        ("linf(axis=+1)", Node("linf", (1,))),
        ("linf(axis=(1))", Node("linf", (1,))),
        ("linf(axis=(-1,))", Node("linf", (-1,))),
        ("linf(axis=(2, -3, 0,))", Node("linf", (2, -3, 0))),
        ("l1(axis=0, linf(axis=1))", Node("l1", (0,), (Node("linf", (1,)),))),
        ("l1(linf(axis=1), axis=0)", Node("l1", (0,), (Node("linf", (1,)),))),
    ],
)
def test_meaning(text: str, root: Node) -> None:
    assert parse_tree(text) == NormTree(root)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("ℓ1( ℓ∞ ( axis = ( 1, ) ) )", "l1(linf(axis=1))"),
        ("l1(axis=0, l2(axis=(1,2)),)", "l1(l2(axis=(1, 2)), axis=0)"),
        ("l2()", "l2"),
    ],
)
def test_canonical_spec(text: str, canonical: str) -> None:
    assert parse_tree(text).spec == canonical


def test_levels_and_depth() -> None:
    tree = parse_tree("l1(l2(linf))")
    assert [node.norm for node in tree.levels] == ["l1", "l2", "linf"]
    assert tree.depth == 3
    branch = NormTree(Node("l1", None, (LINF, Node("l2", None, (L1,)))))
    assert [node.norm for node in branch.levels] == ["l1", "linf", "l2", "l1"]
    assert branch.depth == 3


def test_pretty() -> None:
    branch = Node("l1", None, (Node("l2", (0,), (LINF,)), LINF, LINF))
    assert NormTree(branch).pretty().split("\n") == [
        "l1",
        "├─ l2 axis=0",
        "│  └─ linf",
        "├─ linf",
        "└─ linf",
    ]


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("l1", True),
        ("l1(axis=-1)", True),
        ("l1(l2)", True),
        ("l2(l2)", True),
        ("linf(linf)", True),
        ("linf(l1(l2(l2)))", True),
        ("linf(l1)", True),
        ("l1(linf)", False),
        ("l1(l1)", False),
        ("l2(l1)", False),
        ("l2(linf)", False),
        ("l1(l2(linf))", False),
        ("linf(l1(linf))", False),
    ],
)
def test_is_euclidean(text: str, exact: bool) -> None:
    assert parse_tree(text).is_euclidean is exact


def test_spans_are_where_things_are_written_and_never_compare() -> None:
    tree = parse_tree("ℓ1( linf(axis=(1, -2)))")
    root, leaf = tree.levels
    assert [str(root.span), str(leaf.span)] == ["ℓ1", "linf"]
    assert [str(span) for span in leaf.axis_spans] == ["1", "-2"]
    bare = NormTree(Node("l1", None, (Node("linf", (1, -2)),)))
    assert tree == bare
    assert hash(tree) == hash(bare)
    assert "span" not in repr(tree)


def test_trees_are_frozen_and_pickle() -> None:
    tree = parse_tree("l1(linf(axis=1))")
    assert pickle.loads(pickle.dumps(tree)) == tree
    with pytest.raises(dataclasses.FrozenInstanceError):
        tree.root.norm = "l2"  # type: ignore[misc]


def test_syntax_prints_as_a_tree() -> None:
    text = "l1(2.5 * enc = linf(axis=(1,2)), w='a', lp(p=-1e3), 3*l2 @ '*.b')"
    assert str(parse(text)).split("\n") == [
        "l1",
        "  enc = 2.5 * linf",
        "    axis = (1,2)",
        "  w = 'a'",
        "  lp",
        "    p = -1e3",
        "  3 * l2 @ '*.b'",
    ]


def test_depth_is_bounded_by_the_nesting_of_parentheses() -> None:
    deepest = "l1(" * MAX_NESTING + "l1" + ")" * MAX_NESTING
    assert parse_tree(deepest).depth == MAX_NESTING + 1
    assert parse_tree(parse_tree(deepest).spec) == parse_tree(deepest)
    with pytest.raises(SpecError, match="too deep"):
        parse_tree(f"l1({deepest})")


@pytest.mark.parametrize("spec", [None, 1, b"l1", ["l1"], parse_tree])
def test_a_spec_is_a_str(spec: object) -> None:
    with pytest.raises(TypeError, match="a spec is a str"):
        parse_tree(spec)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", norms.CHAINED.values(), ids=str)
def test_every_spelling_finds_its_norm(norm: norms.Norm) -> None:
    for spelling in (norm.name, *norm.aliases):
        assert norms.find(spelling) is norm
        assert parse_tree(spelling).spec == norm.name


@pytest.mark.parametrize(
    ("text", "readings"),
    [
        ("linff", ("linf",)),
        ("lnf", ("linf",)),
        ("L1", ("l1",)),
        ("L_1", ("l1",)),
        ("l₂", ("l2",)),
        ("l_inf", ("linf",)),
        ("Linfty", ("linf",)),
        ("infinity", ("linf",)),
        ("l2_norm", ("l2",)),
        ("max", ("linf",)),
        ("fro", ("l2",)),
        ("l21", ("l1(l2)",)),
        ("l12", ("l1(l2)",)),
        ("L2,1", ("l1(l2)",)),
        ("l1,inf", ("l1(linf)",)),
        ("l_{∞,1}", ("l1(linf)",)),
        ("ℓ_{1,∞}", ("l1(linf)",)),
        ("l1inf", ("l1(linf)",)),
        ("l1,1", ("l1(l1)",)),
        ("l1,inf,inf", ("l1(linf(linf))",)),
        ("l2inf", ("l2(linf)", "linf(l2)")),
        ("nuclear", ()),
        ("l" * 10_000, ()),
    ],
)
def test_suggestions(text: str, readings: tuple[str, ...]) -> None:
    assert norms.suggest(text) == readings
    for reading in readings:
        assert parse_tree(reading).spec == reading


def test_only_parsing_imports_lark() -> None:
    program = (
        "import sys, projgen.check; assert 'lark' not in sys.modules;"
        "projgen.check.parse_tree('l1'); assert 'lark' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
