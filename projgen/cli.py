"""The command line: one function for each command.

Commands return their exit status: 0, or 1 for a failure. Input that is wrong is a ValueError
(a SpecError draws its carets) and ends with status 2.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TextIO

from projgen import cache, completion, doctor, files
from projgen.api import build
from projgen.arguments import MAX_RANK, make_parser
from projgen.arrays import check_dtype
from projgen.bench import bench
from projgen.bind import Binding, bind
from projgen.check import parse_tree
from projgen.compiler import Compiled, c_strides, compile_binding
from projgen.cpu.pool import default_threads
from projgen.cuda.compiler import Compiled as CudaCompiled
from projgen.cuda.compiler import compile_binding as compile_cuda
from projgen.cuda.explain import explain as explain_cuda
from projgen.errors import SpecError
from projgen.explain import explain
from projgen.outcome import project
from projgen.parse import parse
from projgen.produce import produce
from projgen.projection import example_shape
from projgen.terminal import (
    Terminal,
    format_bytes,
    format_count,
    format_seconds,
    format_shape,
    progress,
)
from projgen.trace import trace
from projgen.tree import Node, NormTree

MISSING_OR_MISPLACED = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
)
FAILURE, WRONG_INPUT, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status. Nothing but results goes to stdout."""
    words = list(sys.argv[1:] if argv is None else argv)
    # None where the caller has closed them, as with >&- or a job without a console.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    try:
        with _plain_warnings():
            status = _run(words)
            sys.stdout.flush()
            return status
    except SystemExit as stop:  # argparse: help, version and usage errors
        return stop.code if isinstance(stop.code, int) else FAILURE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _silence(sys.stdout)
        return BROKEN_PIPE
    except (ValueError, *MISSING_OR_MISPLACED) as error:
        return _complain(error, WRONG_INPUT)
    except (OSError, ImportError, MemoryError) as error:
        return _complain(error, FAILURE)


def _run(words: list[str]) -> int:
    parser = make_parser()
    if words[:1] == [completion.COMMAND]:  # before argparse, which would read the words' options
        found = completion.complete(parser, words[1:])
        print(*found, sep="\n", end="\n" if found else "")
        return 0 if found else FAILURE
    args = parser.parse_args(words)
    if args.command is None:
        parser.print_help(sys.stderr)
        return WRONG_INPUT
    return COMMANDS[args.command](args)


def _compile(args: argparse.Namespace) -> int:
    if args.emit:
        text = _emit(args)
        if args.json:
            return _json({"emit": args.emit, "text": text})
        if args.emit == "source":  # byte for byte
            sys.stdout.write(text)
        else:
            Terminal(sys.stdout).write(*text.splitlines())
        return 0
    tree = parse_tree(args.spec)
    binding, shape = _target(tree, args)
    compiled = _compiled(binding, shape, args)
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
        args.output.mkdir(parents=True, exist_ok=True)
        suffix = "cu" if args.backend == "cuda" else "py"
        module = args.output / f"{_module_name(tree, args, binding.rank)}.{suffix}"
        with files.replacing(module) as out:
            out.write(compiled.source.encode())
        facts["written"] = str(module)
    return _json(facts) if args.json else _draw_compiled(facts, bool(args.shape))


def _emit(args: argparse.Namespace) -> str:
    """What one stage of the compiler gives, as text."""
    if args.emit == "ast":
        return str(parse(args.spec))
    tree = parse_tree(args.spec)
    if args.emit == "tree":
        return tree.pretty()
    compiled = _compiled(*_target(tree, args), args)
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
        return bind(tree, len(args.shape), args.shape), args.shape
    binding = bind(tree, args.rank) if args.rank else _smallest(tree)
    return binding, example_shape(binding.rank)


def _explain(args: argparse.Namespace) -> int:
    binding = bind(parse_tree(args.spec), len(args.shape), args.shape)
    compiled = _compiled(binding, args.shape, args)
    if isinstance(compiled, Compiled):
        explanation: Any = explain(binding, compiled.plan, args.shape, args.order)
    else:
        explanation = explain_cuda(binding, compiled, args.shape, args.order)
    if args.json:
        return _json(explanation.to_json())
    explanation.draw(Terminal(sys.stdout))
    return 0


def _run_file(args: argparse.Namespace) -> int:
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
        return _json(
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


def _path(args: argparse.Namespace) -> int:
    traced = trace(
        args.spec, args.input, args.tensor, args.radii, args.points, args.linear, args.at,
        args.dtype, args.out,
    )  # fmt: skip
    if args.json:
        return _json(traced.to_json())
    traced.draw(Terminal(sys.stdout))
    return 0


def _bench(args: argparse.Namespace) -> int:
    tree = parse_tree(args.spec)
    _compiled(bind(tree, len(args.shape), args.shape), args.shape, args)  # rejects empty shapes
    threads = args.threads or [default_threads()]
    result = bench(tree, args.shape, args.dtype, args.order, args.radius, threads, args.seconds)
    if args.json:
        return _json(result.to_json())
    result.draw(Terminal(sys.stdout))
    return 0


def _cache(args: argparse.Namespace) -> int:
    terminal = Terminal(sys.stdout)
    if args.action == "path":
        root = str(cache.cache_root())
        if args.json:
            return _json({"path": root})
        terminal.write(root)
        return 0
    if args.action == "clear":
        count, size = cache.clear()
        if args.json:
            return _json({"removed": count, "bytes": size})
        terminal.write(f"removed {format_count(count, 'kernel')}, {format_bytes(size)}")
        return 0
    entries = cache.entries()
    if args.json:
        return _json(
            [
                {"path": str(entry.path), "key": entry.key, "title": entry.title,
                 "bytes": entry.size, "modified": entry.mtime}
                for entry in entries
            ]
        )  # fmt: skip
    for entry in entries:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.mtime))
        key = terminal.paint(entry.key[:8], "dim")
        terminal.write(f"{key}  {day}  {format_bytes(entry.size):>7}  {entry.title}")
    total = format_bytes(sum(entry.size for entry in entries))
    terminal.write(f"{format_count(len(entries), 'kernel')}, {total}, in {cache.cache_root()}")
    return 0


def _doctor(args: argparse.Namespace) -> int:
    findings = []
    terminal = Terminal(sys.stdout)
    for finding in doctor.examine():
        findings.append(finding)
        if not args.json:
            finding.draw(terminal)
            sys.stdout.flush()
    ill = any(finding.status == "problem" for finding in findings)
    if args.json:
        _json({"healthy": not ill, "findings": [finding.to_json() for finding in findings]})
    return FAILURE if ill else 0


def _completion(args: argparse.Namespace) -> int:
    sys.stdout.write(completion.SCRIPTS[args.shell])
    return 0


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = MappingProxyType(
    {
        "compile": _compile,
        "explain": _explain,
        "run": _run_file,
        "path": _path,
        "bench": _bench,
        "cache": _cache,
        "doctor": _doctor,
        "completion": _completion,
    }
)


def _smallest(tree: NormTree) -> Binding:
    """The tree on arrays of the smallest rank that it fits."""
    for rank in range(1, MAX_RANK):
        try:
            return bind(tree, rank)
        except SpecError:
            continue
    return bind(tree, MAX_RANK)


def _compiled(
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


def _module_name(tree: NormTree, args: argparse.Namespace, rank: int) -> str:
    """``l1_linf_axis1_2d_float32``: for files, unique among the kernels of a chain."""
    options = [
        "x".join(map(str, args.shape)) if args.shape else f"{rank}d",
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


def _json(value: Any) -> int:
    print(json.dumps(_finite(value), indent=2, allow_nan=False))
    return 0


def _finite(value: Any) -> Any:
    """JSON has no infinity: it becomes null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _complain(error: Exception, status: int) -> int:
    terminal = Terminal(sys.stderr)
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}"
    first, *rest = text.splitlines()
    terminal.write(f"projgen: {terminal.paint('error:', 'red', 'bold')} {first}", *rest)
    return status


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as one line on stderr, without the source line that raised them."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        terminal = Terminal(sys.stderr)
        terminal.write(f"projgen: {terminal.paint('warning:', 'yellow', 'bold')} {message}")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _silence(stream: TextIO) -> None:
    """Python flushes stdout once more at its end; nobody reads it any more."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
