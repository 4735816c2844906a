"""``projgen explain``: what a projection does, told before it is done."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from projgen.bind import bind
from projgen.check import parse_tree
from projgen.commands.compile import compiled_for
from projgen.commands.compile_trees import planned
from projgen.commands.output import print_json
from projgen.commands.shapes import shape_of
from projgen.compiler import Compiled
from projgen.cuda.explain import explain as explain_cuda
from projgen.explain import explain
from projgen.explain_trees import explain_tree
from projgen.terminal import Terminal


def run_explain(args: argparse.Namespace) -> int:
    tree = parse_tree(args.spec)
    if tree.is_plain:
        shape = shape_of(tree, args)
        binding = bind(tree, len(shape), shape)
        compiled = compiled_for(binding, shape, args)
        if isinstance(compiled, Compiled):
            explanation: Any = explain(binding, compiled.plan, shape, args.order)
        else:
            explanation = explain_cuda(binding, compiled, shape, args.order)
    else:
        explanation = explain_tree(planned(tree, args), args.order)
    if args.json:
        return print_json(explanation.to_json())
    explanation.draw(Terminal(sys.stdout))
    return 0
