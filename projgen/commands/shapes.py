"""What ``--shape`` says: of one array, or of each array that a tree takes."""

from __future__ import annotations

import argparse
import math
from difflib import get_close_matches
from typing import Any

from projgen.errors import SpecError, quote
from projgen.shapes import arrange, example_shapes, has_branches, slots
from projgen.tree import NormTree


def shape_of(tree: NormTree, args: argparse.Namespace) -> tuple[int, ...]:
    """The shape of the only array."""
    named = [name for name, _ in args.shape if name is not None]
    if named:
        raise SpecError(
            f"{tree} takes one array, which has no name: {quote(named[0])} is none",
            hint="write --shape 1000x1000",
        )
    if len(args.shape) > 1:
        raise SpecError(f"{tree} takes one array, and --shape is given {len(args.shape)} times")
    shape: tuple[int, ...] = args.shape[0][1]
    return shape


def shapes_of(tree: NormTree, args: argparse.Namespace) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The structure of shapes that `tree` takes, and the shapes by their names (of the only array
    of a tree without branches: an empty one)."""
    if not args.shape:
        named = example_shapes(tree, getattr(args, "rank", None))
    elif not has_branches(tree):
        named = {"": shape_of(tree, args)}
    else:
        named = _named(tree, args)
    for name, shape in named.items():
        if math.prod(shape) == 0:
            what = f"{name} of shape" if name else "an array of shape"
            raise ValueError(f"{what} {shape} has no elements")
    return arrange(tree, named), named


def _named(tree: NormTree, args: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    places = slots(tree)
    options = "write " + " ".join(f"--shape {_word(slot.name)}=1000x1000" for slot in places)
    if any(name is None for name, _ in args.shape):
        raise SpecError(
            f"{tree} takes several arrays: --shape says for which",
            *(slot.leaf.span for slot in places if slot.leaf.span),
            hint=options,
        )
    named: dict[str, tuple[int, ...]] = {}
    for name, shape in args.shape:
        if name in named:
            raise ValueError(f"--shape is given twice for {quote(name)}")
        if not any(slot.fits(name) for slot in places):
            close = get_close_matches(name, [slot.name for slot in places], n=1)
            hint = f"did you mean {quote(close[0])}?" if close else options
            raise SpecError(f"{tree} takes no array {quote(name)}", hint=hint)
        named[name] = shape
    for slot in places:
        if not any(map(slot.fits, named)):
            raise SpecError(
                f"no --shape is for {quote(slot.name)}",
                *filter(None, [slot.leaf.span]),
                hint=options,
            )
    return named


def _word(name: str) -> str:
    """The name as a shell takes it."""
    return f"'{name}'" if any(char in name for char in "*?[ ") else name
