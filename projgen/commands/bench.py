"""``projgen bench``: the time of a kernel."""

from __future__ import annotations

import argparse
import sys

from projgen.bench import bench
from projgen.bind import bind
from projgen.check import parse_tree
from projgen.commands.compile import compiled_for
from projgen.commands.output import print_json
from projgen.cpu.pool import default_threads
from projgen.terminal import Terminal


def run_bench(args: argparse.Namespace) -> int:
    tree = parse_tree(args.spec)
    compiled_for(bind(tree, len(args.shape), args.shape), args.shape, args)  # rejects empty shapes
    threads = args.threads or [default_threads()]
    result = bench(tree, args.shape, args.dtype, args.order, args.radius, threads, args.seconds)
    if args.json:
        return print_json(result.to_json())
    result.draw(Terminal(sys.stdout))
    return 0
