"""The arrays that a call binds to names of the spec: weights of values, labels of groups."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from projgen.arrays import on_gpu, operand, span
from projgen.dtypes import is_half
from projgen.errors import quote
from projgen.misplaced import in_call
from projgen.structure import Key, Place, at, dotted, entries, flat, rebuilt
from projgen.tree import NormTree
from projgen.trees import BoundArm, BoundTree

Array = NDArray[Any]

_INFINITE = {
    np.dtype(f"float{bits}"): np.array(np.inf, f"float{bits}").view(f"uint{bits}")
    for bits in (32, 64)
}  # its bits

_NUMBERED = "np.unique(labels, return_inverse=True)[1] makes such ones"


class _Labels:
    """Labels as a key: equal if all are; with a hash that few of them make."""

    __slots__ = ("_array",)

    def __init__(self, array: Array) -> None:
        self._array = array

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Labels) and np.array_equal(self._array, other._array)

    def __hash__(self) -> int:
        return hash((self._array.size, *self._array[:: 1 + self._array.size // 64].tolist()))


@dataclass(frozen=True, slots=True)
class Given:
    """What a call binds to the names of a spec: weights as they came, and checked labels.

    Calls of one ``signature`` have weights of the same shapes, read in the same type, and the same
    labels.
    """

    arrays: Mapping[str, Any]
    labels: Mapping[str, Array]
    shapes: Hashable

    @property
    def signature(self) -> Hashable:
        """To look something up by: good for this call."""
        return self.shapes, tuple((name, _Labels(own)) for name, own in self.labels.items())

    @property
    def lasting_signature(self) -> Hashable:
        """The same to remember something by: the caller's labels may change."""
        return self.shapes, tuple((name, _Labels(own.copy())) for name, own in self.labels.items())

    def apart_from(self, outs: Sequence[Array]) -> Given:
        """The same, with copies of the weights that lie where results will be written.

        `outs` do not overlap one another.
        """
        names = self.arrays.keys() - self.labels.keys()
        if not names:
            return self
        spans = sorted(map(span, outs))
        moved: dict[str, Any] = {}
        for name in names:
            copies: dict[Key, Array] = {}
            for key, weights in flat(self.arrays[name]):
                low, high = span(_where(weights))
                before = bisect_left(spans, (high, high)) - 1  # the last one that begins below
                if before >= 0 and spans[before][1] > low:
                    copies[key] = _copy(weights)
            if copies:
                moved[name] = rebuilt(self.arrays[name], copies)
        return replace(self, arrays={**self.arrays, **moved}) if moved else self


def _where(weights: Any) -> Array:
    """An array at the place of the weights, not to be read if that is on a GPU."""
    if on_gpu(weights):
        from projgen.cuda.arrays import view as view_on_gpu

        return view_on_gpu(weights).ghost
    return operand(weights)


def _copy(weights: Any) -> Any:
    if on_gpu(weights):
        from projgen.cuda.weights import copied

        return copied(weights)
    return operand(weights).copy()


def read_given(tree: NormTree, given: Mapping[str, Any]) -> Given:
    """The arrays of a call; a TypeError for names that the spec lacks, and that the call does."""
    check_names(tree, given)
    labels = read_labels(tree, given)
    shapes = tuple(
        (name, tuple((key, *_form(array, name)) for key, array in flat(given[name])))
        for name in given
        if name not in labels
    )
    return Given(given, labels, shapes)


def _form(weights: Any, name: str) -> tuple[tuple[int, ...], Hashable]:
    """Their shape, and what a leaf's kernel depends on: their dtype, and where they are."""
    try:
        array = _where(weights)
    except TypeError as error:
        raise TypeError(f"{quote(name)}: {error}") from None
    return array.shape, (array.dtype, on_gpu(weights))


def _read(array: Any, name: str) -> Array:
    """Weights or labels on the CPU; a TypeError that has their name."""
    try:
        return operand(array)
    except TypeError as error:
        raise TypeError(f"{quote(name)}: {error}") from None


def read_labels(tree: NormTree, given: Mapping[str, Any]) -> dict[str, Array]:
    """The group labels that `tree` names: vectors of whole numbers, of at least 0."""
    labels: dict[str, Array] = {}
    for node in tree.levels if tree.bound_names else ():
        if node.groups is not None and node.groups not in labels:
            own = given_to(node.groups, given, "an array of labels")
            if on_gpu(own):
                raise TypeError(
                    f"{quote(node.groups)} has labels on a GPU, and the CPU reads them: give a "
                    "NumPy array, or a tensor's .cpu()"
                )
            array = _read(own, node.groups)
            if array.dtype.kind not in "iu" or array.ndim != 1:
                hint = f"; {_NUMBERED}" if array.dtype.kind not in "iu" and array.ndim == 1 else ""
                raise TypeError(
                    f"{quote(node.groups)} takes a vector of whole numbers, the group of each "
                    f"place; it has rank {array.ndim} and dtype {array.dtype}{hint}"
                )
            largest = _largest(array)
            if largest < 0:
                raise ValueError(f"{quote(node.groups)} has a negative label")
            if largest >= max(1 << 20, 4 * array.size):
                raise ValueError(
                    f"{quote(node.groups)} has label {largest}: labels count groups from "
                    f"0; {_NUMBERED}"
                )
            labels[node.groups] = np.ascontiguousarray(array, np.int64)
    return labels


def _largest(labels: Array) -> int:
    """The largest of them, 0 of none; a negative one if there is any."""
    if not labels.size:
        return 0
    if labels.dtype == np.int64:  # read once: a negative one is above all others there
        return int(labels.view(np.uint64).max().astype(np.int64))
    return int(labels.max()) if int(labels.min()) >= 0 else -1


def check_names(tree: NormTree, given: Mapping[str, Any]) -> None:
    """A TypeError for an argument of the call that the spec does not name."""
    if not given:
        return
    children = {child.name for child in tree.root.children}
    for name, value in given.items():
        if name in children:
            raise TypeError(f"{quote(name)} is given by its name, and so is y: give one of them")
        if name not in tree.bound_names:
            raise TypeError(in_call(tree, name, value))


def check_weights(place: Place, given: Mapping[str, Any]) -> None:
    """A ValueError for weights that no child of a branch takes."""
    taken: defaultdict[str, set[str]] = defaultdict(set)
    for branch in place.walk():
        if branch.node.is_branch and branch.node.weights is not None:
            keys = {dotted(child.key[len(branch.key) :]) for child in branch.children}
            taken[branch.node.weights] |= keys
    for name, keys in taken.items():
        found = [dotted(key) for key, _ in flat(given.get(name)) if key]
        left = [key for key in found if not any(f"{key}.".startswith(f"{own}.") for own in keys)]
        if left:
            raise ValueError(
                f"{quote(name)} has weights for {', '.join(map(quote, left[:5]))}, and the branch "
                f"has children {', '.join(map(quote, sorted(keys)[:5]))}"
            )


def is_weighted(place: Place) -> bool:
    """Whether the level has weights, its own or those of its children."""
    return place.node.weights is not None or any(
        child.node.weight != 1 for child in place.children if place.node.is_branch
    )


def level_weights(bound: BoundTree, place: Place, level: int, given: Mapping[str, Any]) -> Array:
    """The weights of the values that a level aggregates: float64, of at least 0.

    A leaf's have its array's shape, those of other levels the shape of `BoundArm.dims`.
    """
    node, name = place.node, place.node.weights
    arm = bound.arms_of(place)[0]
    if not place.children:
        return np.asarray(leaf_weights(bound, place, given), np.float64)
    if not node.is_branch:
        return ordered(given_to(name, given), arm, level, name)
    *outer, _ = arm.dims(level)
    parts: list[Array] = []
    for child in place.children:
        arms = bound.arms_of(child)
        dims = (*outer, arms[0].dims(level)[-1])
        part: Array = np.full(dims, child.node.weight)
        if name is not None:
            own = of_child(name, given, place, child)
            one = len(arms) == 1
            part = part * (ordered(own, arms[0], level, name) if one else fitted(own, dims, name))
        parts.append(part)
    return np.concatenate(parts, axis=-1)


def leaf_weights(
    bound: BoundTree, place: Place, given: Mapping[str, Any], checked: bool = True
) -> Array:
    """The same of a leaf, but float32 weights are left as they are, for kernels to read; not
    looked at unless `checked`."""
    name, shape = place.node.weights, bound.arms_of(place)[0].shape
    return fitted(given_to(name, given), shape, name, single=True, checked=checked)


def given_to(name: str | None, given: Mapping[str, Any], what: str = "an array of weights") -> Any:
    if name is None or name not in given:
        raise TypeError(f"the spec names {what}, {quote(str(name))}: give {name}=array at the call")
    return given[name]


def of_child(name: str, given: Mapping[str, Any], place: Place, child: Place) -> Any:
    """The weights of one child of a branch: they stand as the arrays do."""
    weights = given_to(name, given, "the weights of a branch")
    key = child.key[len(place.key) :]
    found = entries(weights)
    if found is not None and dotted(key) in found:
        return found[dotted(key)]
    try:
        return at(weights, key)
    except ValueError:
        raise ValueError(
            f"{quote(name)} lacks the weights of {child.label}: a branch's weights are a dict or a "
            "sequence like that of its arrays"
        ) from None


def ordered(weights: Any, arm: BoundArm, level: int, name: str | None) -> Array:
    """Weights with the array's axes, in the shape and order of the level's values."""
    natural, order, dims = arm.walk(level)
    found = fitted(weights, natural, name)
    return np.ascontiguousarray(found.transpose(order).reshape(dims))


def fitted(
    weights: Any,
    shape: tuple[int, ...],
    name: str | None,
    single: bool = False,
    checked: bool = True,
) -> Array:
    """Weights, broadcast to `shape`: float64, or if `single` float32 where they are. ``checked``:
    they are finite, and 0 or above."""
    if on_gpu(weights):
        raise TypeError(f"{quote(str(name))} has weights on a GPU, and the arrays are not there")
    array = _read(weights, str(name))
    if array.dtype.kind not in "fiu" and not is_half(array.dtype):
        raise TypeError(f"{quote(str(name))} takes numbers, not {array.dtype}")
    dtype = np.float32 if single and array.dtype == np.float32 else np.float64
    with np.errstate(over="ignore"):  # of long doubles, which is noticed
        fitted = np.asarray(array, dtype, order="C")
    fitted = fitted if fitted.flags.aligned else fitted.copy()
    try:
        fitted = fitted if fitted.shape == shape else np.broadcast_to(fitted, shape)
    except ValueError:
        raise misfit(name, array.shape, shape) from None
    if checked and array.size and not _are_weights(array if array.itemsize <= 8 else fitted):
        raise ValueError(f"{quote(str(name))} has weights that are negative or not finite")
    return fitted


def misfit(name: str | None, own: tuple[int, ...], shape: tuple[int, ...]) -> ValueError:
    """What is wrong with weights that do not broadcast."""
    return ValueError(
        f"{quote(str(name))} has shape {own}, which does not broadcast to the shape of the values "
        f"that it weighs, {shape}"
    )


def _are_weights(array: Array) -> bool:
    """Whether numbers are finite, and 0 or above."""
    infinite = _INFINITE.get(array.dtype)
    if infinite is not None and array.view(infinite.dtype).max() < infinite:
        return True  # one look at their bits: those of negative ones and NaN are above infinity's
    with np.errstate(invalid="ignore"):  # which bfloat16 would warn of
        return bool(array.min() >= 0 and np.isfinite(array.max()))  # NaN is in both
