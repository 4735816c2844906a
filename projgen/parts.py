"""A bound tree to parts: what one kernel does each, and how their values meet.

A chain of l1, l2 and linf over one array is one kernel, however deep it is. A whole tree is cut
into as few parts as its kernels can do: runs of such levels, and single levels of any other kind.
The parts at the leaves sweep the arrays; those above work on small dense arrays of their values.
Kernels depend on signatures and not on extents, so the arrays of a model share them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from projgen.arms import BATCH
from projgen.norms import NORMS
from projgen.structure import Place
from projgen.tree import Node, NormTree
from projgen.trees import BoundArm, BoundTree
from projgen.weights import is_weighted


@dataclass(frozen=True)
class Part:
    """The levels ``top`` to ``top + len(places) - 1`` of a path, done by one kernel.

    It aggregates either the array of ``arm``, at a leaf, or the values of ``children``, joined
    along the last axis. ``kind``: "chain" for a kernel of many levels, "group" for one level of
    any norm.
    """

    top: int
    places: tuple[Place, ...]
    kind: str
    arm: BoundArm | None
    children: tuple[Part, ...]

    @property
    def levels(self) -> range:
        return range(self.top, self.top + len(self.places))

    @property
    def last(self) -> Place:
        return self.places[-1]

    @property
    def spec(self) -> str:
        """Its levels as the chain that they are."""
        return "(".join(place.node.norm for place in self.places) + ")" * (len(self.places) - 1)

    def walk(self) -> Iterator[Part]:
        """This part and those beneath it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


def cut_into_parts(bound: BoundTree) -> Part:
    """The root's part, with all others beneath it."""
    return _part(bound, bound.place, 0)


def _part(bound: BoundTree, place: Place, top: int) -> Part:
    run = [place]
    seam = max((_seam(arm) for arm in bound.arms_of(place)), default=BATCH)
    if _is_chained(place):
        while len(run[-1].children) == 1 and not run[-1].node.is_branch:
            (below,) = run[-1].children
            if not _is_chained(below) or top + len(run) - 1 == seam:
                break
            run.append(below)
    bottom = run[-1]
    kind = "chain" if _is_chained(place) else "group"
    if not bottom.children:
        return Part(top, tuple(run), kind, bound.arm_of[id(bottom)], ())
    below_top = top + len(run)
    children = tuple(_part(bound, child, below_top) for child in bottom.children)
    return Part(top, tuple(run), kind, None, children)


def _is_chained(place: Place) -> bool:
    """Whether a kernel of many levels has the level among them."""
    node = place.node
    return NORMS[node.norm].chained and not is_weighted(place) and node.groups is None


def _seam(arm: BoundArm) -> int:
    """The lowest level that spans blocks of which the last is shorter: a part ends there, since
    the shorter ones are arrays of their own beneath it."""
    owners = (
        arm.arm.owners[arm.arm.number_axis(cut)] for cut in arm.arm.cuts if arm.is_ragged(cut)
    )
    return max(owners, default=BATCH)


def chain_of(part: Part, axes: tuple[tuple[int, ...], ...]) -> NormTree:
    """The part's levels as a tree of their own, with their axes in the array that it walks."""
    node: Node | None = None
    for place, own in reversed(list(zip(part.places, axes, strict=True))):
        node = Node(place.node.norm, own, (node,) if node else ())
    assert node is not None
    return NormTree(node)
