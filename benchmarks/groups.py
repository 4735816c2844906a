"""Time group levels on this machine, beside chains of the same shape.

    python benchmarks/groups.py [--quick] [--best] [--only TEXT]

A group level has weights, labels, or another norm than `l1`, `l2` and `linf`; what `nonneg=True`
costs a chain is there as well.
Entries are Gaussian, weights between 0.1 and 1 and of the array's dtype, there are 50 labels, the
radius is a tenth of the norm, `out` exists already, one thread. The copy, the chain and the tree
take turns in one run. The last column is what a group level costs: its time in times of the chain.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import numpy as np

import projgen
from projgen.bench import BURST
from projgen.terminal import format_shape

ROWS, COLUMNS = 1, 0


@dataclass(frozen=True)
class Case:
    """A tree with a group level, and the chain that it is measured by, on one array."""

    spec: str
    chain: str
    shape: tuple[int, ...] = (1000, 1000)
    dtype: str = "float32"

    @property
    def label(self) -> str:
        return f"{self.spec:34} {format_shape(self.shape):>12} {self.dtype}"


def cases() -> Iterator[Case]:
    """The canon: `w` are weights of the entries, `v` of the groups, `q` labels along an axis."""
    for norm in ("l1", "l2", "linf"):
        for axis in (ROWS, COLUMNS):
            yield Case(f"l1({norm}(axis={axis}, w=w))", f"l1({norm}(axis={axis}))")
    yield Case("l1(w=w)", "l1", (1_000_000,))
    for leaf in ("l1", "l2", "linf"):
        for axis in (ROWS, COLUMNS):
            yield Case(f"l1({leaf}(axis={axis}), w=v)", f"l1({leaf}(axis={axis}))")
    for axis in (ROWS, COLUMNS):
        yield Case(f"simplex(axis={axis})", f"l1(axis={axis})")
    yield Case("simplex", "l1", (1_000_000,))
    for norm in ("l1", "l2", "linf"):
        for axis in (ROWS, COLUMNS):
            chain = f"l1({norm}(axis={axis}))"
            yield Case(f"l1({norm}(axis={axis}), nonneg=True)", chain)
    for norm in ("l1", "l2", "linf", "lp(p=1.5)"):
        for axis in (ROWS, COLUMNS):
            spec = norm.replace(")", ", ") if ")" in norm else f"{norm}("
            own = "l2" if norm.startswith("lp") else norm
            yield Case(f"l1({spec}axis={axis}, groups=q))", f"l1({own}(axis={axis}))")
    for p in (1.01, 1.5, 3, 50):
        yield Case(f"l1(lp(p={p}, axis=1))", "l1(l2(axis=1))")
    yield Case("l1(lp(p=1.5, axis=0))", "l1(l2(axis=0))")
    yield Case("l1(lp(p=1.5, axis=1))", "l1(l2(axis=1))", dtype="float64")
    yield Case("lp(p=1.5)", "l2", (1_000_000,))
    for axis in (ROWS, COLUMNS):
        yield Case(f"l0(axis={axis}, k=100)", f"l1(axis={axis})")
    yield Case("l0(k=100000)", "l1", (1_000_000,))
    yield Case("l0(axis=1, block=4, k=2)", "l1(axis=1)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a moment for each")
    parser.add_argument(
        "--best", action="store_true", help="the quickest calls' processor time: for a busy machine"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose line has TEXT")
    args = parser.parse_args()
    seconds = 0.15 if args.quick else 1.5
    print(f"{platform.platform()}, {os.cpu_count()} processors, NumPy {np.__version__}")
    print(f"{'':55} {'ms':>9} {'copies':>8} {'chain':>8} {'by chain':>9}")
    for case in cases():
        if args.only in case.label:
            copy, chain, tree = timed(case, seconds, args.best)
            ratios = f"{tree / copy:8.2f} {chain / copy:8.2f} {tree / chain:9.2f}"
            print(f"{case.label} {1e3 * tree:9.3f} {ratios}", flush=True)


def timed(case: Case, seconds: float, best: bool = False) -> list[float]:
    """Medians of a copy, the chain and the tree; or how long the processor took for the `best`."""
    generator = np.random.default_rng(0)
    y = generator.standard_normal(case.shape).astype(case.dtype)
    out = np.empty_like(y)
    calls: list[Callable[[], object]] = [partial(np.copyto, out, y)]
    for spec in (case.chain, case.spec):
        p = projgen.build(spec, threads=1)
        given = _given(p, case, generator)
        radius: Any = None if p.tree.root.k else 0.1 * np.asarray(p.norm(y, **given))
        calls.append(partial(p, y, radius, out=out, **given))
    times: list[list[float]] = [[] for _ in calls]
    clock = thread_time if best else perf_counter
    while sum(map(sum, times)) < seconds or len(times[0]) < 9:
        for call, own in zip(calls, times, strict=True):
            for turn in range(BURST + 1):
                started = clock()
                call()
                own += [clock() - started] if turn else []
    return [min(own) if best else median(own) for own in times]


def _given(p: projgen.Projection, case: Case, generator: np.random.Generator) -> dict[str, Any]:
    """The arrays that a spec names."""
    along = 1 if "axis=1" in case.spec else 0
    groups = [1 if axis == along else n for axis, n in enumerate(case.shape)]
    made = {
        "w": lambda: generator.uniform(0.1, 1, case.shape).astype(case.dtype),
        "v": lambda: generator.uniform(0.1, 1, groups).reshape(-1).astype(case.dtype),
        "q": lambda: np.arange(case.shape[along]) % 50,
    }
    return {name: made[name]() for name in p.tree.bound_names}


if __name__ == "__main__":
    main()
