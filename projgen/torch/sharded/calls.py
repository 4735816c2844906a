"""Calls of a projection with sharded tensors.

Every rank makes the same calls in the same order: sweep the shard for its groups' values, and make
ready what comes later; agree that nothing is wrong with any rank; join the values and solve what is
above (`Joint`); agree again; search for thresholds, and sweep once more. An exception on any rank
before the second agreement, of whatever kind, is one on all of them, and leaves every shard as it
was. (A single array that ranks have up to its root has nothing above, and one agreement.)

What follows only sums, and runs kernels that have been loaded. If a rank fails there all the same,
for want of memory or by an interrupt, it raises that, and the others learn of it as of a rank that
dies: those that search with it at the process group's timeout, while others write.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from projgen.arrays import Array, written
from projgen.calls import _required, _split, counted
from projgen.cpu.part_kernels import OutOfRangeError
from projgen.cpu.pool import default_threads
from projgen.operands import check_apart, check_radii, is_finite
from projgen.structure import Key, Place, at, flat, places, rebuilt
from projgen.torch.sharded.joint import HUGE, Joint
from projgen.torch.sharded.local import Shard, local_tree
from projgen.torch.sharded.operand import Operand, operand
from projgen.torch.sharded.search import Search
from projgen.torch.sharded.top import Top
from projgen.torch.sharded.wire import FAILED, NOT_FINITE, TOO_LARGE, Values, Verdict, Wire, Word
from projgen.torch.shards import is_sharded, local
from projgen.tree import NormTree
from projgen.trees import BoundTree, bind_tree

if TYPE_CHECKING:
    from projgen.projection import Projection

Made = TypeVar("Made")

TINY = 1e-130  # radii below it, and squares of what they leave, are not to be told from 0
_BEYOND = (
    "its values are so large that their sums leave the range of float64: project 2**-k * y on "
    "2**-k * radius"
)


def project(projection: Projection, y: Any, radius: Any, out: Any, named: Mapping[str, Any]) -> Any:
    """`y`, a DTensor or a structure of them, projected as one: see `Projection.__call__`."""
    with _Call(projection, y, named) as call:
        call.begin("project", lambda: call.sweep(radius, out, projects=True))
        call.write()
        if out is None:
            return rebuilt(call.y, call.results)
        for result in call.results.values():
            written(result)
        return out


def norm(projection: Projection, y: Any, named: Mapping[str, Any]) -> Any:
    """The norm: a float, or a DTensor over the batch axes."""
    with _Call(projection, y, named) as call:
        call.begin("norm", call.sweep)
        norms = call.alone(call.joint().norms)
        return call.operands[0].like(norms, 0) if norms.ndim else float(norms)


def active(projection: Projection, x: Any, named: Mapping[str, Any]) -> Any:
    """Which groups of the leaf level are not all zero: a bool, or a DTensor over the groups; in a
    structure like `x`, with None for what passes."""
    with torch.no_grad(), _Call(projection, x, named) as call:  # bools have no gradients
        pieces: list[Values] = []
        call.begin("active", lambda: pieces.extend(map(_nonzero, call.operands)))
        results: dict[Key, Any] = dict.fromkeys(key for key, _ in flat(call.y))
        for own, piece in zip(call.operands, pieces, strict=True):
            leaf = own.arm.arm.depth - 1
            (found,) = call.wire.largest([piece], own.cuts_of(leaf))
            results[own.arm.key] = own.like(found > 0, leaf) if found.ndim else bool(found)
        return rebuilt(call.y, results)


class _Call:
    """One call: its arrays, and how far it is. ``with`` gives back what it has borrowed."""

    def __init__(self, projection: Projection, y: Any, named: Mapping[str, Any]) -> None:
        self.projection = projection
        self._mesh = _mesh_of(y, named)
        self.wire = Wire(self._mesh)
        self._given = y, named
        self.y: Any = None
        self.operands: list[Operand] = []
        self.results: dict[Key, Any] = {}
        self._place: Place | None = None
        self._batch: tuple[int, ...] = ()
        self._shards: list[Shard] = []
        self._searches: list[Search | None] = []
        self._top: Top | None = None
        self._radii: Values = np.zeros(0)
        self._said = b""  # of radii, what all ranks must have alike
        self._wide = False

    def __enter__(self) -> _Call:
        return self

    def __exit__(self, *_: object) -> None:
        for shard in self._shards:
            shard.abandon()

    # What a rank does by itself, and what ranks say of it

    def begin(self, what: str, work: Callable[[], None]) -> None:
        """Read the call and do this rank's own `work`, as all do: an error if any rank has one, or
        if they are not about the same."""

        def own() -> Word:
            self._read()
            work()
            return self._word(what)

        verdict = self._agree(own)
        self._wide = verdict.largest > HUGE or verdict.smallest < 1 / HUGE
        if self._wide and verdict.largest > HUGE**2:
            raise ValueError(_BEYOND)

    def alone(self, work: Callable[[], Made]) -> Made:
        """What `work` makes on each rank, of values that are joined: an error if any has one."""
        made: list[Made] = []

        def own() -> Word:
            made.append(work())
            return Word()

        if self._top is None:
            return work()  # nothing is left to solve
        self._agree(own)
        return made[0]

    def _agree(self, work: Callable[[], Word]) -> Verdict:
        """What all ranks say once each has done its own `work`; an error if any rank has one."""
        word = Word(FAILED)
        problem: Exception | None = None
        try:
            word = work()
        except _NotFiniteError as error:
            word, problem = Word(NOT_FINITE), ValueError(*error.args)
        except OutOfRangeError:
            word, problem = Word(TOO_LARGE), ValueError(_BEYOND)
        except Exception as error:  # of any kind: the others are waiting for this rank
            problem = error
        verdict = self.wire.agree(word)
        if problem is not None:
            raise problem
        _require_well(verdict)
        return verdict

    def _read(self) -> None:
        projection = self.projection
        self.y, given = _split(projection, *self._given)
        _require_supported(projection, given)
        tree = projection._walked
        self._place = place = places(tree, self.y, projection.unmatched)
        tensors = {leaf.key: at(self.y, leaf.key) for leaf in place.arms}
        _require_mesh(tensors, self._mesh)
        shapes = tuple((key, tuple(tensor.shape)) for key, tensor in tensors.items())
        bound = _bound(tree, place, shapes)
        self._batch = bound.batch
        for leaf, arm in zip(place.arms, bound.arms, strict=True):
            with _named(leaf.key):
                lowest = _lowest(place, leaf)
                self.operands.append(operand(arm, tensors[arm.key], lowest))
        first, *others = self.operands
        for other in others:
            if other.batch != first.batch:
                raise TypeError(
                    f"{first.arm.arm.label} and {other.arm.arm.label} have batch axes that are "
                    "sharded differently: each rank must have the same part of both"
                )

    def sweep(self, radius: Any = None, out: Any = None, projects: bool = False) -> None:
        """The first sweep over the shards, after a look at what else is given; what comes after is
        made ready."""
        targets: list[Array | None] = [None] * len(self.operands)
        if projects:
            self._radii = self._read_radii(radius)
            targets = [*self._targets(out)]
        threads = self.projection._threads or default_threads()
        for own, target in zip(self.operands, targets, strict=True):
            with _named(own.arm.key):
                tree = local_tree(own.arm.arm, own.seam.level)
                try:
                    self._shards.append(Shard(tree, own.array, target, threads))
                except OutOfRangeError:
                    if is_finite(own.array):
                        raise
                    index = tuple(int(i) for i in np.argwhere(~np.isfinite(own.array))[0])
                    raise _NotFiniteError(
                        f"the shard of rank {self.wire.rank} has {own.array[index]} at index "
                        f"{index} of it; nothing was written on any rank"
                    ) from None
                self._searches.append(own.search() if projects else None)
        place, levels = self._place, {own.arm.key: own.seam.level for own in self.operands}
        assert place is not None
        if all(levels.values()):
            self._top = _top(place, tuple(levels.items()), self.projection._threads)

    def _targets(self, out: Any) -> list[Array]:
        """Where the results of this rank go; none is where another array is."""
        targets: list[Array] = []
        for own in self.operands:
            key = own.arm.key
            with _named(key):
                self.results[key] = result = own.empty() if out is None else at(out, key)
                targets.append(own.out_array(result))
        if out is not None:
            keys = [own.arm.key for own in self.operands]
            check_apart(keys, [own.array for own in self.operands], targets)
        return targets

    def _read_radii(self, radius: Any) -> Values:
        """One for each index of the batch that this rank has."""
        projection, first = self.projection, self.operands[0]
        given, batch = _required(projection, radius), self._batch
        sharded = is_sharded(given)
        if sharded:
            if given.placements != first.placements(0) or tuple(given.shape) != batch:
                raise ValueError(
                    "a radius that is a DTensor has the shape and placements of p.norm(y), "
                    f"{batch} {first.placements(0)}; this one has {(*given.shape,)} "
                    f"{given.placements}"
                )
            batch = tuple(local(given).shape)
        if isinstance(given, torch.Tensor):
            given = local(given).double().cpu().numpy()
        radii = np.asarray(check_radii(given, batch, projection.tree), np.float64)
        if projection.tree.root.norm == "simplex" and not np.all(np.isfinite(radii)):
            raise ValueError("values that add up to an infinite radius are none of a simplex")
        if np.any((radii > 0) & (radii < TINY)):
            raise ValueError(
                f"a radius below {TINY} is too near to 0 for sums over several ranks: project "
                "2**k * y on 2**k * radius"
            )
        radii = np.broadcast_to(radii, batch)
        if sharded:
            return radii
        self._said = np.ascontiguousarray(radii).tobytes()
        return radii[first.batch]

    def _word(self, what: str) -> Word:
        """What to say of this rank: of groups in pieces the largest value, and the smallest."""
        about = what, self.projection.spec, [own.form for own in self.operands]
        mark = zlib.crc32(repr(about).encode() + self._said)
        pieces = [
            shard.values[shard.values > 0]
            for own, shard in zip(self.operands, self._shards, strict=False)
            if own.seam.joins
        ]
        largest = max((float(values.max(initial=0.0)) for values in pieces), default=0.0)
        smallest = min((float(values.min(initial=np.inf)) for values in pieces), default=np.inf)
        return Word(0.0, mark, largest, smallest)

    # What ranks do together

    def joint(self) -> Joint:
        """The values of all ranks, joined."""
        values = [shard.values for shard in self._shards]
        return Joint(self.wire, self.operands, values, self._top, self._wide)

    def write(self) -> None:
        """The second sweep, on what the root leaves to each group."""
        joint = self.joint()
        radii = self.alone(lambda: joint.radii(self._radii))
        shares = joint.shares(radii, self._searches)
        for shard, own in zip(self._shards, shares, strict=True):
            shard.write(own)


class _NotFiniteError(ValueError):
    """NaN or inf in a shard."""


def _nonzero(own: Operand) -> Values:
    """1 for each of the leaf level's groups, or pieces of them on this rank, that is not all
    zero."""
    arm = own.arm.arm
    nonzero = own.array != 0
    if arm.cuts:
        nonzero = counted(replace(own.arm, shape=nonzero.shape), nonzero, {})
    return np.asarray(np.any(nonzero, axis=arm.axes(arm.depth - 1)), np.float64)


@lru_cache(maxsize=256)
def _bound(
    tree: NormTree, place: Place, shapes: tuple[tuple[Key, tuple[int, ...]], ...]
) -> BoundTree:
    return bind_tree(tree, place, dict(shapes))


@lru_cache(maxsize=256)
def _top(place: Place, levels: tuple[tuple[Key, int], ...], threads: int | None) -> Top:
    return Top(place, dict(levels), threads)


def _require_well(verdict: Verdict) -> None:
    """An error for that of another rank."""
    if verdict.wrong == NOT_FINITE:
        raise ValueError(f"the shard of rank {verdict.rank} has NaN or inf, as the error there "
                         "says; nothing was written on any rank")  # fmt: skip
    if verdict.wrong == TOO_LARGE:
        raise ValueError(f"on rank {verdict.rank} {_BEYOND}")
    if verdict.wrong:
        raise RuntimeError(f"rank {verdict.rank} has an error of its own, which it raises; nothing "
                           "was written on any rank")  # fmt: skip
    if not verdict.alike:
        raise RuntimeError(
            "ranks do not call with the same: spec, radius, shapes, placements and dtypes must be "
            "those of all. A radius that comes of a rank's own batch has to be made one first; "
            "nothing was written on any rank"
        )


def _require_supported(projection: Projection, given: Mapping[str, Any]) -> None:
    """A TypeError for what is not done in shards."""
    if projection.backend not in ("auto", "cpu"):
        raise TypeError(f"DTensors are projected by the CPU's kernels, not backend="
                        f"{projection.backend!r}: leave it out")  # fmt: skip
    if projection.is_joint:
        raise TypeError("the nearest point of l1(linf) takes all values at once: a DTensor has the "
                        "projection level by level alone; build without exact=True")  # fmt: skip
    names = [*projection.tree.bound_names, *given]
    if names:
        raise TypeError(f"{projection.spec} names {', '.join(dict.fromkeys(names))}: weights and "
                        "labels by name do not go with DTensors")  # fmt: skip
    if any(node.nonneg for node in projection.tree.levels):
        raise TypeError("nonneg=True does not go with DTensors: clamp_(min=0) them before")


def _require_mesh(tensors: Mapping[Key, Any], mesh: Any) -> None:
    """A TypeError for what is no DTensor of this mesh, by which the ranks of a call are known."""
    for key, tensor in tensors.items():
        name = ".".join(map(str, key)) or "y"
        if not isinstance(tensor, DTensor):
            raise TypeError(f"{name} is no DTensor, and others are: distribute_tensor({name}, mesh,"
                            " [Replicate()]) makes it one")  # fmt: skip
        if tensor.device_mesh != mesh:
            raise TypeError(f"the DTensors of one call share one mesh: {name} has "
                            f"{tensor.device_mesh}, and another {mesh}")  # fmt: skip


def _lowest(place: Place, leaf: Place) -> int:
    """The highest level that an array has to itself: beneath the last branch on its way."""
    depth, lowest = 0, 0
    while place is not leaf:
        depth += 1
        if place.node.is_branch:
            lowest = depth
        place = next(
            child for child in place.children if any(own is leaf for own in child.leaves())
        )
    return lowest


def _mesh_of(y: Any, named: Mapping[str, Any]) -> Any:
    """The mesh of the first DTensor that is given."""
    for _, tensor in flat([y, *named.values()]):
        if isinstance(tensor, DTensor):
            return tensor.device_mesh
    raise TypeError("there is no DTensor to project")


@contextmanager
def _named(key: Key) -> Iterator[None]:
    """Errors about one of several arrays say which."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if not key:
            raise
        raise type(error)(f"{'.'.join(map(str, key))}: {error}") from None
