"""``projgen run`` and ``projgen path``: projections of the tensors of files."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from projgen import files
from projgen.api import build
from projgen.check import parse_tree
from projgen.commands.bindings import check_radius_given, read_bindings
from projgen.commands.output import print_json
from projgen.errors import SpecError, quote
from projgen.outcome import Outcome, project
from projgen.outcome_trees import TreeOutcome, project_arrays
from projgen.projection import Projection
from projgen.shapes import has_branches, slots
from projgen.sweep import require_one_array
from projgen.terminal import Terminal, format_count, progress
from projgen.trace import trace
from projgen.tree import NormTree


def run_run(args: argparse.Namespace) -> int:
    tree = _read_spec(args.spec, "projgen run SPEC IN OUT --radius R")
    check_radius_given(tree, args.radius)
    given = read_bindings(tree, args.bind)
    source = files.open_tensors(args.input)
    files.check_target(source, args.target)
    work = _all_tensors if has_branches(tree) else _each_tensor
    replaced, outcomes = work(build(tree), source, args, given)
    files.save(source, args.target, replaced)
    lost = source.metadata and args.target.suffix.lower() != ".safetensors"
    if lost:
        warnings.warn(f"{args.target} cannot hold the metadata of {args.input}", stacklevel=2)
    if args.json:
        radius = tree.root.k if args.radius is None else str(args.radius)
        facts = {
            "spec": tree.spec,
            "input": str(args.input),
            "output": str(args.target),
            "radius": radius,
        }
        if isinstance(outcomes, TreeOutcome):
            return print_json({**facts, "together": outcomes.to_json()})
        return print_json({**facts, "tensors": [outcome.to_json() for outcome in outcomes]})
    terminal = Terminal(sys.stdout)
    for outcome in [outcomes] if isinstance(outcomes, TreeOutcome) else outcomes:
        outcome.draw(terminal)
    terminal.write(f"wrote {args.target}")
    return 0


def _read_spec(text: str, usage: str) -> NormTree:
    """The tree; a SpecError that has the `usage` if a file stands in the spec's place."""
    if files.is_tensors(text):
        raise SpecError(f"{quote(text, 80)} stands where the spec belongs", hint=f"write {usage}")
    return parse_tree(text)


Given = Mapping[str, Any]


def _each_tensor(
    projection: Projection, source: files.TensorFile, args: argparse.Namespace, given: Given
) -> tuple[dict[str, Any], list[Outcome]]:
    """The tensors that are chosen, each by itself."""
    replaced, outcomes = {}, []
    for name in files.choose(source, args.tensor, several=True):
        y = source.read(name)
        try:
            files.check_numbers(y, "run does not convert tensors")
            with progress(f"projecting {name}"):
                replaced[name], outcome = project(projection, name, y, args.radius, given)
        except SpecError as error:
            raise SpecError(f"{name}: {error.message}", *error.spans, hint=error.hint) from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from None
        outcomes.append(outcome)
    return replaced, outcomes


def _all_tensors(
    projection: Projection, source: files.TensorFile, args: argparse.Namespace, given: Given
) -> tuple[dict[str, Any], TreeOutcome]:
    """The tensors of a tree with branches, as one."""
    tree = projection.tree
    chosen = files.choose(source, args.tensor, several=True) if args.tensor else list(source.names)
    tensors = tensors_of(tree, chosen, str(source.path), bool(args.tensor))
    named = {slot: source.read(name) for slot, name in tensors.items()}
    for slot, y in named.items():
        try:
            files.check_numbers(y, "run does not convert tensors")
        except ValueError as error:
            raise ValueError(f"{tensors[slot]}: {error}") from None
    try:
        with progress(f"projecting {format_count(len(named), 'tensor')}"):
            results, outcome = project_arrays(projection, named, args.radius, given)
    except SpecError:
        raise
    except (TypeError, ValueError) as error:
        raise ValueError(str(error)) from None
    return {tensors[slot]: x for slot, x in results.items()}, outcome


def tensors_of(tree: NormTree, names: Sequence[str], path: str, all_wanted: bool) -> dict[str, str]:
    """Which tensor each array of a tree is: those of its name or pattern, or without names the
    tensors in their order. Others are left, unless `all_wanted`."""
    places = slots(tree)
    listed = f"{path} has {_listed(names)}"
    if tree.root.is_branch and not tree.root.is_patterned and tree.root.children[0].name is None:
        if any(slot.is_pattern for slot in places) or len(names) != len(places):
            raise SpecError(
                f"{tree} takes {len(places)} tensors, in this order, and there are {len(names)}",
                *filter(None, [slot.leaf.span for slot in places]),
                hint=f"choose them with --tensor: {listed}",
            )
        return {slot.name: name for slot, name in zip(places, names, strict=True)}
    for slot in places:
        if any(map(slot.fits, names)):
            continue
        close = get_close_matches(slot.name.replace("*", ""), names, n=1, cutoff=0.5)
        hint = f"did you mean {quote(close[0])}? " if close else ""
        what = "no tensor matches" if slot.is_pattern else "there is no tensor"
        raise SpecError(
            f"{what} {quote(slot.name)}",
            *filter(None, [slot.leaf.span]),
            hint=f"{hint}{listed}",
        )
    found = {name: name for name in names if any(slot.fits(name) for slot in places)}
    left = [name for name in names if name not in found]
    if left and all_wanted:
        raise SpecError(
            f"{tree} takes no tensor {quote(left[0])}, which --tensor names",
            hint="tensors that the spec does not name are copied: leave it out",
        )
    return found


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(map(quote, names[:most]))
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def run_path(args: argparse.Namespace) -> int:
    tree = _read_spec(args.spec, "projgen path SPEC FILE")
    require_one_array(tree)
    traced = trace(
        args.spec, args.input, args.tensor, args.radii, args.points, args.linear, args.at,
        args.dtype, args.out, read_bindings(tree, args.bind),
    )  # fmt: skip
    if args.json:
        return print_json(traced.to_json())
    traced.draw(Terminal(sys.stdout))
    return 0
