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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from projgen.bench import BURST, Contestant, Result, bench
from projgen.bind import Binding, bind
from projgen.caches import STREAMED_BYTES
from projgen.check import parse_tree
from projgen.outcome import Radius
from projgen.terminal import format_shape

THREADS = (1, 2)
RADIUS = Radius(0.1, relative=True)


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
    rivals = ("eager", "compiled") if find_spec("torch") else ()

    print(f"{platform.platform()}, {os.cpu_count()} processors, NumPy {np.__version__}")
    print("median ms; multiples of np.copyto (target); times faster than NumPy", *rivals, sep=", ")
    print(f"\n{'':57}" + "".join(_heading(threads, rivals) for threads in THREADS))
    above, worst = 0, 0.0
    for case in chosen:
        tree = parse_tree(case.spec)
        result = bench(tree, case.shape, case.dtype, case.order, RADIUS, THREADS, seconds)
        above += _report(case, result, _rivals(case, result, seconds) if rivals else {})
        worst = max(worst, result.difference)
    print(f"\n{above} above target")
    print(
        f"{worst:.1e} of the largest entry from NumPy at most, which sums in the array's own dtype."
    )


def _heading(threads: int, rivals: Sequence[str]) -> str:
    head = f"{f'{threads} thread' + 's' * (threads > 1):>12}{'copies':>8}{'':7}{'NumPy':>7}"
    return head + "".join(f"{rival:>9}" for rival in rivals)


def _report(case: Case, result: Result, rivals: Mapping[int, str]) -> int:
    """Print a case's two lines; how many figures are above their target."""
    copy, *kernels, numpy = result.contestants
    above = 0
    for place, target in enumerate((case.target, case.target_in_place)):
        line = case.label if place == 0 else "    in place"
        line = f"{line:57}"
        for threads, kernel in zip(THREADS, kernels[place::2], strict=True):
            ratio = kernel.median / copy.median
            goal = target if threads == 1 else None
            slow = goal is not None and ratio > goal
            above += slow
            line += f"{1e3 * kernel.median:12.4f}{ratio:8.2f}{'!' if slow else ' '}"
            line += f"{f'({goal})' if goal else '':6}{numpy.median / kernel.median:7.1f}"
            line += rivals.get(threads, "") if place == 0 else " " * len(rivals.get(threads, ""))
        print(line.rstrip(), flush=True)
    return above


# PyTorch: the same steps as projgen.bench.numpy_projection


def _rivals(case: Case, result: Result, seconds: float) -> dict[int, str]:
    """How many times faster the kernels are than PyTorch, by number of threads."""
    import torch

    copy, *kernels, _ = result.contestants
    binding = bind(parse_tree(case.spec), len(case.shape))
    y = np.random.default_rng(0).standard_normal(case.shape).astype(case.dtype)
    y = np.asfortranarray(y) if case.order == "F" else y
    tensor, out, found = torch.from_numpy(y), np.empty_like(y), {}
    radius = RADIUS.of(float(_values(binding, tensor.abs().double())[0]))
    eager = partial(_torch_projection, binding, tensor, radius)
    for threads, kernel in zip(THREADS, kernels[::2], strict=True):
        torch.set_num_threads(threads)
        torch.compiler.reset()
        compiled = partial(torch.compile(_torch_projection), binding, tensor, radius)
        torch.testing.assert_close(compiled(), eager(), rtol=1e-3, atol=1e-4)
        contestants = [
            Contestant("np.copyto", partial(np.copyto, out, y)),
            Contestant("eager", eager),
            Contestant("compiled", compiled),
        ]
        _take_turns(contestants, seconds)
        again, *others = (one.median for one in contestants)
        # This is another run than the kernel's: both are measured in copies.
        ours = kernel.median / copy.median
        found[threads] = "".join(f"{other / again / ours:9.1f}" for other in others)
    return found


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
            assert level.norm == "linf", level.norm
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
            assert level.norm == "l1", level.norm
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
