"""What one call of a tree is given: matched with the tree, checked, and remembered by its form.

A call with arrays like those of an earlier one is looked at for what may have changed: addresses,
and whether results may be written.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from projgen.arrays import Array, Wrap, address, addresses, span
from projgen.on_host import OnHost
from projgen.operands import check_apart, same_memory
from projgen.shapes import require_gpu
from projgen.structure import Key, Place, at, match, unfold
from projgen.trees import BoundTree, bind_tree
from projgen.weights import Given, check_weights, read_given

if TYPE_CHECKING:
    from projgen.cuda.trees import OnDevice
    from projgen.projection import Projection

REMEMBERED = 64  # forms of arguments, of one projection, that need no second look


@dataclass(slots=True)
class Ready:
    """A tree bound to arrays of certain forms, which have been found to be in order.

    ``reaches`` are where the bytes of each array begin and end, from its first element;
    ``out_reaches`` those of the results. ``in_place``: each result goes to its own array.
    ``labels`` are the bytes of those that were given.
    ``apart`` are addresses of arrays and results that are not near one another.
    ``made`` is the backend's: what it has made ready.
    """

    bound: BoundTree
    reaches: list[tuple[int, int]]
    out_reaches: list[tuple[int, int]]
    in_place: bool = False
    labels: Mapping[str, bytes] = field(default_factory=dict)
    apart: tuple[list[int], list[int]] | None = None
    made: Any = None


@dataclass(frozen=True, slots=True)
class Reading:
    """The arrays of one call, and what is known of such."""

    ready: Ready
    operands: OnHost | OnDevice
    wraps: list[Wrap]
    outs: list[Any]
    given: Given

    @property
    def bound(self) -> BoundTree:
        return self.ready.bound

    @property
    def gpu(self) -> OnDevice | None:
        """The operands, if they lie on a GPU."""
        return None if isinstance(self.operands, OnHost) else self.operands

    @property
    def arrays(self) -> dict[Key, Array]:
        """By their keys; a TypeError if they lie on a GPU."""
        return self._host.arrays

    @property
    def targets(self) -> dict[Key, Array]:
        """Where results go, if `out` says so."""
        return self._host.outs

    @property
    def _host(self) -> OnHost:
        if not isinstance(self.operands, OnHost):
            raise TypeError("this is done on the CPU alone, and the arrays lie on a GPU: copy them")
        return self.operands


@dataclass(frozen=True, slots=True)
class Before:
    """A call that was given NumPy arrays alone, one of them to project: all that holds of a call
    with the same ones, which have not moved.

    It keeps none of them. Labels are compared with those that it had: they may have changed since.
    """

    ready: Ready
    names: tuple[str, ...]
    forms: list[Hashable]
    starts: list[int]
    key: Key
    wraps: list[Wrap]
    shapes: Hashable

    def again(self, y: Any, named: Mapping[str, Any], out: Any) -> Reading | None:
        """What `read` would give; None if it has to look."""
        if _facts(y, named, out) != (self.names, self.forms, self.starts):
            return None
        known = self.ready.labels
        labels = {name: np.ascontiguousarray(named[name], np.int64) for name in known}
        if any(own.tobytes() != known[name] for name, own in labels.items()):
            return None
        operands = OnHost()
        operands.arrays[self.key] = y
        if out is not None:
            if not out.flags.writeable:
                return None
            operands.outs[self.key] = out
        given = Given(named, labels, self.shapes)
        return Reading(self.ready, operands, self.wraps, [] if out is None else [out], given)


def _facts(
    y: Any, named: Mapping[str, Any], out: Any
) -> tuple[tuple[str, ...], list[Hashable], list[int]] | None:
    """The names of a call's arrays, their forms and where they are; None if not all are NumPy's."""
    arrays = [y, *named.values()] if out is None else [y, out, *named.values()]
    for array in arrays:
        if type(array) is not np.ndarray:
            return None
    forms: list[Hashable] = [(a.dtype, a.shape, a.strides) for a in arrays]
    return tuple(named), forms, addresses(arrays)


def read(
    projection: Projection,
    y: Any,
    named: Mapping[str, Any],
    out: Any = None,
    projects: bool = False,
) -> Reading:
    """The arrays of `y` and `out`, checked: for arrays like those of an earlier call, what may have
    changed. A call `projects`, or asks something of `y`."""
    before = projection._before.get((id(y), id(out))) if projects else None
    if before is not None:
        again = before.again(y, named, out)
        if again is not None:
            return again
    form, found = unfold(y)
    known_match = projection._matches.get(form)
    if known_match is None:
        known_match = match(projection.tree, y, projection.unmatched)
        known_match = remember(projection._matches, form, known_match)
    place, numbers = known_match.place, known_match.numbers
    chosen = [found[number] for number in numbers]
    operands = _operands(projection, chosen[0])
    given = read_given(projection.tree, named)
    arrays: list[Array] = []
    wraps: list[Wrap] = []
    with _Naming() as naming:
        for naming.leaf, own in zip(place.arms, chosen, strict=True):
            array, wrap = operands.take(naming.leaf, own)
            arrays.append(array)
            wraps.append(wrap)
    targets: list[Array] = []
    outs: list[Any] = []
    same: tuple[bool, ...] = ()
    starts = addresses(arrays)
    if out is not None:
        out_form, found = unfold(out)
        alike = out_form == form
        with _Naming("out ") as naming:
            for naming.leaf, number, own in zip(place.arms, numbers, chosen, strict=True):
                own_out = found[number] if alike else at(out, naming.leaf.key)
                outs.append(own_out)
                targets.append(operands.take_out(naming.leaf, own_out, own_out is own))
        out_starts = addresses(targets)
        pairs = zip(arrays, targets, starts, out_starts, strict=True)
        same = tuple([y is x or (a == b and same_memory(y, x)) for y, x, a, b in pairs])
    forms, on_host = operands.forms(), isinstance(operands, OnHost)
    signature = given.signature
    known = projects or on_host, form, signature, forms, same
    ready = projection._ready.get(known)
    if on_host and not projects and (ready is None or ready.made is None):
        # Those that project in place sweep arrays for their values in the same way.
        in_place = True, form, signature, (*forms, *forms), (True,) * len(arrays)
        others = projection._ready.get(in_place)
        ready = ready if others is None or others.made is None else others
    if ready is None:
        ready = _checked(projection, place, operands, arrays, targets, given)
        ready.in_place = bool(same) and all(same)
        lasting = projects or on_host, form, given.lasting_signature, forms, same
        remember(projection._ready, lasting, ready)
    elif not all(target.flags.writeable for target in targets):
        with _Naming("out ") as naming:
            for naming.leaf, target in zip(place.arms, targets, strict=True):
                if not target.flags.writeable:
                    operands.check_out(naming.leaf)
    own = given
    if targets:
        if ready.apart != (starts, out_starts):
            _check_apart(ready, place, arrays, targets)
            ready.apart = starts, out_starts
        given = given.apart_from(targets)
    if projects and on_host and given is own:
        facts = _facts(y, named, out)
        if facts is not None:
            before = Before(ready, *facts, place.key, wraps, given.shapes)
            remember(projection._before, (id(y), id(out)), before)
    return Reading(ready, operands, wraps, outs, given)


def _operands(projection: Projection, first: Any) -> OnHost | OnDevice:
    """Where a call's arrays are, by the first of them."""
    if type(first) is np.ndarray and projection.backend != "cuda":
        return OnHost()
    if projection._gpu(first) is None:
        return OnHost()
    require_gpu(projection.tree)
    from projgen.cuda.trees import OnDevice

    return OnDevice()


def _checked(
    projection: Projection,
    place: Place,
    operands: OnHost | OnDevice,
    arrays: Sequence[Array],
    targets: Sequence[Array],
    given: Given,
) -> Ready:
    """The tree bound to the arrays, after a look at all that depends on their forms alone."""
    with _Naming() as naming:
        for naming.leaf in place.arms:
            operands.check(naming.leaf)
    shapes = {leaf.key: array.shape for leaf, array in zip(place.arms, arrays, strict=True)}
    bound = bind_tree(projection.tree, place, shapes, given.labels)
    if projection.unmatched == "error":
        check_weights(place, given.arrays)
    if targets:
        with _Naming("out ") as naming:
            for naming.leaf in place.arms:
                operands.check_out(naming.leaf)
    reaches, out_reaches = [_reach(array) for array in arrays], [_reach(x) for x in targets]
    labels = {name: own.tobytes() for name, own in given.labels.items()}
    return Ready(bound, reaches, out_reaches, labels=labels)


def remember(memory: dict[Any, Any], key: Any, value: Any) -> Any:
    if len(memory) >= REMEMBERED:
        memory.clear()
    memory[key] = value
    return value


def _reach(array: Array) -> tuple[int, int]:
    low, high = span(array)
    return low - address(array), high - address(array)


def _check_apart(
    ready: Ready, place: Place, arrays: Sequence[Array], targets: Sequence[Array]
) -> None:
    """A ValueError if a result would be written to where another array is."""
    starts = addresses(targets)
    reaches = zip(starts, ready.out_reaches, strict=True)
    spans = [(start + low, start + high) for start, (low, high) in reaches]
    if not ready.in_place:
        pairs = zip(arrays, addresses(arrays), ready.reaches, targets, starts, strict=True)
        for array, start, (low, high), target, out_start in pairs:
            if start != out_start or array.strides != target.strides:
                spans.append((start + low, start + high))
    check_apart([leaf.key for leaf in place.arms], arrays, targets, spans)


class _Naming:
    """Errors about one of several arrays, ``leaf``, say which."""

    __slots__ = ("_what", "leaf")
    leaf: Place

    def __init__(self, what: str = "") -> None:
        self._what = what

    def __enter__(self) -> _Naming:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, (TypeError, ValueError)) and self.leaf.key:
            raise type(error)(f"{self._what}{self.leaf.label}: {error}") from None
