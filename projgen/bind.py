"""A norm tree and a rank to a binding: which level reduces which axes of the array."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from projgen.check import parse_tree
from projgen.errors import Span, SpecError
from projgen.norms import CHAINED
from projgen.tree import Node, NormTree


@dataclass(frozen=True, slots=True)
class Level:
    """A level of a tree and the axes of the array that it reduces: nonnegative, ascending."""

    norm: str
    axes: tuple[int, ...]
    children: tuple["Level", ...] = ()

    def walk(self) -> Iterator["Level"]:
        """This level and all beneath it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True, slots=True)
class Binding:
    """A tree over the axes of arrays of one rank.

    ``batch`` are the axes that no level reduces, ascending: each index along them is a projection
    of its own.
    """

    tree: NormTree
    rank: int
    root: Level
    batch: tuple[int, ...]

    @property
    def levels(self) -> tuple[Level, ...]:
        """Every level, parents first: in a chain, from the root to the leaf."""
        return tuple(self.root.walk())

    def __str__(self) -> str:
        rows = [(level.norm, level.axes) for level in self.levels]
        rows += [("batch", self.batch)] if self.batch else []
        lines = [f"  {name:5}  axes {', '.join(map(str, axes))}" for name, axes in rows]
        return "\n".join([f"{self.tree} on rank {self.rank}", *lines])


def bind(tree: NormTree, rank: int, shape: tuple[int, ...] | None = None) -> Binding:
    """Give each level of `tree` its axes of an array of rank `rank`.

    A level with ``axis=`` has exactly those. The levels without take one each, from the root down,
    of the axes that nobody named, and the last of them takes all that remain. If every level has
    an ``axis=``, what remains is the batch.

    A SpecError for an axis out of range, for one named twice, and for too few axes; `shape`, if
    given, is only shown in it.
    """
    if any(node.span is None for node in tree.levels):  # made by hand: checked now, as its text
        tree = parse_tree(tree.spec)
    if not tree.is_plain:
        special = next(node for node in tree.levels if not node.is_plain)
        raise SpecError(
            f"{tree} is more than a chain of {', '.join(CHAINED)} over one array",
            *filter(None, [special.span]),
            hint="projgen.build(spec) projects it; a single kernel does not",
        )
    array = f"an array of rank {rank}" if shape is None else f"an array of shape {shape}"
    named = _named_axes(tree, rank, array)
    free = [axis for axis in range(rank) if axis not in named]
    unnamed = [node for node in tree.levels if node.axis is None]
    if len(free) < len(unnamed):
        raise _too_few(unnamed[len(free) :], len(named) + len(unnamed), rank, array)
    last = len(unnamed) - 1
    shares = iter([*((axis,) for axis in free[:last]), tuple(free[last:])] if unnamed else [])
    batch = () if unnamed else tuple(free)
    return Binding(tree, rank, _level(tree.root, rank, shares), batch)


def bind_shape(tree: NormTree, shape: tuple[int, ...]) -> Binding:
    """`bind` for an array of this shape; of each rank the binding is remembered."""
    try:
        return _remembered(tree, len(shape))
    except ValueError:
        return bind(tree, len(shape), shape)  # again, for a message that shows the shape


@lru_cache(maxsize=1024)
def _remembered(tree: NormTree, rank: int) -> Binding:
    return bind(tree, rank)


def _level(node: Node, rank: int, shares: Iterator[tuple[int, ...]]) -> Level:
    own = tuple(sorted(axis % rank for axis in node.axis or ()))
    axes = own or next(shares)
    return Level(node.norm, axes, tuple(_level(child, rank, shares) for child in node.children))


def _named_axes(tree: NormTree, rank: int, array: str) -> Mapping[int, Span]:
    """The axes that the tree names, nonnegative, and where."""
    named: dict[int, Span] = {}
    for node in tree.levels:
        for axis, span in zip(node.axis or (), node.axis_spans, strict=True):
            if not -rank <= axis < rank:
                raise SpecError(
                    f"axis {axis} is out of range for {array}",
                    span,
                    hint=f"its axes are {interval(rank)}" if rank else "it has no axes",
                )
            if axis % rank in named:
                raise SpecError(
                    f"axes {named[axis % rank]} and {span} are the same axis of {array}",
                    named[axis % rank],
                    span,
                )
            named[axis % rank] = span
    return named


def interval(rank: int) -> str:
    return f"0 to {rank - 1}, or {-rank} to -1" if rank > 1 else "0, or -1"


def _too_few(left: Sequence[Node], needed: int, rank: int, array: str) -> SpecError:
    names = " and ".join(f"'{node.norm}'" for node in left)
    return SpecError(
        f"too few axes: the tree takes at least {needed}, and {array} has {rank}",
        *(node.span for node in left if node.span),
        hint=f"no axis is left for {names}",
    )
