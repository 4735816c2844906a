"""Arrays by their names, put where a tree looks for them; and shapes of arrays that are not there.

The command line knows arrays by names: tensors of a file, or ``--shape enc=1000x1000``. A tree
knows them by the names, patterns and places of its children.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from projgen.arms import bind_arm
from projgen.arrays import check_dtype
from projgen.dtypes import bfloat16
from projgen.errors import SpecError
from projgen.norms import NORMS
from projgen.structure import Key, at, entries, places
from projgen.tree import Node, NormTree
from projgen.trees import BoundTree, bind_tree
from projgen.weights import check_names, read_labels

Array = NDArray[Any]
T = TypeVar("T")

MAX_RANK = 64  # of NumPy's arrays
_NO_LABELS = np.zeros(0, np.int64)


def has_branches(tree: NormTree) -> bool:
    """Whether the tree takes more than one array."""
    return any(node.is_branch for node in tree.levels)


def require_gpu(tree: NormTree) -> None:
    """A SpecError for a tree that no GPU kernels take."""
    from projgen.cuda.group_kernel import BALLS

    for node in tree.levels:
        if not _is_chained(node) and node.norm not in BALLS:
            alone = "" if not NORMS[node.norm].chained else ", where it is a level of its own"
            raise SpecError(
                f"{tree} runs on the CPU: {node.norm} has no kernel for a GPU{alone}. "
                f"{', '.join(BALLS)} have one",
                *filter(None, [node.span]),
                hint="leave the backend out, or say 'cpu', and give arrays that are not on a GPU",
            )


def _is_chained(node: Node) -> bool:
    """Whether a kernel of many levels has the level among them: see `projgen.parts`."""
    weighted = node.weights is not None or (
        node.is_branch and any(child.weight != 1 for child in node.children)
    )
    return NORMS[node.norm].chained and not weighted and node.groups is None


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a tree takes an array, or with a pattern many: its dotted name, and its leaf."""

    name: str
    leaf: Node
    is_pattern: bool

    def fits(self, name: str) -> bool:
        return fnmatchcase(name, self.name) if self.is_pattern else name == self.name


def slots(tree: NormTree) -> list[Slot]:
    """The slots of a tree, in the spec's order. The only array of one has an empty name."""
    return list(_slots(tree.root, ()))


def _slots(node: Node, key: tuple[str, ...]) -> Iterator[Slot]:
    if node.pattern is not None:
        yield Slot(".".join((*key, node.pattern)), _leaf(node), True)
        return
    if not node.children:
        yield Slot(".".join(key), node, False)
    for index, child in enumerate(node.children):
        inner = key
        if node.is_branch and not node.is_patterned:
            inner = (*key, child.name if child.name is not None else str(index))
        yield from _slots(child, inner)


def _leaf(node: Node) -> Node:
    return _leaf(node.children[0]) if node.children else node


def arrange(tree: NormTree, named: Mapping[str, T]) -> Any:
    """What stands behind dotted names as the structure that `tree` takes. Names that the tree has
    no place for are left out, except beneath patterns; those that are missing are missing."""
    if not has_branches(tree):
        (value,) = named.values()
        return value
    return _arrange(tree.root, named)


def _arrange(node: Node, named: Mapping[str, Any]) -> Any:
    if not node.children:
        return named.get("")
    if not node.is_branch:
        return _arrange(node.children[0], named)
    if node.is_patterned:
        return dict(named)
    inner: dict[str, Any] = {}
    for index, child in enumerate(node.children):
        name = child.name if child.name is not None else str(index)
        beneath = {
            full.removeprefix(name).removeprefix("."): value
            for full, value in named.items()
            if full == name or full.startswith(f"{name}.")
        }
        if beneath:
            inner[name] = _arrange(child, beneath)
    return inner if node.children[0].name is not None else list(inner.values())


def stand_ins(shapes: Any, dtypes: Any) -> Any:
    """A structure of arrays without memory, for one of shapes: tuples of extents. `dtypes` is one
    for all, or a structure alike."""
    if _is_shape(shapes):
        shape = tuple(map(int, shapes))
        if any(extent < 1 for extent in shape):
            raise ValueError(f"no plan for shape {shape}: every extent must be at least 1")
        named = isinstance(dtypes, str) and dtypes == "bfloat16"  # NumPy may not know it
        empty = np.empty((), bfloat16() if named else dtypes)
        check_dtype(empty)
        return np.broadcast_to(empty, shape)
    found = entries(shapes)
    if found is None:
        raise TypeError(f"a shape is a tuple of extents such as (100, 10), not {shapes!r}")
    own = entries(dtypes) if not isinstance(dtypes, np.dtype) else None
    if own is not None and own.keys() != found.keys():
        raise ValueError("dtype is one for all arrays, or a structure of dtypes like the shapes")
    made = {
        name: stand_ins(value, dtypes if own is None else own[name])
        for name, value in found.items()
    }
    if isinstance(shapes, (list, tuple)) and not hasattr(shapes, "_fields"):
        return list(made.values())
    return made


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and not hasattr(value, "_fields")
        and all(isinstance(extent, (int, np.integer)) for extent in value)
    )


def read_shape(shape: Any) -> tuple[int, ...]:
    """`shape` as a tuple; a TypeError for what is none, such as the array itself."""
    try:
        return tuple(map(operator.index, shape))
    except TypeError:
        plain = isinstance(shape, (int, float, tuple, list))
        given = repr(shape) if plain else f"of type {type(shape).__name__}"
        raise TypeError(
            f"a shape is a tuple of whole numbers, such as y.shape; it is {given}"
        ) from None


def example_shape(rank: int) -> tuple[int, ...]:
    """A shape of some 10^6 elements for plans that are asked for by rank: ordinary extents."""
    extent = max(160 if rank < 4 else 64, round(10 ** (6 / rank))) if rank > 0 else 1
    return (extent,) * rank


def example_shapes(tree: NormTree, rank: int | None = None) -> dict[str, tuple[int, ...]]:
    """A shape for each array that `tree` takes, by its dotted name: of the smallest ranks that
    fit, or all of `rank`; of patterns, one array that is named like it. All extents are equal, so
    that arrays fit one another. A ValueError if no ranks fit that are as simple as that."""
    found: dict[str, int] = {}
    paths = _paths(tree.root, ())
    for slot, path in zip(slots(tree), paths, strict=True):
        found[slot.name] = _smallest(path, slot.name or "y") if rank is None else rank
    most = max(found.values())
    extent = example_shape(most)[0]
    try:
        shapes = {name: (extent,) * rank for name, rank in found.items()}
        outline_of(tree, arrange(tree, shapes))
    except ValueError:  # arrays that meet have different axes above them: equal ranks may not
        shapes = dict.fromkeys(found, (extent,) * most)
        outline_of(tree, arrange(tree, shapes))
    return shapes


def _paths(node: Node, above: tuple[Node, ...]) -> Iterator[tuple[Node, ...]]:
    path = (*above, node)
    if not node.children:
        yield path
    for child in node.children:
        yield from _paths(child, path)


def _smallest(path: Sequence[Node], label: str) -> int:
    for rank in range(1, MAX_RANK):
        try:
            bind_arm(path, rank, label, (8,) * rank)
        except SpecError:
            continue
        return rank
    bind_arm(path, MAX_RANK, label, (8,) * MAX_RANK)  # what is wrong with all
    return MAX_RANK


@dataclass(frozen=True, eq=False)
class Outline:
    """A tree bound to arrays that are not there: their ``dtypes`` by key, and the labels of groups
    as given, else of blocks of about as many places as there are blocks."""

    bound: BoundTree
    dtypes: Mapping[Key, str]
    labels: Mapping[str, Array]


def outline_of(
    tree: NormTree,
    shapes: Any,
    dtypes: Any = np.float32,
    given: Mapping[str, Any] = MappingProxyType({}),
    unmatched: str = "error",
) -> Outline:
    """`tree` on arrays of these shapes: a structure of tuples. `given` are arrays of labels (and
    weights, which are not looked at here)."""
    y = stand_ins(shapes, dtypes)
    check_names(tree, given)
    place = places(tree, y, unmatched)
    arrays = {leaf.key: at(y, leaf.key) for leaf in place.leaves()}
    ready = dict(given)
    for leaf in place.leaves():
        name, axis, own = leaf.node.groups, leaf.node.axis, arrays[leaf.key].shape
        if name is not None and name not in ready and axis and -len(own) <= axis[0] < len(own):
            extent = own[axis[0]]
            ready[name] = np.arange(extent) // max(1, math.isqrt(extent))
    labels = read_labels(tree, {name: ready.get(name, _NO_LABELS) for name in tree.bound_names})
    bound = bind_tree(tree, place, {key: array.shape for key, array in arrays.items()}, labels)
    return Outline(bound, {key: array.dtype.name for key, array in arrays.items()}, labels)
