"""``projgen bench``: the time of a kernel."""

from __future__ import annotations

import argparse
import math
import sys

from projgen.bench import bench
from projgen.bind import bind
from projgen.check import parse_tree
from projgen.commands.compile import compiled_for
from projgen.commands.output import print_json
from projgen.commands.shapes import shape_of
from projgen.cpu.pool import default_threads
from projgen.errors import SpecError
from projgen.shapes import outline_of
from projgen.terminal import Terminal
from projgen.tree import NormTree


def run_bench(args: argparse.Namespace) -> int:
    tree = parse_tree(args.spec)
    _check_single(tree)
    shape = shape_of(tree, args)
    if tree.is_plain:  # rejects empty shapes, and ranks that do not fit
        compiled_for(bind(tree, len(shape), shape), shape, args)
    else:
        _check_special(tree, shape, args.dtype)
    threads = args.threads or [default_threads()]
    result = bench(tree, shape, args.dtype, args.order, args.radius, threads, args.seconds)
    if args.json:
        return print_json(result.to_json())
    result.draw(Terminal(sys.stdout))
    return 0


def _check_single(tree: NormTree) -> None:
    branch = next((node for node in tree.levels if node.is_branch), None)
    if branch is not None:
        raise SpecError(
            f"{tree} takes several arrays, and bench times projections of one",
            *filter(None, [branch.span]),
            hint="time its children one by one",
        )


def _check_special(tree: NormTree, shape: tuple[int, ...], dtype: str) -> None:
    if dtype not in ("float32", "float64"):
        raise ValueError(f"the CPU's kernels take float32 and float64, not {dtype}")
    if math.prod(shape) == 0:
        raise ValueError(f"an array of shape {shape} has no elements")
    outline_of(tree, shape)
