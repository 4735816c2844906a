"""A budget: a projection, the parameters that share its radius, and what the radius is when."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from projgen.api import build
from projgen.arms import bind_arm
from projgen.arrays import writable_view
from projgen.callers import outside
from projgen.errors import SpecError, quote
from projgen.info import numbers
from projgen.operands import check_out, check_radii
from projgen.projection import Projection
from projgen.structure import Key, Place, dotted, flat, places, rebuilt
from projgen.terminal import format_shape
from projgen.torch.names import Names, listed
from projgen.torch.schedule import is_relative, radius_at, read_radius
from projgen.torch.shards import is_sharded, whole
from projgen.tree import Node, NormTree

Lookup = Callable[[str], torch.Tensor]


MOST_SHOWN = 8  # values of a batch, in a line of text


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Standing:
    """How a budget stands: ``norm`` is that of its parameters now, ``radius`` what it is projected
    on now, None where the spec has the count of l0; ``active`` of its ``groups`` of the leaf level
    are not all zero. There is one for each index along ``axes``, which is None where parameters
    differ in them. Norms and radii are arrays over batch axes, if there are any. Unless they have
    been ``projected``, all this is of what was there before the constraint."""

    key: str
    spec: str
    names: tuple[str, ...]
    radius: Any
    norm: Any
    active: int
    groups: int
    axes: tuple[int, ...] | None
    projected: bool

    def __repr__(self) -> str:
        own = ", ".join(f"{each.name}={_shown(getattr(self, each.name))}" for each in fields(self))
        return f"Standing({own})"


@dataclass(slots=True, eq=False)
class Budget:
    """One projection of a constraint.

    ``key`` is the parameter's name, or of several under one budget the spec; ``where`` the name, or
    a structure of names like that of the arrays which the projection takes; ``given`` the weights
    and labels that its spec names; ``hint`` what to do if the spec does not fit, if there is more
    to say than the error does; ``norm`` the norm in the beginning; ``projected`` whether the
    parameters have been since.
    """

    key: str
    projection: Projection
    where: Any
    radius: Any
    given: Mapping[str, Any]
    hint: str | None = None
    norm: Any = field(default=0.0)
    projected: bool = False

    @property
    def names(self) -> list[str]:
        return [name for _, name in flat(self.where)]

    def tensors(self, tensor: Lookup) -> Any:
        """The parameters, in the structure of ``where``."""
        if type(self.where) is str:
            return tensor(self.where)
        return rebuilt(self.where, {key: tensor(name) for key, name in flat(self.where)})

    def begin(self, tensor: Lookup) -> None:
        """Check that the parameters can be projected, and note their norm.

        Kernels are compiled here, before the training. SpecError, TypeError, ValueError: as the
        call of a `Projection`; with the names of the parameters.
        """
        for name in self.names:
            found = tensor(name)
            if torch.nn.parameter.is_lazy(found):
                raise ValueError(f"{quote(name, 80)} has no shape yet: run the model once before")
            if not (found.is_cuda or is_sharded(found)):  # a shard is looked at by the projection
                with named(name):
                    array = writable_view(found)
                    check_out(array, array)
        with named(self.key, self.hint):
            self.norm = whole(self.projection.norm(self.tensors(tensor), **self.given))
            radius = self.radius_after(1)
            if is_relative(self.radius) and not np.any(_on_host(self.norm)):
                warnings.warn(
                    f"{self.key} is all zero, and so is any part of its norm: it stays zero on this"
                    " radius. Constrain it after some training, or on a number",
                    stacklevel=outside("projgen"),
                )
            if radius is not None:
                shapes = ", ".join(str(tuple(tensor(name).shape)) for name in self.names)
                what = f"{self.projection.spec} on shape {shapes}"
                check_radii(_on_host(radius), np.shape(_on_host(self.norm)), what)

    def radius_after(self, step: int) -> Any:
        """The radius after `step` steps; a TypeError where there is none, or one too many."""
        radius = radius_at(self.radius, step, self.norm)
        if (radius is None) != (self.projection.tree.root.k is not None):
            raise TypeError(
                'a radius is missing, such as radius=1.0 or radius="10%"' if radius is None else
                f"{self.projection.spec} says how many groups are kept: it takes no radius"
            )  # fmt: skip
        return radius

    def project(self, tensor: Lookup, step: int) -> None:
        """Project in place; an error leaves the parameters as they were."""
        y = self.tensors(tensor)
        self.projection(y, self.radius_after(step), out=y, **self.given)
        self.projected = True

    def standing(self, tensor: Lookup, step: int) -> Standing:
        """See `Standing`."""
        y = self.tensors(tensor)
        leaves = groups = self._active(y)
        if any(node.groups for node in self.projection.tree.levels):
            # A number that is no place's label is no group: of ones, it alone is not active.
            ones = rebuilt(y, {key: torch.ones_like(leaf) for key, leaf in flat(y)})
            groups = [leaf[leaf] for leaf in self._active(ones)]
        return Standing(
            self.key,
            self.projection.spec,
            tuple(self.names),
            self.radius_after(step),
            whole(self.projection.norm(y, **self.given)),
            sum(int(leaf.sum()) for leaf in leaves),
            sum(leaf.numel() for leaf in groups),
            self._axes(y),
            self.projected,
        )

    def _active(self, y: Any) -> list[torch.Tensor]:
        found = self.projection.active(y, **self.given)
        return [torch.as_tensor(whole(leaf)) for _, leaf in flat(found)]

    def _axes(self, y: Any) -> tuple[int, ...] | None:
        shapes = {key: tuple(tensor.shape) for key, tensor in flat(y)}
        (axes, *others) = _indexed(places(self.projection.tree, y, "pass"), shapes)
        return axes if all(axes == other for other in others) else None


def _indexed(
    place: Place, shapes: Mapping[Key, tuple[int, ...]], above: tuple[Node, ...] = ()
) -> Iterator[tuple[int, ...]]:
    """The axes along which each array has groups of the leaf level: those that it leaves."""
    nodes = (*above, place.node)
    for child in place.children:
        yield from _indexed(child, shapes, nodes)
    if not place.children:
        shape = shapes[place.key]
        arm = bind_arm(nodes, len(shape), place.label, shape)
        left = set(range(len(arm.owners))) - set(arm.axes(arm.depth - 1))
        yield tuple(sorted({arm.sources[axis] for axis in left}))


@contextmanager
def named(name: str, hint: str | None = None) -> Iterator[None]:
    """Errors about a parameter, which the projection knows as y, say its name. Those about the spec
    have the `hint`."""
    try:
        yield
    except SpecError as error:
        hints = "\n".join(filter(None, [error.hint, hint])) or None
        raise SpecError(f"{name}: {error.message}", *error.spans, hint=hints) from None
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def budgets(
    names: Names, constraints: Any, where: Any, radius: Any, arrays: Mapping[str, Any]
) -> list[Budget]:
    """The budgets that `constrain` is asked for: see there."""
    if isinstance(constraints, Mapping):
        if where is not None:
            raise TypeError("where= is for a single spec: the keys say where already")
        chosen = {_named_key(key): _projection(spec) for key, spec in constraints.items()}
        return list(_one_by_one(names, chosen, radius, arrays))
    if isinstance(constraints, Sequence) and not isinstance(constraints, str):
        first = next(iter(constraints), "0.weight")
        raise TypeError(
            f"constraints are a dict of names and their specs, such as {{{str(first)!r}: "
            f"'l1(linf(axis=1))'}}, or one spec of several parameters; got "
            f"{type(constraints).__name__}"
        )
    projection = _projection(constraints)
    if not any(node.is_branch for node in projection.tree.levels):
        keys = [where] if isinstance(where, str) else where
        if not isinstance(keys, Sequence) or not all(isinstance(key, str) for key in keys):
            raise TypeError(
                f"which parameters? constrain(optimizer, model, {{NAME: {projection.spec!r}}}), "
                f"where a name may be a pattern; there are {listed(list(names))}"
            )
        return list(_one_by_one(names, dict.fromkeys(keys, projection), radius, arrays))
    if isinstance(radius, Mapping):
        raise TypeError("several parameters under one budget have one radius")
    return [
        Budget(
            projection.spec,
            projection,
            _under_one_budget(names, projection, where),
            read_radius(radius),
            _given(projection, arrays),
        )
    ]


def _one_by_one(
    names: Names, chosen: Mapping[str, Projection], radius: Any, arrays: Mapping[str, Any]
) -> Iterator[Budget]:
    """A budget for each parameter. The first key that matches a parameter takes it."""
    if not chosen:
        raise ValueError(f"there is nothing to constrain; there are {listed(list(names))}")
    radii = _radii(chosen, radius)
    taken: set[int] = set()
    for key, projection in chosen.items():
        if any(node.is_branch for node in projection.tree.levels):
            raise TypeError(f"{projection.spec} takes several arrays: pass it by itself, and say "
                            "which with patterns in it, or with where=")  # fmt: skip
        fresh = [name for name in names.unique(names.find(key))
                 if id(names.tensor(name)) not in taken]  # fmt: skip
        if not fresh:
            raise ValueError(f"{quote(key, 80)} matches nothing that no earlier key took")
        for name in fresh:
            taken.add(id(names.tensor(name)))
            hint = None
            if not name.endswith("weight") and (weights := names.weights(key)):
                hint = f"weights alone are {quote(weights, 80)}"
            elif larger := names.of_more_axes(fresh, name):
                hint = f"{quote(key, 80)} matches {listed(larger)} too, with more axes: name those"
            yield Budget(
                name, projection, name, read_radius(radii[key]), _given(projection, arrays), hint
            )


def _radii(chosen: Mapping[str, Projection], radius: Any) -> dict[str, Any]:
    """The radius of each key. A spec with the count of l0 takes none, and needs no entry; one
    radius for all is for the others."""
    counting = {key for key, projection in chosen.items() if projection.tree.root.k is not None}
    if not isinstance(radius, Mapping):
        spared = counting if len(counting) < len(chosen) else set()
        return {key: None if key in spared else radius for key in chosen}
    if strange := [str(key) for key in radius if key not in chosen]:
        raise ValueError(f"radius has {listed(strange)}, which is no key of the constraints; these "
                         f"are {listed([*chosen])}")  # fmt: skip
    if missing := [key for key in chosen if key not in radius and key not in counting]:
        raise ValueError(f"radius has no entry for {listed(missing)}")
    return {key: radius.get(key) for key in chosen}


def _under_one_budget(names: Names, projection: Projection, where: Any) -> Any:
    """The names of the parameters of a tree with branches, in a structure that it takes."""
    if not projection.tree.root.is_patterned:
        if where is None:
            raise TypeError(f"{projection.spec} takes several arrays: where= says which "
                            "parameters, as in where={'enc': 'encoder.0.weight', …}")  # fmt: skip
        found = {key: _one(names, name, dotted(key)) for key, name in flat(where)}
        if len(names.unique(found.values())) < len(found):
            raise ValueError(f"of {listed(list(found.values()))} two are the same parameter")
        try:
            places(projection.tree, where, projection.unmatched)
        except (TypeError, ValueError) as error:
            text = str(error).partition("; build with")[0]  # which is no help here
            where_it_is = f"where{text[1:]}" if text.startswith("y ") else f"where: {text}"
            raise type(error)(where_it_is) from None
        return rebuilt(where, found)
    if where is not None:
        raise TypeError("where= is for trees without patterns, which say themselves what they take")
    arms = places(projection.tree, {name: name for name in names}, "pass").arms
    return {name: name for name in names.unique(dotted(arm.key) for arm in arms)}


def _one(names: Names, name: Any, key: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"where[{key!r}] must be a name, not {type(name).__name__}")
    found = names.find(name)
    if len(found) > 1:
        raise ValueError(f"where[{key!r}]: {quote(name, 80)} matches {listed(found)}: name one")
    return found[0]


def _named_key(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"keys are names, such as 'encoder.0.weight' or 'encoder.0', or patterns; "
                        f"got a {type(key).__name__}")  # fmt: skip
    return key


def _projection(spec: Any) -> Projection:
    if isinstance(spec, Projection):
        return spec
    if isinstance(spec, (str, NormTree)):
        return build(spec)
    raise TypeError(f"a spec, such as 'l1(linf(axis=1))', or what projgen.build made of one; got "
                    f"{type(spec).__name__}")  # fmt: skip


def _on_host(value: Any) -> Any:
    """A tensor as NumPy's, and anything else as it is."""
    value = whole(value)
    return value.detach().double().cpu().numpy() if isinstance(value, torch.Tensor) else value


def _given(projection: Projection, arrays: Mapping[str, Any]) -> dict[str, Any]:
    names = projection.tree.bound_names
    if missing := [name for name in names if name not in arrays]:
        given = ", ".join(f"{name!r}: array" for name in missing)
        raise TypeError(f"{projection.spec} names {listed(missing)}: give arrays={{{given}}}")
    return {name: array for name, array in arrays.items() if name in names}


def _shown(value: Any) -> str:
    """As text; of many values the shape and the range."""
    if not hasattr(value, "__array__") or np.ndim(own := _on_host(value)) == 0:
        return repr(value)
    if own.size <= MOST_SHOWN:
        return repr(value)
    return f"<{format_shape(own.shape)} values: {numbers(own)}>"


__all__ = ["Budget", "Standing", "budgets", "named"]
