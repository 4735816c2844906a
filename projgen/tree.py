"""The norm tree: a spec that has been checked. ``str()`` of it is the canonical spec."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from projgen.errors import Span


@dataclass(frozen=True, slots=True)
class Node:
    """One level of a norm tree: a norm of groups of its children's values.

    ``norm`` is a canonical name of `projgen.norms.NORMS`. ``axis`` holds the axes of the input
    array that the level reduces, as written (negative ones count from the end), or None for those
    that the positional rule gives it. The spans say where the name and each axis were written;
    they are None and empty in a tree made by hand, and take no part in equality or hashes.
    """

    norm: str
    axis: tuple[int, ...] | None = None
    children: tuple["Node", ...] = ()
    span: Span | None = field(default=None, compare=False, repr=False)
    axis_spans: tuple[Span, ...] = field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        arguments = [*map(str, self.children), *filter(None, [self._axis_argument])]
        return f"{self.norm}({', '.join(arguments)})" if arguments else self.norm

    @property
    def _axis_argument(self) -> str:
        if self.axis is None:
            return ""
        return f"axis={self.axis[0] if len(self.axis) == 1 else self.axis}"

    def walk(self) -> Iterator["Node"]:
        """This node and all beneath it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True, slots=True)
class NormTree:
    """A checked spec. ``str(tree)`` and ``tree.spec`` are its canonical text."""

    root: Node

    def __str__(self) -> str:
        return str(self.root)

    @property
    def spec(self) -> str:
        """The canonical spec, which parses to an equal tree."""
        return str(self.root)

    @property
    def levels(self) -> tuple[Node, ...]:
        """Every node, parents first: in a chain, from the root to the leaf."""
        return tuple(self.root.walk())

    @property
    def depth(self) -> int:
        """The number of levels on the longest way from the root to a leaf."""
        return _depth(self.root)

    @property
    def is_euclidean(self) -> bool:
        """Whether the level-by-level projection is the Euclidean one, for arrays of any shape.

        - One level projects on its ball exactly.
        - A ball of ``linf`` over anything is a product of the groups' balls, and is projected
          group by group: exact if the child is.
        - ``l2`` over ``l2`` is the flat l2 norm, and scaling twice is scaling once.
        - ``l1`` over ``l2`` is the group lasso's norm. For given group lengths u the nearest
          point scales each group, at a distance of v - u: the nearest u is v's projection.

        Any other pair gives up distance for structure: the nearest point to ``y`` with group
        values ``u`` is not ``|v - u|`` away, so the nearest ``u`` is not the best one.
        """
        return _is_euclidean(self.root)

    def pretty(self) -> str:
        """The tree drawn with one level to a line."""
        return "\n".join(_lines(self.root))


def _depth(node: Node) -> int:
    return 1 + max(map(_depth, node.children), default=0)


def _is_euclidean(node: Node) -> bool:
    exact_pairs = (("l2", "l2"), ("l1", "l2"))
    return all(
        _is_euclidean(child) and (node.norm == "linf" or (node.norm, child.norm) in exact_pairs)
        for child in node.children
    )


def _lines(node: Node) -> Iterator[str]:
    yield f"{node.norm} {node._axis_argument}".rstrip()
    for remaining, child in zip(range(len(node.children))[::-1], node.children, strict=True):
        first, *rest = _lines(child)
        yield ("├─ " if remaining else "└─ ") + first
        for line in rest:
            yield ("│  " if remaining else "   ") + line
