"""Time chains of norms on this machine, in multiples of `np.copyto` of the same array.

    python benchmarks/chains.py [--quick] [--only TEXT]

Entries are Gaussian, the radius is a tenth of the norm, `out` exists already, and what restores an
array for the next call in place is not timed. Everybody takes turns in one run: the copy and NumPy
with one thread, the kernels with one and with two, PyTorch (where it is installed) with as many as
the kernel beside it. A figure above its target is marked with "!".
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from projgen.bench import BURST, Contestant, Result, bench
from projgen.bind import Binding, bind
from projgen.check import parse_tree
from projgen.outcome import Radius
from projgen.plan import STREAMED_BYTES
from projgen.terminal import format_shape

THREADS = (1, 2)
RADIUS = Radius(0.1, relative=True)
PRECISION = {"float32": 1e-5, "float64": 1e-11}  # NumPy's: it adds up in the array's own dtype


@dataclass(frozen=True)
class Case:
    """One chain on one array, and what a thread may take for it: in multiples of the copy."""

    spec: str
    shape: tuple[int, ...]
    target: float | None
    target_in_place: float | None
    dtype: str = "float32"
    order: str = "C"

    @property
    def in_cache(self) -> bool:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize < STREAMED_BYTES

    @property
    def label(self) -> str:
        return f"{self.spec:25} {format_shape(self.shape):>14} {self.dtype} {self.order}"


def cases() -> Iterator[Case]:
    """The canon."""
    for n in (1000, 4000):
        for dtype in ("float32", "float64"):
            for order in ("C", "F"):
                for axis in (1, 0):
                    cached = n * n * np.dtype(dtype).itemsize < STREAMED_BYTES
                    along = (axis == 1) == (order == "C")  # the groups lie along memory
                    limits = (2.0, 2.0) if cached else (1.5, 1.0 if along else 1.3)
                    yield Case(f"l1(linf(axis={axis}))", (n, n), *limits, dtype, order)
    for leaf, target in (("l2", 2.5), ("l1", 4.0)):
        for n in (1000, 4000):
            for axis in (1, 0):
                yield Case(f"l1({leaf}(axis={axis}))", (n, n), target, target)
    yield Case("l1(l2(linf))", (256, 256, 64), 2.5, 2.5)
    yield Case("l1(linf(linf))", (256, 256, 64), 2.5, 2.5)
    yield Case("l1(l2(linf(axis=(2, 3))))", (512, 512, 3, 3), 4.0, 4.0)
    yield Case("l1", (10_000_000,), 5.0, 5.0)
    yield Case("l1(linf(axis=1))", (32, 32), None, None)  # the price of a call


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="arrays in cache, a moment for each")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose line has TEXT")
    args = parser.parse_args()
    chosen = [case for case in cases() if args.only in case.label]
    if args.quick:
        chosen = [case for case in chosen if case.in_cache and case.dtype == "float32"]
    seconds = 0.1 if args.quick else 2.0
    torch = find_spec("torch") is not None

    print(f"{platform.platform()}, {os.cpu_count()} processors, NumPy {np.__version__}")
    print("median ms, and multiples of np.copyto (target) with one thread and then two;")
    print(f"speedup over NumPy{' and over PyTorch, eager and compiled' if torch else ''}\n")
    columns = "".join(f"{f'{n}T ms':>10}{'copies':>8}{'':8}{'NumPy':>7}" for n in THREADS)
    others = f"{'eager':>8}{'comp.':>8}" * len(THREADS) if torch else ""
    print(f"{'':57}{columns}{others}")
    above, worst = 0, 0.0
    for case in chosen:
        tree = parse_tree(case.spec)
        result = bench(tree, case.shape, case.dtype, case.order, RADIUS, THREADS, seconds)
        if result.difference > PRECISION[case.dtype]:
            sys.exit(f"{case.label}: differs from NumPy by {result.difference:.1e}")
        worst = max(worst, result.difference)
        rivals = _rivals(case, result, seconds) if torch else ""
        above += _report(case, result, rivals)
        sys.stdout.flush()
    print(f"\n{above} above target; from NumPy at most {worst:.1e} of the largest entry away")


def _report(case: Case, result: Result, rivals: str) -> int:
    """Print a case's two lines; how many figures are above their target."""
    copy, *kernels, numpy = result.contestants
    above = 0
    for place, target in enumerate((case.target, case.target_in_place)):
        cells = ""
        for i, kernel in enumerate(kernels[place::2]):
            ratio = kernel.median / copy.median
            limit = f"({target})" if target and i == 0 else ""  # targets are for one thread
            slow = bool(target and i == 0 and ratio > target)
            above += slow
            cells += f"{1e3 * kernel.median:10.4f}{ratio:8.2f}{'!' if slow else ' '}{limit:7}"
            cells += f"{numpy.median / kernel.median:7.1f}"
        print(f"{case.label if place == 0 else '    in place':57}{cells}{'' if place else rivals}")
    return above


# PyTorch: the same steps as projgen.bench.numpy_projection


def _rivals(case: Case, result: Result, seconds: float) -> str:
    """How many times faster the kernels are than PyTorch, with the same numbers of threads."""
    import torch

    copy, *kernels, _ = result.contestants
    binding = bind(parse_tree(case.spec), len(case.shape))
    y = np.random.default_rng(0).standard_normal(case.shape).astype(case.dtype)
    y = np.asfortranarray(y) if case.order == "F" else y
    radius = 0.1 * float(_values(binding, torch.from_numpy(y).abs().double())[0])
    eager = partial(_torch_projection, binding, torch.from_numpy(y), radius)
    compiled = partial(torch.compile(_torch_projection), binding, torch.from_numpy(y), radius)
    out, cells = np.empty_like(y), ""
    for threads, kernel in zip(THREADS, kernels[::2], strict=True):
        torch.set_num_threads(threads)
        contestants = [Contestant("np.copyto", partial(np.copyto, out, y))]
        contestants += [
            Contestant("eager", eager),
            Contestant("compiled", _checked(compiled, eager)),
        ]
        _take_turns(contestants, seconds)
        again, *others = (one.median for one in contestants)
        # Another run than the kernel's: what both were measured by is the copy.
        cells += "".join(
            f"{other / again / (kernel.median / copy.median):8.1f}" for other in others
        )
    return cells


def _checked(compiled: Callable[[], Any], eager: Callable[[], Any]) -> Callable[[], Any]:
    import torch

    torch.testing.assert_close(compiled(), eager(), rtol=1e-3, atol=1e-4)
    return compiled


def _take_turns(contestants: list[Contestant], seconds: float) -> None:
    while sum(sum(one.seconds) for one in contestants) < seconds or len(contestants[0].seconds) < 9:
        for one in contestants:
            one.run(BURST)


def _values(binding: Binding, a: Any) -> list[Any]:
    """The levels' values from the root's norm down to the entries, with all axes kept."""
    values = [a]
    for level in reversed(binding.levels):
        dims = level.axes
        if level.norm == "l1":
            values.insert(0, values[0].sum(dim=dims, keepdim=True))
        elif level.norm == "l2":
            values.insert(0, values[0].square().sum(dim=dims, keepdim=True).sqrt())
        else:
            values.insert(0, values[0].amax(dim=dims, keepdim=True))
    return values


def _torch_projection(binding: Binding, y: Any, radius: float) -> Any:
    import torch

    norm, *values = _values(binding, y.abs())
    u = torch.full_like(norm, radius)
    for level, a in zip(binding.levels, values, strict=True):
        if level.norm == "linf":
            u = torch.minimum(a, u)
        elif level.norm == "l2":
            u = a * torch.where(norm > u, u / norm, 1.0)
        else:
            u = torch.where(norm > u, (a - _threshold(a, level.axes, u)).clamp(min=0), a)
        norm = a
    return torch.copysign(u, y)


def _threshold(a: Any, axes: tuple[int, ...], radius: Any) -> Any:
    import torch

    last = tuple(range(-len(axes), 0))
    rows = a.movedim(axes, last).flatten(-len(axes))
    descending = rows.sort(dim=-1, descending=True).values
    counts = torch.arange(1, rows.shape[-1] + 1, dtype=a.dtype)
    excess = descending.cumsum(-1) - radius.movedim(axes, last).flatten(-len(axes))
    return (excess / counts).amax(-1).clamp(min=0).reshape(radius.shape)


if __name__ == "__main__":
    main()
