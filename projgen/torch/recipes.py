"""What operators are told of a projection: a string, since they take tensors and plain values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.utils._pytree
from torch import Tensor, library

import projgen
from projgen.check import parse_tree
from projgen.projection import Projection
from projgen.structure import entries

F = TypeVar("F", bound=Callable[..., Any])

torch.utils._pytree.register_constant(Projection)  # to torch.compile


def _constant(function: F) -> F:
    """To torch.compile its results are constants of what it traces."""
    mark: Any = torch.compiler.assume_constant_result
    marked: F = mark(function)
    return marked


@_constant
def told(spec: str | Projection) -> tuple[str, bool, bool, str, tuple[str, ...]]:
    """A recipe; whether it is for one array, whether the spec has the radius; the spec, and the
    names of weights and labels in it."""
    return _told(spec)


@lru_cache(maxsize=1024)
def _told(spec: str | Projection) -> tuple[str, bool, bool, str, tuple[str, ...]]:
    projection = spec if isinstance(spec, Projection) else projgen.build(spec)
    counts = projection.tree.root.k is not None
    names = projection.tree.bound_names
    return recipe_of(projection), projection._is_plain, counts, projection.spec, names


def recipe_of(projection: Projection) -> str:
    return json.dumps({"projection": [projection.spec, *projection._state()[1:]]})


@_constant
def joined(recipe: str, outline: Any, names: list[str]) -> str:
    """The recipe with the structure of the tensors, and the names of others."""
    return json.dumps({**json.loads(recipe), "outline": outline, "names": names})


@lru_cache(maxsize=1024)
def read_recipe(recipe: str) -> tuple[Projection, Mapping[str, Any]]:
    told = json.loads(recipe)
    spec, *options = told.pop("projection")
    return Projection(parse_tree(spec), *options), told


def outlined(y: Any, leaves: list[Tensor]) -> Any:
    """The structure of `y` in plain values, with numbers for its tensors, which go to `leaves`."""
    if isinstance(y, Tensor):
        leaves.append(y)
        return len(leaves) - 1
    if y is None:  # in the place of no array
        return None
    found = entries(y)
    if found is None:
        raise TypeError(f"expected tensors, or a structure of them, not a {type(y).__name__}")
    if isinstance(y, Sequence) and not hasattr(y, "_fields"):
        return {"items": [outlined(value, leaves) for value in found.values()]}
    return {"entries": [[name, outlined(value, leaves)] for name, value in found.items()]}


def filled(outline: Any, arrays: Sequence[Any]) -> Any:
    """The structure that `outlined` told of, with `arrays` in the places of its tensors."""
    if outline is None or isinstance(outline, int):
        return None if outline is None else arrays[outline]
    if "items" in outline:
        return [filled(part, arrays) for part in outline["items"]]
    return {name: filled(part, arrays) for name, part in outline["entries"]}


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Make a function the operator ``projgen::name``, which writes to none of its arguments."""
    made: Any = library.custom_op(f"projgen::{name}", mutates_args=())
    return lambda function: made(function)


def refuse_twice(ctx: Any, *gradients: Any) -> Any:
    """The backward of what takes gradients back."""
    raise RuntimeError("projections have first derivatives here, and no second ones")
