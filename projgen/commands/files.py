"""``projgen run`` and ``projgen path``: projections of the tensors of files."""

from __future__ import annotations

import argparse
import sys
import warnings

from projgen import files
from projgen.arrays import check_dtype
from projgen.check import parse_tree
from projgen.commands.output import print_json
from projgen.errors import SpecError
from projgen.outcome import project
from projgen.projection import build
from projgen.terminal import Terminal, progress
from projgen.trace import trace


def run_run(args: argparse.Namespace) -> int:
    projection = build(parse_tree(args.spec))
    source = files.open_tensors(args.input)
    names = files.choose(source, args.tensor)
    files.check_target(source, args.target)
    replaced, outcomes = {}, []
    for name in names:
        y = source.read(name)
        try:
            check_dtype(y)
            with progress(f"projecting {name}"):
                replaced[name], outcome = project(projection, name, y, args.radius)
        except SpecError as error:
            raise SpecError(f"{name}: {error.message}", *error.spans, hint=error.hint) from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from None
        outcomes.append(outcome)
    files.save(source, args.target, replaced)
    lost = source.metadata and args.target.suffix.lower() != ".safetensors"
    if lost:
        warnings.warn(f"{args.target} cannot hold the metadata of {args.input}", stacklevel=2)
    if args.json:
        return print_json(
            {
                "spec": projection.spec,
                "input": str(args.input),
                "output": str(args.target),
                "radius": str(args.radius),
                "tensors": [outcome.to_json() for outcome in outcomes],
            }
        )
    terminal = Terminal(sys.stdout)
    for outcome in outcomes:
        outcome.draw(terminal)
    terminal.write(f"wrote {args.target}")
    return 0


def run_path(args: argparse.Namespace) -> int:
    traced = trace(
        args.spec, args.input, args.tensor, args.radii, args.points, args.linear, args.at,
        args.dtype, args.out,
    )  # fmt: skip
    if args.json:
        return print_json(traced.to_json())
    traced.draw(Terminal(sys.stdout))
    return 0
