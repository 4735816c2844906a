"""``projgen compile`` of whole trees: all kernels of their parts."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

from projgen import cache
from projgen.commands.output import print_json, write_module
from projgen.commands.shapes import shapes_of
from projgen.part_sweeps import Sweep
from projgen.produce import produce
from projgen.shapes import require_gpu
from projgen.terminal import Terminal, format_count, format_seconds, format_shape, progress
from projgen.tree import NormTree
from projgen.tree_plan import TreePlan, described, plan_tree


def planned(tree: NormTree, args: argparse.Namespace) -> TreePlan:
    """The plan for the arrays that were asked for, else for examples."""
    if args.backend == "cuda":
        require_gpu(tree)
    shapes, _ = shapes_of(tree, args)
    return plan_tree(
        tree, shapes, args.dtype, order=args.order, in_place=args.in_place, backend=args.backend
    )


def run(tree: NormTree, args: argparse.Namespace) -> int:
    plan = planned(tree, args)
    if args.arch is not None and args.backend != "cuda":
        raise ValueError("--arch names a GPU's machine code: it goes with --backend cuda")
    suffix = "cu" if args.backend == "cuda" else "py"
    started = time.perf_counter()
    kernels: list[dict[str, Any]] = []
    with progress(f"compiling {tree.spec}") as tell:
        for source, (sweep, parts) in plan.kernels.items():
            tell(len(kernels), len(plan.kernels))
            product = produce(sweep.kernel, args.arch)
            name = f"{len(kernels) + 1}_{_module_name(sweep)}.{suffix}"
            kernels.append(
                {
                    "title": sweep.kernel.title,
                    "dtype": sweep.dtype,
                    "parts": [described(part) for part in parts],
                    "cached": product.cached,
                    "key": cache.key_of(source),
                    "file": product.file and str(product.file),
                    "architecture": product.architecture,
                    "cubin": product.cubin and str(product.cubin),
                    "missing": product.missing,
                    "written": None
                    if args.output is None
                    else str(write_module(args.output, name, source)),
                }
            )
    facts = {
        "spec": tree.spec,
        "dtype": args.dtype,
        "shapes": {arm.arm.label: arm.shape for arm in plan.outline.bound.arms},
        "order": args.order,
        "in_place": args.in_place,
        "backend": args.backend,
        "seconds": time.perf_counter() - started,
        "kernels": kernels,
    }
    return print_json(facts) if args.json else _draw(facts, bool(args.shape))


def _draw(facts: Mapping[str, Any], shape_given: bool) -> int:
    terminal = Terminal(sys.stdout)
    kernels = facts["kernels"]
    cached = sum(kernel["cached"] for kernel in kernels)
    word = "cached" if cached == len(kernels) else "compiled"
    some = f", of which {cached} were cached" if 0 < cached < len(kernels) else ""
    terminal.write(
        terminal.paint(word, "green", "bold") + f" {facts['spec']}: "
        f"{format_count(len(kernels), 'kernel')}{some}: {format_seconds(facts['seconds'])}"
    )
    if not shape_given:
        terminal.write("  made for arrays like these (--shape):")
    for name, shape in facts["shapes"].items():
        options = f"{facts['dtype']}, {facts['order']} order"
        terminal.write(
            f"  array      {name}: {format_shape(shape)}, {options}"
            f"{', in place' if facts['in_place'] else ''}"
        )
    for kernel in kernels:
        first, *others = kernel["parts"]
        more = f" and {format_count(len(others), 'other part')}" if others else ""
        terminal.write(
            f"  kernel     {terminal.paint(kernel['title'], 'bold')}, {kernel['dtype']}, for "
            f"{first}{more}",
            f"             {kernel['file'] or 'not kept: the cache cannot be used'}",
        )
        if kernel["cubin"]:
            terminal.write(f"  {kernel['architecture']:10} {kernel['cubin']}")
        if kernel["missing"]:
            terminal.write(f"  no cubin   {kernel['missing']}")
        if kernel["written"]:
            terminal.write(f"  written    {kernel['written']}")
    return 0


def _module_name(sweep: Sweep) -> str:
    """``l1_axis1_float64``: for files, which a number in front makes unique."""
    words = re.sub(r"[^a-z0-9]+", "_", sweep.kernel.title.replace("-", "m").lower()).strip("_")
    return f"{words[:60]}_{sweep.dtype}"
