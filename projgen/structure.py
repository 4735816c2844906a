"""Arrays in dicts, sequences and dataclasses: which of them a tree means, and results like them.

A branch with named children takes a mapping, a dataclass or a named tuple with those names; one
without names takes a list or a tuple; one whose children have patterns takes any nest of these,
and matches the dotted names of the arrays in it. The first pattern that matches takes an array.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np

from projgen.errors import quote
from projgen.tree import Node, NormTree

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Place:
    """Where a node of a tree stands among the arrays of one call.

    A pattern stands for as many children as it matches, so a node may have several places.
    ``key`` leads to the array, or to the mapping or sequence of those beneath, in what the call
    was given. A leaf's place has no ``children``.
    """

    node: Node
    key: Key
    children: tuple[Place, ...] = ()

    def leaves(self) -> Iterator[Place]:
        """`arms`, one by one."""
        if not self.children:
            yield self
        for child in self.children:
            yield from child.leaves()

    def walk(self) -> Iterator[Place]:
        """This place and those beneath it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()

    @cached_property
    def arms(self) -> tuple[Place, ...]:
        """The places of arrays, in the spec's order."""
        return tuple(self.leaves())

    @property
    def label(self) -> str:
        """What messages call it: ``enc.weight``, or ``y`` for the only array."""
        return dotted(self.key) or "y"


@dataclass(frozen=True, slots=True)
class Match:
    """Which arrays a tree means, in all structures of one outline.

    ``numbers`` has for each of the place's arms which one it is of those that `unfold` gives.
    """

    place: Place
    numbers: tuple[int, ...]


def match(tree: NormTree, y: Any, unmatched: str = "error") -> Match:
    """The arrays of `y` that `tree` means; errors are those of `places`."""
    place = places(tree, y, unmatched)
    numbers = {key: number for number, (key, _) in enumerate(_ends(y))}
    for leaf in place.arms:
        if leaf.key not in numbers:
            raise _no_array(leaf.node, leaf.key, at(y, leaf.key))
    return Match(place, tuple(numbers[leaf.key] for leaf in place.arms))


def places(tree: NormTree, y: Any, unmatched: str = "error") -> Place:
    """The places of `tree` among the arrays of `y`.

    A TypeError for the wrong kind of structure, a ValueError for missing and left over arrays.
    `unmatched="pass"` lets those be that no pattern matches.
    """
    return _place(tree.root, y, (), unmatched == "pass")


def _place(node: Node, y: Any, key: Key, lenient: bool) -> Place:
    if not node.children:
        if entries(y) is not None and type(y) not in (list, tuple):  # those may be arrays
            raise _no_array(node, key, y)
        return Place(node, key)
    if not node.is_branch:
        (child,) = node.children
        return Place(node, key, (_place(child, y, key, lenient),))
    found = entries(y)
    if node.is_patterned:
        if found is None:
            model = hasattr(y, "named_parameters")
            like = "dict(model.named_parameters())" if model else "of a model's parameters"
            raise _wrong_kind(node, key, y, f"a dict of arrays, as {like}")
        names: dict[str, Key] = {}
        for path, _ in flat(y):
            if names.setdefault(dotted(path), (*key, *path)) != (*key, *path):
                raise ValueError(
                    f"{_subject(key)} has two arrays of the name {quote(dotted(path))}: patterns "
                    "cannot tell them apart"
                )
        taken: set[str] = set()
        place = _patterned(node, names, key, taken)
        left = [name for name in names if name not in taken]
        if left and not lenient:
            raise ValueError(
                f"no pattern matches {_listed(left)}; write a pattern for the rest, or build with "
                "unmatched='pass' to leave them as they are"
            )
        return place
    named = node.children[0].name is not None
    listed = isinstance(y, (list, tuple))
    if found is None or (listed and not hasattr(y, "_fields") if named else not listed):
        kind = "a dict, a dataclass or keyword arguments" if named else "a list or a tuple"
        raise _wrong_kind(node, key, y, f"{kind}, with {_wanted(node)}")
    if named:
        return Place(node, key, tuple(_named(node, found, key, lenient)))
    if len(found) != len(node.children):
        raise ValueError(
            f"{_subject(key)} has {len(found)} entries, and {quote(str(node))} takes "
            f"{len(node.children)}"
        )
    children = zip(node.children, found.items(), strict=True)
    return Place(
        node,
        key,
        tuple(_place(child, value, (*key, name), lenient) for child, (name, value) in children),
    )


def _named(node: Node, found: Mapping[Any, Any], key: Key, lenient: bool) -> Iterator[Place]:
    names = [child.name or "" for child in node.children]
    missing = [name for name in names if name not in found]
    left = [str(name) for name in found if name not in names]
    if missing:
        close = get_close_matches(missing[0], left, n=1)
        hint = f"; is it {quote(close[0])}?" if close else ""
        if left and not close:
            hint = f", and has {_listed(left)}, which the spec does not name"
        raise ValueError(f"{_subject(key)} lacks {_listed(missing)}{hint}")
    if left and not lenient:
        raise ValueError(
            f"{_subject(key)} has {_listed(left)}, which the spec does not name; build with "
            "unmatched='pass' to leave such arrays as they are"
        )
    for child, name in zip(node.children, names, strict=True):
        yield _place(child, found[name], (*key, name), lenient)


def _patterned(node: Node, names: Mapping[str, Key], key: Key, taken: set[str]) -> Place:
    """The place of a branch over those arrays that its children's patterns match."""
    children: list[Place] = []
    for child in node.children:
        if child.pattern is None:
            children.append(_patterned(child, names, key, taken))
            continue
        matches = [name for name in names if fnmatchcase(name, child.pattern)]
        fresh = [name for name in matches if name not in taken]
        if not fresh:
            reason = "that no earlier pattern took" if matches else "of these arrays"
            raise ValueError(
                f"pattern {quote(child.pattern)} matches none {reason}; "
                f"{_others(child.pattern, [*names])}"
            )
        taken.update(fresh)
        children += [_chain(child, names[name]) for name in fresh]
    return Place(node, key, tuple(children))


def _others(pattern: str, names: Sequence[str]) -> str:
    """What there is, for a pattern that matches none of `names`."""
    for inside in (f"{pattern}.weight", f"{pattern}.*"):  # it is a module's name
        if any(fnmatchcase(name, inside) for name in names):
            return f"is it {quote(inside)}?"
    close = get_close_matches(pattern.replace("*", ""), names, n=3, cutoff=0.3)
    if not close or len(close) == len(names):
        return f"there are {_listed(close or names)}"
    return f"among them are {_listed(close)}"


def _chain(node: Node, key: Key) -> Place:
    return Place(node, key, tuple(_chain(child, key) for child in node.children))


def entries(y: Any) -> Mapping[Any, Any] | None:
    """What a mapping, a dataclass, a named tuple, a list or a tuple holds; None for others."""
    kind = _kind(type(y))  # type: ignore[arg-type]
    if kind is None:
        return None
    if kind == "mapping":
        return y  # type: ignore[no-any-return]
    if kind == "dataclass":
        return {field.name: getattr(y, field.name) for field in dataclasses.fields(y)}
    return dict(zip(y._fields, y, strict=True)) if kind == "named" else dict(enumerate(y))


@lru_cache(maxsize=1024)
def _kind(kind: type) -> Literal["mapping", "dataclass", "named", "sequence"] | None:
    """How things of a type hold others."""
    if issubclass(kind, Mapping):
        return "mapping"
    if dataclasses.is_dataclass(kind):
        return "dataclass"
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return "named"
    return "sequence" if issubclass(kind, (list, tuple)) else None


def flat(y: Any) -> Iterator[tuple[Key, Any]]:
    """The arrays of a nest of structures, each with its key. None holds the place of no array."""
    return ((key, array) for key, array in _ends(y) if array is not None)


def _ends(y: Any) -> Iterator[tuple[Key, Any]]:
    found = entries(y)
    if found is None:
        yield (), y
        return
    for name, value in found.items():
        for key, array in _ends(value):
            yield (name, *key), array


def unfold(y: Any) -> tuple[Any, list[Any]]:
    """What `match` goes by, hashable: kinds, names and where there is no array; and all that may
    be an array, or None, in order."""
    arrays: list[Any] = []
    return _outline(y, arrays), arrays


def _outline(y: Any, arrays: list[Any]) -> Any:
    found = None if type(y) is np.ndarray else entries(y)
    if found is not None:
        return type(y), tuple(found), tuple([_outline(each, arrays) for each in found.values()])
    arrays.append(y)
    return y is not None


def at(y: Any, key: Key) -> Any:
    """What stands in `y` at `key`; a ValueError if there is nothing."""
    for depth, name in enumerate(key):
        found = entries(y)
        if found is None or name not in found:
            raise ValueError(f"there is no {quote(dotted(key[: depth + 1]))}")
        y = found[name]
    return y


def rebuilt(y: Any, results: Mapping[Key, Any], key: Key = ()) -> Any:
    """A structure like `y` with `results` at their keys, and everything else as in `y`."""
    if key in results:
        return results[key]
    found = entries(y)
    if found is None:
        return y
    values: dict[Any, Any] = {}
    for name, value in found.items():  # no comprehension: torch.compile sees into none with `:=`
        own = (*key, name)
        values[name] = results[own] if own in results else rebuilt(value, results, own)
    if type(y) is dict:
        return values
    if isinstance(y, defaultdict):
        return type(y)(y.default_factory, values)
    if isinstance(y, Mapping):
        try:
            return type(y)(values)  # type: ignore[call-arg]
        except TypeError:  # a mapping that is made in a way of its own
            return values
    if isinstance(y, tuple) and hasattr(y, "_fields"):
        return type(y)(*values.values())
    if isinstance(y, (list, tuple)):
        return type(y)(values.values())
    given = {field.name for field in dataclasses.fields(y) if field.init}
    made = dataclasses.replace(y, **{name: values[name] for name in given})
    for name in values.keys() - given:
        if values[name] is not found[name]:  # the others are made with the rest
            object.__setattr__(made, name, values[name])
    return made


def dotted(key: Sequence[str | int]) -> str:
    return ".".join(map(str, key))


def _subject(key: Key) -> str:
    return quote(dotted(key)) if key else "y"


def _wanted(node: Node) -> str:
    if node.children[0].name is None:
        return f"{len(node.children)} entries"
    return _listed([child.name or "" for child in node.children])


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(quote(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _no_array(node: Node, key: Key, y: Any) -> TypeError:
    return TypeError(
        f"{_subject(key)} is a {type(y).__name__}, and {quote(str(node))} takes an array"
    )


def _wrong_kind(node: Node, key: Key, y: Any, wanted: str) -> TypeError:
    return TypeError(
        f"{quote(str(node))} takes several arrays: {_subject(key)} must be {wanted}; "
        f"it is of type {type(y).__name__}"
    )
