"""``projgen compile``: kernels, and what the stages of the compiler give."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from projgen import cache
from projgen.bind import Binding, bind
from projgen.check import parse_tree
from projgen.commands import compile_trees
from projgen.commands.output import print_json, write_module
from projgen.commands.shapes import shape_of
from projgen.compiler import Compiled, c_strides, compile_binding
from projgen.cuda.compiler import Compiled as CudaCompiled
from projgen.cuda.compiler import compile_binding as compile_cuda
from projgen.errors import SpecError
from projgen.parse import parse
from projgen.produce import produce
from projgen.shapes import MAX_RANK, example_shape
from projgen.terminal import Terminal, format_seconds, format_shape, progress
from projgen.tree import Node, NormTree


def run_compile(args: argparse.Namespace) -> int:
    if args.emit:
        text = _emit(args)
        if args.json:
            return print_json({"emit": args.emit, "text": text})
        if args.emit == "source":  # byte for byte
            sys.stdout.write(text)
        else:
            Terminal(sys.stdout).write(*text.splitlines())
        return 0
    tree = parse_tree(args.spec)
    if not tree.is_plain:
        return compile_trees.run(tree, args)
    binding, shape = _target(tree, args)
    compiled = compiled_for(binding, shape, args)
    started = time.perf_counter()
    with progress(f"compiling {tree.spec}"):
        product = produce(compiled, args.arch)
    facts = {
        "spec": tree.spec,
        "dtype": args.dtype,
        "shape": shape,
        "order": args.order,
        "in_place": args.in_place,
        "backend": args.backend,
        "cached": product.cached,
        "seconds": time.perf_counter() - started,
        "key": cache.key_of(compiled.source),
        "file": product.file and str(product.file),  # else it is for this process alone
        "architecture": product.architecture,
        "cubin": product.cubin and str(product.cubin),
        "missing": product.missing,
        "written": None,
    }
    if args.output is not None:
        suffix = "cu" if args.backend == "cuda" else "py"
        name = f"{module_name(tree, args, binding.rank)}.{suffix}"
        facts["written"] = str(write_module(args.output, name, compiled.source))
    return print_json(facts) if args.json else _draw_compiled(facts, bool(args.shape))


def _emit(args: argparse.Namespace) -> str:
    """What one stage of the compiler gives, as text."""
    if args.emit == "ast":
        return str(parse(args.spec))
    tree = parse_tree(args.spec)
    if args.emit == "tree":
        return tree.pretty()
    if not tree.is_plain:
        plan = compile_trees.planned(tree, args)
        return str(plan) if args.emit == "plan" else plan.source
    compiled = compiled_for(*_target(tree, args), args)
    return str(compiled.plan) if args.emit == "plan" else compiled.source


def _draw_compiled(facts: Mapping[str, Any], shape_given: bool) -> int:
    terminal = Terminal(sys.stdout)
    terminal.write(
        terminal.paint("cached" if facts["cached"] else "compiled", "green", "bold")
        + f" {facts['spec']} for {facts['dtype']}, rank {len(facts['shape'])}, {facts['order']} "
        f"order{', in place' if facts['in_place'] else ''}: {format_seconds(facts['seconds'])}"
    )
    if not shape_given:
        terminal.write(f"  made for   arrays like {format_shape(facts['shape'])} (--shape)")
    terminal.write(f"  kernel     {facts['file'] or 'not kept: the cache cannot be used'}")
    if facts["cubin"]:
        terminal.write(f"  {facts['architecture']:10} {facts['cubin']}")
    if facts["missing"]:
        terminal.write(f"  no cubin   {facts['missing']}")
    if facts["written"]:
        terminal.write(f"  written    {facts['written']}")
    return 0


def _target(tree: NormTree, args: argparse.Namespace) -> tuple[Binding, tuple[int, ...]]:
    """What to compile for: the shape or rank that was given, else the smallest rank that fits."""
    if args.shape:
        shape = shape_of(tree, args)
        return bind(tree, len(shape), shape), shape
    binding = bind(tree, args.rank) if args.rank else smallest(tree)
    return binding, example_shape(binding.rank)


def smallest(tree: NormTree) -> Binding:
    """The tree on arrays of the smallest rank that it fits."""
    for rank in range(1, MAX_RANK):
        try:
            return bind(tree, rank)
        except SpecError:
            continue
    return bind(tree, MAX_RANK)


def compiled_for(
    binding: Binding, shape: tuple[int, ...], args: argparse.Namespace
) -> Compiled | CudaCompiled:
    """Plan and source for arrays of `shape`, in the order that was asked for."""
    if math.prod(shape) == 0:
        raise ValueError(f"an array of shape {shape} has no elements")
    strides = c_strides(shape) if args.order == "C" else c_strides(shape[::-1])[::-1]
    in_place = getattr(args, "in_place", False)
    if getattr(args, "backend", "cpu") == "cuda":
        return compile_cuda(binding, shape, args.dtype, strides, in_place=in_place)
    return compile_binding(binding, shape, args.dtype, strides, in_place=in_place)


def module_name(tree: NormTree, args: argparse.Namespace, rank: int) -> str:
    """``l1_linf_axis1_2d_float32``: for files, unique among the kernels of a chain."""
    options = [
        "x".join(map(str, shape_of(tree, args))) if args.shape else f"{rank}d",
        args.dtype,
        *(["fortran"] if args.order == "F" else []),
        *(["in_place"] if args.in_place else []),
        *(["cuda"] if args.backend == "cuda" else []),
    ]
    levels = "_".join(map(_node_name, tree.levels))
    if len(levels) > 80:
        levels = f"{levels[:64]}_{cache.key_of(tree.spec)[:8]}"
    return "_".join([levels, *options])


def _node_name(node: Node) -> str:
    if node.axis is None:
        return node.norm
    return f"{node.norm}_axis{'_'.join(map(str, node.axis))}".replace("-", "m")
