"""The norm tree: a spec that has been checked. ``str()`` of it is the canonical spec."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from projgen.errors import Span
from projgen.norms import NORMS


@dataclass(frozen=True, slots=True)
class Node:
    """One level of a norm tree: a norm of groups of its children's values.

    ``norm`` is a canonical name of `projgen.norms.NORMS`. ``axis`` holds the axes of the input
    array that the level reduces, as written (negative ones count from the end), or None for those
    that the positional rule gives it. A node with several children, or with children that have a
    name or a pattern, is a branch: its groups span the values of all of them.

    What a node may say besides: ``block``, the extents of the blocks that its axes are cut into;
    ``groups``, the name of an array of labels that cuts its axis into groups of any size;
    ``weights``, the name of an array that its values are multiplied with; ``p``, the exponent of
    lp; ``k``, the count of l0; ``nonneg``, whether its set has no negative values.
    What its parent says of it: ``name``; ``weight``, a factor of its values; ``pattern``, which
    arrays of a model it stands for.

    The spans say where the name and each axis were written; they are None and empty in a tree made
    by hand, and take no part in equality or hashes.
    """

    norm: str
    axis: tuple[int, ...] | None = None
    children: tuple["Node", ...] = ()
    span: Span | None = field(default=None, compare=False, repr=False)
    axis_spans: tuple[Span, ...] = field(default=(), compare=False, repr=False)
    block: tuple[int, ...] | None = None
    groups: str | None = None
    weights: str | None = None
    p: float | None = None
    k: int | None = None
    nonneg: bool = False
    name: str | None = None
    weight: float = 1.0
    pattern: str | None = None

    def __str__(self) -> str:
        arguments = [*(child._as_child() for child in self.children), *self._arguments()]
        return f"{self.norm}({', '.join(arguments)})" if arguments else self.norm

    def _as_child(self) -> str:
        """The node with what its parent says of it: ``enc=2.0*linf(axis=1)``."""
        name = f"{self.name}=" if self.name is not None else ""
        weight = f"{self.weight!r}*" if self.weight != 1 else ""
        pattern = f" @ {self._quoted_pattern}" if self.pattern is not None else ""
        return f"{name}{weight}{self}{pattern}"

    @property
    def _quoted_pattern(self) -> str:
        mark = "'" if '"' in (self.pattern or "") else '"'
        return f"{mark}{self.pattern}{mark}"

    def _arguments(self) -> Iterator[str]:
        if self.axis is not None:
            yield f"axis={_one_or_several(self.axis)}"
        if self.block is not None:
            yield f"block={_one_or_several(self.block)}"
        if self.groups is not None:
            yield f"groups={self.groups}"
        if self.p is not None:
            yield f"p={self.p!r}"
        if self.k is not None:
            yield f"k={self.k}"
        if self.weights is not None:
            yield f"w={self.weights}"
        if self.nonneg:
            yield "nonneg=True"

    @property
    def is_branch(self) -> bool:
        """Whether the children stand for arrays of their own."""
        return len(self.children) > 1 or any(
            child.name is not None or child.pattern is not None for child in self.children
        )

    @property
    def is_patterned(self) -> bool:
        """Whether it is a branch whose arrays are found by patterns."""
        return self.is_branch and any(
            child.pattern is not None or child.is_patterned for child in self.children
        )

    @property
    def is_plain(self) -> bool:
        """Whether it is one level of a chain, and says nothing but its axes."""
        return (
            not self.is_branch
            and NORMS[self.norm].chained
            and not (self.block or self.groups or self.weights or self.nonneg)
        )

    def walk(self) -> Iterator["Node"]:
        """This node and all beneath it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True)
class NormTree:
    """A checked spec. ``str(tree)`` and ``tree.spec`` are its canonical text."""

    root: Node

    def __str__(self) -> str:
        return str(self.root)

    @property
    def spec(self) -> str:
        """The canonical spec, which parses to an equal tree."""
        return str(self.root)

    @cached_property
    def levels(self) -> tuple[Node, ...]:
        """Every node, parents first: in a chain, from the root to the leaf."""
        return tuple(self.root.walk())

    @property
    def depth(self) -> int:
        """The number of levels on the longest way from the root to a leaf."""
        return _depth(self.root)

    @property
    def is_plain(self) -> bool:
        """Whether it is a chain of norms of one array: what a single kernel projects."""
        return all(node.is_plain for node in self.levels)

    @cached_property
    def bound_names(self) -> tuple[str, ...]:
        """The names of the weights and labels that a call binds, in the spec's order."""
        names = (name for node in self.levels for name in (node.weights, node.groups) if name)
        return tuple(dict.fromkeys(names))

    @property
    def is_euclidean(self) -> bool:
        """Whether the level-by-level projection is the Euclidean one, for arrays of any shape.

        - One level projects on its ball exactly.
        - A ball of ``linf`` over anything is a product of the groups' balls, and is projected
          group by group: exact if the children are.
        - ``l2`` over ``l2`` is the flat l2 norm, and scaling twice is scaling once. With weights
          it is not: a weighted length is not the distance that scaling moves.
        - A norm over ``l2``, as ``l1`` in the group lasso: for given group lengths u the nearest
          point scales each group, at a distance of v - u: the nearest u is v's projection. So is
          keeping the k longest groups, for ``l0``.
        - Restricting any of these to x >= 0 keeps it exact: they depend on magnitudes alone.

        Any other pair gives up distance for structure: the nearest point to ``y`` with group
        values ``u`` is not ``|v - u|`` away, so the nearest ``u`` is not the best one.
        """
        return _is_euclidean(self.root)

    def pretty(self) -> str:
        """The tree drawn with one level to a line."""
        return "\n".join(_lines(self.root))


def _one_or_several(numbers: tuple[int, ...]) -> str:
    return str(numbers[0] if len(numbers) == 1 else numbers)


def _depth(node: Node) -> int:
    return 1 + max(map(_depth, node.children), default=0)


def _is_euclidean(node: Node) -> bool:
    if node.norm == "linf":
        return all(map(_is_euclidean, node.children))
    return all(map(_is_length, node.children))


def _is_length(node: Node) -> bool:
    """Whether the node's values are the Euclidean lengths of what is beneath it."""
    weighted = node.weights is not None or any(child.weight != 1 for child in node.children)
    return node.norm == "l2" and not weighted and all(map(_is_length, node.children))


def _lines(node: Node) -> Iterator[str]:
    name = f"{node.name}=" if node.name is not None else ""
    weight = f"{node.weight!r}*" if node.weight != 1 else ""
    pattern = [f"@ {node._quoted_pattern}"] if node.pattern is not None else []
    yield " ".join([f"{name}{weight}{node.norm}", *node._arguments(), *pattern])
    for remaining, child in zip(range(len(node.children))[::-1], node.children, strict=True):
        first, *rest = _lines(child)
        yield ("├─ " if remaining else "└─ ") + first
        for line in rest:
            yield ("│  " if remaining else "   ") + line
